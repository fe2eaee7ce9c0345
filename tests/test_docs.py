"""The documentation: its commands and code run as they stand, its notebooks too, and the reference names everything.

On a page, a block with a caption is a file, `console` blocks are commands and `python` blocks are code; all of them run
in the order of the page, in one folder. A comment on the line before a block excepts it: `<!-- not run: REASON -->`.
Its commands must still be ones that the command line parses.
"""

import contextlib
import importlib
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from openuni.cli.main import app
from openuni.manifests.contracts import discovery
from tests.command_line import cli
from tests.docs import blocks, commands

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
EXIT_CODE = re.compile(r"#.*\bexit code (\d+)")


def pages(folder: str) -> list[Path]:
    """Pages of a folder of the documentation without its index, in the order of its table of contents."""
    index = (DOCS / folder / "index.md").read_text(encoding="utf-8")
    names = re.findall(r"^(\w+)$", index.partition("```{toctree}")[2].partition("```")[0], re.MULTILINE)
    return [DOCS / folder / f"{name}.md" for name in names]


class Reader:
    """Does what a page says, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, Any] = {"__name__": "page"}

    def follow(self, page: Path) -> None:
        for block in blocks(page):
            if block.file:
                path = self.folder / block.file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text, encoding="utf-8")
            elif block.language == "console":
                for command in commands(block):
                    self.run(command) if block.is_run else check_parses(command)
            elif block.language == "python" and block.is_run:
                with contextlib.chdir(self.folder):
                    exec(compile(block.text, str(page), "exec"), self.names)

    def run(self, command: str) -> None:
        expected = int(match[1]) if (match := EXIT_CODE.search(command)) else 0
        words = self.expanded(shlex.split(command, comments=True))
        if words[:2] == ["pip", "install"]:
            install(self.folder / words[-1])
        elif words[0] == "pytest":
            for path in sorted((self.folder / words[1]).glob("test_*.py")):
                run_tests(path)
        else:
            assert words[0] == "openuni", command
            done = cli(*words[1:], cwd=self.folder)
            assert done.returncode == expected, f"{command}\n{done.stdout}\n{done.stderr}"

    def expanded(self, words: list[str]) -> list[str]:
        """As a shell expands patterns."""
        found = []
        for word in words:
            paths = (
                [str(path.relative_to(self.folder)) for path in sorted(self.folder.glob(word))] if "*" in word else []
            )
            found += paths or [word]
        return found


def check_parses(command: str) -> None:
    """That the command line takes these arguments, without running them."""
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command
    if words[0] == "openuni":
        found, words = typer.main.get_command(app), words[1:]
        while hasattr(found, "commands") and words:
            assert words[0] in found.commands, command
            found, words = found.commands[words[0]], words[1:]
        found.make_context("openuni", words)  # raises a usage error


def forget_entry_points() -> None:
    """Look for installed packages again."""
    discovery._installed.cache_clear()
    discovery._entry_points.cache_clear()


def install(package: Path) -> None:
    """What pip does in editable mode, as far as Python looks at it."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    record = package / "src" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in points.items()) for group, points in groups
    ]
    (record / "entry_points.txt").write_text("\n".join(lines))
    sys.path.insert(0, str(package / "src"))
    importlib.invalidate_caches()
    forget_entry_points()


def run_tests(path: Path) -> None:
    """Every test function of a file."""
    names: dict[str, Any] = {}
    exec(compile(path.read_text(), str(path), "exec"), names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


@pytest.fixture
def environment(monkeypatch):
    """Packages that a page installs are gone after it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "my_lab":
            del sys.modules[name]
    monkeypatch.undo()
    forget_entry_points()


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A folder in which the quick start has been followed."""
    folder = tmp_path_factory.mktemp("quickstart")
    Reader(folder).follow(DOCS / "quickstart.md")
    return folder


def test_the_quick_start_gives_a_corpus_and_a_generated_clip(started):
    summary = json.loads(cli("summary", "corpus/", "--json", cwd=started).stdout)
    assert summary["clips"] == 6 and summary["failed"] == [] and summary["ok"] >= 4
    made = {"rgb.mp4", "rgb.npy", "depth.mp4", "depth.npy", "generation.json"}
    assert {path.name for path in (started / "made").iterdir()} == made


@pytest.mark.parametrize("page", pages("tutorials"), ids=lambda page: page.stem)
def test_a_tutorial_works_in_an_empty_folder(page, tmp_path, environment):
    assert any(block.is_run for block in blocks(page))
    Reader(tmp_path).follow(page)


@pytest.mark.parametrize("page", [*pages("how_to"), *pages("formats"), *pages("cluster")], ids=lambda page: page.stem)
def test_a_page_works_after_the_quick_start(page, started):
    Reader(started).follow(page)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_is_kept_without_outputs(path, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()


def test_every_page_is_in_a_table_of_contents():
    for index in DOCS.rglob("index.md"):
        listed = set(re.findall(r"^([\w/]+)$", index.read_text(encoding="utf-8"), re.MULTILINE))
        for page in index.parent.glob("*.md"):
            assert page == index or page.stem in listed, f"{page} is not in {index}"


def test_links_between_pages_lead_somewhere():
    for page in DOCS.rglob("*.md"):
        if "generated" in page.parts or "_build" in page.parts:
            continue
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page}: {target}"


class TestReference:
    """The pages that docs/_ext/openuni_reference.py writes."""

    @pytest.fixture(scope="class")
    def reference(self):
        pytest.importorskip("sphinx")
        sys.path.insert(0, str(DOCS / "_ext"))
        try:
            import openuni_reference
        finally:
            sys.path.pop(0)
        return openuni_reference

    @pytest.mark.parametrize("kind", discovery.KINDS)
    def test_every_component_has_its_section_and_every_option_its_row(self, reference, kind):
        text = reference.kind_page(kind)
        for name in discovery.component_names(kind):
            component = discovery.find_component(kind, reference.base_of(kind), name)
            _, found, section = text.partition(f"({reference.anchor(kind, name)})=\n")
            assert found, name
            section = section.partition("\n(")[0]
            for option in component.options() if hasattr(component, "options") else ():
                assert f"| `{option.name}` |" in section, f"{name}: {option.name}"

    def test_every_command_has_its_section(self, reference):
        text = reference.command_line_page()
        group = typer.main.get_command(app)
        for name, command in group.commands.items():
            section = text.partition(f"\n## openuni {name}\n")[2].partition("\n## ")[0]
            for item in command.params:
                if "--help" not in item.opts:
                    assert f"`{reference.parameter_name(item)}`" in section, f"{name}: {item.name}"

    def test_what_texts_happen_to_contain_is_shown_and_not_read_as_markup(self, reference):
        assert reference.markdown("a_b* <c> [T, H] `x_y|z`") == "a\\_b\\* \\<c\\> \\[T, H\\] `x_y\\|z`"
        assert reference.rst("name_ and *x* and `a_b`") == "name\\_ and \\*x\\* and ``a_b``"
        lines = ["Says it.", "", "    code = 1", "", "- one", "  more", "- two"]
        reference.plain_docstring(None, "class", "x", None, None, lines)
        assert [line for line in lines if line] == ["Says it.", "::", "    code = 1", "- one more", "- two"]
