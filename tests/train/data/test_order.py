"""Properties of the order of samples over seeds, batch and world sizes, weights of collections, gaps and buckets."""

from collections import Counter, defaultdict
from fractions import Fraction
from math import ceil, log2
from typing import NamedTuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from openuni.training.data.division import divided
from openuni.training.data.extents import Extents
from openuni.training.data.index import Index
from openuni.training.data.plan import BLOCK, Plan, Sample, usable_clips
from openuni.training.data.shares import dealt, integer_shares
from openuni.training.tasks import RELEASED_WEIGHTS, TaskMix

MODALITIES = ("rgb", "depth", "flow")
NAMES = ["", "kinetics", "synthetic"]
MIX = TaskMix.build(RELEASED_WEIGHTS, MODALITIES)
FEW = settings(max_examples=30, deadline=None)  # plans of milliseconds: within the time of `make test`
SHAPES = np.array([[16, 5, 8, 8], [16, 5, 8, 16], [16, 9, 8, 8], [48, 5, 4, 4]], np.int32)


class Case(NamedTuple):
    """A plan and what it is made of."""

    index: Index
    seed: int
    batch_size: int
    weights: dict[str, float] | None

    def plan(self) -> Plan:
        return Plan.build(self.index, MIX, self.seed, self.batch_size, collection_weights=self.weights)

    def steps(self, count: int) -> list[list[Sample]]:
        plan = self.plan()
        return [plan.step(step) for step in range(count)]


def extents(name: str, present: np.ndarray, shape: np.ndarray) -> Extents:
    count = len(present)
    rows = np.column_stack([np.where(present[:, None], shape, 0), np.zeros((count, 2), np.int64)]).astype(np.int64)
    return Extents(
        *(name, ["part.safetensors"], ["float16"], np.where(present, 0, -1).astype(np.int32)),
        offset=np.zeros(count, np.int64),
        xxh3=np.zeros(count, np.uint64),
        kind=np.arange(count, dtype=np.int32),
        kinds=rows,
        finite=present,
    )


def index_of(shape: list[int], collection: list[int], present: list[int], held_out: list[bool]) -> Index:
    bits = np.array(present)
    return Index(
        *("latents", "text", [f"{number:032x}" for number in range(len(shape))], np.array(held_out), NAMES),
        np.array(collection, np.int32),
        {name: extents(name, bits >> at & 1 > 0, SHAPES[shape]) for at, name in enumerate(MODALITIES)},
        extents("text", np.ones(len(shape), bool), SHAPES[shape][:, :2]),
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Up to 40 clips of four shapes and three collections, with gaps in their modalities."""
    count = draw(st.integers(1, 40))

    def column(values: st.SearchStrategy) -> list:
        return draw(st.lists(values, min_size=count, max_size=count))

    shapes, collections = column(st.integers(0, 3)), column(st.integers(0, 2))
    present = [3, *column(st.integers(0, 7))[1:]]  # the first clip can always be trained on
    held_out = [False, *column(st.booleans())[1:]]
    index = index_of(shapes, collections, present, held_out)
    with_clips = {NAMES[index.collection[clip]] for clip in np.flatnonzero(usable_clips(index, MIX) & ~index.held_out)}
    weight = st.one_of(st.integers(0, 5), st.floats(1e-3, 1e3))
    weights = {name: draw(weight) for name in sorted(with_clips - {""})}
    if with_clips and not any(weights.get(name, 1) for name in with_clips):
        weights = dict.fromkeys(weights, 1.0)
    return Case(index, draw(st.integers(0, 2**40)), draw(st.integers(1, 9)), draw(st.sampled_from([None, weights])))


@FEW
@given(cases(), st.integers(0, 10**12))
def test_a_step_is_a_pure_function_of_its_number(case: Case, far: int) -> None:
    forward = case.steps(6)
    plan = case.plan()
    assert [plan.step(step) for step in reversed(range(6))] == forward[::-1]
    assert case.plan().step(far) == plan.step(far)


@FEW
@given(cases())
def test_samples_have_their_streams_one_shape_per_step_and_are_not_held_out(case: Case) -> None:
    for samples in case.steps(12):
        assert len(samples) == case.batch_size
        assert len({tuple(case.index.shapes[sample.clip]) for sample in samples}) == 1
        for clip, task in ((sample.clip, sample.task) for sample in samples):
            assert not case.index.held_out[clip]
            assert set(task.streams) <= case.index.streams(int(case.index.present[clip]))
            name = NAMES[case.index.collection[clip]]
            assert case.weights is None or case.weights.get(name, 1.0) > 0


@FEW
@given(cases())
def test_no_clip_is_skipped_or_repeated_within_a_pass(case: Case) -> None:
    plan, drawn = case.plan(), defaultdict(list)
    stream_of = {clip: stream.clips for bucket in plan.buckets for stream in bucket for clip in stream.clips.tolist()}
    for step in range(40):
        for sample in plan.step(step):
            drawn[id(stream_of[sample.clip])].append(sample.clip)
    for clips in drawn.values():
        members = set(stream_of[clips[0]].tolist())
        for start in range(0, len(clips), len(members)):
            part = clips[start : start + len(members)]
            assert len(set(part)) == len(part) and set(part) <= members


@FEW
@given(cases(), st.integers(1, 8))
def test_ranks_share_the_samples_of_every_step_whatever_their_number(case: Case, world: int) -> None:
    samples = case.steps(1)[0]
    ranks = divided([(False, sample.task.streams) for sample in samples], len(samples), min(world, len(samples)))
    groups = [group for rank in ranks for part in rank for group in part]
    slots = [slot for group in groups if not group.is_padding for slot in group.slots]
    assert sorted(slots) == list(range(case.batch_size))
    assert len({sum(map(len, rank)) for rank in ranks}) == 1  # all ranks run equally many passes


@FEW
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=12), st.integers(1, 300), st.integers(0, 2**62))
def test_turns_are_dealt_exactly_by_weight(weights: list[int], size: int, key: int) -> None:
    counts: Counter[int] = Counter()
    total = sum(weights)
    for block in range(20):
        streams, earlier = dealt(weights, size, block, key)
        for stream, before in zip(streams.tolist(), earlier.tolist(), strict=True):
            assert before == counts[stream]  # none is skipped or repeated
            counts[stream] += 1
        turns = (block + 1) * size
        for stream, weight in enumerate(weights):
            assert abs(counts[stream] - Fraction(weight * turns, total)) < 1 + ceil(log2(len(weights)))


def test_a_rare_shape_among_many_clips() -> None:
    """The former rounding took turns back from a stream with less than a turn per block: an error at step 1,536."""
    weights, counts = [3333, 1, 777], Counter()
    for block in range(64):
        streams, earlier = dealt(weights, BLOCK, block, block)
        for stream, before in zip(streams.tolist(), earlier.tolist(), strict=True):
            assert before == counts[stream]
            counts[stream] += 1
    assert sum(counts.values()) == 64 * BLOCK and 2 <= counts[1] <= 6  # its share: 4.0


@FEW
@given(cases(), st.integers(1, 3))
def test_every_step_has_each_collections_share_of_its_bucket(case: Case, equal: int) -> None:
    case = case._replace(weights={}, batch_size=4 * equal)
    plan = case.plan()
    for step in range(4):
        samples = plan.step(step)
        found = Counter(int(case.index.collection[sample.clip]) for sample in samples)
        (bucket,) = [one for one in plan.buckets if any(samples[0].clip in stream.clips for stream in one)]
        total = sum(stream.weight for stream in bucket)
        for stream in bucket:
            share = Fraction(stream.weight * case.batch_size, total)
            assert abs(found[int(case.index.collection[stream.clips[0]])] - share) < 4


def test_weights_count_as_the_decimals_they_are_written_as() -> None:
    assert integer_shares([(0.1, 1, 1), (0.2, 1, 1), (0.7, 1, 1)]) == [1, 2, 7]
    assert integer_shares([(1, 2, 3), (1, 1, 3), (3, 5, 5)]) == [2, 1, 9]
    assert integer_shares([(1e308, 1, 1), (1e-300, 1, 1)])[1] == 1


def test_clips_of_a_collection_are_equally_likely_over_shapes() -> None:
    """Of kinetics 30 clips have the first shape and 10 the second, of synthetic 4 and 4; weights 1 and 3."""
    shape, collection = [0] * 30 + [1] * 10 + [0] * 4 + [1] * 4, [1] * 40 + [2] * 8
    case = Case(index_of(shape, collection, [7] * 48, [False] * 48), 5, 8, {"kinetics": 1, "synthetic": 3})
    counts = Counter(sample.clip for samples in case.steps(2 * BLOCK) for sample in samples)
    drawn = 8 * 2 * BLOCK
    np.testing.assert_allclose([counts[clip] for clip in range(40)], drawn / 4 / 40, atol=2)
    np.testing.assert_allclose([counts[clip] for clip in range(40, 48)], drawn * 3 / 4 / 8, atol=2)
