"""`openuni demo`: the whole pipeline on synthetic clips. Nothing is downloaded.

    DIR/raw/            clips of `openuni.world` as video files, with ground truth as sidecar files
    DIR/corpus.toml     corpus recipe; to run it: openuni run DIR/corpus.toml "DIR/raw/*.mp4" --out DIR/corpus
    DIR/corpus/         the corpus
    DIR/train.toml      training recipe; to run it: openuni train DIR/train.toml --corpus DIR/corpus --out DIR/run
    DIR/run/            the training run
    DIR/numbers.json    all measurements
    DIR/index.html      the report: one file that needs no network
    DIR/demo.json       settings of the demo, and duration of every step

Rerun to resume: existing clips, corpus rows and training steps are reused; only the measurements are repeated. A folder
contains one demo. A demo with other settings, or other files in the folder, are an error.
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
from openuni.manifests.storage.store import is_unused
from openuni.pipeline.ledger import summary_record

if TYPE_CHECKING:
    from openuni.training.recipe import TrainingRecipe

RECIPE = """\
# Corpus recipe of `openuni demo`. Run it with: {command}

keep = "motion.moving_share > 0.01 and luminance.mean > 0.1"

[filters.motion]
[filters.luminance]

[annotators.dis]              # optical flow, estimated from RGB
[annotators.supplied]         # ground truth from sidecar files
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
    """Settings of a demo."""

    name: str
    solids: int  # number of clips with moving solids
    still: int  # number of clips without motion; `keep` drops them
    dark: int  # number of dark clips; `keep` drops them
    train_recipe: str  # name of a training recipe
    validations: int  # number of validations during the training
    workers: int | None  # of the pipeline; 0: in-process, None: default of `openuni run`
    validation_share: float = 0.2  # share of held-out clips
    shown: int = 4  # clips per section of the report
    joint: int = 2  # captions from which RGB and depth are generated
    estimate_steps: int = 2  # solver steps; RGB nearly determines depth, and few steps give close to the mean
    joint_steps: int = 30
    frames: int = 21
    side_px: int = 96
    channels: int = 16  # latent channels
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
    """Run or resume the demo in the folder `out`; return the path of the report.

    Raises `OpenUniError` if the folder contains a demo with other settings, or other files.
    """
    return Demo(Path(out), QUICK if quick else FULL, reporter or Reporter(Console(stderr=True, soft_wrap=True))).run()


class Demo:
    """One demo in one folder."""

    def __init__(self, folder: Path, plan: DemoConfig, reporter: Reporter) -> None:
        self.folder, self.plan, self.reporter = folder, plan, reporter
        self.raw, self.corpus_dir, self.run_dir = folder / "raw", folder / "corpus", folder / "run"
        self.recipe, self.train_recipe = folder / "corpus.toml", folder / "train.toml"
        self.seconds: dict[str, float] = {}  # by step, summed over all invocations in this folder
        self.numbers: dict[str, Any] = {}

    @property
    def flag(self) -> str:
        """The flags that select these settings."""
        return "--quick " if self.plan.name == "quick" else ""

    @property
    def command(self) -> str:
        """The command that runs this demo."""
        return f"openuni demo {self.flag}--out {quote(str(self.folder))}"

    @property
    def pattern(self) -> Path:
        """Glob pattern of the clips; it does not match the videos with ground truth."""
        return self.raw / "*.mp4"

    def next_steps(self, rows: dict[str, Any]) -> list[tuple[str, str]]:
        """Commands to try after the demo, each with its purpose."""
        prompt = rows["joint"][0].text if rows["joint"] else ""
        out = self.folder / "generated"
        steps: list[tuple[str, list[Any]]] = [
            ("Show clip outcomes, coverage and score distributions", ["summary", self.corpus_dir, "--scores"]),
            ("Show all scores and rule results of one clip", ["explain", self.corpus_dir, "still-000000.mp4"]),
            (
                "Generate a video and its depth from a prompt",
                ["generate", self.run_dir, "--make", "rgb", "--make", "depth", "--prompt", prompt, "--out", out],
            ),
            ("Write a recipe for your own videos", ["init", "corpus.toml"]),
            ("Build a corpus from your own videos", ["run", "corpus.toml", "VIDEOS", "--out", "corpus"]),
        ]
        return [(purpose, join(["openuni", *map(str, words)])) for purpose, words in steps]

    @property
    def commands(self) -> dict[str, str]:
        """The equivalent commands of the steps that have one."""
        workers = [] if self.plan.workers is None else ["--workers", self.plan.workers]
        steps = {
            "corpus": ["run", self.recipe, self.pattern, "--out", self.corpus_dir, *workers],
            "train": ["train", self.train_recipe, "--corpus", self.corpus_dir, "--out", self.run_dir],
        }
        return {name: join(["openuni", *map(str, words)]) for name, words in steps.items()}

    def run(self) -> Path:
        """Run all steps; return the path of the report."""
        from openuni.demo.page import demo_page

        self.claim_folder()
        self.timed("make clips", self.make_clips)
        self.timed("build the corpus", self.build_corpus)
        self.timed("train", self.train)
        self.seconds.pop("measure", None)  # repeated every time
        rows = self.timed("measure", self.measure)
        numbers = self.numbers | self.facts()
        _put(self.folder / "numbers.json", json.dumps(numbers, indent=1))
        page = self.folder / "index.html"
        _put(page, demo_page(numbers, rows, self.next_steps(rows)))
        return page

    # ------------------------------------------------------------------ steps

    def claim_folder(self) -> None:
        """Create the folder or take over an empty one; check the settings of an existing demo.

        Raises `OpenUniError` if the folder contains a demo with other settings, or other files.
        """
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
        if not is_unused(self.folder):
            raise OpenUniError(self.foreign_folder_message())
        self.folder.mkdir(parents=True, exist_ok=True)
        self.save_state()

    def make_clips(self) -> bool:
        """Render the missing clips; return whether there were any."""
        from openuni.world import write_clips

        plan = self.plan
        counts = {"solids": plan.solids, "still": plan.still, "dark": plan.dark}
        orders = [(seed, preset) for preset, count in counts.items() for seed in range(count)]
        # the JSON file is written last, so its presence means that the clip is complete
        left = [(seed, preset) for seed, preset in orders if not (self.raw / f"{preset}-{seed:06}.json").is_file()]
        listed = ", ".join(f"{count} {name}" for name, count in counts.items())
        self.reporter.print_line(f"1/4 render: {len(orders)} clips of {plan.frames} frames ({listed}) to {self.raw}")
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
        """Run the pipeline like `openuni run`; return whether there was anything to do."""
        _put(self.recipe, RECIPE.format(command=self.commands["corpus"], **dataclasses.asdict(self.plan)))
        self.reporter.print_line(f"2/4 corpus: {self.commands['corpus']}")
        table = self.table()
        resources = api.default_resources(self.plan.workers)
        corpus = api.run(self.recipe, self.pattern, out=self.corpus_dir, resources=resources, reporter=table)
        self.reporter.print_line(str(corpus.summary()))
        return any(phase.total for phase in table.phases)

    def train(self) -> bool:
        """Train like `openuni train`; return whether there was anything to do."""
        from openuni.training.loop.training_checkpoint import list_checkpoints

        recipe = training_recipe(self.plan)
        head = f"# {self.plan.train_recipe} with more held-out clips. Run it with: {self.commands['train']}\n\n"
        _put(self.train_recipe, head + toml_text(dataclasses.asdict(recipe)))
        self.reporter.print_line(f"3/4 train: {self.commands['train']}")
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
        """Measure optical flow and the model, set `numbers`; return the rows of videos by section."""
        from openuni.demo import results
        from openuni.evaluation.runs import held_out_clips

        plan, corpus, run = self.plan, Corpus.open(str(self.corpus_dir)), api.open_run(self.run_dir)
        held_out, trained = held_out_clips(run, corpus)
        self.reporter.print_line(
            f"4/4 measure: optical flow of all clips, estimated depth of {len(held_out)} held-out clips"
        )
        shown = results.corpus_rows(corpus, 1)
        flow = results.evaluate_flow(corpus, plan.shown)
        evaluator = results.DepthEvaluator(run, corpus, plan.estimate_steps)
        with self.table() as table, table.phase("estimate", len(held_out)) as counter:
            depth = evaluator.evaluate(held_out, trained, plan.shown, lambda: counter.add("ok"))
        joint = results.joint_samples(evaluator, held_out, plan.joint, plan.joint_steps)
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
        """Run a step and add its duration to that of earlier invocations, unless it had nothing to do."""
        began, found = time.perf_counter(), True
        try:
            found = step()
        finally:
            if found:
                self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - began, 1)
                self.save_state()
        return found

    def table(self) -> Reporter:
        """Return a separate progress table for one step."""
        return Reporter(self.reporter.console, quiet=self.reporter.quiet)

    def save_state(self) -> None:
        """Write demo.json."""
        record = {"settings": dataclasses.asdict(self.plan), "seconds": self.seconds}
        _put(self.folder / "demo.json", json.dumps(record, indent=1))

    def facts(self) -> dict[str, Any]:
        """Commands, settings, environment and durations of the demo."""
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
        """The error for a folder with other files."""
        return f"{self.folder} is not empty and does not contain a demo. Pass a new or empty folder with --out."

    def settings_mismatch_message(self, settings: dict[str, Any]) -> str:
        """The error for a folder with a demo of other settings."""
        found = settings.get("name")
        if found != self.plan.name:
            what = f"contains the {found} demo, not the {self.plan.name} demo"
        else:
            what = "contains a demo with other settings, made by another version of openuni"
        command = f"openuni demo {self.flag}--out {quote(f'{self.folder}-{self.plan.name}')}"
        return f"{self.folder} {what}. Pass a different folder: {command}"


def training_recipe(plan: DemoConfig) -> "TrainingRecipe":
    """The training recipe of a demo, with more held-out clips: the error of one or two clips is not meaningful."""
    from openuni.training.recipe import TrainingRecipe

    recipe = TrainingRecipe.load(plan.train_recipe)
    data = dataclasses.replace(recipe.data, validation_share=plan.validation_share)
    every = max(1, recipe.optimizer.steps // plan.validations)
    return dataclasses.replace(recipe, data=data, validation=dataclasses.replace(recipe.validation, every_steps=every))


def toml_text(tables: dict[str, Any]) -> str:
    """Write tables as TOML. Values: strings, numbers, booleans, lists and (inline) tables."""
    plain = {name: value for name, value in tables.items() if not isinstance(value, dict)}
    lines = [f"{name} = {_toml_value(value)}" for name, value in plain.items()]
    for title in (name for name in tables if name not in plain):
        lines += ["", f"[{title}]"]
        lines += [f"{name} = {_toml_value(value)}" for name, value in tables[title].items()]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(name)} = {_toml_value(item)}" for name, item in value.items()) + " }"
    return json.dumps(value)  # strings, numbers, booleans and lists of them are written as in JSON


def _put(path: Path, text: str) -> None:
    """Write the file atomically, unless it already has this text."""
    if path.is_file() and path.read_text() == text:
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    unfinished.write_text(text)
    unfinished.replace(path)
