"""`--out` of commands that create something: an empty folder, leftovers of a kill, a file in its place, a new path."""

from collections.abc import Callable
from pathlib import Path

import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.demo.demo import QUICK, Demo
from openuni.manifests.errors import OpenUniError
from tests.command_line import Done, cli


@pytest.fixture(scope="module")
def inputs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus, csv/: its export, and run/: a training run on it."""
    folder = tmp_path_factory.mktemp("inputs")
    for path in tiny.iterdir():
        (folder / path.name).symlink_to(path)
    assert cli("export", folder / "corpus", "--format", "openuni_csv", "--out", folder / "csv").returncode == 0
    openuni.train("unityvideo_debug", folder / "corpus", out=folder / "run")
    return folder


COMMANDS: dict[str, Callable[[Path], tuple[object, ...]]] = {
    "run": lambda at: ("run", at / "corpus.toml", at / "raw", "--only", "ingest", "--workers", 0, "--out"),
    "select": lambda at: ("select", at / "corpus", "--keep", "true", "--out"),
    "export": lambda at: ("export", at / "corpus", "--format", "openuni_csv", "--workers", 1, "--out"),
    "import": lambda at: ("import", "openuni_csv", at / "csv", "--workers", 0, "--out"),
    "train": lambda at: ("train", "unityvideo_debug", "--corpus", at / "corpus", "--out"),
    "world": lambda at: (
        *("world", "--preset", "solids", "--clips", 1, "--frames", 1, "--size", "32x32", "--workers", 1, "--out"),
    ),
    "generate": lambda at: (
        *("generate", at / "run", "--make", "rgb", "--make", "flow", "--prompt", "a texture", "--steps", 1, "--out"),
    ),
}


def start(command: str, inputs: Path, out: Path) -> Done:
    return cli(*COMMANDS[command](inputs), out)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_folder_and_a_new_path_are_used(inputs: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "new" / "deep"):
        done = start(command, inputs, out)
        assert done.returncode == 0, done.stderr
        assert any(out.iterdir())


@pytest.mark.parametrize("command", ["run", "select", "export", "import"])
def test_what_a_kill_in_the_first_write_leaves_is_no_content(inputs: Path, tmp_path: Path, command: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".corpus.json.0123abcd.tmp").write_text('{"for')
    (out / ".driver.lock").touch()
    done = start(command, inputs, out)
    assert done.returncode == 0, done.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".thesis.txt").write_text("mine")
    assert start(command, inputs, tmp_path / "mine").returncode == 2
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [".thesis.txt"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("below", ["", "sub/folder"])
def test_a_file_in_its_place_is_named(inputs: Path, tmp_path: Path, command: str, below: str) -> None:
    file = tmp_path / "thesis.txt"
    file.write_text("mine")
    done = start(command, inputs, file / below if below else file)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"openuni: {file} is a file, so "), done.stderr
    assert file.read_text() == "mine"


def test_the_demo_takes_an_empty_folder_and_no_other(tmp_path: Path) -> None:
    for name in ("empty", "leftover", "new/deep"):
        out = tmp_path / name
        if name != "new/deep":
            out.mkdir()
        if name == "leftover":
            (out / ".demo.json.4711.tmp").write_text("{")
        Demo(out, QUICK, Reporter(quiet=True)).claim_folder()
        assert (out / "demo.json").is_file()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OpenUniError, match="is a file"):
        Demo(tmp_path / "file", QUICK, Reporter(quiet=True)).claim_folder()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(OpenUniError, match="is not empty and does not contain a demo"):
        Demo(tmp_path / "mine", QUICK, Reporter(quiet=True)).claim_folder()


def test_init_writes_into_new_folders_and_names_what_is_in_its_way(tmp_path: Path) -> None:
    assert cli("init", tmp_path / "new" / "deep" / "corpus.toml").returncode == 0
    (tmp_path / "empty").mkdir()
    done = cli("init", tmp_path / "empty")
    assert (
        done.returncode == 2 and f"is a folder. Pass a file name, such as {tmp_path}/empty/corpus.toml" in done.stderr
    )
    (tmp_path / "file").write_text("mine")
    done = cli("init", tmp_path / "file" / "corpus.toml")
    assert done.returncode == 2 and "file is a file, so" in done.stderr
