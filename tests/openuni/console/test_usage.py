"""What a phase sums up of its items: by node, by operator, by GPU, and the slowest of them."""

import json

import pytest

from openuni.console.phase_usage import Phase
from openuni.console.usage import (
    GpuShare,
    ItemUsage,
    PhaseUsage,
    nodes_record,
    slowest_items,
    slowest_operators,
)


def usage(host: str, decode_s: float, compute_s: float, **rest) -> ItemUsage:
    return ItemUsage(host, f"id of {host}", decode_s, compute_s, store_s=0.5, wait_s=1.0, **rest)


def test_seconds_are_summed_by_node_and_operator():
    phase = PhaseUsage("filters")
    phase.add("a", "ok", 1, usage("one", 1.0, 2.0, operators_s={"motion": 1.5, "still": 0.5}))
    phase.add("b", "failed", 2, usage("one", 3.0, 4.0, operators_s={"motion": 4.0}))
    phase.add("c", "ok", 1, usage("two", 2.0, 6.0, operators_s={"still": 6.0}))
    phase.add_death("id of two")
    later = PhaseUsage("dis")
    later.add("a", "ok", 0, usage("two", 0.0, 1.0, operators_s={"dis": 1.0}))
    one, two = nodes_record([phase, later])
    assert one == {
        "host": "one",
        "node": "id of one",
        "items": {"filters": 2},
        "failed": 1,
        "decodes": 3,
        "deaths": 0,
        "decode_s": 4.0,
        "compute_s": 6.0,
        "store_s": 1.0,
        "wait_s": 2.0,
    }
    assert (two["items"], two["deaths"], two["compute_s"]) == ({"filters": 1, "dis": 1}, 1, 7.0)
    ranked = [(name, one.items, one.seconds_per_item) for name, one in slowest_operators([phase, later])]
    assert ranked == [("still", 2, 3.25), ("motion", 2, 2.75), ("dis", 1, 1.0)]
    assert phase.shares() == (6.0 / 15.0, 1.5 / 15.0)  # of 12 s of computing and 3 s of waiting


def test_the_slowest_items_are_kept_and_no_more():
    phase = PhaseUsage("filters")
    for number in (*range(0, 500, 2), *range(499, 0, -2)):
        phase.add(f"clip-{number}", "ok", 1, usage("one", 0.0, float(number)))
    other = PhaseUsage("dis")
    other.add("clip-3", "ok", 1, usage("two", 500.0, 0.0))
    found = slowest_items([phase, other])
    assert [item.key for item in found] == ["clip-3", *(f"clip-{number}" for number in range(499, 490, -1))]
    assert (found[0].seconds, found[0].phase, found[0].host) == (500.5, "dis", "two")
    assert len(phase.slowest) == 10


def test_gpus_count_alike_however_many_workers_sample_them():
    phase = PhaseUsage("raft")
    assert phase.gpu_busy is None and "gpu_busy" not in phase.as_record()
    for gpu, busy, samples in (("a", 0.2, 1), ("a", 0.5, 2), ("b", 0.8, 30)):
        phase.add("clip", "ok", 0, usage("one", 0.0, 1.0, gpus={gpu: GpuShare(busy, samples)}))
    phase.add("clip", "ok", 0, usage("cpu", 0.0, 1.0))
    assert phase.gpu_busy == pytest.approx((0.4 + 0.8) / 2) and phase.gpu_samples == 30
    assert phase.as_record()["gpu_busy"] == 0.6


def test_a_phase_without_items_has_the_record_it_always_had():
    assert set(Phase("ingest", 0).as_record()) == {
        "phase",
        "planned",
        "ok",
        "failed",
        "seconds",
        "items_per_s",
        "decodes",
    }


def test_records_are_plain_numbers():
    phase = PhaseUsage("filters")
    phase.add("a", "ok", 1, usage("one", 1.0, 2.0, operators_s={"motion": 1.5}))
    assert json.loads(json.dumps(phase.as_record())) == {
        "decode_s": 1.0,
        "compute_s": 2.0,
        "store_s": 0.5,
        "wait_s": 1.0,
        "operators": {"motion": {"items": 1, "seconds": 1.5}},
    }
