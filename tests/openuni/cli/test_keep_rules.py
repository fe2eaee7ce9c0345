"""Keep rules that cannot be evaluated are found before anything runs, and never are an internal error."""

from pathlib import Path

import pytest

import openuni
from openuni.console.progress import Reporter
from tests.command_line import cli
from tests.raw_clips import write_clips

BAD = [
    ("sqrtt(luminance.mean) > 0", "sqrtt does not exist"),
    ("luminance.mean > 'abc'", "Could not convert"),
    ("random() > 0.5", "uses random"),
    ("list_sum(range(3000000000)) > 0", "uses range"),
    ("luminance.mean", "not a condition"),
]


@pytest.mark.parametrize(("keep", "message"), BAD)
def test_doctor_and_run_find_it_before_the_first_file_is_read(tmp_path: Path, keep: str, message: str) -> None:
    recipe = tmp_path / "corpus.toml"
    recipe.write_text(f'keep = """{keep}"""\n[filters.luminance]\n')
    write_clips(tmp_path / "raw", 1)
    for command in (("doctor", recipe), ("run", recipe, tmp_path / "raw", "--out", tmp_path / "corpus")):
        done = cli(*command)
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "corpus").exists()


def test_select_and_corpora_with_such_a_rule(tmp_path: Path) -> None:
    write_clips(tmp_path / "raw", 2)
    tables = {"filters": {"luminance": {}}}
    corpus = openuni.run(tables, tmp_path / "raw", out=tmp_path / "corpus", reporter=Reporter(quiet=True))
    for keep, message in [*BAD, ("caption::int > 1", "Could not convert string")]:
        done = cli("select", tmp_path / "corpus", "--keep", keep, "--out", tmp_path / "out")
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert not (tmp_path / "out").exists()
        corpus.save_record(keep=keep)  # as an earlier version accepted it
        for command in ("summary", "explain", "export"):
            extra = {"explain": ("clip-000.mp4",), "export": ("--format", "webdataset", "--out", tmp_path / "out")}
            done = cli(command, tmp_path / "corpus", *extra.get(command, ()))
            assert done.returncode in (0, 2) and "Traceback" not in done.stderr, (command, keep, done.stderr)
            assert done.returncode == (0 if command == "explain" else 2)
    rerun = openuni.run(tables, tmp_path / "raw", out=tmp_path / "corpus", reporter=Reporter(quiet=True))
    assert rerun.summary().ok == 2  # another recipe replaces the rule
