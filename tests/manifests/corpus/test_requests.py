"""Requests to an object store: listings do not depend on the number of parts, and each part is read once."""

import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa
import pytest

import openuni
from openuni.manifests.contracts.schema import clip_schema
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.coverage import coverage, stored_sizes
from openuni.manifests.corpus.parts.part_files import table_bytes
from openuni.manifests.storage.checksums import TAIL_BYTES
from openuni.report.explain import explain
from tests.bare_corpora import NUMBERS
from tests.s3_server import Application, s3_bucket
from tests.small_parts import GROUPS, MAPS, add_part, rows_seen, seen, small_parts


class Requests:
    """Stands between clients and the server, and counts."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []  # method, path

    def __call__(self, app: Application) -> Application:
        def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            query = environ["QUERY_STRING"]
            is_list = "list-type" in query
            if ".lease" not in environ["PATH_INFO"] + query:  # signs of life come with time
                self.seen.append(("LIST" if is_list else environ["REQUEST_METHOD"], environ["PATH_INFO"]))
            return app(environ, start_response)

        return answer

    def of(self, work: Callable[[], object]) -> tuple[Counter[str], Counter[str]]:
        """Requests by method but for those of parts, and requests of each part."""
        self.seen.clear()
        work()
        parts = Counter(
            path for method, path in self.seen if "/part-" in path and path.endswith(".parquet") and method != "PUT"
        )
        others = Counter(method for method, path in self.seen if "/part-" not in path)
        return others, parts


@pytest.fixture(scope="module")
def requests() -> Requests:
    return Requests()


@pytest.fixture(scope="module")
def bucket(requests, tmp_path_factory):
    with s3_bucket("requests", requests) as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENUNI_SPOOL", str(tmp_path_factory.mktemp("spool")))
        yield url


@pytest.fixture(scope="module")
def corpora(bucket) -> dict[int, str]:
    return {parts: small_parts(f"{bucket}/c{parts}", parts, clips=1).store.url for parts in (3, 30)}


def summary(url: str, bucket: str) -> None:
    corpus = Corpus.open(url)
    assert str(corpus.summary()) and coverage(corpus) and not stored_sizes(corpus)
    corpus.require_shards(corpus.groups())


QUERIES = {
    "open": (lambda url, bucket: Corpus.open(url), 0),
    "len": (lambda url, bucket: len(Corpus.open(url)), 1),
    "summary": (summary, 3),
    "explain": (lambda url, bucket: explain(Corpus.open(url), "clip-0-0"), 3),
    "select": (lambda url, bucket: openuni.select(url, "true", out=f"{bucket}/cut/{url.rpartition('/')[2]}"), 3),
}


@pytest.mark.parametrize(("query", "groups"), QUERIES.values(), ids=QUERIES)
def test_listings_do_not_depend_on_the_number_of_parts_and_each_part_is_read_once(
    corpora, requests, bucket, query, groups
):
    few, parts = requests.of(lambda: query(corpora[3], bucket))
    assert len(parts) == groups * 3 and set(parts.values()) <= {1}
    many, parts = requests.of(lambda: query(corpora[30], bucket))
    assert len(parts) == groups * 30 and set(parts.values()) <= {1}
    assert many == few


def test_a_part_that_was_written_since_is_read_again(bucket, requests, tmp_path):
    """Also by another process: a listing tells, and otherwise the checksums do."""
    corpus = small_parts(f"{bucket}/changing", parts=2)
    before = seen(corpus.store.url)
    reader = Corpus.open(corpus.store.url)
    assert rows_seen(reader)["clips"] == before["clips"]
    assert Corpus.open(corpus.store.url).delete_by_status(MAPS, ["failed"]) == 2
    assert len(reader.table(MAPS)) == 2
    openuni.split(corpus.store.url, {"test": 0.5})
    assert {row["split"] for row in reader.table("clips").to_pylist()} == {"train", "test"}
    add_part(corpus, ["new"])
    assert [len(reader.table(group)) for group in GROUPS] == [5, 5, 3]


def test_columns_of_large_parts_are_read_in_few_requests(bucket, requests):
    """A part that does not fit into its first request: its end, then the columns that are asked for."""
    corpus = Corpus.create(f"{bucket}/large")
    texts = [random.Random(number).randbytes(20).hex() for number in range(6000)]
    rows = [NUMBERS | {"clip_id": f"c{number}", "source": "x", "status": "ok"} for number in range(6000)]
    table = pa.Table.from_pylist(rows, clip_schema())
    table = table.set_column(table.schema.get_field_index("caption"), "caption", pa.array(texts))
    corpus.store.put("clips/part-1.parquet", table_bytes(table))
    assert corpus.store.nbytes("clips/part-1.parquet") > 2 * TAIL_BYTES
    _, parts = requests.of(lambda: len(Corpus.open(corpus.store.url)))
    assert sum(parts.values()) <= 3  # its end, the names that are checked, and the columns
    reader = Corpus.open(corpus.store.url)
    dataset = reader.dataset("clips")  # listed now, and written afterwards
    openuni.split(corpus.store.url, {"test": 0.5})
    found = dataset.to_table(columns=["caption", "split"])
    assert found["caption"].to_pylist() == texts and set(found["split"].to_pylist()) <= {"train", "test"}
