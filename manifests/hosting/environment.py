"""Python environments of operators: named in the recipe by their interpreter, or built by uv from a requirements file.

    [annotators."my_lab.captioner"]
    python = "/envs/captioner/bin/python"      # or: requirements = "captioner.txt"

Its identity is part of the operator's version: a hash of the minor version of Python and of the names and versions of
all packages in it, without those that install packages. Another environment recomputes; the same packages in another
place do not.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from annotated_types import Gt

from openuni.manifests.contracts.component import fingerprint
from openuni.manifests.contracts.options import check_options
from openuni.manifests.errors import MissingRequirement, OpenUniError

CACHE_VARIABLE = "OPENUNI_ENVIRONMENTS"
OURS = ("numpy>=1.26", "annotated-types>=0.7")  # what the contract of operators imports
INSTALLERS = frozenset({"pip", "setuptools", "wheel", "uv"})
OLDEST_PYTHON = (3, 11)
INSPECT_S = 60.0
INSTALL_S = 3600.0
MAX_WORDS_CHARS = 1500
MARK = "openuni.json"  # in an environment of ours that is complete: what was installed
NESTED = re.compile(r"^\s*(?:-r|-c|--requirement|--constraint)[ =]+(\S+)", re.MULTILINE)
INSPECT = """
import importlib.metadata as metadata, json, re, sys
names = {(re.sub("[-_.]+", "-", one.metadata["Name"] or "").lower(), one.version) for one in metadata.distributions()}
print(json.dumps({"python": list(sys.version_info[:3]), "packages": sorted(names)}))
"""


class Contents(NamedTuple):
    """What an environment has."""

    python: tuple[int, ...]  # version
    packages: tuple[tuple[str, str], ...]  # names and versions, sorted

    @property
    def identity(self) -> str:
        """16 hex digits; see above."""
        packages = [list(one) for one in self.packages if one[0] not in INSTALLERS]
        return fingerprint(python=list(self.python[:2]), packages=packages)


class ReadyEnvironment(NamedTuple):
    """An environment as the driver found or built it, for workers on any node."""

    python: str  # path of its interpreter, on the driver
    contents: Contents
    is_built: bool  # by us: nodes that lack it build the same
    timeout_s: float


@dataclass(frozen=True)
class Environment:
    """The environment of one operator, as the recipe names it. Only recipes do: a corpus never does."""

    python: Annotated[str, "path of the Python of an existing environment"] = ""
    requirements: Annotated[str, "requirements file from which uv builds an environment"] = ""
    timeout_s: Annotated[float, "time for one clip, seconds; then its process is ended and the clip fails", Gt(0)] = (
        3600.0
    )

    def __post_init__(self) -> None:
        check_options(self, "environment of an operator")
        if bool(self.python) == bool(self.requirements):
            raise OpenUniError(
                f"environment of an operator: python = {self.python!r} and requirements = {self.requirements!r}. "
                "Allowed: one of them."
            )

    def ready(self) -> ReadyEnvironment:
        """Find the environment, or build it. Raises `OpenUniError` if that fails."""
        if self.python:
            python = interpreter(self.python)
            return ReadyEnvironment(python, contents_of(python), False, self.timeout_s)
        python = built_from_file(Path(self.requirements))
        return ReadyEnvironment(python, contents_of(python), True, self.timeout_s)


def on_this_node(ready: ReadyEnvironment) -> str:
    """The interpreter of the driver's environment on this node, built here if need be.

    Raises `OpenUniError` if it is missing, or has other packages than on the driver.
    """
    if ready.is_built and not _is_complete(Path(ready.python).parent.parent):
        return built_from_list(ready.contents)
    python = interpreter(ready.python)
    found = contents_of(python)
    if found.identity != ready.contents.identity:
        differing = sorted({name for name, _ in set(found.packages) ^ set(ready.contents.packages)} - INSTALLERS)
        raise OpenUniError(
            f"python = {python} has other packages or another Python on this node than on the driver "
            f"({', '.join(differing[:10]) or found.python}). Install the same on all nodes."
        )
    return python


def check_on_this_node(ready: ReadyEnvironment) -> None:
    """As `on_this_node`, without building: what a node lacks that the run would build there needs uv alone.

    Raises `OpenUniError`.
    """
    if ready.is_built and not _is_complete(Path(ready.python).parent.parent):
        find_uv()
    else:
        on_this_node(ready)


def interpreter(given: str) -> str:
    """The absolute path of an interpreter. Raises `OpenUniError` if it does not exist."""
    path = Path(os.path.abspath(Path(given).expanduser()))  # noqa: PTH100  # links must stay: they say which environment
    if not path.is_file() or not os.access(path, os.X_OK):
        what = "is not an executable file" if path.exists() else "does not exist"
        raise OpenUniError(
            f"python = {given} {what}. Give the path of the Python of an existing environment, such as "
            "ENVIRONMENT/bin/python, or requirements = FILE to have one built."
        )
    return str(path)


def check_python(ready: ReadyEnvironment) -> None:
    """Raises `OpenUniError` if the Python of an environment is too old, or lacks what the contract imports."""
    version, names = ready.contents.python, {name for name, _ in ready.contents.packages}
    if version[:2] < OLDEST_PYTHON:
        raise OpenUniError(
            f"python = {ready.python} is Python {'.'.join(map(str, version))}. Allowed: Python "
            f"{'.'.join(map(str, OLDEST_PYTHON))} or later."
        )
    absent = [one for one in OURS if one.partition(">")[0] not in names]
    if absent:
        install = " ".join(f"'{one}'" for one in absent)
        raise OpenUniError(
            f"python = {ready.python} lacks {' and '.join(absent)}. Install them with: {ready.python} -m pip install "
            f"{install}"
        )


def contents_of(python: str) -> Contents:
    """What the environment of an interpreter has. Raises `OpenUniError` if it cannot say."""
    try:
        done = subprocess.run([python, "-I", "-c", INSPECT], capture_output=True, timeout=INSPECT_S, check=False)
        told = json.loads(done.stdout)
        packages = tuple((str(name), str(version)) for name, version in told["packages"])
        return Contents(tuple(int(part) for part in told["python"]), packages)
    except (OSError, subprocess.TimeoutExpired, ValueError, LookupError, TypeError) as error:
        words = done.stderr.decode(errors="replace").strip()[-300:] if not isinstance(error, OSError) else ""
        raise OpenUniError(f"python = {python} is not a Python interpreter that works: {words or error}") from error


def built_from_file(file: Path) -> str:
    """The interpreter of the environment with the packages of a requirements file. Raises `OpenUniError`."""
    file = file.expanduser().absolute()
    if not file.is_file():
        raise OpenUniError(f"requirements = {file} does not exist. Give a file with one requirement per line.")
    return _built(_text(file), ["--requirement", str(file), *OURS], f"requirements = {file}")


def built_from_list(contents: Contents) -> str:
    """The interpreter of an environment with exactly these packages. Raises `OpenUniError`."""
    pins = [f"{name}=={version}" for name, version in contents.packages if name not in INSTALLERS]
    return _built("\n".join(pins), ["--no-deps", *pins], "the environment of the driver")


def _text(file: Path, depth: int = 5) -> str:
    """The contents of a requirements file and of those that it names."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OpenUniError(f"requirements = {file} cannot be read: {error}") from error
    nested = [_text(file.parent / name, depth - 1) for name in NESTED.findall(text)] if depth else []
    return "\n".join([text, *nested])


def _built(facts: str, arguments: Sequence[str], where: str) -> str:
    version = ".".join(map(str, sys.version_info[:2]))
    key = hashlib.sha256(json.dumps([facts, version, OURS]).encode()).hexdigest()[:16]
    folder = _cache() / key
    if not _is_complete(folder):
        with _locked(folder.with_suffix(".lock")):
            if not _is_complete(folder):
                _build(folder, arguments, where)
    return str(folder / "bin" / "python")


def _build(folder: Path, arguments: Sequence[str], where: str) -> None:
    uv = find_uv()
    shutil.rmtree(folder, ignore_errors=True)  # one that was not finished
    python = folder / "bin" / "python"
    _uv([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], where)
    _uv([uv, "pip", "install", "--quiet", "--python", str(python), *arguments], where)
    (folder / MARK).write_text(json.dumps({"packages": contents_of(str(python)).packages}))


def _uv(command: Sequence[str], where: str) -> None:
    """Run uv. Raises `OpenUniError` with what it says."""
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    try:
        done = subprocess.run(command, capture_output=True, timeout=INSTALL_S, env=environment, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise OpenUniError(f"{where}: cannot be installed: {error}") from error
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip()[-MAX_WORDS_CHARS:]
        raise OpenUniError(
            f"{where}: cannot be installed. Correct the file, or build the environment yourself and give python = "
            f"ENVIRONMENT/bin/python. uv says:\n{words}"
        )


def find_uv() -> str:
    """The path of uv. Raises `MissingRequirement`."""
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.is_file() else shutil.which("uv")
    if found is None:
        raise MissingRequirement(
            "requirements = FILE needs uv, which is not installed. Install it with: pip install uv, or give python = "
            "ENVIRONMENT/bin/python."
        )
    return found


def _cache() -> Path:
    given = os.environ.get(CACHE_VARIABLE)
    folder = Path(given).expanduser() if given else Path.home() / ".cache" / "openuni" / "environments"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OpenUniError(
            f"{folder}: environments cannot be built there: {error}. Set {CACHE_VARIABLE} to another folder."
        ) from error
    return folder.absolute()


def _is_complete(folder: Path) -> bool:
    return (folder / MARK).is_file() and (folder / "bin" / "python").exists()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Only one process builds an environment at a time; the others wait."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def split_table(kind: type[Any], table: Any) -> tuple[Any, dict[str, Any]]:
    """The options of an operator's table without those that name its environment, and the latter.

    An operator that has an option of one of these names keeps it.
    """
    if not isinstance(table, Mapping):
        return table, {}
    own = getattr(kind, "__dataclass_fields__", {})
    named = {name: value for name, value in table.items() if name in ("python", "requirements") and name not in own}
    if named and "timeout_s" in table and "timeout_s" not in own:
        named["timeout_s"] = table["timeout_s"]
    return {name: value for name, value in table.items() if name not in named}, named
