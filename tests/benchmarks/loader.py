"""CPU milliseconds per latent of the trainer's reads, against a bare `pread` and the formats of other loaders.

    python -m tests.benchmarks.loader [--samples 96] [--shape 16,21,60,104] [--rounds 5] [--other PYTHON]

One set of bfloat16 latents, written once per format: shards of a corpus, one `.pt` file per sample, and, by PYTHON (of
an environment with webdataset, mosaicml-streaming and datasets), tar shards, MDS shards and Parquet files in the layout
that `datasets` writes by default. Every format is read in a process of its own, in batches of 8, in a random order
where the format allows it, without decompression, warm, by one thread. Each round reads everything once, bare `pread`s
into the memory of a batch first: ratios are to those of the same process; figures are medians.

`--work FOLDER` keeps what is written.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BATCH = 8
PER_SHARD = 16
GOALS = {"openuni, checksums off": 1.2, "openuni": 2.0}  # at most, times a bare pread
# at least, times ours without checksums, which they do not have either
RIVALS = {"mosaicml-streaming": 3.0, ".pt per sample": 2.0, "Parquet of datasets": 100.0}

Reader = Callable[[list[int]], Any]  # of the samples of a batch


# ---------------------------------------------------------------------- formats; PYTHON runs this file as a script


def blobs(folder: str, shape: tuple[int, ...]) -> Iterator[Any]:
    """The latents as int16 arrays: 16-bit patterns."""
    import numpy as np

    count = int(np.prod(shape))
    for path in sorted(Path(folder, "blobs").iterdir()):
        data = np.fromfile(path, np.int16)
        yield from data.reshape(-1, count)


def write_webdataset(folder: str, out: str, shape: tuple[int, ...]) -> None:
    """Tar shards."""
    import webdataset

    with webdataset.ShardWriter(f"{out}/%05d.tar", maxcount=PER_SHARD, verbose=0) as sink:
        for number, values in enumerate(blobs(folder, shape)):
            sink.write({"__key__": f"{number:08d}", "bin": values.tobytes()})


def write_mds(folder: str, out: str, shape: tuple[int, ...]) -> None:
    """MDS shards."""
    from streaming import MDSWriter

    size = int(PER_SHARD * 2.2 * len(next(blobs(folder, shape))))
    with MDSWriter(out=out, columns={"latent": "bytes"}, size_limit=size) as sink:
        for values in blobs(folder, shape):
            sink.write({"latent": values.tobytes()})


def write_parquet(folder: str, out: str, shape: tuple[int, ...]) -> None:
    """Parquet, as `datasets` writes it."""
    import datasets

    rows = datasets.Dataset.from_generator(lambda: ({"latent": values.tobytes()} for values in blobs(folder, shape)))
    rows.to_parquet(f"{out}/rows.parquet")


def write_pt(folder: str, out: str, shape: tuple[int, ...]) -> None:
    """One file per sample."""
    import torch

    for number, values in enumerate(blobs(folder, shape)):
        torch.save(torch.from_numpy(values.copy()).view(torch.bfloat16).reshape(shape), f"{out}/{number:08d}.pt")


def write_corpus(folder: str, out: str, shape: tuple[int, ...]) -> None:
    """A corpus with these latents as `rgb`."""
    import dataclasses

    import numpy as np

    from openuni.manifests.contracts.decoded_clip import DecodedClip
    from openuni.manifests.contracts.schema import LATENT_SCHEMA, clip_schema
    from openuni.manifests.corpus.corpus import Corpus
    from openuni.manifests.corpus.shards import SafetensorsShard

    corpus = Corpus.create(out)
    clips, rows = corpus.writer("clips", clip_schema(), "1"), None
    one = DecodedClip.from_frames(np.zeros((5, 16, 16, 3), np.uint8)).clip
    for number, values in enumerate(blobs(folder, shape)):
        if number % PER_SHARD == 0:
            if rows:
                rows.finish()
            rows = corpus.writer("latents/bare-0123456789abcdef/rgb", LATENT_SCHEMA, "1", SafetensorsShard)
        assert rows
        name = f"{number:032x}"
        clips.commit(dataclasses.asdict(one) | {"clip_id": name, "status": "ok", "error": None})
        row: dict[str, Any] = dict.fromkeys(LATENT_SCHEMA.names)
        row |= rows.put(name, values.tobytes(), "bfloat16", shape)
        rows.commit(row | {"clip_id": name, "status": "ok", "shape": list(shape), "dtype": "bfloat16", "absmax": 6.0})
    for writer in (clips, rows):
        if writer:
            writer.finish()
    facts = {
        "codec": "bare",
        "options": {},
        "frames": 5,
        "size_px": [16, 16],
        "modalities": ["rgb"],
        "fingerprint": "0",
    }
    corpus.write_json("latents/bare-0123456789abcdef/family.json", facts)
    corpus.write_json("text/bare-0123456789abcdef/family.json", {"codec": "bare", "options": {}})


def read_webdataset(out: str, shape: tuple[int, ...]) -> Reader:
    """In the order of the shards: it has no other."""
    import torch
    import webdataset

    urls = sorted(map(str, Path(out).glob("*.tar")))
    samples: Iterator[Any] = iter(())

    def read(numbers: list[int]) -> Any:
        nonlocal samples
        found = []
        for _ in numbers:
            sample = next(samples, None)
            if sample is None:
                samples = iter(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
                sample = next(samples)
            found.append(torch.frombuffer(bytearray(sample["bin"]), dtype=torch.bfloat16).reshape(shape))
        return torch.stack(found)

    return read


def read_mds(out: str, shape: tuple[int, ...]) -> Reader:
    """By index."""
    import torch
    from streaming import StreamingDataset

    samples = StreamingDataset(local=out, shuffle=False, batch_size=BATCH)

    def read(numbers: list[int]) -> Any:
        found = [samples[number]["latent"] for number in numbers]
        return torch.stack([torch.frombuffer(bytearray(one), dtype=torch.bfloat16).reshape(shape) for one in found])

    return read


def read_parquet(out: str, shape: tuple[int, ...]) -> Reader:
    """A row group per sample asked for, which is the unit that Parquet reads."""
    import pyarrow.parquet as pq
    import torch

    file = pq.ParquetFile(f"{out}/rows.parquet")
    places = [
        (group, row) for group in range(file.num_row_groups) for row in range(file.metadata.row_group(group).num_rows)
    ]

    def read(numbers: list[int]) -> Any:
        found = []
        for number in numbers:
            group, row = places[number]
            data = file.read_row_group(group, columns=["latent"]).column("latent")[row].as_py()
            found.append(torch.frombuffer(bytearray(data), dtype=torch.bfloat16).reshape(shape))
        return torch.stack(found)

    return read


def read_pt(out: str, shape: tuple[int, ...]) -> Reader:
    """Unpickled as plain tensors."""
    import torch

    return lambda numbers: torch.stack([torch.load(f"{out}/{number:08d}.pt", weights_only=True) for number in numbers])


def read_corpus(out: str, shape: tuple[int, ...], *, verify: bool = True) -> Reader:
    """As the trainer's loader reads them, before they become float32."""
    from openuni.manifests.corpus.corpus import Corpus
    from openuni.manifests.corpus.payload_reader import PayloadReader
    from openuni.training.data.batches import Staging
    from openuni.training.data.index import open_index

    corpus = Corpus.open(out)
    index, reader = open_index(corpus, ("rgb",), "", "", 0.0), PayloadReader(corpus, verify=verify)
    staging = Staging()
    return lambda numbers: index.read_latents(reader, "rgb", numbers, staging.bytes)


FORMATS: dict[str, tuple[str, Callable[..., None], Callable[..., Reader], bool]] = {
    "openuni": ("corpus", write_corpus, read_corpus, False),
    "openuni, checksums off": ("corpus", write_corpus, lambda *given: read_corpus(*given, verify=False), False),
    ".pt per sample": ("pt", write_pt, read_pt, False),
    "webdataset, in order": ("webdataset", write_webdataset, read_webdataset, True),
    "mosaicml-streaming": ("mds", write_mds, read_mds, True),
    "Parquet of datasets": ("parquet", write_parquet, read_parquet, True),
}


def bare(folder: str, shape: tuple[int, ...]) -> Reader:
    """`preadv` of each latent into the memory of a batch, which is used again: new memory costs page faults."""
    import math

    paths = sorted(Path(folder, "blobs").iterdir())
    files = [os.open(path, os.O_RDONLY) for path in paths]
    size = 2 * math.prod(shape)
    memory = memoryview(bytearray(BATCH * size))
    places = [memory[start : start + size] for start in range(0, len(memory), size)]

    def read(numbers: list[int]) -> Any:
        for place, one in zip(places, numbers, strict=False):
            os.preadv(files[one // PER_SHARD], [place], one % PER_SHARD * size)
        return places

    return read


def measure(name: str, folder: str, shape: tuple[int, ...], samples: int, rounds: int) -> dict[str, Any]:
    """Medians over the rounds, ms per latent."""
    import random

    import torch

    torch.set_num_threads(1)
    place, write, opened, _ = FORMATS[name]
    out = Path(folder, place)
    if not out.exists():
        out.mkdir()
        write(folder, str(out), shape)
    readers = {"bare": bare(folder, shape), name: opened(str(out), shape)}
    order, times = list(range(samples)), {key: [] for key in readers}  # type: dict[str, list[float]]
    for turn in range(rounds + 1):
        random.Random(turn).shuffle(order)
        for key, read in readers.items():
            few = order if "Parquet" not in key or turn == 0 else order[: 2 * BATCH]  # it takes a hundred times as long
            began = time.process_time()
            for start in range(0, len(few), BATCH):
                batch = read(few[start : start + BATCH])
                if turn == 0 and key != "bare" and "order" not in key:
                    expected = bytes(readers["bare"](few[start : start + 1])[0])
                    assert batch[0].contiguous().view(torch.int16).numpy().tobytes() == expected, (
                        f"{key}: other latents"
                    )
            if turn:  # the first one warms up, and compares
                times[key].append(1000 * (time.process_time() - began) / len(few))
    ratio = statistics.median(one / other for one, other in zip(times[name], times["bare"], strict=True))
    return {"ms": statistics.median(times[name]), "bare_ms": statistics.median(times["bare"]), "ratio": ratio}


# ---------------------------------------------------------------------- the table


def child(python: str, *arguments: str) -> Any:
    """The result of a fresh process."""
    script = [str(Path(__file__))] if python != sys.executable else ["-m", "tests.benchmarks.loader"]
    done = subprocess.run([python, *script, "--child", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stdout}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def show_formats(given: argparse.Namespace, folder: str) -> None:
    """One line per format."""
    found = {}
    for name, (*_, needs_other) in FORMATS.items():
        if needs_other and not given.other:
            print(f"{name}: not measured; give --other PYTHON of an environment that has it")
            continue
        python = given.other if needs_other else sys.executable
        found[name] = child(python, name, folder, given.shape, str(given.samples), str(given.rounds))
        line = found[name]
        goal = GOALS.get(name)
        verdict = "" if goal is None else f"; goal {goal:g}: {'reached' if line['ratio'] <= goal else 'NOT REACHED'}"
        print(
            f"{name}: {line['ms']:.3f} ms per latent, {line['ratio']:.2f} x pread ({line['bare_ms']:.3f} ms){verdict}"
        )
    for name, goal in RIVALS.items():
        if name in found:
            times = found[name]["ratio"] / found["openuni, checksums off"]["ratio"]
            verdict = "reached" if times >= goal else "NOT REACHED"
            print(f"{name}: {times:.1f} x openuni without checksums; goal {goal:g}: {verdict}")


def main() -> None:
    """Write, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--shape", default="16,21,60,104", help="of a latent: C,T,H,W; default: 81 frames of 480 x 832")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--other", default="", help="Python with webdataset, mosaicml-streaming and datasets")
    parser.add_argument("--work", type=Path, help="keep what is written here")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        name, folder, shape, samples, rounds = given.child
        print(json.dumps(measure(name, folder, tuple(map(int, shape.split(","))), int(samples), int(rounds))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.work or Path(scratch)
        if not (folder / "blobs").exists():
            write_blobs(folder / "blobs", tuple(map(int, given.shape.split(","))), given.samples)
        show_formats(given, str(folder))


def write_blobs(folder: Path, shape: tuple[int, ...], samples: int) -> None:
    """Random latents, 16 to a file."""
    import torch

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    for start in range(0, samples, PER_SHARD):
        values = torch.randn(min(PER_SHARD, samples - start), *shape).bfloat16()
        values.view(torch.int16).numpy().tofile(folder / f"{start // PER_SHARD:05d}")


if __name__ == "__main__":
    main()
