"""Reading a corpus's column groups."""

from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads

from openuni.manifests.corpus.corpus import Corpus

SCHEMA = pa.schema(
    [("clip_id", pa.string()), ("depth", pa.struct([("map", pa.struct([("shard", pa.string())])), ("ms", pa.int64())]))]
)


def test_rows_are_looked_up_in_the_order_asked_for_wherever_they_lie(tmp_path: Path) -> None:
    corpus = Corpus.create(str(tmp_path))
    for part in ("ba", "dc"):
        writer = corpus.writer("annotations/depth", SCHEMA, "1")
        for name in part:
            stored = None if name == "b" else {"shard": f"{name}.tar"}
            writer.commit({"clip_id": name, "depth": {"map": stored, "ms": ord(name)}})
        writer.finish()
    columns = {"map": pads.field("depth", "map"), "ms": pads.field("depth", "ms")}
    rows = corpus.look_up("annotations/depth", pa.array(["d", "x", "b", "a"]), columns)
    assert rows.to_pylist() == [
        {"map": {"shard": "d.tar"}, "ms": ord("d")},
        None,  # has no row
        {"map": None, "ms": ord("b")},
        {"map": {"shard": "a.tar"}, "ms": ord("a")},
    ]
    assert corpus.look_up("annotations/depth", pa.array([], pa.string()), columns).to_pylist() == []
    assert corpus.look_up("annotations/raft", pa.array(["a"]), {"id": pads.field("clip_id")}).to_pylist() == [None]
