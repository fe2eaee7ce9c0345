"""The command line as people meet it: help that teaches, errors that help, exit codes that tell."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from openuni.config.recipe import CorpusRecipe
from openuni.config.template import component_page, recipe_template
from openuni.manifests.contracts.discovery import all_component_names

COMMANDS = ("list", "show", "init", "doctor", "run", "summary", "select", "train", "generate", "parity", "demo")


def cli(*arguments, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "openuni", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_help_names_every_command_and_says_what_it_does():
    done = cli("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout, command


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    from typer.testing import CliRunner

    from openuni.cli.main import app

    done = CliRunner().invoke(app, [command, "--help"])
    assert done.exit_code == 0 and len(done.stdout.splitlines()[2].strip()) > 20


def test_list_is_complete_and_imports_nothing_heavy():
    heavy = ["torch", "cv2", "av", "transformers", "diffusers", "ray", "duckdb", "pyarrow", "numpy"]
    code = (
        "import sys; from openuni.cli.main import app; sys.argv = ['openuni', 'list']\n"
        "try: app()\nexcept SystemExit: pass\n"
        f"assert not set({heavy}) & set(sys.modules), set({heavy}) & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for names in all_component_names().values():
        assert all(name in done.stdout for name in names)


@pytest.mark.parametrize("name", [name for names in all_component_names().values() for name in names])
def test_every_part_has_a_page(name):
    text = component_page(name)
    assert (text.startswith(f"{name}: ") and "licence" in text) or "manifests/modalities" in text


def test_the_recipe_that_init_writes_is_valid_and_complete(tmp_path):
    text = recipe_template("corpus.toml")
    recipe = CorpusRecipe.parse(tomllib.loads(text))
    assert recipe.filters and recipe.annotators and recipe.encode
    every = text.replace("# [", "[")
    for line in text.splitlines():
        if line.startswith("# ") and " = " in line.split("  #")[0]:
            every = every.replace(line, line[2:], 1)
    opened = tomllib.loads(every)
    for kind in ("filters", "annotators"):
        assert sorted(opened[kind]) == all_component_names()[kind]
    # all commented options are the defaults, so taking out the # changes nothing
    opened["encode"].update(latents="dct", text="bytes", modalities=["rgb"])
    codecs = {name: table for name, table in opened["encode"].items() if isinstance(table, dict)}
    for name in codecs:
        opened["encode"].pop(name)
    detectors = {name: table for name, table in opened["ingest"].items() if isinstance(table, dict)}
    assert sorted([*detectors, "none"]) == all_component_names()["shots"]
    for name in detectors:
        opened["ingest"].pop(name)
    for name, table in detectors.items():
        cut = CorpusRecipe.parse({"ingest": opened["ingest"] | {"shots": name, name: table}}).shot_detector
        assert cut == type(cut)() and cut.name() == name, f"{name}: init shows other values than the defaults"
    whole = CorpusRecipe.parse(opened)
    for kind in ("filters", "annotators"):
        for name, operator in getattr(whole, kind).items():
            assert operator == type(operator)(), f"{name}: init shows other values than the defaults"


def test_init_does_not_overwrite(tmp_path):
    assert cli("init", tmp_path / "a.toml").returncode == 0
    again = cli("init", tmp_path / "a.toml")
    assert again.returncode == 2 and "exists already" in again.stderr


def test_mistakes_name_the_nearest_thing(tmp_path):
    done = cli("show", "motoin")
    assert done.returncode == 2 and 'Did you mean "motion"' in done.stderr
    done = cli("summary", tmp_path)
    assert done.returncode == 2 and "no corpus at" in done.stderr
    done = cli("generate", tmp_path, "--make", "rgb", "--out", tmp_path / "made")
    assert done.returncode == 2 and "there is no run at" in done.stderr
    done = cli("train", "unityvideo_debgu", "--corpus", tmp_path, "--out", tmp_path / "run")
    assert done.returncode == 2 and "unityvideo_debug" in done.stderr
    assert cli("nonsense").returncode == 2


def test_an_output_that_cannot_be_written_is_no_traceback(tmp_path):
    (tmp_path / "file").write_text("")
    done = cli("init", tmp_path / "file" / "corpus.toml")
    assert done.returncode == 2 and "Traceback" not in done.stderr and "NotADirectory" in done.stderr


def test_operators_of_the_users_own_folder_are_found(tmp_path):
    (tmp_path / "my_lab.py").write_text("")
    package = tmp_path / "lab"
    package.mkdir()
    (package / "edges.py").write_text(
        '"""Edges."""\n'
        "from dataclasses import dataclass\nfrom typing import Annotated, Any, NamedTuple\n"
        "from openuni.manifests.contracts.decoded_clip import DecodedClip\n"
        "from openuni.manifests.contracts.operator import Filter\n"
        'class Scores(NamedTuple):\n    """S."""\n    edges: Annotated[float, "share of edges, 0 to 1"]\n'
        "@dataclass(frozen=True)\nclass Edges(Filter):\n"
        '    """Share of pixels at edges."""\n'
        "    def run(self, model: Any, clip: DecodedClip) -> Scores:\n"
        '        """Frames to a share."""\n        return Scores(0.5)\n'
    )
    done = cli("show", "lab.edges", cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(Path.cwd())})
    assert done.returncode == 0 and "lab.edges.edges" in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["openuni", "koala", "open_sora", "videox_fun"])
def test_ready_recipes_are_valid_and_name_their_source(name, tmp_path):
    file = tmp_path / "corpus.toml"
    done = cli("init", file, "--like", name)
    assert done.returncode == 0, done.stderr
    recipe = CorpusRecipe.load(file)
    assert recipe.keep and recipe.filters and recipe.ingest.shots != "none"
    assert "# Source:" in file.read_text()
    assert name in cli("init", "--help").stdout


def test_an_unknown_ready_recipe_is_named(tmp_path):
    done = cli("init", tmp_path / "corpus.toml", "--like", "koalas")
    assert done.returncode == 2 and 'Did you mean "koala"' in done.stderr
