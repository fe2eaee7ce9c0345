"""Payload files: readable by everyone's readers, found by offset, cut back to what is known."""

import tarfile

import numpy as np
import pytest
from safetensors import safe_open

from openuni.manifests.corpus.shards import SafetensorsShard, TarShard, checksum


def test_a_tar_is_a_tar_and_its_offsets_are_true(tmp_path):
    shard = TarShard(tmp_path / "part.tar")
    payloads = {
        f"clip-{number}.depth.mkv": bytes([number]) * size for number, size in enumerate((0, 1, 511, 512, 5000))
    }
    entries = [shard.put(name, data) for name, data in payloads.items()]
    shard.close(finish=True)
    with tarfile.open(tmp_path / "part.tar") as tar:
        assert {member.name: tar.extractfile(member).read() for member in tar} == payloads
    raw = (tmp_path / "part.tar").read_bytes()
    for entry in entries:
        data = raw[entry.offset : entry.offset + entry.nbytes]
        assert data == payloads[entry.key] and checksum(data) == entry.xxh3
    assert len(raw) % 512 == 0


def test_long_names_survive_in_a_tar(tmp_path):
    shard = TarShard(tmp_path / "part.tar")
    entry = shard.put("x" * 150 + ".mkv", b"data")
    shard.close(finish=True)
    with tarfile.open(tmp_path / "part.tar") as tar:
        assert [member.name for member in tar] == ["x" * 150 + ".mkv"]
    assert (tmp_path / "part.tar").read_bytes()[entry.offset :][:4] == b"data"


def test_safetensors_reads_what_we_wrote(tmp_path):
    shard = SafetensorsShard(tmp_path / "part.safetensors")
    arrays = {f"clip-{number}": np.full((number + 1, 3), number, np.float16) for number in range(4)}
    entries = [shard.put(key, array.tobytes(), "float16", array.shape) for key, array in arrays.items()]
    shard.close(finish=True)
    with safe_open(tmp_path / "part.safetensors", "numpy") as file:
        assert set(file.keys()) == set(arrays)
        for key, array in arrays.items():
            assert (file.get_tensor(key) == array).all() and file.get_tensor(key).dtype == np.float16
    raw = (tmp_path / "part.safetensors").read_bytes()
    for entry, array in zip(entries, arrays.values(), strict=True):
        assert raw[entry.offset : entry.offset + entry.nbytes] == array.tobytes()


def test_a_safetensors_shard_is_full_before_its_header_overflows(tmp_path):
    shard = SafetensorsShard(tmp_path / "part.safetensors")
    count = 0
    while not shard.is_full:
        shard.put(f"{count:032x}", b"\0\0" * 24, "bfloat16", (1, 2, 3, 4))
        count += 1
    shard.close(finish=True)
    assert count > 1000
    with safe_open(tmp_path / "part.safetensors", "pt") as file:
        assert len(file.keys()) == count


@pytest.mark.parametrize("kind", [TarShard, SafetensorsShard])
def test_reopening_cuts_what_is_not_known(tmp_path, kind):
    path = tmp_path / f"part{kind.suffix}"
    shard = kind(path)
    first = shard.put("first", b"abcd", "float32", (1,))
    shard.put("second", b"efgh", "float32", (1,))
    shard.close(finish=False)
    again = kind(path)
    again.reopen([first])
    third = again.put("third", b"ijkl", "float32", (1,))
    again.close(finish=True)
    raw = path.read_bytes()
    assert b"efgh" not in raw
    assert [raw[entry.offset : entry.offset + 4] for entry in (first, third)] == [b"abcd", b"ijkl"]


@pytest.mark.parametrize("kind", [TarShard, SafetensorsShard])
def test_damage_is_seen(tmp_path, kind):
    path = tmp_path / f"part{kind.suffix}"
    shard = kind(path)
    entry = shard.put("key", b"abcdefgh", "float32", (2,))
    assert shard.is_intact(entry)
    shard.file.seek(entry.offset + 3)
    shard.file.write(b"X")
    assert not shard.is_intact(entry)
    assert not shard.is_intact(entry._replace(nbytes=9))
