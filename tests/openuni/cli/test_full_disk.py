"""A full disk in every command that writes: a message with the place and what is kept, and a rerun that resumes."""

from pathlib import Path

import pytest

from openuni.manifests.corpus.corpus import Corpus
from tests.command_line import cli
from tests.full_disk import files_of_at_most
from tests.raw_clips import contents


@pytest.fixture(scope="module")
def inputs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus, and csv/: its export."""
    folder = tmp_path_factory.mktemp("inputs")
    for path in tiny.iterdir():
        (folder / path.name).symlink_to(path)
    assert cli("export", folder / "corpus", "--format", "openuni_csv", "--out", folder / "csv").returncode == 0
    return folder


def command(name: str, inputs: Path, out: Path) -> tuple[object, ...]:
    return {
        "run": ("run", inputs / "corpus.toml", inputs / "raw", "--workers", 0, "--out", out),
        "select": ("select", inputs / "corpus", "--keep", "true", "--out", out),
        "export": ("export", inputs / "corpus", "--format", "webdataset", "--workers", 1, "--out", out),
        "import": ("import", "openuni_csv", inputs / "csv", "--workers", 0, "--out", out),
        "train": ("train", "unityvideo_debug", "--corpus", inputs / "corpus", "--out", out),
        "world": (
            *("world", "--preset", "solids", "--clips", 1, "--frames", 3, "--size", "64x64", "--workers", 1),
            *("--out", out),
        ),
    }[name]


@pytest.mark.parametrize("nbytes", [0, 300, 2000, 6000])
@pytest.mark.parametrize("name", ["run", "select", "export", "import", "train", "world"])
def test_the_message_names_the_place_and_a_rerun_completes(
    inputs: Path, tmp_path: Path, name: str, nbytes: int
) -> None:
    out = tmp_path / "out"
    with files_of_at_most(nbytes):
        full = cli(*command(name, inputs, out))
    if full.returncode == 0:
        pytest.skip("nothing that large was written")
    assert full.returncode == 2, full.stderr
    last = full.stderr.splitlines()[-1]
    assert last.startswith("openuni: no space left"), last
    kept = "There is no checkpoint to resume from" if name == "train" else "Everything finished is kept"
    assert f"{kept}. Free some space, then rerun" in last, last
    assert "Traceback" not in full.stderr
    if name != "world":
        assert f"while writing to {out}" in last, last
    done = cli(*command(name, inputs, out))
    assert done.returncode == 0, done.stderr
    if name in ("run", "select"):
        assert contents(Corpus.open(str(out))) == contents(Corpus.open(str(inputs / "corpus")))
