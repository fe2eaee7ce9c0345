"""Maps of long clips: spooled in windows, put into shards as files, read from there in blocks."""

import dataclasses

import numpy as np
import pytest

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.corpus_clip import read_modality, stored_blocks
from openuni.manifests.corpus.parts.payload_files import open_payload
from openuni.manifests.corpus.parts.spool import SpooledMaps
from openuni.manifests.corpus.shards import TarShard
from openuni.manifests.corpus.writer import StorageFull
from openuni.manifests.errors import ClipError, DamagedFile, OpenUniError
from openuni.manifests.modalities.depth import Depth
from openuni.manifests.modalities.flow import Flow
from openuni.manifests.modalities.skeleton import Skeleton
from openuni.manifests.video.clip import Clip
from openuni.manifests.video.container import Limits
from tests.full_disk import files_of_at_most

FRAMES = 9
RNG = np.random.default_rng(0)
FLOW = Flow(RNG.normal(size=(FRAMES, 20, 30, 2)).astype(np.float32), RNG.random((FRAMES, 20, 30, 1)) > 0.1)
CLIP: Clip = DecodedClip.from_frames(np.zeros((FRAMES, 20, 30, 3), np.uint8)).clip


def spooled(tmp_path, signal: Modality, size: int) -> SpooledMaps:
    maps = SpooledMaps(tmp_path, FRAMES)
    for start in range(0, FRAMES, size):
        maps.append(signal.take(start, min(start + size, FRAMES)))
    return maps


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("size", [1, 4, 9])
def test_spooled_maps_come_back_and_are_encoded_as_the_whole(tmp_path, size, compact):
    maps = spooled(tmp_path, FLOW, size)
    assert maps.frames == FRAMES and maps.nbytes == FLOW.array.nbytes + FLOW.valid.nbytes
    np.testing.assert_array_equal(maps.whole().array, FLOW.array)
    np.testing.assert_array_equal(maps.whole().valid, FLOW.valid)
    payload, whole = maps.encode(25, compact=compact), FLOW.encode_compact(25) if compact else FLOW.encode(25)
    payload.file.seek(0)
    assert payload.file.read() == whole.data and payload.constants == whole.constants
    assert list(tmp_path.iterdir()) == [], "the files have no names"


def test_other_attributes_are_those_of_the_first_block(tmp_path):
    metres = Depth(np.ones((FRAMES, 4, 5, 1), np.float32), "metres")
    assert [block.unit for block in spooled(tmp_path, metres, 4)] == ["metres"] * 3


def test_maps_that_are_stored_as_tensors_are_encoded_whole(tmp_path):
    points = np.zeros((FRAMES, 2, 133, 3), np.float32)
    points[..., 2] = 0.5
    maps = spooled(tmp_path, Skeleton(points, 48, 64), 4)
    assert not maps.is_streamable(compact=False) and maps.size_px == (48, 64)
    assert maps.whole().encode(25).data == Skeleton(points, 48, 64).encode(25).data


def test_maps_that_do_not_fit_together_are_refused(tmp_path):
    maps = SpooledMaps(tmp_path, FRAMES)
    maps.append(FLOW.take(0, 3))
    for other in (FLOW.resize(10, 15), dataclasses.replace(FLOW, valid=None)):
        with pytest.raises(ClipError, match="one size and dtype"):
            maps.append(other.take(0, 1))
    with pytest.raises(ClipError, match=f"the clip has {FRAMES}"):
        maps.append(FLOW)


def test_a_full_disk_is_no_error_of_the_clip(tmp_path):
    """As one it would become a failed row, which a rerun does not retry."""
    with files_of_at_most(500), pytest.raises(StorageFull, match=f"no space left while writing to {tmp_path}"):
        spooled(tmp_path, FLOW, 4)
    maps = spooled(tmp_path, FLOW, 4)
    with files_of_at_most(500), pytest.raises(StorageFull, match=f"no space left while writing to {tmp_path}"):
        maps.encode(25, compact=False)
    assert maps.encode(25, compact=False).file.tell() > 500


def test_a_file_in_a_shard_is_the_payload_of_its_bytes(tmp_path):
    data = RNG.bytes(3_000_001)
    (tmp_path / "data").write_bytes(data)
    one, other = TarShard(tmp_path / "one.tar"), TarShard(tmp_path / "other.tar")
    with (tmp_path / "data").open("rb") as file:
        file.seek(77)  # read from its beginning all the same
        entries = [one.put_file("a.b.mkv", file), one.put("c", b"more")]
    assert entries == [other.put("a.b.mkv", data), other.put("c", b"more")]
    assert all(one.is_intact(entry) for entry in entries)
    one.close(finish=True)
    other.close(finish=True)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "other.tar").read_bytes()


@pytest.fixture
def stored(tmp_path):
    """A corpus with one flow and one skeleton, and their rows."""
    corpus = Corpus.create(str(tmp_path / "corpus"))
    skeleton = Skeleton(np.zeros((FRAMES, 1, 133, 3), np.float32), 20, 30)
    rows = {}
    shard = TarShard(tmp_path / "corpus" / "part-1.tar")
    for signal in (FLOW, skeleton):
        payload = signal.encode(25)
        entry = shard.put(f"clip.{signal.name}.{payload.suffix}", payload.data)
        extent = {"shard": "part-1.tar", "offset": entry.offset, "nbytes": entry.nbytes, "xxh3": entry.xxh3}
        size = {"frames": FRAMES, "height_px": 20, "width_px": 30, "pts_hash": CLIP.pts_hash}
        rows[signal.name] = extent | size | payload.constants._asdict()
    shard.close(finish=True)
    group = tmp_path / "corpus" / "annotations" / "made"
    group.mkdir(parents=True)
    (tmp_path / "corpus" / "part-1.tar").rename(group / "part-1.tar")
    return corpus, rows, group / "part-1.tar"


@pytest.mark.parametrize("kind", [Flow, Skeleton])
@pytest.mark.parametrize("stop", [None, 1, 5, FRAMES])
def test_stored_maps_are_read_in_blocks_up_to_a_frame(stored, kind, stop):
    corpus, rows, _ = stored
    whole = read_modality(corpus, "annotations/made", kind, rows[kind.name], CLIP)
    blocks = list(stored_blocks(corpus, "annotations/made", kind, rows[kind.name], CLIP, 2, Limits(), stop))
    np.testing.assert_array_equal(kind.joined(blocks).array, whole.array[:stop])
    assert kind is Skeleton or {len(block.array) for block in blocks} <= {1, 2}


def test_a_map_that_is_read_at_once_obeys_the_limit(stored):
    corpus, rows, _ = stored
    with pytest.raises(ClipError, match="max_decoded_gb"):
        list(
            stored_blocks(corpus, "annotations/made", Skeleton, rows["skeleton"], CLIP, 2, Limits(max_decoded_bytes=9))
        )


def test_damage_is_found_before_the_first_block(stored):
    corpus, rows, path = stored
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DamagedFile, match="checksum mismatch"):
        next(stored_blocks(corpus, "annotations/made", Flow, rows["flow"], CLIP, 2, Limits()))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"nbytes": 10**9}, "no 1000000000 bytes"),
        ({"nbytes": 0}, "Parquet file is damaged"),
        ({"offset": -1}, "Parquet file is damaged"),
        ({"shard": "../corpus.json"}, "Parquet file is damaged"),
        ({"shard": "part-9.tar"}, "part-9.tar"),
    ],
)
def test_extents_that_only_damage_can_name_are_refused(stored, change, text):
    corpus, rows, _ = stored
    row = rows["flow"] | change
    with (
        pytest.raises(OpenUniError, match=text),
        open_payload(corpus, "annotations/made", *(row[key] for key in ("shard", "offset", "nbytes", "xxh3"))),
    ):
        pass
