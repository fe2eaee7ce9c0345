"""Progress of sampling: a bar on a terminal, a plain line every few seconds elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from openuni.training.run import Run
    from openuni.training.tasks import Task

LOG_EVERY_S = 10.0


@contextmanager
def sampling_progress(run: "Run", task: "Task", steps: int, console: Console) -> Iterator[None]:
    """Show the solver steps of the sampling inside the block. Loads the model.

    A step may call the model several times (guidance, second-order solvers). Steps are therefore counted by the noise
    levels of the target streams: each level that the model is called with is one step.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("load model", total=steps)
        model = run.model
        progress.update(bar, description="sample")
        levels: set[float] = set()
        logged = time.perf_counter()

        def count(module: Any, arguments: tuple[Any, ...]) -> None:
            nonlocal logged
            _, sigmas, *_ = arguments
            levels.add(max(float(sigmas[name][0]) for name in targets if name in sigmas))
            started = min(len(levels), steps)
            progress.update(bar, completed=started - 1)
            if not console.is_terminal and (time.perf_counter() - logged > LOG_EVERY_S):
                logged = time.perf_counter()
                console.print(f"sample: step {started}/{steps}", highlight=False)

        targets = (*task.targets, *(["text"] if task.generates_text else []))
        hook = model.register_forward_pre_hook(count)
        try:
            yield
        finally:
            hook.remove()
        progress.update(bar, completed=steps)
