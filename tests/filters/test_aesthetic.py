import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from openuni.filters.aesthetic import HEAD, Aesthetic, load_head, score
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import MissingRequirement, OpenUniError
from tests.moving_pictures import panned, texture
from tests.tiny_clip import tiny_clip, tiny_head

PLACES = (0, 2, 4, 6, 7)


def contract_case(folder, frames):
    """What tests/test_every_operator.py runs: a tiny random checkpoint in the library's own format."""
    return Aesthetic(checkpoint=tiny_clip(folder), head=tiny_head(folder)), DecodedClip.from_frames(frames)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("aesthetic")


def unit(count, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(count, 768))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_the_head_is_linear_so_it_equals_one_vector_and_one_number(folder):
    weights = {name: value.double().numpy() for name, value in load_file(tiny_head(folder)).items()}
    vector, number = np.eye(768), np.zeros(768)
    for place in PLACES:
        vector = weights[f"layers.{place}.weight"] @ vector
        number = weights[f"layers.{place}.weight"] @ number + weights[f"layers.{place}.bias"]
    collapsed = unit(64) @ vector[0] + number[0]
    found = score(load_head_of(folder), unit(64))
    assert np.abs(found - collapsed).max() < 1e-6 * np.abs(collapsed).max()
    assert np.ptp(collapsed) > 0.1


def load_head_of(folder):
    from pathlib import Path

    return load_head(Path(tiny_head(folder)))


def test_the_score_equals_the_layers_in_numpy(folder):
    """As the original's module does in eval mode: matrix, bias, matrix, bias, and nothing between."""
    weights = {name: value.double().numpy() for name, value in load_file(tiny_head(folder)).items()}
    x = unit(5).astype(np.float64)
    for place in PLACES:
        x = x @ weights[f"layers.{place}.weight"].T + weights[f"layers.{place}.bias"]
    assert score(load_head_of(folder), unit(5)) == pytest.approx(x[:, 0], rel=1e-6)


@pytest.mark.parametrize("length", [0.0, 0.99, 1.01, 17.3, np.nan])
def test_embeddings_of_another_length_are_refused(folder, length):
    head = load_head_of(folder)
    score(head, unit(3) * np.float32(1.0005))  # rounding is no fault
    given = unit(3)
    given[1] *= np.float32(length)
    with pytest.raises(OpenUniError, match=r"length .* Allowed: 1 within"):
        score(head, given)


def test_mean_and_worst_frame(folder):
    operator = Aesthetic(checkpoint=tiny_clip(folder), head=tiny_head(folder))
    model = operator.load("cpu")
    frames = np.stack([texture(48, 80), texture(48, 80, seed=5), texture(48, 80, seed=9)])
    each = [operator.run(model, DecodedClip.from_frames(frame[None])) for frame in frames]
    assert all(scores.mean == scores.min for scores in each)
    found = operator.run(model, DecodedClip.from_frames(frames))
    assert found.mean == pytest.approx(np.mean([scores.mean for scores in each]), rel=1e-5)
    assert found.min == pytest.approx(min(scores.mean for scores in each), rel=1e-5)
    assert len({scores.mean for scores in each}) == 3
    embedder, head = model
    direct = score(head, embedder.frames(frames, "fp32", 16))
    assert found.mean == float(direct.mean())


def test_a_clip_without_frames_has_no_score(folder):
    operator = Aesthetic(checkpoint=tiny_clip(folder), head=tiny_head(folder))
    empty = DecodedClip.from_frames(panned([(0, 0)], 48, 80)).take(np.array([], np.int64))
    assert operator.run(operator.load("cpu"), empty) == (None, None)


def test_a_network_without_quick_gelu_or_of_another_width_is_refused(folder):
    with pytest.raises(OpenUniError, match="no QuickGELU"):
        Aesthetic(checkpoint=tiny_clip(folder, quick_gelu=False), head=tiny_head(folder)).load("cpu")
    with pytest.raises(OpenUniError, match="has 8 dimensions, QuickGELU"):
        Aesthetic(checkpoint=tiny_clip(folder, embed_dim=8), head=tiny_head(folder)).load("cpu")


def test_other_heads_are_refused(folder, tmp_path):
    weights = load_file(tiny_head(folder))
    save_file(weights | {"layers.7.weight": torch.zeros(2, 16)}, tmp_path / "wide.safetensors")
    save_file({name: value for name, value in weights.items() if name[7] != "4"}, tmp_path / "less.safetensors")
    torch.save(weights, tmp_path / "pickled.pth")
    for name, reason in (
        ("wide.safetensors", "768-1024"),
        ("less.safetensors", "768-1024"),
        ("pickled.pth", "not a s"),
    ):
        with pytest.raises(OpenUniError, match=reason):
            load_head(tmp_path / name)
    (tmp_path / "model.safetensors").symlink_to(tiny_head(folder))
    assert len(load_head(tmp_path)) == 5  # a folder as the hub has it


def test_both_checkpoints_are_declared(folder):
    assert [checkpoint.ref for checkpoint in Aesthetic().checkpoints()][1] == HEAD
    assert {checkpoint.terms for checkpoint in Aesthetic.published()} == {"permissive"}
    with pytest.raises(MissingRequirement, match=HEAD):
        Aesthetic(checkpoint=tiny_clip(folder)).load("cpu")
