"""Commands on models: train, generate."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from openuni.cli.app import app, command_from_dataclass, is_first_rank
from openuni.cli.former_flags import accepts_former_flags
from openuni.console.terminal import print_text
from openuni.manifests.errors import OpenUniError

if TYPE_CHECKING:
    from openuni.training.run import Run


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="Training recipe: a name (see `openuni list`) or a TOML file")],
    corpus: Annotated[str, typer.Option(help="Corpus to train on: folder or URL")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Output directory; with several nodes one that all of them see")
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTION=VALUE", help="Option of the recipe, such as optimizer.steps=1000; repeatable"),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Train nothing: print tokens, memory and FLOPs per step, and the data plan"),
    ] = False,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="--dry-run: number of GPUs. Default: those of this machine, or 1")
    ] = None,
    gpu_memory_gb: Annotated[
        float | None, typer.Option(min=0.1, help="--dry-run: memory of each. Default: that of this machine's GPUs")
    ] = None,
) -> None:
    """Train a unified model on the latents of a corpus.

    Rerun to resume from the latest training checkpoint. On several GPUs:
    torchrun --nproc-per-node GPUS -m openuni train ...
    """
    from openuni import api
    from openuni.config.recipe import parse_assignments
    from openuni.console.progress import Reporter, TrainingProgress
    from openuni.training.loop.ranks import training_ranks
    from openuni.training.recipe import TrainingRecipe
    from openuni.training.recipe_changes import changed

    def load() -> TrainingRecipe:
        record, where = TrainingRecipe.read(recipe)
        return TrainingRecipe.from_dict(changed(record, parse_assignments(set or (), "--set"), "--set"), where)

    if dry_run:
        print_text(api.training_estimate(load(), corpus, gpus, gpu_memory_gb))
        return
    if out is None:
        raise OpenUniError("--out is missing: the folder of the training run. Or pass --dry-run.")
    with training_ranks() as ranks:
        loaded = ranks.together(load)
        with Reporter(quiet=not ranks.is_first) as reporter:
            finished = api.train(loaded, corpus, out=out, progress=TrainingProgress(reporter, loaded.optimizer.steps))
    if not is_first_rank():
        return
    print_text(f"trained {finished.checkpoint.step:,} steps: {out}")
    if Path(recipe).stem.endswith("_debug"):
        print_text("A debug recipe tests the pipeline: the model is tiny and does not learn, whatever its loss.")
    print_text(f"Next, for example: {_generate_command(finished)}")


def _generate_command(run: "Run") -> str:
    """A `generate` command for the first task of the run."""
    task = run.tasks[0]
    conditions = [f"--given {name}=VIDEO" for name in task.conditions]
    targets = [f"--make {name}" for name in (*task.targets, *(["text"] if task.generates_text else []))]
    prompt = ["--prompt '...'"] if run.caption_streams(task) else []
    return " ".join([f"openuni generate {run.folder}", *conditions, *targets, *prompt, "--out FOLDER"])


@dataclass(frozen=True)
class GenerateFlags:
    """Flags of `openuni generate`."""

    run: Annotated[Path, typer.Argument(help="Training run: the folder that `openuni train` wrote")]
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
