"""Tries in which a process of a run with Ray is killed: the driver, a worker, the raylet, the control store."""

import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from tests.chaos.commands import Command
from tests.chaos.processes import Ended
from tests.chaos.tries import Laboratory

VICTIMS = {"driver": "openuni", "worker": "ray::", "raylet": "raylet", "GCS server": "gcs_server"}  # their processes
RAY_KILLS = tuple(f"SIGKILL of the {name}" for name in VICTIMS)
TIMEOUT_S = 300.0
LONGEST_WAIT_S = 4.0  # from the start of the first worker to the kill


class RayLaboratory(Laboratory):
    """The disturbed process is `openuni ... --workers 2`; what is given again runs in one process."""

    def _has(self, command: Command) -> bool:
        return command.name in ("run", "run, changed", "import")

    def _disturb(self, call: list[str], kind: str, usual: Ended, draw: random.Random) -> Ended:
        workers = call.index("--workers")
        call = [*call[:workers], "--workers", "2", *call[workers + 2 :]]
        started = time.monotonic()
        driver = subprocess.Popen(
            [sys.executable, "-m", "openuni", *call],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.slot,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
        name, wait_s = kind.removeprefix("SIGKILL of the "), draw.uniform(0, LONGEST_WAIT_S)
        try:
            family = _family_with_workers(driver)
            with suppress(subprocess.TimeoutExpired):
                driver.wait(wait_s)
            where = f"kill {self.slot}/corpus/{self._phase()}" if _kill(driver, name, draw) else ""
            out, err = driver.communicate(timeout=TIMEOUT_S)
        finally:
            driver.kill()
        assert where or driver.returncode in (0, 1), err  # it had ended before
        assert driver.returncode != 2 or "Ray" in err, err  # what is wrong is that a process of Ray was killed
        if name == "driver":
            psutil.wait_procs(family, timeout=20)
        return Ended(driver.returncode, out, err, 0, where, time.monotonic() - started)

    def _phase(self) -> str:
        """The last phase that has begun."""
        for folder in ("latents", "annotations", "filters", "clips"):
            if any(self.slot.glob(f"*/{folder}/**/part-*")):
                return f"{folder}/part"
        return "corpus.json"


def _family_with_workers(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes of Ray, once workers of ours are among them, or the driver has ended."""
    deadline = time.monotonic() + TIMEOUT_S
    family: list[psutil.Process] = []
    while driver.poll() is None and not any(_is_worker(one) for one in family):
        assert time.monotonic() < deadline, "no worker was started"
        time.sleep(0.05)
        family = _family(driver.pid)
    return family


def _kill(driver: subprocess.Popen[str], name: str, draw: random.Random) -> bool:
    """Kill the process of that name; returns whether there was one."""
    if driver.poll() is not None:
        return False
    if name == "driver":
        driver.kill()
        return True
    is_victim = _is_worker if name == "worker" else lambda one: _name(one) == VICTIMS[name]
    victims = [one for one in _family(driver.pid) if is_victim(one)]
    with suppress(psutil.NoSuchProcess):
        if victims:
            draw.choice(victims).kill()
            return True
    return False


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def _is_worker(process: psutil.Process) -> bool:
    name = _name(process)
    return name.startswith("ray::") and "Worker" in name


def _name(process: psutil.Process) -> str:
    try:
        return process.name() if not process.name().startswith("ray::") else " ".join(process.cmdline())
    except psutil.Error:
        return ""
