"""Environments of operators: what is wrong with them, nodes that lack them, and messages that are none."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from openuni.config.recipe import CorpusRecipe
from openuni.manifests.errors import MissingRequirement, OpenUniError
from openuni.manifests.hosting import environment
from openuni.manifests.hosting.environment import (
    Contents,
    Environment,
    ReadyEnvironment,
    built_from_list,
    check_python,
    contents_of,
    on_this_node,
)
from openuni.pipeline.runners.node_check import check_node, node_request
from tests.coded_clips import encode
from tests.command_line import cli

ONE = "tests.operators.in_environment"


pytest_plugins = ("tests.two_environments",)
pytestmark = pytest.mark.usefixtures("environment_cache")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    encode(folder / "a.mp4", times=range(3))
    return folder


def stops(tmp_path: Path, raw: Path, match: str, **table: Any) -> None:
    """Doctor says so, and a run does not begin: exit code 2."""
    given = "\n".join(f"{name} = {json.dumps(value)}" for name, value in table.items())
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'[annotators."{ONE}"]\n{given}\n')
    doctor = cli("doctor", recipe)
    assert doctor.returncode in (1, 2) and match in " ".join((doctor.stdout + doctor.stderr).split())
    done = cli("run", recipe, raw, "--out", tmp_path / "c", "--workers", 0)
    assert done.returncode == 2 and match in " ".join(done.stderr.split()), done.stderr
    assert not list((tmp_path / "c").glob("annotations/*")) if (tmp_path / "c").exists() else True


def test_a_missing_interpreter(tmp_path: Path, raw: Path) -> None:
    stops(
        tmp_path, raw, "does not exist. Give the path of the Python", python=str(tmp_path / "none" / "bin" / "python")
    )


def test_a_file_that_is_no_interpreter(tmp_path: Path, raw: Path) -> None:
    stops(tmp_path, raw, "is not an executable file", python=str(tmp_path))
    stops(tmp_path, raw, "is not a Python interpreter that works", python="/bin/true")


def test_an_environment_without_what_the_contract_imports(tmp_path: Path, raw: Path) -> None:
    subprocess.run([environment.find_uv(), "venv", "-q", "--python", sys.executable, tmp_path / "bare"], check=True)
    stops(tmp_path, raw, "lacks numpy>=1.26 and annotated-types>=0.7", python=str(tmp_path / "bare" / "bin" / "python"))


def test_a_python_that_is_too_old() -> None:
    ready = ReadyEnvironment("/envs/old/bin/python", Contents((3, 10, 4), ()), False, 9.0)
    with pytest.raises(OpenUniError, match=r"is Python 3\.10\.4\. Allowed: Python 3\.11 or later"):
        check_python(ready)


def test_requirements_that_do_not_install(tmp_path: Path, raw: Path) -> None:
    (tmp_path / "r.txt").write_text("iniconfig==99.0\n")
    stops(tmp_path, raw, "cannot be installed. Correct the file", requirements=str(tmp_path / "r.txt"))


def test_requirements_that_are_not_there(tmp_path: Path, raw: Path) -> None:
    stops(tmp_path, raw, "does not exist. Give a file", requirements=str(tmp_path / "none.txt"))


def test_both_at_once_and_no_time_are_refused(python: str, old_and_new: tuple[str, str]) -> None:
    for table, match in (
        ({"python": python, "requirements": old_and_new[0]}, "Allowed: one of them"),
        ({"python": python, "timeout_s": 0.0}, "timeout_s = 0.0. Allowed: above 0"),
        ({"python": 3}, "python = 3. Allowed: string"),
        ({"timeout_s": 3.0}, 'no option "timeout_s"'),
    ):
        with pytest.raises(OpenUniError, match=match):
            CorpusRecipe.parse({"annotators": {ONE: table}})


def test_without_uv_the_message_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, old_and_new: tuple[str, str]
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(environment.CACHE_VARIABLE, str(tmp_path / "empty"))
    with pytest.raises(MissingRequirement, match=r"needs uv.*pip install uv, or give python ="):
        Environment(requirements=old_and_new[0]).ready()


def test_a_module_that_the_environment_cannot_import(
    tmp_path: Path, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openuni.annotators.dis import Dis
    from openuni.manifests.hosting.process import HostedModel

    class Elsewhere(Dis):
        """Its module is nowhere else."""

    Elsewhere.__module__ = "nowhere.to.be_found"
    with pytest.raises(OpenUniError, match=r"cannot be imported by .*No module named 'nowhere'.*inside of functions"):
        HostedModel(Elsewhere(), python, "cpu", 9.0, 1)


# ---------------------------------------------------------------------- nodes and messages


def test_a_node_without_the_environment_builds_the_same(
    python: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, old_and_new: tuple[str, str]
) -> None:
    ready = Environment(requirements=old_and_new[0]).ready()
    assert on_this_node(ready) == python
    monkeypatch.setenv(environment.CACHE_VARIABLE, str(tmp_path))
    there = on_this_node(ready._replace(python=str(tmp_path / "of-the-driver" / "bin" / "python")))
    assert there.startswith(str(tmp_path)) and contents_of(there).identity == ready.contents.identity
    assert built_from_list(ready.contents) == there


def test_a_node_with_other_packages_takes_no_part(python: str, old_and_new: tuple[str, str]) -> None:
    new = Environment(requirements=old_and_new[1]).ready()
    with pytest.raises(OpenUniError, match=r"other packages or another Python on this node.*iniconfig"):
        on_this_node(new._replace(python=python, is_built=False))


def test_a_node_says_what_is_wrong_with_its_environments(
    python: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, old_and_new: tuple[str, str]
) -> None:
    new = Environment(requirements=old_and_new[1]).ready()
    other = new._replace(python=python, is_built=False)  # with the packages of `old`
    gone = new._replace(python=str(tmp_path / "bin" / "python"), is_built=False)
    request = node_request([])._replace(environments=(("good", new), ("other", other), ("gone", gone)))
    problems = check_node(request).problems
    assert len(problems) == 2
    assert problems[0].startswith("other: ") and "iniconfig" in problems[0]
    assert problems[1].startswith("gone: ") and "does not exist" in problems[1]

    cache = tmp_path / "cache"
    monkeypatch.setenv(environment.CACHE_VARIABLE, str(cache))
    unbuilt = new._replace(python=str(tmp_path / "of-the-driver" / "bin" / "python"))
    assert check_node(request._replace(environments=(("unbuilt", unbuilt),))).problems == ()
    assert not cache.exists()  # only the run builds it


def test_results_name_no_other_classes() -> None:
    from openuni.manifests.hosting.messages import Received, result_classes, unpack
    from openuni.manifests.modalities.segmentation import Segmentation
    from tests.operators.in_environment import InEnvironment, Seen

    find = result_classes(InEnvironment)
    assert find("tests.operators.in_environment", "Seen") is Seen
    assert find("openuni.manifests.modalities.segmentation", "Segmentation") is Segmentation
    for module, name in (
        ("os", "system"),
        ("subprocess", "Popen"),
        ("tests.operators.in_environment", "InEnvironment"),
        ("tests.operators.in_environment", "Path"),
        ("openuni.manifests.modalities.not_imported", "X"),
        ("openuni.manifests.errors", "OpenUniError"),
    ):
        with pytest.raises(ValueError, match="is not a result"):
            unpack({"$": "record", "module": module, "class": name, "fields": {}}, Received([]), find)


def test_arrays_outside_of_the_message_are_refused() -> None:
    from openuni.manifests.hosting.messages import Received, unpack

    for place in ({"at": 0}, {"at": 10**9}, {"at": -1}):
        message = {"$": "array", "dtype": "<f4", "shape": [3000], **place}
        with pytest.raises(ValueError):
            unpack(message, Received([]), lambda module, name: object)
    with pytest.raises((ValueError, TypeError)):
        unpack({"$": "array", "dtype": "|O", "shape": [1], "base64": "AAAA"}, Received([]), lambda module, name: object)
