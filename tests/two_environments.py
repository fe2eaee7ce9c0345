"""Two environments that have two versions of one package, for the tests of operators that run in them.

A plugin of pytest: test files name it in `pytest_plugins`, and use its fixtures.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from openuni.manifests.hosting import environment
from openuni.manifests.hosting.environment import Environment

VERSIONS = {"old": "1.1.1", "new": "2.0.0"}


def write_requirements(folder: Path) -> tuple[str, str]:
    """Requirements files of an environment with an old, and of one with a new version of iniconfig."""
    for name, version in VERSIONS.items():
        (folder / f"{name}.txt").write_text(f"-r {name}-nested.txt\n")
        (folder / f"{name}-nested.txt").write_text(f"iniconfig=={version}\n")
    return str(folder / "old.txt"), str(folder / "new.txt")


@pytest.fixture(scope="module")
def environment_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which environments are built, for the tests of a file."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("environments")
        patch.setenv(environment.CACHE_VARIABLE, str(folder))
        yield folder


@pytest.fixture(scope="module")
def old_and_new(tmp_path_factory: pytest.TempPathFactory, environment_cache: Path) -> tuple[str, str]:
    """Requirements of two environments with two versions of a package."""
    return write_requirements(tmp_path_factory.mktemp("requirements"))


@pytest.fixture(scope="module")
def python(old_and_new: tuple[str, str]) -> str:
    """The interpreter of the old one."""
    return Environment(requirements=old_and_new[0]).ready().python
