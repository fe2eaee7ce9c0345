"""`openuni demo`: all of it on clips that OpenUni makes itself. Nothing is downloaded.

    DIR/raw/            clips of `openuni.world` as ordinary files, with their ground truth beside them
    DIR/corpus.toml     the recipe; by hand: openuni run DIR/corpus.toml "DIR/raw/*.mp4" --out DIR/corpus
    DIR/corpus/         what the pipeline made of the clips
    DIR/train.toml      the training recipe; by hand: openuni train DIR/train.toml --corpus DIR/corpus --out DIR/run
    DIR/run/            the trained model
    DIR/numbers.json    everything that was measured
    DIR/index.html      the same to look at, in one file that needs no network
    DIR/demo.json       the settings of this demo, and how long each step took

Run it again to go on where it stopped: clips, corpus and training that are there are not made again, only measured
again. A folder holds one demo: the full one in a folder of the quick one is an error, as are other people's files.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from shlex import join, quote
from typing import TYPE_CHECKING, Any

from rich.console import Console

from openuni import api
from openuni.console.progress import Reporter
from openuni.demo.environment import machine_info, package_versions
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.pipeline.ledger import summary_record

if TYPE_CHECKING:
    from openuni.training.recipe import TrainingRecipe

RECIPE = """\
# The recipe of `openuni demo`. Again, by hand: {command}

keep = "motion.moving_share > 0.01 and luminance.mean > 0.1"

[filters.motion]
[filters.luminance]

[annotators.dis]              # optical flow, estimated from the pixels
[annotators.supplied]         # ground truth that lies beside the clips
modalities = ["depth", "flow", "segmentation"]

[encode]
latents = "dct"
text = "bytes"
modalities = ["rgb", "depth"]
size_px = [{side_px}, {side_px}]
frames = {frames}

[encode.dct]
channels = {channels}

[encode.bytes]
dim = {text_dim}
max_bytes = {text_bytes}
"""


@dataclass(frozen=True)
class DemoConfig:
    """How large a demo is."""

    name: str
    solids: int  # clips with moving solids
    still: int  # clips in which nothing moves: `keep` drops them
    dark: int  # clips with hardly any light: `keep` drops them
    train_recipe: str  # of train/recipes
    validations: int  # times the loss on held-out clips is measured
    workers: int | None  # of the pipeline; 0: this process, None: as `openuni run` chooses
    validation_share: float = 0.2  # of the clips, held out
    shown: int = 4  # clips on the page, of each kind
    joint: int = 2  # captions to make RGB and depth from
    estimate_steps: int = 2  # of the solver: the picture leaves little open, so few steps find the mean of it
    joint_steps: int = 30
    frames: int = 21
    side_px: int = 96
    channels: int = 16  # of the latents
    text_dim: int = 32
    text_bytes: int = 127


FULL = DemoConfig("full", solids=60, still=4, dark=4, train_recipe="unityvideo_demo", validations=5, workers=None)
QUICK = DemoConfig(
    "quick",
    solids=20,
    still=2,
    dark=2,
    train_recipe="unityvideo_demo_quick",
    validations=2,
    workers=0,
    shown=2,
    joint=1,
)


def run_demo(out: Path, quick: bool, reporter: Reporter | None = None) -> Path:
    """Do all of it in the folder `out`, or go on there; returns the page.

    Raises `OpenUniError` when the folder holds a demo of other settings, or files that are not a demo's.
    """
    return Demo(Path(out), QUICK if quick else FULL, reporter or Reporter(Console(stderr=True, soft_wrap=True))).run()


class Demo:
    """One demo in one folder."""

    def __init__(self, folder: Path, plan: DemoConfig, reporter: Reporter) -> None:
        self.folder, self.plan, self.reporter = folder, plan, reporter
        self.raw, self.corpus_dir, self.run_dir = folder / "raw", folder / "corpus", folder / "run"
        self.recipe, self.train_recipe = folder / "corpus.toml", folder / "train.toml"
        self.seconds: dict[str, float] = {}  # by step, of all sessions in this folder
        self.numbers: dict[str, Any] = {}

    @property
    def flag(self) -> str:
        """What of the command makes this plan."""
        return "--quick " if self.plan.name == "quick" else ""

    @property
    def command(self) -> str:
        """The command that makes this demo."""
        return f"openuni demo {self.flag}--out {quote(str(self.folder))}"

    @property
    def pattern(self) -> Path:
        """The clips, without the videos that hold their ground truth."""
        return self.raw / "*.mp4"

    @property
    def commands(self) -> dict[str, str]:
        """What a user would type for the steps that are commands of their own."""
        workers = [] if self.plan.workers is None else ["--workers", self.plan.workers]
        steps = {
            "corpus": ["run", self.recipe, self.pattern, "--out", self.corpus_dir, *workers],
            "train": ["train", self.train_recipe, "--corpus", self.corpus_dir, "--out", self.run_dir],
        }
        return {name: join(["openuni", *map(str, words)]) for name, words in steps.items()}

    def run(self) -> Path:
        """All steps."""
        from openuni.demo.page import demo_page

        self.claim_folder()
        self.timed("make clips", self.make_clips)
        self.timed("build the corpus", self.build_corpus)
        self.timed("train", self.train)
        self.seconds.pop("measure", None)  # done anew every time
        rows = self.timed("measure", self.measure)
        numbers = self.numbers | self.facts()
        _put(self.folder / "numbers.json", json.dumps(numbers, indent=1))
        page = self.folder / "index.html"
        _put(page, demo_page(numbers, rows))
        return page

    # ------------------------------------------------------------------ steps

    def claim_folder(self) -> None:
        """Make the folder this demo's, or find that it is; raises `OpenUniError` when it is something else's."""
        state = self.folder / "demo.json"
        if state.is_file():
            try:
                record = json.loads(state.read_text())
                settings, self.seconds = record["settings"], record["seconds"]
            except (ValueError, KeyError, TypeError):
                raise OpenUniError(self.foreign_folder_message()) from None
            if settings != dataclasses.asdict(self.plan):
                raise OpenUniError(self.settings_mismatch_message(settings))
            return
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise OpenUniError(self.foreign_folder_message())
        self.folder.mkdir(parents=True, exist_ok=True)
        self.save_state()

    def make_clips(self) -> bool:
        """Render the clips that are not there yet; true when there were any."""
        from openuni.world import write_clips

        plan = self.plan
        counts = {"solids": plan.solids, "still": plan.still, "dark": plan.dark}
        orders = [(seed, preset) for preset, count in counts.items() for seed in range(count)]
        # the JSON file is written last: where it is, the clip is whole
        left = [(seed, preset) for seed, preset in orders if not (self.raw / f"{preset}-{seed:06}.json").is_file()]
        listed = ", ".join(f"{count} {name}" for name, count in counts.items())
        self.reporter.print_line(f"1/4 clips: {len(orders)} of {plan.frames} frames ({listed}) in {self.raw}")
        if not left:
            return False
        with self.table() as table, table.phase("render", len(left)) as counter:
            write_clips(
                self.raw,
                [seed for seed, _ in left],
                preset=[preset for _, preset in left],
                modalities=("depth", "flow", "segmentation"),
                progress=lambda done: counter.add("ok"),
                frames=plan.frames,
                height_px=plan.side_px,
                width_px=plan.side_px,
            )
        return True

    def build_corpus(self) -> bool:
        """The pipeline, as `openuni run` does it; true when there was anything left to do."""
        _put(self.recipe, RECIPE.format(command=self.commands["corpus"], **dataclasses.asdict(self.plan)))
        self.reporter.print_line(f"2/4 corpus: {self.commands['corpus']}")
        table = self.table()
        resources = api.default_resources(self.plan.workers)
        corpus = api.run(self.recipe, self.pattern, out=self.corpus_dir, resources=resources, reporter=table)
        self.reporter.print_line(str(corpus.summary()))
        return any(phase.total for phase in table.phases)

    def train(self) -> bool:
        """The training, as `openuni train` does it; true when there was anything left to do."""
        from openuni.training.loop.training_checkpoint import list_checkpoints

        recipe = training_recipe(self.plan)
        head = f"# {self.plan.train_recipe} with more clips held out. Again, by hand: {self.commands['train']}\n\n"
        _put(self.train_recipe, head + toml_text(recipe.to_dict()))
        self.reporter.print_line(f"3/4 model: {self.commands['train']}")
        saved = list_checkpoints(self.run_dir)
        left = recipe.optimizer.steps - (saved[-1].step if saved else 0)
        with self.table() as table, table.phase("train", left) as counter:
            api.train(
                self.train_recipe,
                self.corpus_dir,
                out=self.run_dir,
                progress=lambda row: counter.add("ok") if "loss" in row else None,
            )
        return left > 0

    def measure(self) -> dict[str, Any]:
        """Judge flow and model into `numbers`; returns the rows of films by section."""
        from openuni.demo import results

        plan, corpus, run = self.plan, Corpus.open(str(self.corpus_dir)), api.open_run(self.run_dir)
        held_out, trained = results.held_out_clips(run, corpus)
        self.reporter.print_line(f"4/4 measure: flow of all clips, depth of {len(held_out)} clips the model never saw")
        shown = results.corpus_rows(corpus, 1)
        flow = results.evaluate_flow(corpus, plan.shown)
        judge = results.DepthEvaluator(run, corpus, plan.estimate_steps)
        with self.table() as table, table.phase("estimate", len(held_out)) as counter:
            depth = judge.evaluate(held_out, trained, plan.shown, lambda: counter.add("ok"))
        joint = results.joint_samples(judge, held_out, plan.joint, plan.joint_steps)
        self.numbers = {
            "ledger": summary_record(corpus.summary()),
            "training": results.training_numbers(run, len(trained), len(held_out)),
            "flow": flow.numbers,
            "depth": depth.numbers,
            "joint": joint.numbers,
        }
        return {"corpus": shown.rows, "flow": flow.rows, "depth": depth.rows, "joint": joint.rows}

    # ------------------------------------------------------------------ records

    def timed(self, name: str, step: Callable[[], Any]) -> Any:
        """Do a step and add its time to those of earlier sessions, unless it had nothing to do."""
        began, found = time.perf_counter(), True
        try:
            found = step()
        finally:
            if found:
                self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - began, 1)
                self.save_state()
        return found

    def table(self) -> Reporter:
        """A progress table of its own for one step."""
        return Reporter(self.reporter.console, quiet=self.reporter.quiet)

    def save_state(self) -> None:
        """Write demo.json."""
        record = {"settings": dataclasses.asdict(self.plan), "seconds": self.seconds}
        _put(self.folder / "demo.json", json.dumps(record, indent=1))

    def facts(self) -> dict[str, Any]:
        """Where, when and how the numbers came about."""
        return {
            "size": self.plan.name,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": self.command,
            "commands": self.commands,
            "settings": dataclasses.asdict(self.plan),
            "machine": machine_info(),
            "versions": package_versions(),
            "seconds": self.seconds,
            "total_s": round(sum(self.seconds.values()), 1),
        }

    def foreign_folder_message(self) -> str:
        """What to say when the folder holds something else."""
        return f"{self.folder} exists and is not a demo's folder. Give a new one with --out."

    def settings_mismatch_message(self, settings: dict[str, Any]) -> str:
        """What to say when the folder holds another demo."""
        found = settings.get("name")
        if found != self.plan.name:
            what = f"holds the {found} demo, and this would be the {self.plan.name} one"
        else:
            what = "holds a demo that another version of openuni made with other settings"
        return (
            f"{self.folder} {what}. Give another folder: openuni demo {self.flag}--out {self.folder}-{self.plan.name}"
        )


def training_recipe(plan: DemoConfig) -> "TrainingRecipe":
    """The plan's recipe of train/recipes, with a larger share held out: an error of one or two clips says little."""
    from openuni.training.recipe import TrainingRecipe

    recipe = TrainingRecipe.load(plan.train_recipe)
    data = dataclasses.replace(recipe.data, validation_share=plan.validation_share)
    every = max(1, recipe.optimizer.steps // plan.validations)
    return dataclasses.replace(recipe, data=data, validation=dataclasses.replace(recipe.validation, every_steps=every))


def toml_text(tables: dict[str, Any]) -> str:
    """Options and tables of options as TOML; values are texts, numbers, truth values, lists and (inline) tables."""
    plain = {name: value for name, value in tables.items() if not isinstance(value, dict)}
    lines = [f"{name} = {_toml_value(value)}" for name, value in plain.items()]
    for title in (name for name in tables if name not in plain):
        lines += ["", f"[{title}]"]
        lines += [f"{name} = {_toml_value(value)}" for name, value in tables[title].items()]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(name)} = {_toml_value(item)}" for name, item in value.items()) + " }"
    return json.dumps(value)  # TOML writes texts, numbers, truth values and lists of them as JSON does


def _put(path: Path, text: str) -> None:
    """The whole file or none; one that says the same is left alone."""
    if path.is_file() and path.read_text() == text:
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    unfinished.write_text(text)
    unfinished.replace(path)
