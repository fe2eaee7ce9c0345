"""The same tries with corpora on an object store: requests fail, or the command is killed before or after one."""

import random
import shutil
import signal
from pathlib import Path

import fsspec

from tests.chaos.commands import Command, World
from tests.chaos.disturbance import Disturbance
from tests.chaos.faulty_storage import FaultAt
from tests.chaos.processes import Ended, Process
from tests.chaos.tries import Laboratory

MACHINES = ("machine returns", "machine is suspended")  # after another one has ended the command
LEASE_S = "1.0"
LONGEST_BURST = 6  # requests in a row; clients give up after two


class RemoteLaboratory(Laboratory):
    """Tries with corpora in a bucket, whose server goes through `faults`."""

    def __init__(self, world: World, folder: Path, bucket: str, faults: FaultAt) -> None:
        self.bucket, self.faults, self.spool = bucket, faults, folder / "spool"
        self.fs, self.root = fsspec.core.url_to_fs(f"{bucket}/slot", use_listings_cache=False)
        super().__init__(world, folder)
        for base in {base for command in self.commands.values() for base in command.bases}:
            self.fs.put(f"{world.folder / base}/", f"{self._base(base)}/", recursive=True)

    def _root(self) -> str:
        return f"{self.bucket}/slot"

    def _base(self, name: str) -> str:
        return f"{self.root.rpartition('/')[0]}/bases/{name}"

    def _has(self, command: Command) -> bool:
        return command.is_remote

    def reset(self, command: Command) -> None:
        self.faults.on = False
        for folder in (self.slot, self.spool):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        self.world.log.write_text("")
        if self.fs.exists(self.root):
            self.fs.rm(self.root, recursive=True)
        for base in command.bases:
            source = self._base(base)
            for name in self.fs.find(source):
                self.fs.cp_file(name, f"{self.root}/{base}{name.removeprefix(source)}")

    def start(self, call: list[str], disturbance: Disturbance | None = None, machine: str = "one") -> Process:
        """Start a command line on a machine, which has a spool folder of its own."""
        settings = {"OPENUNI_SPOOL": str(self.spool / machine), "AWS_MAX_ATTEMPTS": "2", "CHAOS_LEASE_S": LEASE_S}
        return Process(call, [self.slot, self.spool], disturbance, **settings)

    def _measure(self, call: list[str]) -> Ended:
        self.faults.arm("none", 0, 0)
        ended = self.start(call).wait()._replace(changes=self.faults.count)
        self.faults.on = False
        return ended

    def _disturb(self, call: list[str], kind: str, usual: Ended, draw: random.Random) -> Ended:
        self.faults.arm(kind, draw.randint(1, usual.changes), draw.randint(1, LONGEST_BURST))
        process = self.start(call)
        self.faults.target(process.pid)
        if kind == "machine is suspended":
            self.faults.wait_for_hit(process)
            self.faults.on = False
            other = self.start(call, machine="another").wait()
            process.kill(signal.SIGCONT)
            ended = process.wait()
        else:
            ended = process.wait()
            self.faults.on = False
            other = self.start(call, machine="another").wait() if kind == "machine returns" else usual
        is_refused = other.code == 2 and "is locked by another" in other.err  # a run folder on a disk of both
        assert other.code == usual.code or is_refused, f"another machine: exit code {other.code}: {other.err[-1000:]}"
        return ended._replace(place=self.faults.place)

    def _again(self, call: list[str], codes: list[int]) -> list[str]:
        """Clips for which a map could not be read are failed rows."""
        retried = 1 in codes and call[0] in ("run", "import")
        return [*call, "--retry-failed"] if retried else call

    def _folders(self) -> list[Path]:
        return [Path("/") / self.root]

    def _corpora(self) -> list[str]:
        return sorted(f"s3://{name.rpartition('/')[0]}" for name in self.fs.glob(f"{self.root}/*/corpus.json"))
