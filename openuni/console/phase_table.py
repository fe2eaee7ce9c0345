"""The live display of a run: a bar per phase, and a table of the pools of workers once there are any."""

from collections.abc import Iterable, Sequence

from rich.console import RenderableType
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from openuni.console.phase_usage import Phase, duration_text, percent
from openuni.console.terminal import one_line

COLUMNS = ("pool", "done", "failed", "items/s", "ETA", "workers", "GPU", "decode", "store", "queue")
WIDE_COLUMNS = 100  # from here on names are less short, and columns further apart


class PhaseTable(Progress):
    """A `Progress` whose tasks may have a field `phase`: those of workers in other processes are rows of a table."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """See `Progress.get_renderables`."""
        pools = [task.fields["phase"] for task in self.tasks if _is_pool(task.fields.get("phase"))]
        others = [task for task in self.tasks if not _is_pool(task.fields.get("phase"))]
        if others or not pools:
            yield self.make_tasks_table(others)
        if pools:
            yield pool_table(pools, self.console.width)


def pool_table(phases: Sequence[Phase], width: int) -> Table:
    """One row per pool, and their total if there are several. `width`: of the terminal, in characters."""
    is_wide = width >= WIDE_COLUMNS
    table = Table(box=None, padding=(0, 2 if is_wide else 1, 0, 0), pad_edge=False, header_style="bold")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "pool" else "right", no_wrap=True)
    for phase in phases:
        table.add_row(*(Text(cell) for cell in _row(phase, 22 if is_wide else 14)))
    if len(phases) > 1:
        table.add_row(*(Text(cell, style="bold") for cell in _total(phases)))
    return table


def _row(phase: Phase, max_name_chars: int) -> list[str]:
    decode, store = phase.usage.shares()
    name = one_line(phase.name)
    return [
        name if len(name) <= max_name_chars else f"{name[: max_name_chars - 1]}\u2026",
        f"{phase.done:,}/{phase.total:,}",
        f"{phase.failed:,}",
        _rate(phase.items_per_s),
        _time(phase),
        "-" if phase.seconds else f"{phase.placed}/{phase.wanted}",
        percent(phase.usage.gpu_busy),
        percent(decode),
        percent(store),
        "-" if phase.seconds else f"{phase.queue:,}",
    ]


def _rate(items_per_s: float) -> str:
    return f"{items_per_s:.1f}" if items_per_s >= 0.95 or not items_per_s else f"{items_per_s:.2g}"


def _time(phase: Phase) -> str:
    if phase.seconds:
        return f"in {duration_text(phase.seconds)}"
    return "-" if phase.eta_s is None else duration_text(phase.eta_s)


def _total(phases: Sequence[Phase]) -> list[str]:
    """Items of all pools; rates, workers and shares of those that are at work."""
    running = [phase for phase in phases if not phase.seconds]
    totals = [phase.usage.total for phase in running]
    worker_s = sum(total.compute_s + total.wait_s for total in totals)
    shares = [share.busy for phase in running for share in phase.usage.gpus.values() if share.samples]
    etas = [phase.eta_s for phase in running if phase.done < phase.total]
    return [
        "total",
        f"{sum(phase.done for phase in phases):,}/{sum(phase.total for phase in phases):,}",
        f"{sum(phase.failed for phase in phases):,}",
        _rate(sum(phase.items_per_s for phase in running)) if running else "-",
        "-" if not etas or None in etas else duration_text(max(eta for eta in etas if eta is not None)),
        f"{sum(phase.placed for phase in running)}/{sum(phase.wanted for phase in running)}" if running else "-",
        percent(sum(shares) / len(shares) if shares else None),
        percent(min(1.0, sum(total.decode_s for total in totals) / worker_s) if worker_s else None),
        percent(min(1.0, sum(total.store_s for total in totals) / worker_s) if worker_s else None),
        f"{sum(phase.queue for phase in running):,}" if running else "-",
    ]


def _is_pool(phase: Phase | None) -> bool:
    return phase is not None and phase.is_pool
