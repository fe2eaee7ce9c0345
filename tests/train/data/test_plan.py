"""Index and order: splits, presence, permutations, and that nothing but the step matters."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from openuni.manifests.corpus.payload_reader import PayloadReader
from openuni.manifests.errors import OpenUniError
from openuni.training.data.index import choose_family, held_out, open_index
from openuni.training.data.plan import BLOCK, Plan, shape_keys
from openuni.training.randomness import normal, permuted, uniform
from openuni.training.tasks import RELEASED_WEIGHTS, TaskMix
from tests.train.corpora import FAMILY, random_clips, write_corpus

MIX = TaskMix.build(RELEASED_WEIGHTS, ("rgb", "depth"))


def plan_of(folder: Path, clips: list[dict], batch_size: int = 3, seed: int = 0, share: float = 0.0) -> Plan:
    corpus = write_corpus(folder, clips)
    index = open_index(corpus, ("rgb", "depth"), "", "", share)
    return Plan.build(index, MIX, seed, batch_size)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 255, 256, 1000])
def test_permuted_is_a_permutation_and_keys_differ(count: int) -> None:
    first, second = (permuted(np.arange(count), count, key) for key in (1, 2))
    assert sorted(first.tolist()) == list(range(count))
    assert count < 10 or not np.array_equal(first, second)
    np.testing.assert_array_equal(permuted(np.array([count // 2]), count, 1), first[count // 2 : count // 2 + 1])


def test_named_draws() -> None:
    assert uniform(0, "a", 1) == uniform(0, "a", 1) != uniform(0, "a", 2)
    draws = [uniform(0, "u", i) for i in range(4000)]
    assert np.mean(draws) == pytest.approx(0.5, abs=0.02) and min(draws) >= 0 and max(draws) < 1
    assert normal((50, 50), 0, "n").std() == pytest.approx(1.0, abs=0.05)


def test_every_pass_is_a_permutation_and_nothing_is_dropped(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, random_clips(7), batch_size=3)
    order = [sample.clip for step in range(14) for sample in plan.step(step)]  # 42 samples: six passes of seven
    passes = [tuple(order[at : at + 7]) for at in range(0, 42, 7)]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert len(set(passes)) > 1
    assert plan.step(9) == plan.step(9)


def test_order_depends_on_the_seed(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, random_clips(30))
    other = Plan(1, plan.batch_size, plan.buckets, plan.available, plan.present, plan.mix)
    assert [plan.step(step) for step in range(5)] != [other.step(step) for step in range(5)]


def test_buckets_take_turns_by_size_and_never_mix(tmp_path: Path) -> None:
    clips = random_clips(9)
    for clip in clips[:3]:
        clip["latents"] = {name: value[:, :1] for name, value in clip["latents"].items()}
    plan = plan_of(tmp_path, clips, batch_size=2)
    buckets = sorted([stream.clips for (stream,) in plan.buckets], key=len)
    assert [len(bucket) for bucket in buckets] == [3, 6]
    counts: Counter[int] = Counter()
    seen: list[int] = []
    for step in range(2 * BLOCK):
        numbers = {int(np.isin(sample.clip, buckets[0])) for sample in plan.step(step)}
        assert len(numbers) == 1
        counts[numbers.pop()] += 1
        seen += [sample.clip for sample in plan.step(step)]
    assert counts[1] == pytest.approx(2 * BLOCK / 3, abs=1.01)
    shares = Counter(seen)
    assert max(shares.values()) - min(shares.values()) <= 3  # every clip is seen equally often


def test_far_steps_cost_no_more(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, random_clips(5))
    assert len(plan.step(10**9)) == 3


def test_clips_without_the_streams_are_not_used(tmp_path: Path) -> None:
    clips = random_clips(6)
    clips[0]["latents"]["depth"] = None  # failed
    del clips[1]["latents"]["depth"]  # never encoded
    plan = plan_of(tmp_path, clips)
    assert plan.clip_count == 4


def test_zero_usable_clips_are_explained(tmp_path: Path) -> None:
    clips = random_clips(3)
    for clip in clips:
        clip["latents"]["depth"] = None
    with pytest.raises(OpenUniError, match=r"Of 3 kept clips.*rgb: 3, depth: 0.*Encode the missing"):
        plan_of(tmp_path, clips)


def test_streams_of_a_clip_must_share_a_shape(tmp_path: Path) -> None:
    clips = random_clips(3)
    clips[1]["latents"]["depth"] = clips[1]["latents"]["depth"][:, :1]
    with pytest.raises(OpenUniError, match=r"1 clips have depth latents of another shape"):
        plan_of(tmp_path, clips)


def test_tensors_are_read_back_and_checked(tmp_path: Path) -> None:
    clips = random_clips(3)
    corpus = write_corpus(tmp_path, clips)
    index = open_index(corpus, ("rgb", "depth"), "", "", 0.0)
    stored = {clip["latents"]["rgb"].astype(np.float16).tobytes() for clip in clips}
    reader = PayloadReader(corpus)
    assert {one.numpy().tobytes() for one in index.read_latents(reader, "rgb", range(3))} == stored
    shard = next((tmp_path / "latents" / FAMILY / "rgb").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[int(index.latents["rgb"].offset[0])] ^= 1
    shard.write_bytes(data)
    with pytest.raises(OpenUniError, match=f"clip {index.clip_ids[0]}: rgb latents: .*changed after it was written"):
        index.read_latents(reader, "rgb", [1, 0])


def test_digest_follows_the_data(tmp_path: Path) -> None:
    clips = random_clips(4)
    digests = []
    for name in ("a", "b", "c"):
        if name == "c":
            clips[2]["latents"]["depth"] = clips[2]["latents"]["depth"] + 1
        corpus = write_corpus(tmp_path / name, clips)
        digests.append(open_index(corpus, ("rgb", "depth"), "", "", 0.0).digest())
    assert digests[0] == digests[1] != digests[2]


# ---------------------------------------------------------------- split and families


def test_split_is_by_source_and_stable_under_growth() -> None:
    sources = [f"video-{i // 2}.mp4" for i in range(200)]
    out = held_out(sources, [None] * 200, 0.2)
    assert 0.1 < out.mean() < 0.3
    assert np.array_equal(out[::2], out[1::2])  # clips of one source stay together
    assert np.array_equal(held_out(sources[:50], [None] * 50, 0.2), out[:50])


def test_split_holds_out_one_of_four_sources_and_keeps_one_to_train() -> None:
    four = [f"{name}.mp4" for name in "abcd"]
    assert held_out(four, [None] * 4, 1e-9).sum() == 1
    assert held_out(four[:3], [None] * 3, 1e-9).sum() == 0
    assert held_out(four, [None] * 4, 0.0).sum() == 0
    assert held_out(four, [None] * 4, 1.0).sum() == 3


def test_a_clips_own_split_decides() -> None:
    out = held_out(["a", "b", "c"], ["train", "validation", "test"], 0.9)
    assert out.tolist() == [False, True, True]


def test_families_are_chosen_by_name_or_codec() -> None:
    families = {"dct-1": {"codec": "dct"}, "wan_vae-2": {"codec": "wan_vae"}}
    assert choose_family("latent", families, "dct") == choose_family("latent", families, "dct-1") == "dct-1"
    with pytest.raises(OpenUniError, match=r"Choose data\.latents from dct-1, wan_vae-2"):
        choose_family("latent", families, "")
    with pytest.raises(OpenUniError, match='Did you mean "wan_vae-2"'):
        choose_family("latent", families, "wan_vae-3")
    with pytest.raises(OpenUniError, match=r"\[encode\]"):
        choose_family("latent", {}, "")


@settings(deadline=None)  # the machine may be busy
@given(
    arrays(np.int32, st.tuples(st.integers(1, 30), st.just(4)), elements=st.integers(0, 2**31 - 1) | st.integers(0, 2))
)
def test_buckets_are_the_shapes_in_their_order(shapes: np.ndarray) -> None:
    _, inverse = np.unique(shapes, axis=0, return_inverse=True)
    assert np.array_equal(np.unique(shape_keys(shapes), return_inverse=True)[1], inverse.ravel())
