"""How busy GPUs are. There is none here: the numbers that NVML would give are given by hand."""

import itertools
import sys
import threading
import time
import types

import pytest

from openuni.console.phase_usage import Phase
from openuni.console.usage import GpuShare, ItemUsage
from openuni.manifests.corpus.corpus import Corpus
from openuni.pipeline.runners import gpu_usage
from openuni.pipeline.runners.gpu_usage import GpuBusy, GpuSampler, gpu_sampler, measured_gpu_busy, record_gpu_busy

PATIENCE_S = 10.0


def wait_for(condition) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_samples_are_averaged_between_replies():
    readings = iter([("a", 0.2), ("a", 0.6), ("b", 1.0)])
    go_on = threading.Semaphore(2)

    def read():
        go_on.acquire()
        return next(readings, None)

    sampler = GpuSampler(read, interval_s=0.001)
    wait_for(lambda: sampler.sums.get("a", GpuShare(0.0, 0)).samples == 2)
    assert sampler.take() == {"a": GpuShare(0.4, 2)}
    assert sampler.take() == {}
    go_on.release()
    wait_for(lambda: sampler.sums)
    assert sampler.take() == {"b": GpuShare(1.0, 1)}
    go_on.release()  # it cannot be read any more: the thread ends by itself
    sampler.thread.join(PATIENCE_S)
    assert not sampler.thread.is_alive() and sampler.take() == {}
    sampler.close()


def test_closing_ends_the_thread():
    numbers = itertools.count()
    sampler = GpuSampler(lambda: ("a", float(next(numbers))), interval_s=0.001)
    wait_for(lambda: sampler.sums)
    sampler.close()
    assert not sampler.thread.is_alive()


class Nvml(types.ModuleType):
    """NVML of a machine with GPUs, as far as it is asked here."""

    class NVMLError(Exception):
        pass

    def __init__(self, gpus: dict[str, float]) -> None:
        super().__init__("pynvml")
        self.gpus = list(gpus.items())

    def nvmlInit(self) -> None:
        if not self.gpus:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index >= len(self.gpus):
            raise self.NVMLError("Invalid Argument")
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return self.gpus[handle][0]

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(gpu=100 * self.gpus[handle][1])


@pytest.mark.parametrize(
    ("visible", "busy"),
    [
        (None, 0.25),
        ("1", 0.5),
        ("1,0", 0.5),
        ("GPU-bb", 0.5),
        ("GPU-aaaa", 0.25),
        ("", 0.25),
        ("7", None),
        ("MIG-c", None),
    ],
)
def test_the_gpu_that_is_read_is_the_one_the_process_sees(visible, busy, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", Nvml({"GPU-aaaa": 0.25, "GPU-bbbb": 0.5}))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    read = gpu_usage.nvml_reader()
    assert read is not None
    found = read()
    assert (found and found[1]) == busy
    if found:
        assert found[0].endswith({0.25: " GPU-aaaa", 0.5: " GPU-bbbb"}[found[1]])


def test_nothing_is_measured_without_a_gpu_or_nvml(monkeypatch):
    with gpu_sampler("cpu") as take:
        assert take() == {}
    monkeypatch.setitem(sys.modules, "pynvml", Nvml({}))
    with gpu_sampler("cuda") as take:
        assert take() == {}
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    with gpu_sampler("cuda") as take:
        assert take() == {}
    assert not any(thread.name == "gpu-usage" for thread in threading.enumerate())


def test_a_corpus_remembers_how_busy_operators_keep_a_gpu(tmp_path):
    corpus = Corpus.create(str(tmp_path))
    versions = {"raft": "r1", "depth": "d1", "sam": "s1"}
    phase = Phase("annotators", 2)
    ran = ItemUsage("one", operators_s={"raft": 1.0, "depth": 1.0}, gpus={"a": GpuShare(0.5, 9)})
    phase.usage.add("clip", "ok", 1, ran)
    record_gpu_busy(corpus, versions, phase, 2)
    assert measured_gpu_busy(corpus, ["r1", "d1"]) is None, "nine seconds say little"
    phase.usage.add("clip", "ok", 1, ran)
    record_gpu_busy(corpus, versions, phase, 2)
    again = Corpus.open(str(tmp_path))
    assert measured_gpu_busy(again, ["d1", "r1"]) == GpuBusy(0.5, 2, 18)
    assert measured_gpu_busy(again, ["r1"]) is None
    for broken in (7, {"d1+r1": 7}, {"d1+r1": {"busy": "much"}}, None):
        corpus.save_record(gpu_busy=broken)
        assert measured_gpu_busy(corpus, ["r1", "d1"]) is None
