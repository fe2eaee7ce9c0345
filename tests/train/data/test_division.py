"""Division of a step among ranks: every sample once, equally many passes, whatever the streams and the numbers."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openuni.manifests.corpus.corpus import Corpus
from openuni.training.data.batches import Loader
from openuni.training.data.division import divided
from openuni.training.data.plan import Plan
from openuni.training.loop.setup import prepare
from tests.train.corpora import random_clips, write_corpus
from tests.train.loop.test_trainer import recipe

STREAM_SETS = [(False, ("rgb",)), (False, ("rgb", "depth")), (True, ("rgb",)), (False, ("rgb", "depth", "flow"))]


@settings(deadline=None, max_examples=200)
@given(
    streams=st.lists(st.sampled_from(STREAM_SETS), min_size=1, max_size=24),
    micro_batch=st.integers(1, 24),
    world=st.integers(1, 24),
)
def test_every_sample_is_trained_on_once_and_ranks_stay_in_step(streams: Any, micro_batch: int, world: int) -> None:
    world = min(world, len(streams))
    ranks = divided(streams, micro_batch, world)
    assert len(ranks) == world
    slots = [
        slot for parts in ranks for part in parts for group in part if not group.is_padding for slot in group.slots
    ]
    assert sorted(slots) == list(range(len(streams)))
    assert len({sum(map(len, parts)) for parts in ranks}) == 1  # passes
    for parts in ranks:
        own = [group for part in parts for group in part if not group.is_padding]
        assert own, "a rank without a sample"
        for group in (group for part in parts for group in part):
            assert 1 <= len(group.slots) <= micro_batch and len({streams[slot] for slot in group.slots}) == 1
            if group.is_padding:  # uses no parameter that the rank does not use anyway
                assert streams[group.slots[0]] in {streams[other.slots[0]] for other in own}
    sizes = [sum(len(g.slots) for part in parts for g in part if not g.is_padding) for parts in ranks]
    assert max(sizes) - min(sizes) <= 1
    assert divided(streams, micro_batch, world) == ranks


@settings(deadline=None, max_examples=100)
@given(streams=st.lists(st.sampled_from(STREAM_SETS), min_size=1, max_size=24), parts=st.integers(1, 6))
def test_one_rank_takes_samples_in_their_order(streams: Any, parts: int) -> None:
    micro_batch = -(-len(streams) // parts)
    ((*found,),) = divided(streams, micro_batch, 1)
    starts = range(0, len(streams), micro_batch)
    assert [sorted(slot for group in part for slot in group.slots) for part in found] == [
        list(range(start, min(start + micro_batch, len(streams)))) for start in starts
    ]
    for part in found:
        assert [streams[group.slots[0]] for group in part] == list(
            dict.fromkeys(streams[slot] for slot in sorted(slot for group in part for slot in group.slots))
        )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Clips of two shapes and three sets of streams, with gaps."""
    clips = random_clips(14)
    for number, clip in enumerate(clips):
        if number % 4 == 1:
            del clip["latents"]["depth"]
        if number % 3 == 0:
            clip["latents"] = {name: np.repeat(array, 2, axis=2) for name, array in clip["latents"].items()}
    return write_corpus(tmp_path_factory.mktemp("corpus"), clips)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "weights", [{"joint": 1.0, "estimate": 2.0}, {"joint": 0.5, "estimate": 0.25, "control": 0.25}]
)
def test_the_number_of_ranks_changes_no_sample_and_no_draw(
    corpus: Corpus, tmp_path: Any, seed: int, weights: dict[str, float]
) -> None:
    options = recipe(seed=seed, tasks=weights, optimizer={"batch_size": 6, "accumulate": 2})
    setup = prepare(options, corpus, tmp_path)
    plan = Plan.build(setup.index, setup.mix, seed, 6)
    inputs = (setup.corpus, setup.index, setup.texts, options, setup.model)
    for step in range(4):
        seen = []
        for world in (1, 2, 3, 5):
            drawn: Counter[Any] = Counter()
            for rank in range(world):
                for batch in (b for part in Loader(*inputs, rank=rank, world=world).step(plan, step) for b in part):
                    for place, slot in enumerate(batch.slots):
                        noise = {name: noise[place].sum().item() for name, noise in batch.noise.items()}
                        sigmas = {name: sigma[place].item() for name, sigma in batch.sigmas.items()}
                        text = {name: text[place].sum().item() for name, text in batch.text.items()}
                        key = (slot, batch.clips[place], str(batch.tasks[place]), str(noise), str(sigmas), str(text))
                        drawn[key] += 1
            seen.append(drawn)
        assert set(seen[0].values()) == {1} and len(seen[0]) == 6
        assert all(other == seen[0] for other in seen[1:])
