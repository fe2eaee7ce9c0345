"""Payloads read in bulk: from disks and object stores, with what is damaged, missing or declared wrongly."""

import threading
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import xxhash

from openuni.manifests.corpus import payload_reader
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.payload_reader import Payload, PayloadReader
from openuni.manifests.errors import DamagedFile, OpenUniError

GROUP = "latents/family/rgb"


def bytes_of(number: int, count: int = 1000) -> bytes:
    return np.random.default_rng(number).bytes(count)


def shard(number: int) -> str:
    return f"{number:032x}.safetensors"


@pytest.fixture(params=["disk", "memory"])
def corpus(request: pytest.FixtureRequest, tmp_path: Path) -> Corpus:
    """Three shards of four payloads, 1,000 bytes each, behind 10 other bytes."""
    url = str(tmp_path / "corpus") if request.param == "disk" else f"memory://{uuid4().hex}/corpus"
    made = Corpus.create(url)
    for number in range(3):
        made.store.put(f"{GROUP}/{shard(number)}", b"h" * 10 + b"".join(bytes_of(4 * number + at) for at in range(4)))
    return made


def payload(number: int, **changes: object) -> Payload:
    found = Payload(
        GROUP, shard(number // 4), 10 + 1000 * (number % 4), 1000, xxhash.xxh3_64_intdigest(bytes_of(number))
    )
    return found._replace(**changes)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def read(reader: PayloadReader, payloads: list[Payload]) -> tuple[list[bytes], dict[int, Exception]]:
    data = [bytearray(max(0, one.nbytes)) for one in payloads]
    errors = reader.read_into(payloads, [memoryview(one) for one in data])
    return [bytes(one) for one in data], errors


def test_payloads_in_any_order_and_twice(corpus: Corpus) -> None:
    numbers = [7, 0, 11, 7, 3]
    data, errors = read(PayloadReader(corpus), [payload(number) for number in numbers])
    assert not errors and data == [bytes_of(number) for number in numbers]


def test_errors_say_which_and_leave_the_others_alone(corpus: Corpus) -> None:
    wanted = [
        payload(0),
        payload(1, xxh3=1),
        payload(2, shard=shard(99)),
        payload(3, offset=3500),  # past the end
        payload(4, shard="../../secret"),
        payload(5, offset=-1),
        payload(6),
    ]
    data, errors = read(PayloadReader(corpus), wanted)
    assert sorted(errors) == [1, 2, 3, 4, 5] and data[0] == bytes_of(0) and data[6] == bytes_of(6)
    assert isinstance(errors[1], DamagedFile) and "checksum mismatch of 1000 bytes at offset 1010" in str(errors[1])
    assert "is missing. Restore it" in str(errors[2]) and isinstance(errors[3], DamagedFile)
    assert "must be a plain file name" in str(errors[4]) and "at offset -1" in str(errors[5])
    assert all(isinstance(error, OpenUniError) for error in errors.values())


def test_sizes_that_do_not_fit_their_memory(corpus: Corpus) -> None:
    errors = PayloadReader(corpus).read_into([payload(0, nbytes=2**62)], [memoryview(bytearray(1000))])
    assert "4611686018427387904 bytes at offset 10 for 1000 bytes" in str(errors[0])


def test_without_checksums_a_changed_payload_is_read(corpus: Corpus) -> None:
    data, errors = read(PayloadReader(corpus, verify=False), [payload(1, xxh3=1)])
    assert not errors and data == [bytes_of(1)]


def test_a_restored_file_is_read_again(corpus: Corpus) -> None:
    reader, name = PayloadReader(corpus), f"{GROUP}/{shard(0)}"
    whole = corpus.store.read(name)
    corpus.store.put(name, whole[:1500] + b"?" + whole[1501:])
    assert list(read(reader, [payload(0), payload(1)])[1]) == [1]
    corpus.store.put(name, whole)
    assert read(reader, [payload(0), payload(1)]) == ([bytes_of(0), bytes_of(1)], {})


def test_threads_share_a_few_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload_reader, "MAX_OPEN", 2)
    corpus = Corpus.create(str(tmp_path / "corpus"))
    for number in range(12):
        corpus.store.put(f"{GROUP}/{shard(number)}", bytes_of(number))
    places = [
        Payload(GROUP, shard(number), 0, 1000, xxhash.xxh3_64_intdigest(bytes_of(number))) for number in range(12)
    ]
    reader, failed = PayloadReader(corpus), []
    before = open_files()

    def work(seed: int) -> None:
        order = np.random.default_rng(seed).permutation(12)
        for number in [*order, *order]:
            if read(reader, [places[number]]) != ([bytes_of(number)], {}):
                failed.append(number)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and open_files() <= before + 2
    reader.close()
    assert open_files() == before and not read(reader, places[:1])[1]


def test_a_link_out_of_the_corpus_is_not_followed(tmp_path: Path) -> None:
    corpus = Corpus.create(str(tmp_path / "corpus"))
    (tmp_path / "secret").write_bytes(bytes_of(0))
    place = tmp_path / "corpus" / GROUP / shard(0)
    place.parent.mkdir(parents=True)
    place.symlink_to(tmp_path / "secret")
    errors = read(PayloadReader(corpus), [payload(0, offset=0)])[1]
    assert "outside" in str(errors[0])
