"""GPU memory per operator: PyTorch's counters, which a GPU would move, are moved by hand here."""

from pathlib import Path

import pytest
import torch

from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.pipeline.planning.gpu_memory import VramMeter, gpu_shares

MB = 10**6


@pytest.fixture
def gpu(monkeypatch):
    """What a GPU's allocator says: `now` bytes, and at most `peak` since it was last reset."""
    memory = {"now": 0, "peak": 0}

    def reset():
        memory["peak"] = memory["now"]

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: memory["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: memory["peak"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    return memory


def test_an_operator_needs_its_weights_and_what_it_takes_while_it_runs(gpu):
    meter = VramMeter("cuda")
    for name, weights in (("raft", 20 * MB), ("sam", 300 * MB)):
        with meter.loading(name):
            gpu["now"] += weights
    for peak in (500 * MB, 400 * MB):  # of two clips; the weights of both lie there all the time
        with meter.running("raft"):
            gpu["peak"] = peak
    assert meter.peaks_mb() == {"raft": 20 + 500 - 320}
    with pytest.raises(RuntimeError), meter.running("sam"):
        gpu["peak"] = 1000 * MB
        raise RuntimeError("out of memory")
    assert meter.peaks_mb()["sam"] == 300 + 1000 - 320, "what it could not get counts too"


def test_on_a_cpu_there_is_nothing_to_measure():
    meter = VramMeter("cpu")
    with meter.loading("raft"), meter.running("raft"):
        pass
    assert meter.peaks_mb() == {}


def test_a_phase_keeps_the_most_of_all_workers_and_sums_the_decodes():
    with Reporter(quiet=True) as reporter:
        with reporter.phase("annotators", 3) as counter:
            counter.add("ok", 1, {"raft": 200.0})
            counter.add("failed", 2, {"raft": 150.0, "sam": 900.0})
            counter.add("ok")
        record = reporter.phases[0].as_record()
    assert (record["decodes"], record["vram_mb"]) == (3, {"raft": 200.0, "sam": 900.0})
    assert (record["ok"], record["failed"]) == (2, 1)


def test_nothing_measured_is_no_measurement(tmp_path: Path):
    """Libraries with an allocator of their own, which PyTorch does not see, keep the share that they declare."""
    corpus = Corpus.create(str(tmp_path / "c"))
    corpus.save_record(gpu_memory_mb={"seen": 4000.0, "unseen": 0.0})
    assert gpu_shares(corpus, {"a": "seen", "b": "unseen"}, 40.0) == {"a": pytest.approx(0.115)}
