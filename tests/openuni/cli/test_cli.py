"""The command line: help, errors, exit codes, names of flags."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import openuni
from openuni.cli.former_flags import current_flags
from openuni.cli.main import app, resume_hint
from openuni.config.recipe import CorpusRecipe
from openuni.config.template import component_page, recipe_template
from openuni.manifests.contracts import schema
from openuni.manifests.contracts.discovery import all_component_names
from openuni.manifests.contracts.operator import find_operator
from openuni.training.recipe import recipe_names
from tests.bare_corpora import bare_corpus
from tests.command_line import cli

COMMANDS = (
    *("list", "show", "init", "doctor", "run", "import", "export", "summary", "explain", "select", "duplicates"),
    *("split", "compact", "evaluate", "verify", "train", "export-model", "generate", "tasks", "parity", "world"),
    *("demo", "checkpoints"),
)


def invoke(*arguments):
    """The command in this process; errors are `done.exception`."""
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_command_and_says_what_it_does(flag):
    done = cli(flag)
    assert done.returncode == 0
    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout, command
    lines = done.stdout.partition("Commands:")[2].strip().splitlines()
    assert len(lines) == len(COMMANDS) and not any(line.endswith("...") for line in lines), "first sentences fit"


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, flag):
    done = invoke(command, flag)
    assert done.exit_code == 0 and len(done.stdout.splitlines()[2].strip()) > 20


@pytest.mark.parametrize("command", COMMANDS)
def test_short_flags_go_with_the_same_long_ones(command):
    flags = {flag for parameter in get_command(app).commands[command].params for flag in parameter.opts}
    assert ("--out" in flags) is ("-o" in flags) and ("--json" in flags) is ("-j" in flags)


def test_the_version_is_printed():
    done = cli("--version")
    assert (done.returncode, done.stdout) == (0, f"openuni {openuni.__version__}\n")


@pytest.mark.parametrize(
    ("command", "former", "current"),
    [
        ("init", "--like", "--preset"),
        ("split", "--share", "--fraction"),
        ("split", "--anew", "--reassign"),
        ("generate", "--guidance", "--guidance-scale"),
        ("generate", "--given-guidance", "--condition-guidance-scale"),
    ],
)
def test_former_flags_are_accepted_and_not_shown(command, former, current):
    parser = get_command(app).commands[command]
    assert former not in {flag for parameter in parser.params for flag in parameter.opts}
    assert current in {flag for parameter in parser.params for flag in parameter.opts}
    assert current_flags([former, "2"], parser.former_flags) == [current, "2"]
    assert current_flags([f"{former}=2", "--", former], parser.former_flags) == [f"{current}=2", "--", former]
    help_text = invoke(command, "--help").stdout.split()
    assert current in help_text and former not in help_text


@pytest.mark.parametrize(
    ("arguments", "resumes"),
    [
        (["run", "corpus.toml", "raw"], True),
        (["-v", "run", "corpus.toml", "raw"], True),
        (["-vv", "checkpoints", "get", "raft"], True),
        (["checkpoints"], False),
        (["-v", "summary", "run"], False),
        (["-v"], False),
    ],
)
def test_after_ctrl_c_the_command_to_resume_is_told(arguments, resumes):
    hint = resume_hint(arguments)
    assert hint.startswith("Finished items are kept. Resume" if resumes else "Start again")
    assert hint.endswith(f" with: openuni {' '.join(arguments)}")


def test_former_flags_of_split_reach_the_corpus(tmp_path):
    bare_corpus(tmp_path / "corpus", [{"clip_id": f"clip-{number}"} for number in range(8)])
    first = invoke("split", tmp_path / "corpus", "--share", "validation=0.5")
    assert first.exit_code == 0 and "validation" in first.stdout, first.exception
    again = invoke("split", tmp_path / "corpus", "--share=test=0.5", "--anew")
    assert again.exit_code == 0 and "test" in again.stdout and "validation" not in again.stdout
    with pytest.warns(DeprecationWarning, match="anew is now reassign"):
        assert "validation" in openuni.split(tmp_path / "corpus", {"validation": 0.5}, anew=True)


def test_list_is_complete_and_imports_nothing_heavy():
    heavy = ["torch", "cv2", "av", "transformers", "diffusers", "ray", "duckdb", "pyarrow", "numpy"]
    code = (
        "import sys; from openuni.cli.main import app; sys.argv = ['openuni', 'list']\n"
        "try: app()\nexcept SystemExit: pass\n"
        f"assert not set({heavy}) & set(sys.modules), set({heavy}) & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    for names in all_component_names().values():
        assert all(name in words for name in names)
    assert {*recipe_names(), "koala", "open_sora"} <= set(words)
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_list_as_json():
    done = invoke("list", "--json")
    found = json.loads(done.stdout)
    presets = {"corpus_presets": ["koala", "open_sora", "openuni", "videox_fun"]}
    assert found == all_component_names() | {"training_recipes": recipe_names()} | presets


@pytest.mark.parametrize("name", [*recipe_names(), "koala", "openuni", "open-sora"])
def test_recipes_and_presets_are_shown_as_toml(name):
    done = invoke("show", name)
    assert done.exit_code == 0 and name.replace("-", "_") in done.stdout.splitlines()[0]
    assert tomllib.loads(done.stdout)


@pytest.mark.parametrize("name", ["camera_share", "motion.camera_share"])
def test_columns_are_shown(name):
    done = invoke("show", name)
    (column,) = [one for one in schema.columns(find_operator("filter", "motion")) if "camera" in one.name]
    assert done.stdout == f"motion.camera_share (double): column of the filter motion\n  {column.doc}\n"


def test_an_unknown_name_is_answered_with_the_nearest_ones():
    error = str(invoke("show", "unityvideo_debgu").exception)
    assert error.startswith('"unityvideo_debgu" not found. Did you mean "unityvideo_debug"? Similar: unityvideo_demo, ')
    assert error.endswith(" List all names with: openuni list") and len(error) < 300
    assert 'Did you mean "camera_share"?' in str(invoke("show", "camera_shar").exception)
    assert 'Did you mean "motion.camera_share"?' in str(invoke("show", "motion.camera_shar").exception)
    assert str(invoke("show", "xyzzy").exception) == '"xyzzy" not found. List all names with: openuni list'


@pytest.mark.parametrize("name", [name for names in all_component_names().values() for name in names])
def test_every_part_has_a_page(name):
    text = component_page(name)
    assert (text.startswith(f"{name}: ") and "licence" in text) or f"openuni.manifests.modalities.{name}" in text


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
    assert again.returncode == 2 and "already exists" in again.stderr


def test_mistakes_name_the_nearest_thing(tmp_path):
    done = cli("show", "motoin")
    assert done.returncode == 2 and 'Did you mean "motion"' in done.stderr
    done = cli("summary", tmp_path)
    assert done.returncode == 2 and "no corpus at" in done.stderr
    done = cli("generate", tmp_path, "--make", "rgb", "--out", tmp_path / "made")
    assert done.returncode == 2 and "no run at" in done.stderr
    done = cli("train", "unityvideo_debgu", "--corpus", tmp_path, "--out", tmp_path / "run")
    assert done.returncode == 2 and "unityvideo_debug" in done.stderr
    assert cli("nonsense").returncode == 2


def test_an_output_that_cannot_be_written_is_no_traceback(tmp_path):
    (tmp_path / "file").write_text("")
    done = cli("init", tmp_path / "file" / "corpus.toml")
    assert done.returncode == 2 and "Traceback" not in done.stderr and "file is a file, so" in done.stderr


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
    command = [sys.executable, "-m", "openuni", "show", "lab.edges"]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "lab.edges.edges" in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["openuni", "koala", "open_sora", "videox_fun"])
def test_presets_are_valid_and_name_their_source(name, tmp_path):
    file = tmp_path / "corpus.toml"
    done = invoke("init", file, "--preset", name)
    assert done.exit_code == 0, done.exception
    recipe = CorpusRecipe.load(file)
    assert recipe.keep and recipe.filters and recipe.ingest.shots != "none"
    assert "# Source:" in file.read_text()
    assert name in invoke("init", "--help").stdout
    former = invoke("init", tmp_path / "former.toml", "--like", name)
    assert former.exit_code == 0 and (tmp_path / "former.toml").read_text() == file.read_text()


def test_an_unknown_preset_is_named(tmp_path):
    done = cli("init", tmp_path / "corpus.toml", "--preset", "koalas")
    assert done.returncode == 2 and 'Did you mean "koala"' in done.stderr
