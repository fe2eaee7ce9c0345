"""How much longer importing takes than decoding the same files: it is to run at the decoder's speed.

    python -m tests.benchmarks.importing [--clips 16] [--rounds 3] [--quick] [--work FOLDER]

An interior set (EXR, half floats) is written once. "Decode" reads every image with OpenEXR in a bare loop, one thread;
"check" is the importer's `read`; "import" is `openuni import --workers 0`, which also codes and stores every map
without loss. Medians over the rounds, in one process, the files in the page cache.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


def write_set(folder: Path, clips: int, size_px: tuple[int, int]) -> None:
    """Rooms as EXR sequences of 21 frames, as long as InteriorVid's."""
    from tests.openuni.importers.made_sets import write_exr
    from tests.openuni.importers.rooms import render

    for number in range(clips):
        for name, frames in render(21, *size_px, speed=0.02, phase=0.05 * number)._asdict().items():
            write_exr(folder / f"{number:04}" / name, frames)


def decode(folder: Path) -> None:
    """Every image, in a bare loop."""
    import OpenEXR

    for path in sorted(folder.rglob("*.exr")):
        channels = OpenEXR.File(str(path), num_threads=0).channels()
        assert channels["RGB"].pixels.size


def check(folder: Path) -> None:
    """Every clip as the importer gives it."""
    from openuni.importers.interiorvid import InteriorVid

    importer = InteriorVid()
    for found in importer.find(folder):
        importer.read(found)


def bring_in(folder: Path) -> None:
    """Every clip into a corpus."""
    from tests.openuni.importers import made_sets

    with tempfile.TemporaryDirectory() as out:
        corpus = made_sets.bring_in("interiorvid", folder, Path(out) / "corpus")
        assert not made_sets.reasons(corpus)


def timed(work: Callable[[Path], None], folder: Path) -> float:
    """Wall seconds."""
    started = time.perf_counter()
    work(folder)
    return time.perf_counter() - started


def main() -> None:
    """Write the set, time the three in turn, print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="2 clips of 120x160, one round")
    parser.add_argument("--work", type=Path, help="find or leave the set here")
    given = parser.parse_args()
    clips, rounds, size_px = (2, 1, (120, 160)) if given.quick else (given.clips, given.rounds, (480, 640))
    scratch = Path(tempfile.mkdtemp())
    folder = given.work or scratch / "set"
    if not folder.exists():
        write_set(folder, clips, size_px)
    works = {"decode": decode, "check": check, "import": bring_in}
    for work in works.values():
        work(folder)  # libraries loaded, files cached
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(timed(work, folder))
    seconds = {name: statistics.median(times) for name, times in found.items()}
    count = len([path for path in folder.iterdir() if path.is_dir()])
    print(f"{count} clips of {size_px[1]}x{size_px[0]}, 21 frames, four EXR sequences each")
    for name, taken in seconds.items():
        print(f"{name:<8}{count / taken:>8.2f} clips/s   {taken / seconds['decode']:>6.2f} x decode")
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
