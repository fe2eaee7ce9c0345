"""How much longer importing takes than decoding the same files, for each kind of set, and where the time goes.

    python -m tests.benchmarks.importing [--clips 8] [--rounds 3] [--sets exr,video] [--workers 2] [--quick]

Sets of 21 frames, written once (`--work FOLDER` finds or leaves them there): interiors as EXR (half floats), as 16-bit
PNG and as H.264; mattes as H.264; UnityVideo's CSVs of H.264; WebDataset shards with stored maps. "Decode" reads every
file of a set in a bare loop. CPU seconds are of one process with one thread of each library: the importer's own steps,
one after the other; they hardly depend on what else the machine does. Wall seconds are of `openuni import`:
`--workers 0` codes on all cores, so it is held against a bare loop in as many threads; workers against as many threads
as there are workers, Ray started before. Medians over the rounds, the files in the page cache.
"""

import argparse
import io
import json
import os
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from openuni.manifests.storage.lock import lock

os.environ["OPENUNI_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"  # until wall seconds are taken

FRAMES = 21  # as InteriorVid's clips
FPS = 16.0
STEPS = ("decode", "check", "code", "write")


@dataclass(frozen=True)
class Kind:
    """A kind of set."""

    importer: str
    write: Callable[[Path, int, tuple[int, int]], None]  # into a folder, which clip, height_px and width_px
    what: str
    options: dict[str, Any]


def room(number: int, size_px: tuple[int, int]) -> Any:
    """One rendered clip: linear rgb, albedo, irradiance, normals."""
    from tests.openuni.exchange.importers.rooms import render

    return render(FRAMES, *size_px, speed=0.02, phase=0.05 * number)


def write_exr_clip(folder: Path, number: int, size_px: tuple[int, int]) -> None:
    """Half floats, ZIP."""
    from tests.openuni.exchange.importers.made_sets import write_exr

    for name, frames in room(number, size_px)._asdict().items():
        write_exr(folder / f"{number:04}" / name, frames)


def write_png_clip(folder: Path, number: int, size_px: tuple[int, int]) -> None:
    """16 bits."""
    from openuni.manifests.arrays.srgb import linear_to_srgb
    from tests.openuni.exchange.importers.made_sets import levels16, write_png

    clip, place = room(number, size_px), folder / f"{number:04}"
    write_png(place / "rgb", levels16(linear_to_srgb(np.clip(clip.rgb, 0, 1))))
    write_png(place / "albedo", levels16(clip.albedo))
    write_png(place / "irradiance", levels16(clip.irradiance / 4))
    write_png(place / "normal", levels16((clip.normal + 1) / 2))


def write_video_clip(folder: Path, number: int, size_px: tuple[int, int]) -> None:
    """H.264, maps at full colour resolution."""
    from openuni.manifests.arrays.srgb import linear_to_srgb
    from openuni.manifests.video.encode import write_video
    from tests.openuni.exchange.importers.rooms import pictures

    clip, place = room(number, size_px), folder / f"{number:04}"
    place.mkdir(parents=True)
    write_video(place / "rgb.mp4", pictures(clip), FPS)
    for name, unit in (
        ("albedo", linear_to_srgb(clip.albedo)),
        ("irradiance", linear_to_srgb(np.clip(clip.irradiance / 4, 0, 1))),
        ("normal", (clip.normal + 1) / 2),
    ):
        write_video(place / f"{name}.mp4", np.rint(unit * 255).astype(np.uint8), FPS, 10, pixels="yuv444p")


def write_matte_clip(folder: Path, number: int, size_px: tuple[int, int]) -> None:
    """A foreground and a matte that go to the right, H.264."""
    from openuni.manifests.video.encode import write_video
    from tests.openuni.exchange.importers.rooms import pictures

    height_px, width_px = size_px
    rows, columns = np.mgrid[:height_px, :width_px]
    rights = width_px * (0.3 + 0.01 * np.arange(FRAMES))
    soft = np.stack(
        [np.clip((0.35 * height_px - np.hypot(rows - height_px / 2, columns - x)) / 8, 0, 1) for x in rights]
    )
    alpha = np.repeat(np.rint(soft * 255).astype(np.uint8)[..., None], 3, axis=-1)
    for side, frames in (("fgr", pictures(room(number, size_px)) * (alpha > 0)), ("pha", alpha)):
        (folder / side).mkdir(parents=True, exist_ok=True)
        write_video(folder / side / f"{number:04}.mp4", frames, FPS)


def write_csv_clip(folder: Path, number: int, size_px: tuple[int, int]) -> None:
    """The picture, grey depth and instances in the palette's colours, H.264."""
    from openuni.manifests.modalities.depth import Depth
    from openuni.manifests.modalities.segmentation import Segmentation
    from openuni.manifests.video.encode import write_video
    from tests.openuni.exchange.importers.rooms import geometry, pictures

    metres, ids = geometry(FRAMES, *size_px)
    drawn = {"video": pictures(room(number, size_px))}
    drawn |= {
        column: np.rint(signal.to_rgb() * 255).astype(np.uint8)
        for column, signal in (("depth", Depth(metres, "metres")), ("segmentation", Segmentation(ids)))
    }
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "clips.csv"
    with table.open("a") as file:
        if not number:
            file.write(",".join(drawn) + "\n")
        file.write(",".join(f"{number:04}.{column}.mp4" for column in drawn) + "\n")
    for column, frames in drawn.items():
        write_video(folder / f"{number:04}.{column}.mp4", frames, FPS, 10, pixels="yuv444p")


def write_shard_clip(folder: Path, number: int, size_px: tuple[int, int]) -> None:
    """A shard per clip: H.264 and three stored maps."""
    from openuni.manifests.modalities.albedo import Albedo
    from openuni.manifests.modalities.depth import Depth
    from openuni.manifests.modalities.normal import Normal
    from openuni.manifests.video.encode import write_video
    from tests.openuni.exchange.importers.rooms import geometry, pictures

    clip = room(number, size_px)
    folder.mkdir(parents=True, exist_ok=True)
    video = folder / "now.mp4"
    write_video(video, pictures(clip), FPS)
    key, entries = f"{number:04}", {}
    files = {f"{key}.mp4": video.read_bytes()}
    video.unlink()
    maps = {"depth": Depth(geometry(FRAMES, *size_px)[0], "metres"), "normal": Normal(clip.normal)}
    for name, signal in (maps | {"albedo": Albedo(clip.albedo)}).items():
        payload = signal.encode(FPS)
        constants: Any = payload.constants  # a NamedTuple
        entries[name] = {"file": f"{key}.{name}.mkv", "constants": constants._asdict()}
        files[entries[name]["file"]] = payload.data
    files[f"{key}.json"] = json.dumps({"frames": FRAMES, "modalities": entries}).encode()
    with tarfile.open(folder / f"{key}.tar", "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


VIDEO_CODING = {"albedo_coding": "srgb", "irradiance_coding": "srgb", "irradiance_scale": 4.0}
KINDS = {
    "exr": Kind("interiorvid", write_exr_clip, "four EXR sequences", {}),
    "png16": Kind("interiorvid", write_png_clip, "four 16-bit PNG sequences", {"irradiance_scale": 4.0}),
    "video": Kind("interiorvid", write_video_clip, "four H.264 videos, three of them maps", VIDEO_CODING),
    "matte": Kind("videomatte", write_matte_clip, "two H.264 videos, composited here", {}),
    "csv": Kind("openuni_csv", write_csv_clip, "three H.264 videos, two of them maps", {}),
    "shards": Kind("webdataset", write_shard_clip, "H.264 and three stored maps", {}),
}


def decode(folder: Path, threads: int) -> None:
    """Every picture of the set, in a bare loop or in several."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in DECODERS]
    if threads == 1:
        for file in files:
            DECODERS[file.suffix](file)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda file: DECODERS[file.suffix](file), files):
            pass


def decode_exr(path: Path) -> None:
    """As OpenEXR gives it."""
    import OpenEXR

    assert OpenEXR.File(str(path), num_threads=0).channels()["RGB"].pixels.size


def decode_png(path: Path) -> None:
    """As OpenCV gives it."""
    import cv2

    assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED) is not None


def decode_video(source: Any, name: str = "") -> None:
    """As RGB arrays, 16 bits where there are so many."""
    import av

    with av.open(source) as container:
        container.streams.video[0].thread_count = 1
        for frame in container.decode(video=0):
            deep = frame.format.components[0].bits > 8
            grey = len(frame.format.components) == 1
            assert frame.to_ndarray(format=None if deep and grey else "rgb48le" if deep else "rgb24").size


def decode_shard(path: Path) -> None:
    """All videos in it."""
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None and not member.name.endswith(".json"):
                decode_video(io.BytesIO(file.read()))


DECODERS: dict[str, Callable[[Path], None]] = {
    ".exr": decode_exr,
    ".png": decode_png,
    ".mp4": lambda path: decode_video(str(path)),
    ".tar": decode_shard,
}


def cpu_of_steps(kind: Kind, folder: Path) -> dict[str, float]:
    """CPU seconds of bare decoding and, beyond it, of each step of an import's worker, over the whole set."""
    from openuni.exchange.import_job import ImportItem, ImportSpec
    from openuni.exchange.importer import find_importer
    from openuni.manifests.corpus.corpus import Corpus

    seconds = dict.fromkeys(STEPS, 0.0)
    mark = time.process_time()

    def lap(step: str) -> None:
        nonlocal mark
        now = time.process_time()
        seconds[step] += now - mark
        mark = now

    decode(folder, 1)
    lap("decode")
    importer = find_importer(kind.importer)(**kind.options)
    with tempfile.TemporaryDirectory() as out:
        corpus = Corpus.create(str(Path(out) / "corpus"))
        with lock(corpus.store):
            worker = ImportSpec(corpus.store.url, importer, importer.version(), "set").start("cpu")
            mark = time.process_time()
            for found in importer.find(folder):
                item = ImportItem(found, found.key.replace("/", "-"))
                read = worker.prepare(item)
                lap("check")
                coded = worker.compute(item, read)
                lap("code")
                worker.store(item, coded)
                lap("write")
            worker.finish()
            lap("write")
    seconds["check"] -= seconds["decode"]
    return seconds


def import_with(runner: Any, kind: Kind, folder: Path, limit: int | None = None) -> None:
    """The whole set into a corpus of its own; every clip must come in."""
    from openuni.console.progress import Reporter
    from openuni.exchange.import_job import ImportJob, ImportOptions
    from openuni.exchange.importer import find_importer
    from openuni.manifests.corpus.corpus import Corpus

    with tempfile.TemporaryDirectory() as out:
        corpus = Corpus.create(str(Path(out) / "corpus"))
        job = ImportJob(find_importer(kind.importer)(**kind.options), corpus, ImportOptions("set", limit))
        with lock(corpus.store), Reporter(quiet=True) as reporter:
            job.run(folder, runner, reporter)
        failed = corpus.summary().failed
        assert not failed, failed


def wall(work: Callable[[], None], rounds: int) -> float:
    """Median of the wall seconds."""
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def written(root: Path, names: list[str], clips: int, size_px: tuple[int, int]) -> Iterator[tuple[str, Kind, Path]]:
    """The sets, made where they are not there yet."""
    for name in names:
        folder = root / name
        if not folder.exists():
            for number in range(clips):
                KINDS[name].write(folder, number, size_px)
        yield name, KINDS[name], folder


def main() -> None:
    """Write the sets, time everything, print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=8, help="of each set")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sets", default=",".join(KINDS), help="which, with commas between")
    parser.add_argument("--workers", type=int, default=2, help="to time besides --workers 0; 0: none")
    parser.add_argument("--quick", action="store_true", help="2 clips of 120x160, one round, no workers")
    parser.add_argument("--work", type=Path, help="find or leave the sets here")
    given = parser.parse_args()
    clips, rounds, size_px = (2, 1, (120, 160)) if given.quick else (given.clips, given.rounds, (480, 640))
    workers = 0 if given.quick else given.workers
    scratch = Path(tempfile.mkdtemp())
    sets = list(written(given.work or scratch, given.sets.split(","), clips, size_px))
    print(f"{clips} clips each of {FRAMES} frames of {size_px[1]}x{size_px[0]}; load average {os.getloadavg()[0]:.1f}")
    for name, kind, _ in sets:
        print(f"  {name:<8}{kind.importer}: {kind.what}")
    print_cpu(sets, clips, rounds)
    print_wall(sets, clips, rounds, workers)
    print(f"load average {os.getloadavg()[0]:.1f}")
    shutil.rmtree(scratch)


def print_cpu(sets: list[tuple[str, Kind, Path]], clips: int, rounds: int) -> None:
    """Where the time goes."""
    import cv2

    cv2.setNumThreads(1)
    print("\nCPU seconds per clip, one thread" + "".join(f"{step:>10}" for step in STEPS) + "  import / decode")
    for name, kind, folder in sets:
        cpu_of_steps(kind, folder)  # libraries loaded, files cached
        found = [cpu_of_steps(kind, folder) for _ in range(rounds)]
        seconds = {step: statistics.median(one[step] for one in found) / clips for step in STEPS}
        ratio = sum(seconds.values()) / seconds["decode"]
        print(f"{name:<32}" + "".join(f"{seconds[step]:>10.3f}" for step in STEPS) + f"{ratio:>17.2f}", flush=True)


def print_wall(sets: list[tuple[str, Kind, Path]], clips: int, rounds: int, workers: int) -> None:
    """How long it takes."""
    from openuni.pipeline.runners.resources import Resources
    from openuni.pipeline.runners.runner import open_runner

    del os.environ["OPENUNI_THREADS"]  # all cores, as for users
    cores = os.cpu_count() or 1
    print(f"\nwall seconds per clip: bare loop in 1 thread, in {cores}; import, ratio to the loop in as many threads")
    with open_runner(Resources(0)) as alone, open_runner(Resources(workers)) as shared:
        for name, kind, folder in sets:
            one, many = (wall(partial(decode, folder, threads), rounds) / clips for threads in (1, cores))
            own = wall(partial(import_with, alone, kind, folder), rounds) / clips
            line = f"{name:<8}{one:>8.3f}{many:>8.3f}   --workers 0{own:>8.3f}{own / many:>7.2f}"
            if workers:
                import_with(shared, kind, folder, limit=workers)  # the workers have started
                theirs = wall(partial(import_with, shared, kind, folder), rounds) / clips
                base = wall(partial(decode, folder, workers), rounds) / clips
                line += f"   --workers {workers}{theirs:>8.3f}{theirs / base:>7.2f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
