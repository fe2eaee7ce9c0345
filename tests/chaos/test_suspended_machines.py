"""A machine that is suspended for longer than its lease, while another one does its work, changes nothing any more.

Nothing is drawn here: the machine is suspended in the middle of a part, or while a request is under way that the store
receives after the other machine has ended.
"""

import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.commands import corpus_facts
from tests.chaos.processes import Ended, Process, start_server
from tests.raw_clips import write_clips
from tests.s3_server import Application, s3_bucket

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
TIMEOUT_S = 60.0
LEASE_S = "1.0"
TAKEN_OVER = "another run has taken over the corpus"
RECIPE = """
[work]
short_side_px = 24
[annotators."tests.operators.logged"]
log = "{0}/log"
held = "{0}/held"
[encode]
modalities = ["rgb"]
size_px = [16, 16]
frames = 5
"""


class LateRequest:
    """Stands between clients and the server, and holds the first request that matches `pattern` back."""

    def __init__(self) -> None:
        self.pattern = ""
        self.guard = threading.Lock()
        self.arrived, self.released = threading.Event(), threading.Event()

    def hold(self, pattern: str) -> None:
        """Hold back the next request "METHOD /path" that matches."""
        self.arrived.clear()
        self.released.clear()
        self.pattern = pattern

    def __call__(self, app: Application) -> Application:
        def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
            with self.guard:
                is_held = bool(self.pattern) and re.fullmatch(self.pattern, request) is not None
                self.pattern = "" if is_held else self.pattern
            if is_held:
                self.arrived.set()
                assert self.released.wait(TIMEOUT_S)
            found: Iterable[bytes] = app(environ, start_response)
            return found

        return answer


class Machines:
    """Two machines, each with a spool of its own, that write to corpora in one bucket."""

    def __init__(self, folder: Path, bucket: str, late: LateRequest) -> None:
        self.folder, self.bucket, self.late = folder, bucket, late
        self.started: list[Process] = []
        write_clips(folder / "raw", 2)
        (folder / "corpus.toml").write_text(RECIPE.format(folder))
        assert self.start("one", "undisturbed").wait().code == 0
        self.expected = corpus_facts(f"{bucket}/undisturbed")

    def start(self, machine: str, corpus: str) -> Process:
        """Start the run on a machine."""
        (self.folder / machine).mkdir(exist_ok=True)
        call = ["run", f"{self.folder}/corpus.toml", f"{self.folder}/raw", "--out", f"{self.bucket}/{corpus}"]
        settings = {"OPENUNI_SPOOL": str(self.folder / machine), "CHAOS_LEASE_S": LEASE_S}
        self.started.append(Process([*call, "--workers", "0"], [self.folder], None, **settings))
        return self.started[-1]

    def take_over(self, suspended: Process, corpus: str) -> Ended:
        """Suspend the machine, let another one end the run, and resume it; returns how it ended."""
        suspended.kill(signal.SIGSTOP)
        (self.folder / "held").unlink(missing_ok=True)
        other = self.start("another", corpus).wait()
        assert other.code == 0, other
        self.late.released.set()
        suspended.kill(signal.SIGCONT)
        return suspended.wait()

    def require_equal(self, corpus: str) -> None:
        """The corpus equals the undisturbed one: now, and after the run was repeated on the suspended machine."""
        assert corpus_facts(f"{self.bucket}/{corpus}") == self.expected
        again = self.start("one", corpus).wait()
        assert again.code == 0, again
        assert corpus_facts(f"{self.bucket}/{corpus}") == self.expected


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    start_server()
    late = LateRequest()
    with s3_bucket("machines", late) as bucket:
        found = Machines(tmp_path_factory.mktemp("machines"), bucket, late)
        yield found
        for process in found.started:  # a stopped one would be waited for
            process.kill()


def test_suspended_in_the_middle_of_a_part(machines: Machines) -> None:
    log = machines.folder / "log"
    log.write_text("")
    (machines.folder / "held").write_text("clip-001.mp4")
    process = machines.start("one", "middle")
    while len(log.read_text().splitlines()) < 2:  # the second clip: the first is in the open part
        assert process.is_alive(), process.wait()
    ended = machines.take_over(process, "middle")
    assert ended.code == 2 and TAKEN_OVER in ended.err, ended
    machines.require_equal("middle")


@pytest.mark.parametrize("file", ["clips/.*parquet", "annotations/.*tar"])
def test_suspended_while_a_request_is_under_way(machines: Machines, file: str) -> None:
    corpus = re.sub(r"\W+", "-", file)
    machines.late.hold(f"PUT (/machines)?/{corpus}/{file}")
    process = machines.start("one", corpus)
    assert machines.late.arrived.wait(TIMEOUT_S), process.wait()
    ended = machines.take_over(process, corpus)
    assert ended.code == 2 and TAKEN_OVER in ended.err, ended
    machines.require_equal(corpus)
