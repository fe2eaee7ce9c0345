"""Whether memory stays flat: resident memory, open files and threads while one thing is done many times.

    python -m tests.benchmarks.memory [--opens 10000] [--clips 2000] [--only NAME ...] [--work FOLDER]

Every case is a process of its own: opens, probes and decodes of one file; opens of web addresses and of damaged files,
whose errors are caught; a run over many clips, in one process and with a Ray worker; a driver with many pending items.
Memory is taken at fifths of the work, so the first figure includes imports, models and caches that have a fixed size.
"""

import argparse
import contextlib
import gc
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from openuni.pipeline.worker import ItemOutcome, Spec, Worker

ROOT = Path(__file__).parents[2]
MARKS = 5
MAX_GROWTH_MB = 16.0  # from the second mark to the last


class Mark(NamedTuple):
    """What a process holds at one moment."""

    rss_mb: float  # 10^6 bytes
    files: int
    threads: int


def mark(pid: int | None = None) -> Mark:
    """Of this process, or of another one."""
    import psutil

    process = psutil.Process(pid)
    return Mark(process.memory_info().rss / 1e6, process.num_fds(), process.num_threads())


def repeated(work: Callable[[int], object], count: int) -> list[Mark]:
    """Do it `count` times; the marks are taken after each fifth."""
    marks = []
    for number in range(count):
        work(number)
        if (number + 1) % max(1, count // MARKS) == 0 and len(marks) < MARKS:
            gc.collect()  # cycles are not what is looked for
            marks.append(mark())
    return marks


# ---------------------------------------------------------------------- one file


def file_cases(work: Path) -> dict[str, Callable[[int], object]]:
    """Name -> what is done with a video of 30 frames, 64 x 48, or with a damaged copy of it."""
    import numpy as np

    from openuni.manifests.video.probe import probe, probe_clip
    from openuni.manifests.video.reader import decode_frames, decode_full_depth, iter_frames
    from tests.coded_clips import encode

    path = encode(work / "whole.mp4", times=range(30))
    deep = encode(work / "deep.mkv", "ffv1", times=range(5), options={"pix_fmt": "yuv420p10le"})
    interlaced = encode(work / "fields.mp4", times=range(30), options={"flags": "+ilme+ildct"})
    clip, deep_clip, field_clip = (probe_clip(str(one)) for one in (path, deep, interlaced))
    packed = work / "packed.bin"
    packed.write_bytes(bytes(100) + path.read_bytes())
    within = f"{packed}#bytes=100-{99 + path.stat().st_size}"

    def leave_early(_: int) -> None:
        frames = iter_frames(clip)
        next(frames)
        frames.close()

    return {
        "probe": lambda _: probe(str(path)),
        "decode": lambda _: decode_frames(clip, threads=1),
        "decode, 2 threads": lambda _: decode_frames(clip, threads=2),
        "decode, scaled, 3 frames": lambda _: decode_frames(clip, np.array([0, 9, 20]), short_side_px=24, threads=1),
        "motion vectors": lambda _: decode_frames(clip, np.array([5]), vectors=True),
        "interlaced": lambda _: decode_frames(field_clip, np.array([5]), threads=1),
        "16 bits": lambda _: decode_full_depth(deep_clip, threads=1),
        "byte range": lambda _: probe(within),
        "left early": leave_early,
        **damaged_cases(work, path),
    }


def damaged_cases(work: Path, whole: Path) -> dict[str, Callable[[int], object]]:
    """What raises: each call must raise a `ClipError`."""
    import dataclasses

    import numpy as np

    from openuni.manifests.errors import ClipError
    from openuni.manifests.video.probe import probe, probe_clip
    from openuni.manifests.video.reader import decode_frames

    data = whole.read_bytes()
    clip = probe_clip(str(whole))
    rng = np.random.default_rng(0)
    changed = []
    for number in range(20):
        flipped = np.frombuffer(data, np.uint8).copy()
        flipped[rng.integers(len(data) // 4, len(data), 40)] ^= np.uint8(0x55)
        changed.append(work / f"changed-{number}.mp4")
        changed[-1].write_bytes(flipped.tobytes())
    truncated, text, empty = work / "truncated.mp4", work / "text.mp4", work / "empty.mp4"
    truncated.write_bytes(data[: len(data) // 2])
    text.write_text("no video " * 100)
    empty.write_bytes(b"")

    def failing(call: Callable[[int], object], *, always: bool = True) -> Callable[[int], object]:
        def run(number: int) -> None:
            try:
                call(number)
            except ClipError:
                return
            assert not always, "it did not fail"

        return run

    def decode_changed(number: int) -> object:
        source = str(changed[number % len(changed)])
        probe(source)  # many are damaged only in their pictures
        return decode_frames(dataclasses.replace(clip, source=source, content_hash=None), threads=1 + number % 2)

    return {
        "truncated": failing(lambda _: probe(str(truncated))),
        "text": failing(lambda _: probe(str(text))),
        "empty": failing(lambda _: probe(str(empty))),
        "missing": failing(lambda _: probe(str(work / "missing.mp4"))),
        "changed bytes": failing(decode_changed, always=False),
        "other timestamps": failing(lambda _: decode_frames(dataclasses.replace(clip, pts_hash="0" * 16))),
    }


def http_cases(work: Path, stack: contextlib.ExitStack) -> dict[str, Callable[[int], object]]:
    """The same from a web server, which is a process of its own."""
    from openuni.manifests.corpus.sidecars import read_bounded
    from openuni.manifests.errors import ClipError
    from openuni.manifests.video.probe import probe, probe_clip
    from openuni.manifests.video.reader import decode_frames
    from tests.coded_clips import encode

    path = encode(work / "web.mp4", times=range(30))
    (work / "half.mp4").write_bytes(path.read_bytes()[:1000])
    url = stack.enter_context(server_process(work))
    clip = probe_clip(f"{url}/web.mp4")

    def failing(name: str) -> None:
        with contextlib.suppress(ClipError):
            probe(f"{url}/{name}")
            raise AssertionError("it did not fail")

    return {
        "http probe": lambda _: probe(f"{url}/web.mp4"),
        "http decode": lambda _: decode_frames(clip, threads=1),
        "http, other addresses": lambda number: probe(f"{url}/web.mp4?number={number}"),
        "http caption": lambda _: read_bounded(f"{url}/web.txt", 1000),
        "http damaged": lambda _: failing("half.mp4"),
        "http missing": lambda _: failing("missing.mp4"),
    }


@contextlib.contextmanager
def server_process(folder: Path) -> Iterator[str]:
    """Address of a server of the files in a folder."""
    command = [sys.executable, "-m", "tests.benchmarks.memory", "--serve", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.terminate()


def serve(folder: Path) -> None:
    """Serve until the process is ended; the address is printed."""
    from tests.file_server import file_server

    with file_server({f"/{path.name}": path.read_bytes() for path in folder.iterdir() if path.is_file()}) as served:
        print(served.url, flush=True)
        while True:
            served.asked.clear()
            time.sleep(0.5)


# ---------------------------------------------------------------------- runs


def run_marks(work: Path, clips: int, workers: int) -> dict[str, list[Mark]]:
    """A run with ingest, filters and optical flow over copies of some clips; the driver's marks and the worker's."""
    import os

    import openuni
    from openuni.console.progress import Reporter
    from openuni.pipeline.runners.resources import Resources
    from tests.raw_clips import write_clips

    raw = work / "raw"
    originals = write_clips(work / "originals", 5)
    raw.mkdir()
    for number in range(clips):
        os.link(originals[number % len(originals)], raw / f"clip-{number:06}.mp4")
    (raw / "clip-000003.mp4").unlink()
    (raw / "clip-000003.mp4").write_text("no video")  # one failure
    recipe = {"filters": {"motion": {}, "luminance": {}, "sharpness": {}}, "annotators": {"dis": {}}}
    reporter = Reporter(quiet=True)
    with sampled(reporter) as taken:
        openuni.run(recipe, [str(raw)], out=str(work / "corpus"), resources=Resources(workers), reporter=reporter)
    return taken


@contextlib.contextmanager
def sampled(reporter: Any) -> Iterator[dict[str, list[Mark]]]:
    """Marks of this process and of a Ray worker at fifths of every phase that runs meanwhile."""
    import psutil

    taken: dict[str, list[Mark]] = {}
    ended = threading.Event()

    def workers() -> list[int]:
        children = psutil.Process().children(recursive=True)
        return [one.pid for one in children if one.is_running() and "RayWorker" in " ".join(one.cmdline())]

    def watch() -> None:
        while not ended.wait(0.02):
            phase = reporter.phases[-1] if reporter.phases else None
            if phase is None or not phase.done:
                continue
            marks = taken.setdefault(f"{phase.name}, driver", [])
            if len(marks) < MARKS and phase.done >= (len(marks) + 1) * phase.total / MARKS - 1:
                marks.append(mark())
                for pid in workers()[:1]:
                    taken.setdefault(f"{phase.name}, worker", []).append(mark(pid))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield taken
    finally:
        ended.set()
        thread.join()


class IdleWorker(Worker):
    """Does nothing with its items."""

    def prepare(self, item: Any) -> Any:
        """See `Worker.prepare`."""

    def compute(self, item: Any, prepared: Any) -> Any:
        """See `Worker.compute`."""

    def store(self, item: Any, computed: Any) -> ItemOutcome:
        """See `Worker.store`."""
        return ItemOutcome(item.key, "ok")

    def fail(self, item: Any, error: str) -> ItemOutcome:
        """See `Worker.fail`."""
        return ItemOutcome(item.key, "failed", error)

    def finish(self) -> None:
        """See `Worker.finish`."""


class IdleSpec(Spec):
    """A phase of such workers."""

    def start(self, device: str) -> IdleWorker:
        """See `Spec.start`."""
        return IdleWorker()


def pending_marks(count: int, workers: int) -> list[Mark]:
    """The driver of a phase with so many items that cost nothing."""
    from openuni.pipeline.ingest_phase import SourceItem
    from openuni.pipeline.runners.pool_sizes import cpu_pool
    from openuni.pipeline.runners.resources import Pool, Resources
    from openuni.pipeline.runners.runner import open_runner

    marks: list[Mark] = []
    done = 0

    def report(_: ItemOutcome) -> None:
        nonlocal done
        done += 1
        if done % (count // MARKS) == 0:
            marks.append(mark())

    with open_runner(Resources(workers)) as runner:
        items = (SourceItem(f"{number}.mp4") for number in range(count))
        size = cpu_pool(runner.resources, runner.capacity())
        runner.run_pools([Pool("idle", IdleSpec(), items, report, lambda held: held, size)])
    return marks


# ---------------------------------------------------------------------- the table

FILE_CASES = (
    *("probe", "decode", "decode, 2 threads", "decode, scaled, 3 frames", "motion vectors", "interlaced", "16 bits"),
    *("byte range", "left early", "truncated", "text", "empty", "missing", "changed bytes", "other timestamps"),
)
HTTP_CASES = (*("http probe", "http decode", "http, other addresses", "http caption", "http damaged", "http missing"),)


def case(name: str, work: Path, given: argparse.Namespace) -> dict[str, list[Mark]]:
    """Do one case in this process."""
    with contextlib.ExitStack() as stack:
        if name in FILE_CASES:
            return {name: repeated(file_cases(work)[name], given.opens)}
        if name in HTTP_CASES:
            return {name: repeated(http_cases(work, stack)[name], given.opens)}
        kind, _, workers = name.partition(", workers ")
        if kind == "run":
            found = run_marks(work, given.clips, int(workers))
            return {f"{name}: {phase}": marks for phase, marks in found.items()}
        return {name: pending_marks(given.pending, int(workers))}


RUN_CASES = ("run, workers 0", "run, workers 1", "pending, workers 0", "pending, workers 1")


def report_line(name: str, marks: list[Mark]) -> str:
    """Resident memory at each mark, growth from the second on, and files and threads at the second and the last."""
    figures = " ".join(f"{one.rss_mb:7.1f}" for one in marks)
    second, last = marks[1], marks[-1]
    growth = last.rss_mb - second.rss_mb
    flat = growth < MAX_GROWTH_MB and last.files <= second.files + 2 and last.threads <= second.threads + 2
    held = f"{second.files}-{last.files} files, {second.threads}-{last.threads} threads"
    return f"{name:<44}{figures}{growth:>+8.1f}  {held:<32}{'flat' if flat else 'GROWS'}"


def main() -> None:
    """Run the cases, print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--opens", type=int, default=10_000)
    parser.add_argument("--clips", type=int, default=2_000)
    parser.add_argument("--pending", type=int, default=100_000)
    parser.add_argument("--only", action="append", help="name of a case; repeatable")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve)
    if given.child:
        with tempfile.TemporaryDirectory() as work:
            print(json.dumps(case(given.child, Path(work), given)))
        return
    print(f"{given.opens:,} opens, {given.clips:,} clips, {given.pending:,} pending items; MB at fifths, and growth")
    for name in given.only or (*FILE_CASES, *HTTP_CASES, *RUN_CASES):
        amounts = ("--opens", str(given.opens), "--clips", str(given.clips), "--pending", str(given.pending))
        command = [sys.executable, "-m", "tests.benchmarks.memory", "--child", name, *amounts]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if result.returncode:
            raise SystemExit(f"{name}: {result.stderr[-2000:]}")
        for line, marks in json.loads(result.stdout.splitlines()[-1]).items():
            print(report_line(line, [Mark(*one) for one in marks]), flush=True)


if __name__ == "__main__":
    main()
