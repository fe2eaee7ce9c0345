"""Addresses that are not ordinary: a clip, a failed row that names it, or exit code 2; none shows a password."""

import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.sidecars import read_bounded
from openuni.manifests.errors import OpenUniError
from openuni.manifests.storage.address import file_system
from openuni.pipeline.sources import find_sources
from tests.command_line import cli
from tests.file_server import file_server
from tests.raw_clips import write_clips

QUIET = Reporter(quiet=True)
REFUSED = {
    "foo://b/a.mp4": 'protocol "foo" is not allowed',
    "ftp://127.0.0.1:1/a.mp4": 'protocol "ftp" is not allowed',
    "HTTP://127.0.0.1:1/a.mp4": "Write it in lower case: http://",
    "S3://b/a.mp4": "Write it in lower case: s3://",
    "gs://b/a.mp4": "requires a package that is not installed",
    "reference://x/a.mp4": "is not allowed",
    "local:///etc/passwd": "is not allowed",
    "simplecache::http://127.0.0.1:1/a.mp4": "is not allowed",
    "zip://x::http://127.0.0.1:1/a.mp4": "is not allowed",
    "memory://a::b.mp4": 'contains "::"',
}
NO_ADDRESS = [
    *("http://[::1/a.mp4", "http://127.0.0.1:99999/a.mp4", "http://127.0.0.1:x/a.mp4", "http:///a.mp4"),
    *(f"http://{'a' * 300}/a.mp4", "http://..../a.mp4", "http://\u202e/a.mp4"),
]
PASSWORDS = [
    *("http://user:hunter2@127.0.0.1:1/a.mp4", "https://hunter2@127.0.0.1:1/a.mp4?t=1", "s3://key:hunter2@b/a.mp4"),
    *("http://user:hunter2@127.0.0.1:1/watch?v=1", "github://hunter2:x@b/a.mp4"),
]


@pytest.mark.parametrize("form", ["argument", "list"])
def test_addresses_that_cannot_be_read_are_exit_code_2_or_failed_rows(form, tmp_path):
    (tmp_path / "r.toml").write_text("")
    for number, (url, message) in enumerate(REFUSED.items()):
        (tmp_path / "list.txt").write_text(f"{url}\n", encoding="utf-8")
        out = tmp_path / f"corpus{number}"
        given = url if form == "argument" else tmp_path / "list.txt"
        done = cli("run", tmp_path / "r.toml", given, "--out", out, "--workers", 0)
        if form == "argument":
            assert (done.returncode, message in done.stderr) == (2, True), done.stderr
        else:  # addresses of videos in a list are looked at in ingest only
            assert done.returncode in (1, 2) and url.partition(":")[0] in done.stdout + done.stderr, done.stderr


def test_what_is_no_address_is_a_failed_row_that_says_so(tmp_path):
    corpus = openuni.run({}, NO_ADDRESS, out=tmp_path / "corpus", reporter=QUIET)
    for row in corpus.table("clips").to_pylist():
        assert row["error"].startswith("VideoError: ") and "is not a valid address" in row["error"], row["error"]


@pytest.mark.parametrize("url", PASSWORDS)
def test_credentials_are_refused_and_shown_nowhere(url, tmp_path):
    (tmp_path / "r.toml").write_text("")
    (tmp_path / "list.txt").write_text(f"{url}  # mine\n")
    for given in (url, tmp_path / "list.txt"):
        done = cli("run", tmp_path / "r.toml", given, "--out", tmp_path / "corpus", "--workers", 0)
        assert done.returncode == 2 and "the URL contains credentials" in done.stderr
        assert "hunter2" not in done.stdout + done.stderr
    assert not any(b"hunter2" in path.read_bytes() for path in (tmp_path / "corpus").rglob("*") if path.is_file())


def test_an_at_sign_elsewhere_is_no_password():
    for url in ("https://host/a@b.mp4", "https://host/a.mp4?user=x:y@z", "http://[::1]:80/a.mp4#a:b@c"):
        assert find_sources(url) == [url]


def test_addresses_with_colons_escapes_and_other_letters_are_read(tmp_path):
    (path,) = write_clips(tmp_path, 1, frames=4)
    names = {"/a::b.mp4": "/a::b", "/a%20b.mp4": "/a%20b", "/%D0%B2.mp4": "/\u0432"}
    texts = {name.replace(".mp4", ".txt"): b"a caption" for name in names}
    with file_server({name: path.read_bytes() for name in names} | texts) as served:
        urls = [f"{served.url}{stem}.mp4?sig=a%2Fb" for stem in names.values()]
        corpus = openuni.run({}, urls, out=tmp_path / "corpus", reporter=QUIET)
    assert [(clip.clip.source, clip.caption) for clip in corpus] == [(url, "a caption") for url in urls]


def test_an_ipv6_host_is_no_chain_of_addresses(tmp_path):
    corpus = openuni.run({}, "http://[::1]:1/a.mp4", out=tmp_path / "corpus", reporter=QUIET)
    assert "Cannot connect to host" in corpus.table("clips").column("error")[0].as_py()


def test_local_names_with_two_colons_are_plain_names(tmp_path):
    folder = tmp_path / "a::b"
    (path,) = write_clips(folder, 1, frames=4)
    path.with_suffix(".txt").rename(folder / "c::d.txt")
    path.rename(folder / "c::d.mp4")
    assert find_sources(f"{folder}/*::*.mp4") == [f"{folder}/c::d.mp4"]
    assert read_bounded(f"{folder}/c::d.txt", 100) == b"texture 0 pans by 1 px"
    corpus = openuni.run({}, folder, out=folder / "corpus::of", reporter=QUIET)
    assert [clip.caption for clip in Corpus.open(f"{folder}/corpus::of")] == ["texture 0 pans by 1 px"]
    assert corpus.store.root == f"{folder}/corpus::of"


@pytest.mark.parametrize("address", ["foo://a/b", "reference://a/b", "gs://a/b", "zip://a::b"])
def test_corpora_at_addresses_that_are_not_supported(address, tmp_path):
    with pytest.raises(OpenUniError, match=r"not supported|not installed|chain of URLs"):
        file_system(address)
    done = cli("summary", address)
    assert done.returncode == 2 and address.partition(":")[0] in done.stderr
