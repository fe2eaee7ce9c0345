"""Whatever kills a command, and whatever its disk or its store does: given again, it ends as if nothing had happened.

The short form; `python -m tests.chaos` is the long one, and repeats a try by its label.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.commands import COMMANDS, World
from tests.chaos.disturbance import KILLS, possible_disk_faults
from tests.chaos.faulty_storage import KINDS, REMOTE_KILLS, FaultAt
from tests.chaos.processes import start_server
from tests.chaos.ray_tries import RayLaboratory
from tests.chaos.remote_tries import MACHINES, RemoteLaboratory
from tests.chaos.tries import Laboratory, Record, draw_tries
from tests.s3_server import s3_bucket

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SEED = 1


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteLaboratory]:
    faults = FaultAt()
    with s3_bucket("chaos", faults) as bucket:
        faults.on = False
        folder = tmp_path_factory.mktemp("store")
        small = World(folder / "world", small=True)
        start_server()
        yield RemoteLaboratory(small, folder, bucket, faults)


def try_all(where: Laboratory, kinds: tuple[str, ...], count: int) -> list[Record]:
    records = draw_tries(where, kinds, count, SEED, lambda record: None)
    faults = [f"python -m tests.chaos --repeat '{record.label}'\n{record.fault}" for record in records if record.fault]
    assert not faults, "\n\n".join(faults)
    return records


def test_kills(disk: Laboratory) -> None:
    records = try_all(disk, KILLS, len(disk.commands))
    assert {record.name for record in records} == {command.name for command in COMMANDS}
    assert any(-9 in record.codes for record in records)


def test_faults_of_the_disk(disk: Laboratory) -> None:
    records = try_all(disk, possible_disk_faults(), 12)
    assert any(2 in record.codes for record in records)


def test_faults_of_the_store(store: RemoteLaboratory) -> None:
    records = try_all(store, KINDS, len(KINDS))
    assert any(2 in record.codes for record in records)


def test_kills_and_machines_on_a_store(store: RemoteLaboratory) -> None:
    records = try_all(store, (*REMOTE_KILLS, *MACHINES), 6)
    assert any(-9 in record.codes for record in records)


def test_a_killed_worker_of_ray(world: World, tmp_path: Path) -> None:
    record = RayLaboratory(world, tmp_path).attempt("run", "SIGKILL of the worker", SEED)
    assert not record.fault, record.fault
    assert record.phases != ["not known"], "no worker was killed"
