"""Several ranks of a training on the CPU, as torchrun starts them: processes that talk over gloo.

They are forked from a process that has imported everything, so that a launch costs its work alone. `tests/killed.py`
and `tests/chaos/processes.py` do the same. Jobs are JSON-able, and so are results.
"""

import faulthandler
import json
import multiprocessing
import multiprocessing.connection
import os
import socket
import sys
import traceback
from collections.abc import Callable
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

TIMEOUT_S = int(os.environ.get("RANKS_TIMEOUT_S", "150"))


def run_ranks(world: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call `function(*arguments)` on `world` ranks; return what it returned on each.

    `function`: of a module. Raises `AssertionError` with the traceback of a rank that raises or does not end.
    """
    ended = launch(world, folder, function, *arguments)
    failed = [f"rank {rank}: exit code {code}\n{text}" for rank, (code, _, text) in enumerate(ended) if code]
    if failed:
        raise AssertionError("\n".join(failed))
    return [result for _, result, _ in ended]


def launch(
    world: int, folder: Path, function: Callable[..., Any], *arguments: Any, end_all: bool = False
) -> list[tuple[int, Any, str]]:
    """As `run_ranks`, but return exit code, result and stderr of each rank.

    `end_all`: if one rank fails, kill the others at once, as torchrun does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outputs = [folder / f"rank-{rank}" for rank in range(world)]
    processes = [
        _context().Process(target=_run, args=(rank, world, port, str(outputs[rank]), function, arguments))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    if end_all:
        _kill_after_the_first_failure(processes)
    for process in processes:
        process.join(TIMEOUT_S)
    ended = []
    for process, output in zip(processes, outputs, strict=True):
        if process.exitcode is None:
            process.kill()
            process.join()
        result = json.loads(output.read_text()) if output.exists() else None
        ended.append((process.exitcode or 0, result, Path(f"{output}.err").read_text()))
    return ended


def _kill_after_the_first_failure(processes: list[Any]) -> None:
    running = {process.sentinel: process for process in processes}
    while running:
        for sentinel in multiprocessing.connection.wait(list(running), TIMEOUT_S) or list(running):
            process = running.pop(sentinel)  # type: ignore[call-overload]
            process.join()
            if process.exitcode:
                for other in running.values():
                    other.kill()


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train.loop.rank_imports"])
    return context


def _run(
    rank: int, world: int, port: int, output: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if world == 1:
        del os.environ["RANK"]
    stderr = os.open(f"{output}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stderr, 2)
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115  # until the process ends
    faulthandler.dump_traceback_later(TIMEOUT_S - 10, exit=True, file=sys.stderr)
    try:
        result = function(*arguments)
        Path(output).write_text(json.dumps(result))
    except SystemExit:
        raise
    except BaseException:  # noqa: BLE001  # shown by the parent
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
