"""The display of a run: a bar per phase in this process, a table of pools on workers."""

import io
import re

from rich.console import Console

from openuni.console.phase_table import COLUMNS, pool_table
from openuni.console.progress import Reporter
from openuni.console.usage import GpuShare, ItemUsage


def cells(reporter: Reporter) -> list[list[str]]:
    """The rows of the table, split at two spaces."""
    console = Console(file=io.StringIO(), width=120)
    console.print(pool_table(reporter.phases, 120))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]


def shown(width: int, *, terminal: bool) -> tuple[Reporter, io.StringIO]:
    screen = io.StringIO()
    return Reporter(Console(file=screen, width=width, force_terminal=terminal)), screen


def test_pools_on_workers_are_rows_with_their_total():
    reporter = Reporter(quiet=True)
    with reporter.phase("raft", 8) as gpu, reporter.phase("dis \x1b[31m" + 30 * "x", 1000) as cpu:
        for phase in reporter.phases:
            phase.started -= 2.0  # it began two seconds ago
        gpu.workers(1, 2, 2)
        cpu.workers(4, 4, 8)
        usage = ItemUsage("a", decode_s=0.9, compute_s=0.6, store_s=0.1, wait_s=0.4, gpus={"0": GpuShare(0.42, 3)})
        gpu.add("ok", key="clip", usage=usage)
        cpu.add("failed", key="clip", usage=usage._replace(gpus={}, decode_s=0.1))
        header, raft, dis, total = cells(reporter)
    assert header == ["pool", "done", "failed", "items/s", "ETA", "workers", "GPU", "decode", "store", "queue"]
    assert raft == ["raft", "1/8", "0", "0.5", "14 s", "1/2", "42 %", "90 %", "10 %", "5"]
    assert dis[0] == "dis \\x1b[31mxxxxxxxxx…" and dis[1:] == [
        *("1/1,000", "1", "0.5", "33 min", "4/4", "-", "10 %", "10 %", "991"),
    ]
    assert total == ["total", "2/1,008", "1", "1.0", "33 min", "5/6", "42 %", "50 %", "10 %", "996"]
    _, raft, _, total = cells(reporter)
    assert raft[4:7] == ["in 2 s", "-", "42 %"] and total[3:6] == ["-", "-", "-"]


def test_a_phase_in_this_process_stays_a_bar():
    reporter, screen = shown(100, terminal=True)
    with reporter, reporter.phase("ingest", 2) as counter:
        counter.add("ok", key="a", usage=ItemUsage("a", decode_s=1.0, compute_s=1.0))
    assert "1/2" in screen.getvalue() and "workers" not in screen.getvalue()


def test_a_terminal_shows_the_table_and_a_narrow_one_no_broken_lines():
    for width in (80, 120):
        reporter, screen = shown(width, terminal=True)
        with reporter, reporter.phase("motion + luminance", 2) as counter:
            counter.workers(1, 1, 1)
            counter.add("ok", key="a", usage=ItemUsage("a", decode_s=1.0, compute_s=1.0))
        last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()).splitlines()[-2:]
        assert tuple(last[0].split()) == COLUMNS
        assert "1/2" in last[1] and all(len(line) <= width for line in last)


def test_elsewhere_a_plain_line_says_the_same():
    reporter, screen = shown(200, terminal=False)
    with reporter, reporter.phase("raft", 2) as counter:
        counter.workers(1, 2, 1)
        usage = ItemUsage("a", decode_s=0.5, compute_s=0.6, store_s=0.1, wait_s=0.4, gpus={"0": GpuShare(0.42, 3)})
        counter.add("ok", key="a", usage=usage)
    (line,) = screen.getvalue().splitlines()
    assert line.startswith("raft: 1/2 done, 0 failed, ")
    assert line.endswith("; 1/2 workers, GPU 42 %, decode 50 %, store 10 %")
