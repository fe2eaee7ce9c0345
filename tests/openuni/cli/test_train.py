"""`openuni train`: its last lines, and that it resumes."""

import shutil
from pathlib import Path

import pytest

from openuni.training.recipe import RECIPES_DIR
from tests.command_line import cli
from tests.train.corpora import random_clips, write_corpus


@pytest.mark.parametrize("recipe", ["unityvideo_debug", "my_recipe.toml"])
def test_the_last_lines_tell_debug_runs_and_the_next_command(recipe: str, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", random_clips(4, ("rgb", "depth")))
    shutil.copy(RECIPES_DIR / "unityvideo_debug.toml", tmp_path / "my_recipe.toml")
    command = ("train", recipe, "--corpus", tmp_path / "corpus", "-o", "run")
    done = cli(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, *middle, last = done.stdout.splitlines()
    assert first == "trained 10 steps: run"
    assert middle == (
        ["A debug recipe tests the pipeline: the model is tiny and does not learn, whatever its loss."]
        if recipe == "unityvideo_debug"
        else []
    )
    assert last.startswith("Next, for example: openuni generate run --make ") and last.endswith(" --out FOLDER")
    assert cli(*command, cwd=tmp_path).stdout == done.stdout
