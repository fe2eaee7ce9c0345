"""The long form of the chaos tests: `python -m tests.chaos --kills 100 --faults 100 --seed 1`.

Prints a line per try, then how many tries there were by command, kind and phase. `--repeat COMMAND/KIND/SEED` repeats
one. Exit code 1 if any try failed.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: see tests/conftest.py
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from tests.chaos.commands import World
from tests.chaos.disturbance import DISK_FAULTS, KILLS, possible_disk_faults
from tests.chaos.faulty_storage import KINDS, REMOTE_KILLS, FaultAt
from tests.chaos.processes import start_server
from tests.chaos.ray_tries import RAY_KILLS, RayLaboratory
from tests.chaos.remote_tries import MACHINES, RemoteLaboratory
from tests.chaos.tries import Laboratory, Record, draw_tries
from tests.s3_server import s3_bucket

REMOTE = (*KINDS, *REMOTE_KILLS, *MACHINES)


@contextmanager
def laboratories(kinds: Sequence[str]) -> Iterator[dict[str, Laboratory]]:
    """Kind of disturbance -> where it is tried; only what these kinds need is made."""
    with tempfile.TemporaryDirectory(prefix="openuni-chaos-") as name:
        folder = Path(name)
        start_server()
        found: dict[str, Laboratory] = {}
        if not set(kinds) <= set(REMOTE):
            world = World(folder / "world")
            found = dict.fromkeys((*KILLS, *DISK_FAULTS), Laboratory(world, folder))
            found |= dict.fromkeys(RAY_KILLS, RayLaboratory(world, folder))
        faults = FaultAt()
        with s3_bucket("chaos", faults) as bucket:
            faults.on = False
            if not set(kinds).isdisjoint(REMOTE):
                small = World(folder / "small", small=True)
                found |= dict.fromkeys(REMOTE, RemoteLaboratory(small, folder, bucket, faults))
            yield found


def table(records: Sequence[Record]) -> str:
    """How many tries there were by command and kind, and in which phases they were disturbed."""
    lines = ["| command | tries | kinds | disturbed in |", "| --- | --- | --- | --- |"]
    by_command: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_command[record.name].append(record)
    for name, some in by_command.items():
        kinds = Counter(record.kind for record in some)
        phases = Counter(phase for record in some for phase in record.phases)
        told = [", ".join(f"{key} {count}" for key, count in found.most_common()) for found in (kinds, phases)]
        lines.append(f"| {name} | {len(some)} | {told[0]} | {told[1]} |")
    return "\n".join(lines)


def main() -> int:
    """The tries that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="kills and signals: of commands on disks and on S3")
    parser.add_argument("--ray", type=int, default=0, help="kills of processes of Ray, 10 to 90 s each")
    parser.add_argument("--faults", type=int, default=100, help="faults of disks and of S3")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="commands whose names begin with this")
    parser.add_argument("--repeat", metavar="COMMAND/KIND/SEED", action="append", default=[])
    given = parser.parse_args()
    repeated = [label.rsplit("/", 2) for label in given.repeat]
    remote_kills, remote_faults = given.kills // 4, given.faults // 2
    plan = [
        (KILLS, given.kills - remote_kills),
        ((*REMOTE_KILLS, *MACHINES), remote_kills),
        (possible_disk_faults(), given.faults - remote_faults),
        (KINDS, remote_faults),
        (RAY_KILLS, given.ray),
    ]
    kinds = [kind for _, kind, _ in repeated] or [kind for some, count in plan if count for kind in some]
    records: list[Record] = []
    began = time.monotonic()

    def report(record: Record) -> None:
        records.append(record)
        told = f"FAULT {record.fault}" if record.fault else "equal"
        print(f"{record.label}: {', '.join(record.phases)}; exit codes {record.codes}: {told}", flush=True)

    with laboratories(kinds) as found:
        for name, kind, seed in repeated:
            report(found[kind].attempt(name, kind, int(seed)))
        for some, count in [] if repeated else plan:
            if count:
                draw_tries(found[some[0]], some, count, given.seed, report, given.only)
    faults = [record for record in records if record.fault]
    print(f"\n{table(records)}\n\n{len(records)} tries, {len(faults)} faults, {time.monotonic() - began:.0f} s")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
