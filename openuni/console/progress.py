"""Progress of a run: a live table on a terminal, otherwise a plain line every few seconds."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType, TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from openuni.console.phase_table import PhaseTable
from openuni.console.phase_usage import Phase, duration_text
from openuni.console.terminal import escape
from openuni.console.usage import ItemUsage, PoolWatcher

LOG_EVERY_S = 10.0
MIN_WAIT_SHARE = 0.01  # of a training step spent waiting for data, from which on it is shown


class Reporter:
    """Shows phases as they go. `quiet` shows nothing; the counts are kept all the same."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True)
        self.live = self.console.is_terminal and not quiet
        self.quiet = quiet
        self.phases: list[Phase] = []
        self.progress = PhaseTable(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]} failed  {task.fields[rate]:.1f}/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.live,
        )

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # after SIGHUP the terminal is gone
            self.progress.stop()

    def print_line(self, text: str) -> None:
        """One line above the table."""
        if not self.quiet:
            self.console.print(escape(text), highlight=False, markup=False)

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator["Counter"]:
        """Count the items of one phase."""
        phase = Phase(name, total)
        self.phases.append(phase)
        counter = Counter(self, phase)
        try:
            yield counter
        finally:
            phase.seconds = time.perf_counter() - phase.started
            counter.show(final=True)


class Counter(PoolWatcher):
    """Counts one phase and shows it."""

    def __init__(self, reporter: Reporter, phase: Phase) -> None:
        self.reporter, self.phase = reporter, phase
        self.task = reporter.progress.add_task(phase.name, total=phase.total, failed=0, rate=0.0, phase=phase)
        self.logged = time.perf_counter()

    def add(
        self,
        status: str,
        decodes: int = 0,
        vram_mb: Mapping[str, float] = MappingProxyType({}),
        key: str = "",
        usage: ItemUsage | None = None,
    ) -> None:
        """One more item, "ok" or "failed"; see `openuni.pipeline.worker.ItemOutcome` for the rest."""
        if usage is not None:
            self.phase.usage.add(key, status, decodes, usage)
        if status == "ok":
            self.phase.ok += 1
        else:
            self.phase.failed += 1
        self.phase.decodes += decodes
        for name, used_mb in vram_mb.items():
            self.phase.vram_mb[name] = max(used_mb, self.phase.vram_mb.get(name, 0.0))
        self.show()

    def grow(self, items: int) -> None:
        """More items have been planned."""
        self.phase.total += items
        self.reporter.progress.update(self.task, total=self.phase.total)

    @property
    def queue(self) -> int:
        """See `PoolWatcher.queue`."""
        return self.phase.queue

    def workers(self, placed: int, wanted: int, in_flight: int) -> None:
        """See `PoolWatcher.workers`."""
        self.phase.placed, self.phase.wanted, self.phase.in_flight = placed, wanted, in_flight
        self.show()

    def worker_died(self, node_id: str) -> None:
        """See `PoolWatcher.worker_died`."""
        self.phase.usage.add_death(node_id)

    def show(self, *, final: bool = False) -> None:
        """Refresh the table, or log a line when it is time for one."""
        phase = self.phase
        self.reporter.progress.update(
            self.task, completed=phase.done, failed=phase.failed, rate=phase.items_per_s, refresh=final
        )
        due = final or time.perf_counter() - self.logged > LOG_EVERY_S
        if not self.reporter.live and not self.reporter.quiet and due:
            self.logged = time.perf_counter()
            self.reporter.print_line(f"{phase.name}: {phase.text()}")


class ShareProgress:
    """Shows the share of a task that is done, with an ETA: a bar on a terminal, else a plain line every few seconds."""

    def __init__(self, reporter: Reporter, name: str) -> None:
        self.reporter, self.name = reporter, name
        self.task = reporter.progress.add_task(name, total=100, failed=0, rate=0.0)
        self.started = self.logged = time.perf_counter()

    def __call__(self, share: float) -> None:
        """`share`: of the work that is done, 0..1."""
        now = time.perf_counter()
        self.reporter.progress.update(self.task, completed=int(100 * share))
        if now - self.logged > LOG_EVERY_S and share and not self.reporter.live:
            self.logged = now
            eta = duration_text((now - self.started) * (1 - share) / share)
            self.reporter.print_line(f"{self.name}: {share:.0%} done, ETA {eta}")


class TrainingProgress:
    """Shows the rows of a training log: a bar on a terminal, a plain line every few seconds elsewhere."""

    def __init__(self, reporter: Reporter, steps: int) -> None:
        self.reporter, self.steps = reporter, steps
        self.task = reporter.progress.add_task("train", total=steps, failed=0, rate=0.0)
        self.logged = time.perf_counter()
        self.validation = ""
        self.first: tuple[int, float] | None = None  # step and time of the first row, from which the ETA is counted

    def __call__(self, row: dict[str, Any]) -> None:
        """One row of the log."""
        if "validation_loss" in row:
            losses = [
                loss for name, loss in row["validation_loss"].items() if " at " not in name
            ]  # not per noise level
            self.validation = f", validation loss {sum(losses) / len(losses):.4f}" if losses else ""
        if "loss" not in row:
            return
        step, now = row["step"], time.perf_counter()
        if self.first is None or step <= self.first[0]:  # also after a restart from a checkpoint
            self.first = step, now
        self.reporter.progress.update(
            self.task, completed=step, rate=row["samples_per_s"], description=f"loss {row['loss']:.3f}"
        )
        due = step == self.steps or now - self.logged > LOG_EVERY_S
        if due and not self.reporter.live:
            self.logged = now
            text = f"train: step {step}/{self.steps}, loss {row['loss']:.4f}{self.validation}"
            with suppress(OSError):  # a training goes on, or is saved, without the terminal
                self.reporter.print_line(f"{text}, {self._speed(row)}")

    def _speed(self, row: dict[str, Any]) -> str:
        """Throughput and what is left, as text."""
        parts = [f"{row['samples_per_s']:.1f} samples/s"]
        if "tokens_per_s" in row:
            parts.append(f"{row['tokens_per_s']:,.0f} tokens/s")
        if row.get("data_wait_share", 0.0) >= MIN_WAIT_SHARE:
            parts.append(f"{row['data_wait_share']:.0%} data wait")
        if "mfu" in row:
            parts.append(f"MFU {row['mfu']:.0%}")
        first_step, since = self.first or (row["step"], 0.0)
        if row["step"] > first_step and row["step"] < self.steps:
            per_step_s = (time.perf_counter() - since) / (row["step"] - first_step)
            parts.append(f"ETA {duration_text(per_step_s * (self.steps - row['step']))}")
        return ", ".join(parts)
