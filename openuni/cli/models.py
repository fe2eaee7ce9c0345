"""Commands on models: train, generate."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from openuni.cli.app import app, command_from_dataclass, is_first_rank
from openuni.cli.former_flags import accepts_former_flags
from openuni.console.terminal import print_text
from openuni.manifests.errors import OpenUniError

if TYPE_CHECKING:
    from openuni.launch.ray_training import RayOptions
    from openuni.training.recipe import TrainingRecipe
    from openuni.training.run import Run


@dataclass(frozen=True)
class TrainFlags:
    """Flags of `openuni train`."""

    recipe: Annotated[str, typer.Argument(help="Training recipe: a name (see `openuni list`) or a TOML file")]
    corpus: Annotated[str, typer.Option(help="Corpus to train on: folder or URL")]
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Output directory; with several nodes one that all of them see")
    ] = None
    set: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTION=VALUE", help="Option of the recipe, such as optimizer.steps=1000; repeatable"),
    ] = None
    tracker: Annotated[
        str | None, typer.Option(help="Tracker of the log, such as wandb; as --set tracking.name=NAME")
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Train nothing: print tokens, memory and FLOPs per step, and the data plan"),
    ] = False
    gpus: Annotated[
        int | None, typer.Option(min=1, help="--dry-run: number of GPUs. Default: those of this machine, or 1")
    ] = None
    gpu_memory_gb: Annotated[
        float | None, typer.Option(min=0.1, help="--dry-run: memory of each. Default: that of this machine's GPUs")
    ] = None
    ray: Annotated[
        bool, typer.Option("--ray", help="Train on processes of Ray, restarted from the last checkpoint when one dies")
    ] = False
    address: Annotated[
        str | None, typer.Option(help="--ray: address of a running Ray cluster. Default: start Ray on this machine")
    ] = None
    workers: Annotated[
        int | None, typer.Option(min=1, help="--ray: number of processes. Default: one per GPU, else 1")
    ] = None
    min_workers: Annotated[
        int | None,
        typer.Option(min=1, help="--ray: minimum number of processes, if nodes are lost. Default: --workers"),
    ] = None
    max_restarts: Annotated[
        int | None, typer.Option(min=0, help="--ray: maximum number of restarts after a process died. Default: 3")
    ] = None


@app.command()
@command_from_dataclass(TrainFlags)
def train(flags: TrainFlags) -> None:
    """Train a unified model on the latents of a corpus.

    Rerun to resume from the latest training checkpoint. On several GPUs:
    torchrun --nproc-per-node GPUS -m openuni train ..., or --ray on a Ray cluster.
    """
    from openuni import api
    from openuni.console.progress import Reporter, TrainingProgress
    from openuni.training.loop.ranks import training_ranks

    ray = _ray_options(flags)
    if flags.dry_run:
        print_text(api.training_estimate(_training_recipe(flags), flags.corpus, flags.gpus, flags.gpu_memory_gb))
        return
    if flags.out is None:
        raise OpenUniError("--out is missing: the folder of the training run. Or pass --dry-run.")
    with training_ranks() as ranks:
        if ray is not None and ranks.world > 1:
            raise ranks.agreed(OpenUniError("--ray starts the processes by itself: run it without torchrun"))
        loaded = ranks.together(lambda: _training_recipe(flags))
        with Reporter(quiet=not ranks.is_first) as reporter:
            progress = TrainingProgress(reporter, loaded.optimizer.steps)
            finished = api.train(loaded, flags.corpus, out=flags.out, progress=progress, ray=ray)
    if not is_first_rank():
        return
    print_text(f"trained {finished.checkpoint.step:,} steps: {flags.out}")
    if Path(flags.recipe).stem.endswith("_debug"):
        print_text("A debug recipe tests the pipeline: the model is tiny and does not learn, whatever its loss.")
    print_text(f"Next, for example: {_generate_command(finished)}")


def _training_recipe(flags: TrainFlags) -> "TrainingRecipe":
    from openuni.config.recipe import parse_assignments
    from openuni.training.recipe import TrainingRecipe
    from openuni.training.recipe_changes import changed

    record, where = TrainingRecipe.read(flags.recipe)
    changes = parse_assignments(flags.set or (), "--set")
    if flags.tracker is not None:
        changes = {**changes, "tracking.name": flags.tracker}
    return TrainingRecipe.from_dict(changed(record, changes, "--set"), where)


def _ray_options(flags: TrainFlags) -> "RayOptions | None":
    """Where to train on Ray; None: not on Ray. Raises `OpenUniError` for flags that contradict each other."""
    given = {
        "--address": flags.address,
        "--workers": flags.workers,
        "--min-workers": flags.min_workers,
        "--max-restarts": flags.max_restarts,
    }
    used = [name for name, value in given.items() if value is not None]
    if not flags.ray:
        if used:
            raise OpenUniError(f"{used[0]} belongs to --ray. Add --ray, or start several processes with torchrun.")
        return None
    if flags.dry_run:
        raise OpenUniError("--dry-run needs no --ray: pass the number of GPUs with --gpus")
    if flags.address == "":
        raise OpenUniError('--address "": give the address of a running Ray cluster, such as auto or HOST:6379')
    from openuni.launch.ray_training import RayOptions

    restarts = {} if flags.max_restarts is None else {"max_restarts": flags.max_restarts}
    return RayOptions(flags.workers, flags.min_workers, address=flags.address, **restarts)


def _generate_command(run: "Run") -> str:
    """A `generate` command for the first task of the run."""
    task = run.tasks[0]
    conditions = [f"--given {name}=VIDEO" for name in task.conditions]
    targets = [f"--make {name}" for name in (*task.targets, *(["text"] if task.generates_text else []))]
    prompt = ["--prompt '...'"] if run.caption_streams(task) else []
    return " ".join([f"openuni generate {run.folder}", *conditions, *targets, *prompt, "--out FOLDER"])


@dataclass(frozen=True)
class ExportModelFlags:
    """Flags of `openuni export-model`."""

    run: Annotated[Path, typer.Argument(help="Training run: the folder that `openuni train` wrote")]
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Output directory; must not exist or be empty")] = None
    push_to: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Hugging Face Hub repository to upload to")
    ] = None
    private: Annotated[bool, typer.Option("--private", help="--push-to: create the repository as private")] = False
    format: Annotated[
        Literal["openuni", "diffusers", "peft"],
        typer.Option(help="openuni: whole model; diffusers: also a Wan transformer for diffusers; peft: LoRAs only"),
    ] = "openuni"
    weights: Annotated[Literal["ema", "model"], typer.Option(help="EMA weights, or those of the last step")] = "ema"
    licence: Annotated[
        str, typer.Option(help="Licence of the weights, such as apache-2.0. Default: that of the base model's card")
    ] = ""
    hub_name: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH=OWNER/NAME", help="Hub name of a checkpoint that the run has by path; repeatable"),
    ] = None
    include_base: Annotated[
        bool, typer.Option("--include-base", help="Store a frozen base model, too. Default: its hub name")
    ] = False


@app.command("export-model")
@command_from_dataclass(ExportModelFlags)
def export_model(flags: ExportModelFlags) -> None:
    """Export a trained model for others, with a model card.

    Writes safetensors and JSON only. openuni.from_pretrained and `openuni generate` open the result.
    """
    from openuni import api

    if flags.out is None and flags.push_to is None:
        raise OpenUniError("nothing to write to: pass --out FOLDER, or --push-to OWNER/NAME")
    pairs = [(text, *text.rpartition("=")) for text in flags.hub_name or ()]
    if odd := [text for text, path, _, name in pairs if not path or not name]:
        raise OpenUniError(f'--hub-name "{odd[0]}": must be PATH=OWNER/NAME')
    options: dict[str, Any] = {
        "format": flags.format,
        "weights": flags.weights,
        "licence": flags.licence,
        "hub_names": {path: name for _, path, _, name in pairs},
        "include_base": flags.include_base,
    }
    run = api.open_run(flags.run)
    if flags.out is not None:
        print_text(f"exported: {run.save_pretrained(flags.out, **options)}")
    if flags.push_to is not None:
        print_text(f"uploaded: {run.push_to_hub(flags.push_to, private=flags.private, **options)}")


@dataclass(frozen=True)
class GenerateFlags:
    """Flags of `openuni generate`."""

    run: Annotated[Path, typer.Argument(help="Training run, or exported model (folder)")]
    out: Annotated[Path, typer.Option("--out", "-o", help="Output directory")]
    task: Annotated[
        str,
        typer.Option(help="Task by any name, such as R2AIN, estimate:depth, joint:depth+flow, t2v; see openuni tasks"),
    ] = ""
    make: Annotated[
        list[str] | None, typer.Option(metavar="MODALITY", help="Target modality, or text; repeatable; or use --task")
    ] = None
    prompt: Annotated[str, typer.Option(help="Text prompt")] = ""
    given: Annotated[
        list[str] | None, typer.Option(metavar="MODALITY=VIDEO", help="Condition: a video of a modality; repeatable")
    ] = None
    size: Annotated[
        str | None,
        typer.Option(
            metavar="FRAMESxHEIGHTxWIDTH",
            help="Size of the videos; the number of frames is 4k + 1. Default: size of the training data",
        ),
    ] = None
    fps: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Frame rate of the output videos. Default: that of the --given videos, else of the training clips",
        ),
    ] = None
    steps: Annotated[int, typer.Option(min=1, help="Number of solver steps")] = 30
    guidance_scale: Annotated[
        float, typer.Option(help="Classifier-free guidance scale for the prompt; 1 disables guidance")
    ] = 1.0
    condition_guidance_scale: Annotated[
        float, typer.Option(help="Guidance scale for the condition streams; 1 disables guidance")
    ] = 1.0
    negative_prompt: Annotated[
        str,
        typer.Option(help="Text that guidance moves away from, in place of the empty caption; needs --guidance-scale"),
    ] = ""
    subject: Annotated[
        str, typer.Option(help="Subject such as 'two persons', for runs trained with subjects (data.subjects)")
    ] = ""
    solver: Annotated[
        Literal["euler", "heun", "adams_bashforth"],
        typer.Option(help="Solver: euler (order 1), heun (order 2, two model calls per step), adams_bashforth"),
    ] = "euler"
    shift: Annotated[
        float | None, typer.Option(help="Timestep shift of the noise levels. Default: that of the training")
    ] = None
    seed: Annotated[int, typer.Option(help="Random seed of the noise")] = 0
    temperature: Annotated[float, typer.Option(min=0, help="Sampling temperature for text; 0 is greedy decoding")] = 1.0
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="One generation per line: objects with any of name, prompt, negative_prompt, subject, seed, given",
        ),
    ] = None
    as_json: Annotated[bool, typer.Option("--json", "-j", help="JSON output: what was generated, and how")] = False


FORMER_FLAGS = {"--guidance": "--guidance-scale", "--given-guidance": "--condition-guidance-scale"}


@app.command(cls=accepts_former_flags(FORMER_FLAGS))
@command_from_dataclass(GenerateFlags)
def generate(flags: GenerateFlags) -> None:
    """Generate modalities or text with a trained model.

    Conditions are the prompt and the videos given with --given. Every modality is written as a video (NAME.mp4) and
    as an array (NAME.npy), and generation.json says what was done. Text is printed and written to text.txt, for
    example: --make text --given rgb=clip.mp4
    """
    import dataclasses
    import json

    from rich.console import Console

    from openuni.inference.generate import GenerateRequest, generate_all
    from openuni.inference.prompts_file import read_prompts

    fields = {field.name for field in dataclasses.fields(GenerateRequest)}
    chosen = {name: value for name, value in vars(flags).items() if name in fields}
    request = GenerateRequest(**chosen | {name: tuple(chosen[name] or ()) for name in ("make", "given")})
    requests = {"": request} if flags.prompts is None else read_prompts(flags.prompts, request)
    generations = generate_all(flags.run, requests, flags.out, Console(stderr=True, soft_wrap=True))
    if flags.as_json:
        print_text(json.dumps([done.record for done in generations], indent=2))
        return
    for path in (path for done in generations for path in done.files):
        print_text(path)
        if path.suffix == ".txt":
            print_text(path.read_text(encoding="utf-8"), end="")


@app.command()
def tasks(
    run: Annotated[Path, typer.Argument(help="Training run: the folder that `openuni train` wrote")],
    as_json: Annotated[bool, typer.Option("--json", "-j", help="JSON output: an object per task")] = False,
) -> None:
    """List the tasks of a training run and their names."""
    import json

    from openuni.inference.task_list import format_tasks, task_records
    from openuni.training.run import Run

    records = task_records(Run.open(run))
    print_text(json.dumps(records, indent=2) if as_json else format_tasks(records))
