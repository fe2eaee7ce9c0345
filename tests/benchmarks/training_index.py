"""Seconds and memory of opening the trainer's index of a million samples of six modalities, and of a far step.

    python -m tests.benchmarks.training_index [--clips 1000000] [--work FOLDER]

The rows are those of a corpus with latents of 81 frames of 480 x 832 in parts of 20,000; the shards are empty files.
Opened in two fresh processes, as training does: the first reads and checks all rows and writes the cache of the run
folder, the second, as on resume and on other ranks, reads the cache. Both make the plan.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MODALITIES = ("rgb", "depth", "flow", "segmentation", "skeleton", "normal")
FAR_STEP = 10_000_000
GOAL_S, GOAL_MB, GOAL_STEP_S = 2.0, 300.0, 1.0


def write_rows(folder: str, clips: int) -> None:
    """Rows of latents of all modalities in parts of 20,000; the shards are empty."""
    import dataclasses

    import numpy as np
    import pyarrow as pa

    from openuni.manifests.contracts.decoded_clip import DecodedClip
    from openuni.manifests.contracts.schema import LATENT_SCHEMA, clip_schema
    from openuni.manifests.corpus.column_groups import VERSION_KEY
    from openuni.manifests.corpus.corpus import Corpus
    from openuni.manifests.corpus.parts.part_files import table_bytes

    corpus, family = Corpus.create(folder), "bare-0123456789abcdef"
    part_rows = 20_000
    one = dataclasses.asdict(DecodedClip.from_frames(np.zeros((81, 16, 16, 3), np.uint8)).clip)

    def put(group: str, schema: Any, number: int, columns: dict[str, Any]) -> None:
        count = len(columns["clip_id"])
        arrays = [columns.get(field.name, pa.nulls(count, field.type)) for field in schema]
        table = pa.table([pa.array(one, field.type) for one, field in zip(arrays, schema, strict=True)], schema=schema)
        table = table.replace_schema_metadata({VERSION_KEY: b"1"})
        corpus.store.put(f"{group}/part-{number:06d}.parquet", table_bytes(table))

    for number, start in enumerate(range(0, clips, part_rows)):
        numbers = np.arange(start, min(start + part_rows, clips))
        count, ids = len(numbers), [f"{one:032x}" for one in numbers]
        facts = {name: [value] * count for name, value in one.items()}
        facts |= {"clip_id": ids, "status": ["ok"] * count, "source": [f"{clip // 10}.mp4" for clip in numbers]}
        put("clips", clip_schema(), number, facts)
        for modality in MODALITIES:
            group = f"latents/{family}/{modality}"
            columns = {
                "clip_id": ids,
                "status": ["ok"] * count,
                "shard": [f"part-{number:06d}.safetensors"] * count,
                "offset": (numbers - start) * 4_193_280 + 1000,
                "nbytes": np.full(count, 4_193_280),
                "xxh3": np.random.default_rng(number).integers(0, 2**63, count, np.uint64),
                "shape": [[16, 21, 60, 104]] * count,
                "dtype": ["bfloat16"] * count,
                "absmax": np.ones(count, np.float32),
            }
            put(group, LATENT_SCHEMA, number, columns)
            corpus.store.put(f"{group}/part-{number:06d}.safetensors", b"")
    record = {"codec": "bare", "options": {}, "frames": 81, "size_px": [480, 832], "fingerprint": "0"}
    corpus.write_json(f"latents/{family}/family.json", record | {"modalities": list(MODALITIES)})
    corpus.write_json(f"text/{family}/family.json", {"codec": "bare", "options": {}})


def open_rows(folder: str, cache: str) -> dict[str, float]:
    """Seconds and memory of opening the index, and seconds of a far step."""
    from openuni.manifests.corpus.corpus import Corpus
    from openuni.training.data.index_cache import IndexCache
    from openuni.training.data.plan import Plan
    from openuni.training.tasks import TaskMix

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    began, cpu = time.perf_counter(), time.process_time()
    kept = IndexCache(Path(cache), Corpus.open(folder), MODALITIES, "", "", 0.1)
    index = kept.open()
    opened, opened_cpu = time.perf_counter() - began, time.process_time() - cpu
    mix = TaskMix.build({"rgb->depth": 1.0}, MODALITIES)
    began = time.perf_counter()
    plan = Plan.build(index, mix, 0, 64)
    planned = time.perf_counter() - began
    began = time.perf_counter()
    assert len(plan.step(FAR_STEP)) == 64
    stepped = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    kept.save()
    return {
        "open_s": opened,
        "open_cpu_s": opened_cpu,
        "plan_s": planned,
        "far_step_s": stepped,
        "imports_mb": before,
        "peak_mb": peak,
    }


def main() -> None:
    """Write, open, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path, help="the rows are written or found here, and stay")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(open_rows(*given.child)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        rows = (given.work or Path(scratch)) / "corpus"
        if not rows.exists():
            write_rows(str(rows), given.clips)
        cache = str(Path(scratch) / "index.safetensors")
        command = [sys.executable, "-m", "tests.benchmarks.training_index", "--child", str(rows), cache]
        for what in ("all rows", "the cache"):
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            report(given.clips, what, json.loads(done.stdout.strip().splitlines()[-1]))


def report(clips: int, what: str, line: dict[str, float]) -> None:
    """Print what a process measured."""
    more_mb = line["peak_mb"] - line["imports_mb"]
    goals = {
        "open": (line["open_cpu_s"], GOAL_S),
        "memory": (more_mb, GOAL_MB),
        "step": (line["far_step_s"], GOAL_STEP_S),
    }
    failed = [name for name, (value, goal) in goals.items() if value > goal]
    print(
        f"{clips:,} samples of {len(MODALITIES)} modalities, from {what}: opened in {line['open_s']:.1f} s "
        f"({line['open_cpu_s']:.1f} s of CPU), {more_mb:.0f} MB above the {line['imports_mb']:.0f} MB of imports; plan "
        f"{line['plan_s']:.2f} s; step {FAR_STEP:,} in {line['far_step_s']:.3f} s. "
        f"{'NOT REACHED: ' + ', '.join(failed) if failed else 'reached'}"
    )


if __name__ == "__main__":
    main()
