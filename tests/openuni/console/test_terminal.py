"""Nothing that comes from data reaches the terminal as a control sequence."""

import ast
import io
import logging
import sys
from pathlib import Path

import pytest
from rich.console import Console

import openuni
from openuni.console.logs import openuni_logger, show_logs
from openuni.console.progress import Reporter
from openuni.console.terminal import escape, one_line, print_text
from openuni.manifests.video.encode import write_video
from tests.command_line import cli
from tests.moving_pictures import texture

EVIL = "\x1b[2J\x1b]0;title\x07\x9b31m\r\u202e"


def clean(text: str) -> bool:
    return all(sign.isprintable() or sign in "\n\t" for sign in text)


def test_what_is_escaped_and_what_is_not():
    assert escape("a\x1b[31mb\r\x07\x9b\u202e\ud800") == "a\\x1b[31mb\\r\\x07\\x9b\\u202e\\ud800"
    assert clean(escape("".join(map(chr, range(0x20))) + "".join(map(chr, range(0x7F, 0xA0))).replace("\xa0", "")))
    for text in ("two\nlines\tand a tab", "背景　为", "नमस्ते क्‍ष 👩‍👩‍👧", "a\xa0b", "\\x1b"):
        assert escape(text) == text
    assert one_line("ok\n  passes  everything\tx") == "ok\\n  passes  everything\\tx"


@pytest.fixture(scope="module")
def evil(tmp_path_factory) -> Path:
    """A corpus of a video whose name and caption have escape sequences, and of a file that is no video."""
    folder = tmp_path_factory.mktemp("evil")
    name = f"a{EVIL}b"
    write_video(folder / f"{name}.mp4", texture(64, 64)[None].repeat(5, 0), 12.0, crf=20)
    (folder / f"{name}.txt").write_text(f"{EVIL}caption\n  passes       everything")
    (folder / f"{name}.bad.mp4").write_bytes(b"no video")
    recipe = {"filters": {"luminance": {}}, "keep": "luminance.mean > 0"}
    openuni.run(recipe, folder, out=folder / "corpus", reporter=Reporter(quiet=True))
    return folder


@pytest.mark.parametrize("verbosity", [[], ["-v"], ["-vv"]])
def test_a_run_and_its_reports(evil, tmp_path, verbosity):
    (tmp_path / "recipe.toml").write_text("[filters.luminance]\n")
    commands = [
        ["run", tmp_path / "recipe.toml", evil, "--out", tmp_path / "corpus", "--workers", 0],
        ["summary", evil / "corpus", "--scores"],
        ["summary", evil / "corpus", "--json"],
        ["explain", evil / "corpus", f"a{EVIL}b.mp4"],
        ["explain", evil / "corpus", "a"],
        ["explain", evil / "corpus", EVIL],
        ["select", evil / "corpus", "--keep", EVIL, "--out", tmp_path / "chosen"],
        ["export", evil / "corpus", "--format", "univid", "--out", tmp_path / f"set{EVIL}", "--workers", 1],
        ["run", tmp_path / f"{EVIL}.toml", evil, "--out", tmp_path / "x"],
        ["show", EVIL],
    ]
    for command in commands:
        done = cli(*verbosity, *command)
        assert clean(done.stdout + done.stderr), (command, done)
        assert done.returncode in (0, 1, 2), done.stderr
    told = cli("explain", evil / "corpus", f"a{EVIL}b.mp4").stdout
    assert "\\x1b[2J" in told and "\n  passes       everything" not in told
    openuni_logger().setLevel(logging.NOTSET)


def test_errors_are_escaped_whatever_their_kind(tmp_path):
    done = cli("summary", tmp_path / EVIL)
    assert done.returncode == 2 and "\\x1b[2J" in done.stderr and clean(done.stderr)


def test_log_records_and_progress_lines():
    stream = io.StringIO()
    real, sys.stderr = sys.stderr, stream
    try:
        show_logs(1)
        logging.getLogger("openuni.test").warning("file %s", EVIL)
    finally:
        sys.stderr = real
        show_logs(0)
    Reporter(Console(file=stream)).print_line(f"recovered {EVIL} [/red] [link=http://x]y")
    assert (
        "\\x1b[2J" in stream.getvalue() and "[/red] [link=http://x]y" in stream.getvalue() and clean(stream.getvalue())
    )


def test_a_terminal_that_cannot_show_a_character_gets_an_escape(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    print_text("größe 背景 \ud800")
    assert raw.getvalue() == b"gr\\xf6\\xdfe \\u80cc\\u666f \\ud800\n"


def test_only_the_console_prints():
    root = Path(openuni.__file__).parent
    found = []
    for path in sorted(root.rglob("*.py")):
        if path.parent.name == "console":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                found.append(f"{path}:{node.lineno}")
    assert found == []
