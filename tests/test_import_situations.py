"""One import name, `openuni`, and nothing of the current folder is mistaken for a part of it, however it runs."""

import json
import shutil
import sys
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.raw_clips import write_clips
from tests.user_folder import (
    BIN,
    CHECKOUT,
    EDGES,
    LIBRARIES,
    RECIPE,
    SOURCE,
    USE,
    UserFolder,
    bare_python,
    entry_point_package,
)

HOMES = {  # kind -> the folder with one file per component
    "filters": "filters",
    "annotators": "annotators",
    "modalities": "manifests/modalities",
    "codecs": "train/codecs",
    "models": "train/models",
    "metrics": "train/metrics",
    "trackers": "train/trackers",
    "importers": "openuni/exchange/importers",
    "exporters": "openuni/exchange/exporters",
}
ENCODE = """
[encode]
modalities = ["rgb", "flow"]
size_px = [32, 48]
frames = 5
"""
CANNY = EDGES.replace("Filter", "Annotator").replace("class Edges", "class Canny")
HEAT = """
from openuni.manifests.modalities.rgb import RGB


class Heat(RGB):
    "Temperatures, as a picture."

    name = "heat"
    prompt = "thermal camera"
"""
pytestmark = pytest.mark.slow  # every situation is a process of its own


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    place = tmp_path_factory.mktemp("clips")
    write_clips(place, 2, frames=5)
    return place


@pytest.fixture
def folder(tmp_path, clips):
    return UserFolder.make(tmp_path, clips)


@pytest.fixture(scope="module")
def worked(tmp_path_factory, clips):
    """A folder in which the console script has made a corpus and a training run, and generated from it."""
    folder = UserFolder.make(tmp_path_factory.mktemp("worked"), clips)
    folder.write("corpus.toml", RECIPE + ENCODE)
    folder.openuni("run", "corpus.toml", "raw/", "--out", "corpus", "--workers", 0)
    folder.openuni("train", "unityvideo_debug", "--corpus", "corpus", "--out", "run")
    folder.openuni("generate", "run", "--make", "rgb", "--make", "flow", "--steps", 2, "--out", "made")
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """An interpreter without openuni."""
    return bare_python(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the checkout, for builds to leave their files in."""
    copy = tmp_path_factory.mktemp("source")
    for name in SOURCE:
        path = CHECKOUT / name
        if path.is_dir():
            shutil.copytree(
                path, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
            )
        else:
            shutil.copy(path, copy / name)
    return copy


def kinds(text):
    """What `openuni list --json` printed: kind -> names."""
    return json.loads(text)


def check_list(text):
    """`openuni list` shows every component of the checkout, and no other."""
    for kind, home in HOMES.items():
        files = sorted(path.stem for path in (CHECKOUT / home).glob("[!_]*.py"))
        assert files and kinds(text)[kind] == files, f"{kind}: {text}"


def check_command(folder, *command, **environment):
    """A form of the command line lists all components and makes a corpus; no library is taken from the folder."""
    folder.shadow()
    check_list(folder.run(*command, "list", "--json", **environment))
    out = folder.run(*command, "run", "corpus.toml", "raw/", "--out", "corpus", "--workers", "0", **environment)
    assert "2 clips = 2 ok" in out


def test_the_console_script(worked):
    check_list(worked.openuni("list", "--json"))
    assert "2 clips" in worked.openuni("summary", "corpus")
    assert (worked.path / "made" / "flow.npy").is_file()
    assert worked.marks() == {}


def test_python_dash_m_openuni(folder):
    check_command(folder, sys.executable, "-m", "openuni")
    folder.run(sys.executable, "-m", "openuni", "run", "corpus.toml", "raw/", "--out", "corpus", "--workers", 0)
    assert folder.marks() == {}


def test_a_script_in_the_folder(folder):
    """Python itself looks for modules beside a script first: other libraries may find tensorflow.py there."""
    folder.write("analyse.py", USE)
    assert "all of it works" in folder.run(sys.executable, "analyse.py")
    assert folder.marks().keys() <= {"tensorflow.py", "sitecustomize.py"}


def test_a_notebook(folder):
    cell = {"cell_type": "code", "id": "0", "metadata": {}, "outputs": [], "execution_count": None, "source": USE}
    python = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"cells": [cell], "metadata": python, "nbformat": 4, "nbformat_minor": 5}
    path = folder.write("analyse.ipynb", json.dumps(notebook))
    folder.run(BIN / "jupyter-execute", "--inplace", path)
    assert "all of it works" in str(json.loads(path.read_text())["cells"][0]["outputs"])
    assert folder.marks() == {}


def test_pytest_of_the_users_own_tests(folder):
    body = "".join(f"    {line}\n" for line in USE.splitlines())
    folder.write("test_mine.py", f"def test_it():\n{body}")
    assert "1 passed" in folder.run(BIN / "pytest", "-p", "no:cacheprovider")
    assert folder.marks() == {}


def test_a_checkout_that_is_not_installed(folder, bare):
    assert "No module named 'openuni'" in folder.run(bare, "-c", "import openuni", code=1)
    check_list(folder.run(bare, "-m", "openuni", "list", "--json", cwd=CHECKOUT))
    check_command(folder, bare, "-m", "openuni", PYTHONPATH=str(CHECKOUT))
    for name in ("corpus", *LIBRARIES):  # with -c, Python itself looks in the current folder first
        path = folder.path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    folder.run(bare, "-c", USE, PYTHONPATH=str(CHECKOUT))
    assert folder.marks() == {}


def test_an_editable_install_puts_one_name_on_the_path(folder, tmp_path, source):
    python = bare_python(tmp_path / "environment")
    before = json.loads(folder.run(python, "-c", "import json, sys; print(json.dumps(sys.path))"))
    install(folder, python, "--editable", source)
    after = json.loads(folder.run(python, "-c", "import json, sys; print(json.dumps(sys.path))"))
    (added,) = set(after) - set(before)
    assert {path.name for path in Path(added).iterdir() if path.suffix != ".egg-info"} == {"openuni"}
    check_command(folder, python.parent / "openuni")
    check_list(folder.run(python, "-m", "openuni", "list", "--json"))
    assert folder.marks() == {}


def test_a_wheel_holds_everything_under_one_name(folder, tmp_path, source):
    folder.run(
        sys.executable,
        "-m",
        "uv",
        "build",
        "--quiet",
        "--offline",
        "--wheel",
        "--no-build-isolation",
        "--python",
        sys.executable,
        "--out-dir",
        tmp_path / "dist",
        source,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    held = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in held if ".dist-info/" not in name} == {"openuni"}
    inside = {"train": "openuni/training", "openuni": "openuni"}
    inside |= {name: f"openuni/{name}" for name in ("filters", "manifests", "annotators")}
    for home, place in inside.items():
        for path in (CHECKOUT / home).rglob("*"):
            if path.suffix in (".py", ".toml", ".typed"):
                assert f"{place}/{path.relative_to(CHECKOUT / home)}" in held
    python = bare_python(tmp_path / "environment")
    install(folder, python, wheel)
    assert "site-packages" in folder.run(python, "-c", "import openuni; print(openuni.__file__)")
    check_command(folder, python.parent / "openuni")
    assert folder.marks() == {}


def install(folder, python, *what):
    """Into another environment, without a network."""
    uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--offline", "--no-deps", "--no-build-isolation"]
    folder.run(*uv, "--python", python, *what)


@pytest.mark.parametrize("installed", [True, False], ids=["installed", "not installed"])
def test_ray_workers(folder, bare, installed):
    """An operator of the current folder is found by the workers too, and nothing else of the folder."""
    folder.shadow()
    folder.write("corpus.toml", RECIPE + '[filters."lab.edges"]\n' + ENCODE)
    command = [BIN / "openuni"] if installed else [bare, "-m", "openuni"]
    home = {} if installed else {"PYTHONPATH": str(CHECKOUT)}
    out = folder.run(*command, "run", "corpus.toml", "raw/", "--out", "corpus", "--workers", 2, **home)
    assert "2 clips = 2 ok" in out
    marks = folder.marks()
    assert marks.keys() == {"lab"}
    processes = {line for line in marks["lab"].splitlines() if line.startswith("pid ")}
    assert len(processes) in (2, 3), "the command, and the workers that were placed before the work was done"


def test_mypy_sees_our_types(folder):
    code = """
from openuni.manifests.contracts.operator import Filter

reveal_type(Filter.kind)
Filter.kind + 1
Filter()
"""
    folder.write("mine.py", code)
    quick = "follow_imports = skip\nfollow_imports_for_stubs = true\n"  # to read torch, ray and numpy takes 20 s
    folder.write("mypy.ini", f"[mypy]\n[mypy-torch.*,ray.*,numpy.*]\n{quick}")
    cache = folder.marks_folder.parent / "mypy"
    out = folder.run(sys.executable, "-m", "mypy", "--cache-dir", cache, "mine.py", code=1)
    assert 'mine.py:4: note: Revealed type is "str"' in out.replace("builtins.", "")
    assert 'mine.py:5: error: Unsupported operand types for + ("str" and "int")' in out
    assert 'mine.py:6: error: Cannot instantiate abstract class "Filter"' in out
    assert "Found 2 errors" in out
    assert folder.marks() == {}


@pytest.mark.parametrize(
    ("statement", "file"),
    {
        "from openuni.training.run import Run": "train/run.py",
        "from openuni.filters.motion import Motion": "filters/motion.py",
        "from openuni.annotators import dis": "annotators/dis.py",
        "from openuni.manifests import errors": "manifests/errors.py",
    }.items(),
)
def test_go_to_definition_leads_to_the_file(folder, statement, file):
    folder.write("mine.py", statement)
    code = """
import jedi
script = jedi.Script(path="mine.py", project=jedi.Project("."), environment=jedi.InterpreterEnvironment())
print(*[found.module_path.resolve() for found in script.goto(1, len(script._code), follow_imports=True)])
"""
    assert folder.run(sys.executable, "-I", "-c", code).strip() == str(CHECKOUT / file)
    assert folder.marks() == {}


def test_an_operator_of_the_folder_is_found_when_a_recipe_names_it(folder):
    folder.write("filters/edges.py", EDGES)
    folder.write("mine.toml", RECIPE + '[filters."lab.edges"]\n[filters."filters.edges"]\n' + ENCODE)
    for command in ([BIN / "openuni"], [sys.executable, "-m", "openuni"]):
        out = folder.run(*command, "run", "mine.toml", "raw/", "--out", Path(command[0]).name, "--workers", 0)
        assert "2 clips = 2 ok" in out and "filters: 2/2 done" in out
    assert folder.marks().keys() == {"lab", "filters"}  # what the recipe names, and nothing beside it


def test_an_operator_of_the_folder_is_found_by_show(folder):
    assert "mean step between neighbouring pixels" in folder.openuni("show", "lab.edges")
    assert folder.marks().keys() == {"lab"}


def test_an_operator_of_the_folder_is_not_looked_at_unless_it_is_named(folder):
    folder.write("lab/dis.py", folder.mark("lab/dis"))
    check_list(folder.openuni("list", "--json"))
    folder.openuni("show", "dis")
    folder.openuni("init", "new.toml")
    folder.openuni("checkpoints")
    folder.openuni("doctor", "corpus.toml")
    check_command(folder, BIN / "openuni")
    assert folder.marks() == {}


def test_an_operator_of_another_folder_is_not_found(folder):
    (folder.path / "elsewhere").mkdir()
    folder.write("mine.toml", RECIPE + '[filters."lab.edges"]\n')
    command = [BIN / "openuni", "run", "../mine.toml", "../raw/", "--out", "corpus", "--workers", 0]
    out = folder.run(*command, code=2, cwd=folder.path / "elsewhere")
    assert "no module named lab" in out and "run from that folder" in out
    assert folder.marks() == {}


GENERATE = "generate run --make rgb --make flow --steps 1 --out made"
TRAIN = "train unityvideo_debug --corpus corpus --out"
EXPORT = "export corpus --format huggingface --out set"
# A command: the file that names evil.module, the keys that lead to the name, the command's exit code.
NAMED_BY_DATA = {
    (GENERATE, "run/run.json", "model.name", 2),
    (GENERATE, "run/run.json", "latents.codec", 2),
    (GENERATE, "run/run.json", "text.codec", 2),
    (f"{TRAIN} new", "corpus/text/*/family.json", "codec", 2),
    (f"{TRAIN} run", "run/run.json", "model.name", 2),
    (f"{TRAIN} run", "run/run.json", "recipe.model.name", 2),
    (EXPORT, "corpus/runs/*.json", "import.format", 0),
    ("summary corpus", "corpus/latents/*/family.json", "codec", 0),
}


@pytest.fixture
def evil(folder, worked):
    """The folder with a corpus, a run and the package evil."""
    folder.write("evil/__init__.py", folder.mark("evil"))
    folder.write("evil/module.py", folder.mark("evil.module"))
    for name in ("corpus", "run"):
        shutil.copytree(worked.path / name, folder.path / name)
    return folder


@pytest.mark.parametrize(("command", "files", "keys", "code"), sorted(NAMED_BY_DATA))
def test_what_data_names_is_not_imported(evil, command, files, keys, code):
    paths = list(evil.path.glob(files))
    assert paths or not files, files
    for path in paths:
        record = json.loads(path.read_text())
        place, (*parents, last) = record, keys.split(".")
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = "evil.module"
        record.pop("checksum", None)  # of run.json: the change would be noticed before the name is read
        path.write_text(json.dumps(record))
    out = evil.openuni(*command.split(), code=code)
    assert code == 0 or "evil.module" in out
    assert evil.marks() == {}


@pytest.mark.parametrize("whole", [True, False], ids=["in its column too", "the folder alone"])
def test_folders_of_a_corpus_are_not_imported(evil, whole):
    """A folder whose name is not its column's is a damaged corpus."""
    for folder, operator in (("filters", "luminance"), ("annotations", "dis")):
        group = evil.path / "corpus" / folder / "evil.module"
        (evil.path / "corpus" / folder / operator).rename(group)
        for path in group.glob("*.parquet") if whole else ():
            rows = pq.read_table(path)
            names = ["evil.module" if name == operator else name for name in rows.column_names]
            pq.write_table(rows.rename_columns(names).replace_schema_metadata(rows.schema.metadata), path)
    for command in ("summary corpus --scores", "explain corpus clip-000.mp4", EXPORT):
        out = evil.openuni(*command.split(), code=0 if whole else 2)
        assert whole or "evil.module" in out
    assert evil.marks() == {}


@pytest.fixture
def package(tmp_path):
    """A package that adds an annotator and a modality, as an installer leaves it."""
    points = "[openuni.annotators]\ncanny = my_lab.canny\n[openuni.modalities]\nheat = my_lab.heat:Heat\n"
    return entry_point_package(tmp_path / "installed", "my_lab", points, canny=CANNY, heat=HEAT)


def test_entry_points_add_components(folder, package):
    listed = folder.openuni("list", "--json", PYTHONPATH=str(package))
    assert "canny" in kinds(listed)["annotators"] and "heat" in kinds(listed)["modalities"]
    check_list(folder.openuni("list", "--json"))  # and without the package they are gone
    assert folder.openuni("show", "canny", PYTHONPATH=str(package)).startswith("canny: ")
    assert "thermal camera" in folder.openuni("show", "heat", PYTHONPATH=str(package))
    folder.write("corpus.toml", RECIPE + "[annotators.canny]\n")
    out = folder.openuni("run", "corpus.toml", "raw/", "--out", "corpus", "--workers", 0, PYTHONPATH=str(package))
    assert "canny: 2/2 done" in out and (folder.path / "corpus" / "annotations" / "canny").is_dir()
    assert "2 clips" in folder.openuni("summary", "corpus")  # also where the package is not installed
    assert folder.marks() == {}


def test_two_packages_with_one_name_are_an_error(folder, package, tmp_path):
    points = "[openuni.annotators]\ncanny = other_lab.edges\n"
    other = entry_point_package(tmp_path / "other", "other_lab", points, edges=CANNY)
    for command in (["list"], ["show", "canny"], ["show", "dis"]):
        out = folder.openuni(*command, code=2, PYTHONPATH=f"{package}:{other}")
        assert "my_lab" in out and "other_lab" in out and "canny" in out


def test_a_package_that_takes_a_name_of_ours_is_an_error(folder, tmp_path):
    points = "[openuni.annotators]\ndis = other_lab.edges\n"
    other = entry_point_package(tmp_path / "other", "other_lab", points, edges=CANNY)
    for command in (["list"], ["show", "dis"], ["run", "corpus.toml", "raw/", "--out", "corpus", "--workers", 0]):
        out = folder.openuni(*command, code=2, PYTHONPATH=str(other))
        assert 'other_lab defines the openuni.annotators entry point "dis", which is the name of a built-in' in out
