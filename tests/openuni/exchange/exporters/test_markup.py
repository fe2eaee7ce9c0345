"""Names and texts of others in cards, YAML and CSVs: shown as text, whatever they contain."""

import csv
import shutil

import pytest
import yaml
from markdown_it import MarkdownIt

import openuni
from openuni.exchange.export_job import write_failures
from openuni.exchange.exporter import ExportFailure
from openuni.exchange.exporters._card import markdown
from openuni.exchange.exporters.univid import yaml_text
from tests.hostile import rewrite, with_value
from tests.openuni.exchange.exporters.rooms import QUIET

LABEL = '<script>alert(1)</script> ![x](http://y) [a](javascript:b) `c` | **d** "e" &amp; \' --- : {f}'
TEXTS = [
    LABEL,
    'a"\nlicense: evil\n---\n# b',
    "\u2028\u2029\x85\x7f\ufeff\ufffe\U0001f600",
    "no",
    "1e3",
    "!!python/object:os.system",
    "*alias",
    "%TAG",
]


def rendered(text: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(text)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_itself_in_yaml_and_markdown(text):
    assert yaml.safe_load(yaml_text({"prompt": text, "none": None})) == {"prompt": text, "none": None}
    html = rendered(f"| a |\n| --- |\n| {markdown(text)} |\n")
    assert html.count("<td>") == 1
    for tag in ("<script", "<img", "<a ", "<code", "<strong", "<em"):
        assert tag not in html


def test_the_card_of_a_corpus_with_markup_in_its_names(corpus, tmp_path):
    shutil.copytree(corpus.store.root, tmp_path / "corpus")
    for column in ("collection", "split"):
        rewrite(tmp_path / "corpus", "clips", with_value(column, 0, LABEL))
    title = 'x"\nlicense: evil\n---\n<script>y</script>'
    openuni.export(tmp_path / "corpus", "huggingface", out=tmp_path / "set", title=title, reporter=QUIET, workers=1)
    text = (tmp_path / "set/README.md").read_text(encoding="utf-8")
    _, header, body = text.split("---\n", 2)
    facts = yaml.safe_load(header)
    assert (facts["license"], facts["pretty_name"]) == ("unknown", title)
    assert all(isinstance(part["split"], str) for part in facts["configs"][0]["data_files"])
    html = rendered(body)
    for tag in ("<script", "<img", "<a "):
        assert tag not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; ![x](http://y)" in html


@pytest.mark.parametrize("split", ["1", "null", "true", "1e3", "on"])
def test_a_split_that_yaml_would_take_for_something_else(corpus, tmp_path, split):
    shutil.copytree(corpus.store.root, tmp_path / "corpus")
    rewrite(tmp_path / "corpus", "clips", with_value("split", 0, split))
    openuni.export(tmp_path / "corpus", "huggingface", out=tmp_path / "set", reporter=QUIET, workers=1)
    facts = yaml.safe_load((tmp_path / "set/README.md").read_text(encoding="utf-8").split("---\n", 2)[1])
    assert split in [part["split"] for part in facts["configs"][0]["data_files"]]


def test_no_cell_of_failed_csv_is_a_formula(tmp_path):
    rows = [
        ExportFailure("a", '=HYPERLINK("http://x")', "+1"),
        ExportFailure("b", "@x", "-1"),
        ExportFailure("c", "/d", "e"),
    ]
    write_failures(tmp_path / "failed.csv", rows, "w")
    with (tmp_path / "failed.csv").open(newline="") as file:
        _, *found = csv.reader(file)
    assert found == [["a", '\'=HYPERLINK("http://x")', "'+1"], ["b", "'@x", "'-1"], ["c", "/d", "e"]]
