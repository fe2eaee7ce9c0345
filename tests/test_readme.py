"""The README's commands and code run as they stand, in an empty folder with a few videos in raw/."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from openuni.config.recipe import CorpusRecipe
from openuni.manifests.contracts.discovery import all_component_names
from tests.command_line import cli
from tests.docs import blocks, commands
from tests.raw_clips import write_clips

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("readme")
    write_clips(place / "raw", 4, frames=9)
    return place


def test_every_command_works_in_the_order_given(folder):
    given = [command for block in blocks(README, "console") for command in commands(block)]
    assert len(given) > 8
    for command in given:
        words = shlex.split(command, comments=True)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command
            continue
        assert words[0] == "openuni"
        done = cli(*words[1:], cwd=folder)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_every_python_block_works_after_them(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for block in blocks(README, "python"):
        exec(compile(block.text, str(README), "exec"), {"__name__": "__main__"})


def test_the_recipe_shown_is_valid():
    (block,) = blocks(README, "toml")
    recipe = CorpusRecipe.parse(tomllib.loads(block.text))
    assert set(recipe.annotators) == {"dis", "depth_anything"} and recipe.encode.frames == 81


def test_what_it_says_there_is_is_there():
    table = README.read_text().split("| there is | not yet |")[1]
    there = "\n".join(line.split("|")[1] for line in table.splitlines() if line.count("|") == 3)
    for names in all_component_names().values():
        for name in names:
            assert name in there.lower(), f"{name} is not in the table"


@pytest.mark.parametrize("path", [path for path in ROOT.glob("*/README.md")] + [README], ids=str)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), f"{path}: {target}"
