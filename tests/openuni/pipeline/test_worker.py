"""The loop that drives a worker: order, overlap, and what becomes of errors in each of its three stages."""

import os
import platform
import signal
import threading
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from openuni.console.usage import ItemUsage
from openuni.manifests.errors import OpenUniError
from openuni.pipeline.runners.capacity import Shape
from openuni.pipeline.runners.in_process_runner import InProcessRunner
from openuni.pipeline.runners.resources import Pool, PoolSize
from openuni.pipeline.worker import ItemOutcome, Spec, Worker, WorkerLoop

PATIENCE_S = 10.0


class Recorder(Worker):
    """Writes down what it is told to do; an item named after a stage fails in that stage."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.let_write = threading.Event()
        self.let_write.set()

    def prepare(self, item: str) -> str:
        return self._do("prepare", item)

    def compute(self, item: str, prepared: str) -> str:
        return self._do("compute", item)

    def store(self, item: str, computed: str) -> ItemOutcome:
        assert self.let_write.wait(PATIENCE_S)
        self._do("store", item)
        return ItemOutcome(item, "ok")

    def fail(self, item: str, error: str) -> ItemOutcome:
        self.events.append(("fail", item))
        return ItemOutcome(item, "failed", error)

    def finish(self) -> None:
        self.events.append(("finish", ""))

    def _do(self, stage: str, item: str) -> Any:
        self.events.append((stage, item))
        if item == stage:
            raise ValueError(f"no {stage}")
        if item == f"fatal in {stage}":
            raise OpenUniError("no space left")
        return item


def drive(*items: str) -> tuple[Recorder, list[ItemOutcome]]:
    worker = Recorder()
    loop = WorkerLoop(worker)
    outcomes = [loop.step(item, following) for item, following in zip(items, [*items[1:], None], strict=True)]
    outcomes.append(loop.flush())
    loop.finish()
    assert outcomes[0] == [] and loop.flush() == []
    return worker, [without_usage(outcome) for some in outcomes for outcome in some]


def without_usage(outcome: ItemOutcome) -> ItemOutcome:
    """All but the seconds that it took."""
    return outcome._replace(usage=ItemUsage())


def test_every_item_is_reported_once_in_order_and_finish_comes_last():
    worker, outcomes = drive("a", "b", "c")
    assert outcomes == [ItemOutcome("a", "ok"), ItemOutcome("b", "ok"), ItemOutcome("c", "ok")]
    for stage in ("prepare", "compute", "store"):
        assert [item for what, item in worker.events if what == stage] == ["a", "b", "c"]
    assert worker.events[-1] == ("finish", "")


@pytest.mark.parametrize("stage", ["prepare", "compute", "store"])
def test_an_error_in_any_stage_fails_that_item_only(stage):
    worker, outcomes = drive("a", stage, "c")
    assert [(outcome.key, outcome.status) for outcome in outcomes] == [("a", "ok"), (stage, "failed"), ("c", "ok")]
    assert outcomes[1].error == f"ValueError: no {stage}"
    written = [event for event in worker.events if event[0] in ("store", "fail")]
    assert written.index(("fail", stage)) > written.index(("store", "a"))


def test_the_next_is_computed_while_the_one_before_is_written_but_no_further():
    worker = Recorder()
    worker.let_write.clear()
    loop = WorkerLoop(worker)
    assert loop.step("a", "b") == []
    second = threading.Thread(target=loop.step, args=("b", None))
    second.start()
    second.join(0.3)
    assert second.is_alive()  # one item at most waits to be written
    assert ("compute", "b") in worker.events and ("store", "a") not in worker.events
    worker.let_write.set()
    second.join(PATIENCE_S)
    assert [without_usage(outcome) for outcome in loop.flush()] == [ItemOutcome("b", "ok")]
    loop.finish()


def test_what_ends_the_run_is_raised_from_the_thread_that_writes():
    loop = WorkerLoop(Recorder())
    loop.step("fatal in store", None)
    with pytest.raises(OpenUniError, match="no space left"):
        loop.step("b", None)
    loop.finish()


def test_what_is_being_written_is_written_before_the_worker_is_finished():
    worker = Recorder()
    worker.let_write.clear()
    loop = WorkerLoop(worker)
    loop.step("a", None)
    threading.Timer(0.2, worker.let_write.set).start()
    loop.finish()
    assert worker.events[-2:] == [("store", "a"), ("finish", "")]


class Slow(Recorder):
    """Takes known times; items named after a stage fail at its end."""

    SECONDS: ClassVar = {"prepare": 0.2, "compute": 0.3, "store": 0.02}

    def _do(self, stage: str, item: str) -> Any:
        time.sleep(self.SECONDS[stage])
        return super()._do(stage, item)

    def operator_seconds(self, computed: str, compute_s: float) -> dict[str, float]:
        return {"slow": compute_s}


def usages(*items: str) -> list[ItemUsage]:
    loop = WorkerLoop(Slow())
    outcomes = [loop.step(item, following) for item, following in zip(items, [*items[1:], None], strict=True)]
    outcomes.append(loop.flush())
    loop.finish()
    return [outcome.usage for some in outcomes for outcome in some]


def test_outcomes_say_how_long_each_stage_took():
    first, second = usages("a", "b")
    for usage in (first, second):
        assert usage.host == platform.node() and usage.node_id == ""
        assert usage.decode_s >= 0.2 and usage.compute_s >= 0.3 and usage.store_s >= 0.02
        assert usage.operators_s == {"slow": usage.compute_s}
        assert usage.work_s == usage.decode_s + usage.compute_s + usage.store_s
    assert first.wait_s >= 0.2 > second.wait_s, "the second was prepared while the first was computed"


@pytest.mark.parametrize("stage", ["prepare", "compute", "store"])
def test_an_item_that_fails_has_the_seconds_up_to_its_end(stage):
    """A clip that takes minutes until its decoder gives up is among the slowest."""
    _, failed = usages("a", stage)
    reached = ["prepare", "compute", "store"]
    for name, seconds in zip(reached, (failed.decode_s, failed.compute_s, failed.store_s), strict=True):
        if reached.index(name) <= reached.index(stage):
            assert seconds >= Slow.SECONDS[name]


@dataclass(frozen=True)
class RecorderSpec(Spec):
    """Gives the worker it has."""

    worker: Recorder

    def start(self, device: str) -> Recorder:
        return self.worker


class Pressed(Recorder):
    """Somebody presses Ctrl-C while "b" is computed, `times` times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def compute(self, item: str, prepared: str) -> str:
        for _ in range(self.times if item == "b" else 0):
            os.kill(os.getpid(), signal.SIGINT)
        return super().compute(item, prepared)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_waits_for_the_item_in_hand_and_a_second_one_does_not(times: int, capfd: pytest.CaptureFixture[str]):
    """An exception out of nowhere would hit decoders that call back into Python, where it is lost or does harm."""
    worker, reported = Pressed(times), []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            pool = Pool("x", RecorderSpec(worker), "abcd", reported.append, lambda held: held, PoolSize(1, Shape()))
            InProcessRunner().run_pools([pool])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    done = ["a", "b"] if times == 1 else ["a"]
    assert [item for stage, item in worker.events if stage == "store"] == done
    assert ("compute", "c") not in worker.events and worker.events[-1] == ("finish", "")
    if times == 1:
        assert [outcome.key for outcome in reported] == done
    assert "stopping after the current clip; press Ctrl-C again to stop immediately" in capfd.readouterr().err
