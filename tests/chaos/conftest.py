"""What the tests of a process share: making it takes longer than most tries."""

import pytest

from tests.chaos.commands import World
from tests.chaos.processes import start_server
from tests.chaos.tries import Laboratory


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("chaos") / "world")
    start_server()
    return made


@pytest.fixture(scope="session")
def disk(world: World, tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return Laboratory(world, tmp_path_factory.mktemp("disk"))
