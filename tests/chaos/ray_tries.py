"""Tries in which a process of a run with Ray is killed: the driver, a worker, the raylet, the control store."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.chaos.commands import Command
from tests.chaos.processes import Ended
from tests.chaos.tries import Laboratory

VICTIMS = {"driver": "", "worker": "ray::", "raylet": "raylet", "GCS server": "gcs_server"}
RAY_KILLS = tuple(f"SIGKILL of the {name}" for name in VICTIMS)
TIMEOUT_S = 300.0


class RayLaboratory(Laboratory):
    """The disturbed process is `openuni ... --workers 2`; what is given again runs in one process."""

    kinds = RAY_KILLS

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
        family: list[psutil.Process] = []
        name = VICTIMS[kind.removeprefix("SIGKILL of the ")]
        wait_s = draw.uniform(0, 4)
        seen = 0.0
        while driver.poll() is None:
            assert time.monotonic() - started < TIMEOUT_S, "did not end"
            family = _family(driver.pid)
            workers_of_ours = [one for one in family if _name(one).startswith("ray::") and "Worker" in _name(one)]
            seen = seen or (time.monotonic() if workers_of_ours else 0.0)
            if seen and time.monotonic() - seen >= wait_s:
                victims = workers_of_ours if name == "ray::" else [one for one in family if _name(one) == name]
                if not name:
                    driver.kill()
                elif victims:
                    draw.choice(victims).kill()
                break
            time.sleep(0.05)
        try:
            out, err = driver.communicate(timeout=TIMEOUT_S)
        finally:
            driver.kill()
        assert driver.returncode != 2 or "Ray" in err, err  # what is wrong is that a process of Ray was killed
        if not name:
            psutil.wait_procs(family, timeout=20)
        return Ended(
            driver.returncode, out, err, 0, f"kill {self.slot}/corpus/{self._phase()}", time.monotonic() - started
        )

    def _phase(self) -> str:
        """The last phase that has begun."""
        for folder in ("latents", "annotations", "filters", "clips"):
            if any(self.slot.glob(f"*/{folder}/**/part-*")):
                return f"{folder}/part"
        return "corpus.json"


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def _name(process: psutil.Process) -> str:
    try:
        return process.name() if not process.name().startswith("ray::") else " ".join(process.cmdline())
    except psutil.Error:
        return ""
