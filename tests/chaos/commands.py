"""The commands that are disturbed: what each starts from, how it is called, and how its result is compared."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.storage.store import Store
from openuni.pipeline.scope import RunScope
from openuni.training.loop.training_checkpoint import list_checkpoints
from openuni.training.run import Run
from tests.openuni.exchange.exporters.rooms import tree
from tests.raw_clips import contents, write_clips
from tests.train.corpora import random_clips, write_corpus
from tests.train.small_runs import write_recipe

QUIET = Reporter(quiet=True)
PART_NAME = re.compile(r"part-[0-9a-f]+-[0-9a-f]+(\.tar#bytes=[0-9]+-[0-9]+)?")
IMPORTER = "tests.operators.drawn_set"
MODEL = {
    "name": "unityvideo", "num_layers": 1, "heads": 2, "head_dim": 12, "ffn_dim": 48, "freq_dim": 16, "switcher_dim": 8,
}  # fmt: skip
RECIPE = """
keep = "motion.speed_diag_per_s > 0.01"
[work]
short_side_px = {px}
[filters.motion]
[filters.perceptual_hash]
{more}
[annotators.dis]
preset = "ultrafast"
[annotators."tests.operators.logged"]
log = "{log}"
[encode]
modalities = ["rgb", "flow"]
size_px = [16, 32]
frames = 5
"""
SMALL_RECIPE = """
keep = "luminance.mean > 0.01"
[work]
short_side_px = {px}
[filters.luminance]
[filters.perceptual_hash]
[annotators.dis]
preset = "ultrafast"
[encode]
modalities = ["rgb"]
size_px = [16, 32]
frames = 5
"""
FORMATS = ("webdataset", "openuni_csv", "huggingface", "diffsynth", "univid")


class World:
    """Inputs and finished corpora in one folder, from which tries start; nothing in it changes.

    `small`: fewer clips and operators, for object stores, whose test server takes milliseconds for a request.
    """

    def __init__(self, folder: Path, *, small: bool = False) -> None:
        self.folder = folder
        raw, some, more = (1, 2, 3) if small else (3, 4, 5)
        write_clips(folder / "raw", raw)
        write_clips(folder / "all", more)
        write_clips(folder / "flawed", 2)
        (folder / "flawed" / "broken.mp4").write_bytes(b"not a video")
        (folder / "drawn").mkdir()
        for name, text in {"one": "1", "two": "2", "four": "4", "bad": "x"}.items():
            (folder / "drawn" / f"{name}.clip").write_text(text)
        self.log = folder / "log"
        self.recipe, self.other = folder / "corpus.toml", folder / "other.toml"
        text = SMALL_RECIPE if small else RECIPE
        self.recipe.write_text(text.format(px=32, more="[filters.luminance]", log=self.log))
        self.other.write_text(text.format(px=24, more="[filters.sharpness]", log=self.log))
        openuni.run(self.recipe, folder / "raw", out=folder / "corpus", reporter=QUIET)
        shutil.copytree(folder / "corpus", folder / "parts")  # several parts per column group
        for limit in (some, more):
            scope = RunScope(add=True, limit=limit)
            openuni.run(self.recipe, folder / "all", out=folder / "parts", reporter=QUIET, scope=scope)
        self._damage(shutil.copytree(folder / "corpus", folder / "damaged"))
        write_clips(folder / "retold", raw)
        openuni.run(self.recipe, folder / "retold", out=folder / "former", reporter=QUIET)
        (folder / "retold" / "clip-000.txt").write_text("another caption")
        write_corpus(folder / "latents", random_clips(8))
        self.training = write_recipe(folder, MODEL, optimizer={"steps": 5}, checkpoints={"every_steps": 2, "keep": 2})
        openuni.train(self.training, folder / "latents", out=folder / "trained")

    @staticmethod
    def _damage(corpus: Path) -> None:
        """A payload, a part and a record."""
        shard, part = min(corpus.glob("annotations/dis/*.tar")), min(corpus.glob("filters/perceptual_hash/*.parquet"))
        for path, place in ((shard, 700), (part, -40), (min(corpus.glob("latents/*/family.json")), 5)):
            data = bytearray(path.read_bytes())
            data[place] ^= 4
            path.write_bytes(data)


class Place(NamedTuple):
    """Where one try works: `root` (a folder, or a URL) holds the corpora, `local` all else."""

    world: World
    root: str
    local: Path


class Command(NamedTuple):
    """`bases`: folders of the world that it starts from. `calls`: the command lines, one after another."""

    name: str
    bases: tuple[str, ...]
    calls: Callable[[Place], list[list[str]]]
    result: Callable[[Place], Any]
    is_remote: bool = True  # whether its corpora may lie in an object store
    codes: tuple[int, ...] = (0,)  # of an undisturbed end


def _words(*arguments: Any) -> list[str]:
    return [str(argument) for argument in arguments]


def _run(recipe: Path, *sources: Any, out: str, more: tuple[str, ...] = ()) -> list[str]:
    return _words("run", recipe, *sources, "--out", out, "--workers", 0, *more)


def _changed(place: Place) -> list[str]:
    """Another working size, another filter, more sources: results of the former recipe are superseded."""
    world = place.world
    return _run(world.other, world.folder / "all", out=f"{place.root}/corpus", more=("--add",))


def _train(place: Place) -> list[str]:
    return _words("train", place.world.training, "--corpus", f"{place.root}/latents", "--out", place.local / "run")


def _export(name: str) -> Command:
    def call(place: Place) -> list[list[str]]:
        more = ["--set", "prefix=/set"] if name == "univid" else []
        out = place.local / "set"
        return [_words("export", f"{place.root}/parts", "--format", name, "--out", out, "--workers", 2, *more)]

    return Command(f"export {name}", ("parts",), call, lambda place: tree(place.local / "set"))


def _generate(place: Place) -> list[list[str]]:
    out = ("--prompt", "a cube", "--steps", 2, "--out", place.local / "made")
    return [_words("generate", place.local / "trained", "--make", "rgb", "--make", "depth", *out)]


def _at(place: Place, name: str) -> str:
    return f"{place.root}/{name}"


COMMANDS = (
    Command("run", (),
            lambda place: [_run(place.world.recipe, place.world.folder / "raw", out=_at(place, "corpus"))],
            lambda place: corpus_facts(_at(place, "corpus"))),
    Command("run, some fail", (),
            lambda place: [_run(place.world.recipe, place.world.folder / "flawed", out=_at(place, "corpus"))],
            lambda place: corpus_facts(_at(place, "corpus")), codes=(1,)),
    Command("run, changed", ("corpus",), lambda place: [_changed(place)],
            lambda place: corpus_facts(_at(place, "corpus"))),
    Command("run --update-captions", ("former",),
            lambda place: [_run(place.world.recipe, place.world.folder / "retold", out=_at(place, "former"),
                                more=("--update-captions",))],
            lambda place: corpus_facts(_at(place, "former"))),
    Command("select", ("parts",),
            lambda place: [_words("select", _at(place, "parts"), "--keep", "luminance.mean > 0.4", "--out",
                                  _at(place, "few"))],
            lambda place: (corpus_facts(_at(place, "parts")), corpus_facts(_at(place, "few")))),
    Command("split", ("parts",), lambda place: [_words("split", _at(place, "parts"), "--fraction", "test=0.4")],
            lambda place: corpus_facts(_at(place, "parts"))),
    Command("duplicates", ("parts",), lambda place: [_words("duplicates", _at(place, "parts"))],
            lambda place: corpus_facts(_at(place, "parts"))),
    Command("duplicates, others", ("parts",),
            lambda place: [_words("duplicates", _at(place, "parts")),
                           _words("duplicates", _at(place, "parts"), "--max-distance", 3)],
            lambda place: corpus_facts(_at(place, "parts"))),
    Command("import", (),
            lambda place: [_words("import", IMPORTER, place.world.folder / "drawn", "--out", _at(place, "corpus"),
                                  "--workers", 0)],
            lambda place: corpus_facts(_at(place, "corpus")), codes=(1,)),
    *(_export(name) for name in FORMATS),
    Command("verify --repair", ("damaged",),
            lambda place: [_words("verify", _at(place, "damaged"), "--repair"),
                           _run(place.world.recipe, place.world.folder / "raw", out=_at(place, "damaged"))],
            lambda place: corpus_facts(_at(place, "damaged"))),
    Command("train", ("latents",), lambda place: [_train(place)], lambda place: run_facts(place.local / "run")),
    Command("generate", ("trained",), _generate, lambda place: made_facts(place.local / "made"), is_remote=False),
    Command("world", (),
            lambda place: [_words("world", "--preset", "solids", "--clips", 2, "--frames", 3, "--size", "32x32",
                                  "--workers", 1, "--out", place.local / "made")],
            lambda place: tree(place.local / "made"), is_remote=False),
    Command("compact", ("parts",), lambda place: [_words("compact", _at(place, "parts"))],
            lambda place: (corpus_facts(_at(place, "parts")), part_counts(_at(place, "parts")))),
)  # fmt: skip


# ---------------------------------------------------------------- results


def corpus_facts(url: str) -> dict[str, Any]:
    """All values of a corpus, without times and the names of parts.

    Raises `AssertionError` if a clip has two rows, if anything is damaged or belongs to no part, or if anything
    unfinished was left behind.
    """
    corpus = Corpus.open(url)
    found: dict[str, Any] = contents(corpus)
    for row in found.get("clips", []):  # frames in a shard: shards are named by time
        row["source"] = PART_NAME.sub("part", row["source"] or "")
    for group, rows in found.items():
        assert len({row["clip_id"] for row in rows}) == len(rows), f"{group}: a clip has two rows"
    found["record"] = {key: value for key, value in corpus.record.items() if key != "created"}
    found["families"] = corpus.families(), corpus.text_families()
    report = openuni.verify(url, workers=1, reporter=QUIET)
    assert report.is_sound, str(report)
    names = files(corpus.store)
    left = [name for name in names if name.endswith((".tmp", ".journal", ".pending.parquet"))]
    assert not left, f"left behind: {left}"
    return found


def part_counts(url: str) -> dict[str, int]:
    """Number of parts by column group."""
    corpus = Corpus.open(url)
    return {group: len(corpus.parts(group)) for group in corpus.groups()}


def files(store: Store) -> list[str]:
    """Names of all files of a store."""
    return [store.name_of(path) for path in store.fs.find(store.path(""), withdirs=False)]


def run_facts(folder: Path) -> dict[str, Any]:
    """Weights, states and losses of a training run."""
    run, facts = Run.open(folder), {}
    for checkpoint in list_checkpoints(folder):
        for part in ("model", "ema", "optimizer"):
            tensors = checkpoint.tensors(part)
            facts |= {f"{checkpoint.step}/{part}/{name}": tensor.tolist() for name, tensor in tensors.items()}
    timings = {"samples_per_s", "tokens_per_s", "data_wait_share"}
    facts["log"] = [{key: value for key, value in row.items() if key not in timings} for row in run.log]
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    facts["files"] = sorted(name for name in names if not name.startswith("tensorboard/"))
    assert openuni.verify(folder, reporter=QUIET).is_sound
    return facts


def made_facts(folder: Path) -> dict[str, Any]:
    """What was generated."""
    facts: dict[str, Any] = {path.name: path.stat().st_size for path in folder.iterdir()}
    facts["generation.json"] = json.loads((folder / "generation.json").read_bytes())["files"]  # the rest has paths
    return facts | {path.name: np.load(path).tolist() for path in folder.glob("*.npy")}


PHASES = {
    "clips": "ingest", "filters": "filters", "annotations": "annotators", "latents": "encode", "text": "encode",
    "runs": "records", "corpus.json": "records", ".lease": "lease", "damaged": "damaged",
}  # fmt: skip


def phase_of(place: str, folders: list[Path]) -> str:
    """Where in a corpus, an export or a run a change is, such as "ingest"; "" if there was none."""
    path = place.partition(" ")[2]
    for folder in folders:
        if path.startswith(f"{folder}/"):
            parts = PurePosixPath(path).relative_to(folder).parts[1:]
            name = parts[0].removeprefix(".").partition(".tmp")[0] if parts else "folder"
            if name.startswith("checkpoint"):
                return "checkpoint"
            return next((phase for key, phase in PHASES.items() if name.startswith(key.lstrip("."))), name[:20])
    return ""
