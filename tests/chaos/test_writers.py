"""Two writers at once: one waits or is refused, and the corpus is that of one alone; also if one is killed."""

import random

import pytest

from tests.chaos.processes import Ended
from tests.chaos.tries import Laboratory

NAMES = (
    *("run", "run, changed", "select", "split", "duplicates", "compact", "import", "export webdataset"),
    *("verify --repair", "train"),
)
KILLED = ("run, changed", "split", "import", "train")
BUSY = ("is locked by another", "is in use by another", "already contains another corpus")


def together(where: Laboratory, name: str, draw: random.Random, *, kill: bool) -> list[Ended]:
    """Start the command twice; kill one of the two if asked for; then it is given again."""
    command, usual = where.commands[name], where.undisturbed(name)
    where.reset(command)
    call, *rest = command.calls(where.place)
    both = [where.start(call), where.start(call)]
    if kill:
        victim = draw.choice(both)
        victim.process.join(draw.uniform(0, usual.ends[0].seconds))
        victim.kill()
    ends = [process.wait() for process in both]
    for ended in ends:
        where.check_text(ended)
        assert ended.code in (usual.ends[0].code, 2, *([-9] if kill else [])), ended
        assert ended.code != 2 or any(text in ended.err for text in BUSY), ended
    if not kill:
        assert usual.ends[0].code in [ended.code for ended in ends], ends
    for again in (call, *rest):
        last = where.start(again).wait()
        assert last.code in (0, *command.codes), last
    assert command.result(where.place) == usual.result
    return ends


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("names", "kill"), [(NAMES, False), (KILLED, True)], ids=["both end", "one is killed"])
def test_two_writers_at_once(disk: Laboratory, names: tuple[str, ...], kill: bool) -> None:
    draw = random.Random(1)
    ends = [ended for name in names for ended in together(disk, name, draw, kill=kill)]
    assert kill or any(ended.code == 2 for ended in ends), "no two met"
