"""TransNetV2: the network, its windows and its rule against what the authors' own code gave for the same weights."""

import numpy as np
import pytest
import torch

from openuni.config.recipe import CorpusRecipe
from openuni.manifests.errors import MissingRequirement, OpenUniError
from openuni.shots.detectors._transnet_network import TransNetV2
from openuni.shots.detectors.transnet import TransNet, probabilities, transitions_of
from tests.openuni.shots.edited_films import even

# of the authors' inference-pytorch/transnetv2_pytorch.py at commit 85cef72 with the weights of `filled` and the frames
# of `noise`, every fourth of 20 frames; float32 on a CPU
REFERENCE_ENDS = [0.09927, 0.02776, 0.06792, 0.00812, -0.10683]
REFERENCE_MIXED = [-0.14848, -0.41138, -0.27962, -0.3181, -0.29686]


def filled(network: TransNetV2) -> TransNetV2:
    """Weights that any library's random numbers agree on."""
    rng = np.random.default_rng(0)
    state = {}
    for name, value in sorted(network.state_dict().items()):
        shape = tuple(value.shape)
        if name.endswith("running_var"):
            made = rng.uniform(0.5, 2, shape)
        elif name.endswith("num_batches_tracked"):
            made = np.zeros(shape)
        else:
            spread = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.3
            made = rng.normal(0, spread, shape)
        state[name] = torch.from_numpy(np.asarray(made)).to(value.dtype)
    network.load_state_dict(state)
    return network.eval()


def noise() -> np.ndarray:
    rng = np.random.default_rng(1)
    return (rng.integers(0, 200, (1, 20, 1, 1, 3)) + rng.integers(0, 56, (1, 20, 27, 48, 3))).astype(np.uint8)


@pytest.fixture(scope="module")
def network():
    return filled(TransNetV2())


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "transnetv2-pytorch-weights.pth"
    torch.save(network.state_dict(), path)
    return path


def test_the_network_is_the_authors(network):
    assert sum(parameter.numel() for parameter in network.parameters()) == 7_616_258
    with torch.inference_mode():
        ends, mixed = network(torch.from_numpy(noise()))
    np.testing.assert_allclose(ends[0, ::4].numpy(), REFERENCE_ENDS, atol=2e-5)
    np.testing.assert_allclose(mixed[0, ::4].numpy(), REFERENCE_MIXED, atol=2e-5)


def test_only_bytes_of_the_right_size_are_taken(network):
    for wrong in (torch.zeros(1, 4, 27, 48, 3), torch.zeros(1, 4, 48, 27, 3, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"uint8 \[B, T, 27, 48, 3\]"):
            network(wrong)


def numbered(count: int) -> np.ndarray:
    """Frames that say which one they are."""
    frames = np.zeros((count, 27, 48, 3), np.uint8)
    frames[:, 0, 0, 0], frames[:, 0, 0, 1] = np.arange(count) % 256, np.arange(count) // 256
    return frames


def echo(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A network whose answer is the frame's number, and twice that."""
    assert windows.shape[1:] == (100, 27, 48, 3) and windows.dtype == np.uint8
    low, high = np.moveaxis(windows[:, :, 0, 0, :2].astype(np.float32), -1, 0)
    number = low + 256 * high
    return number, 2 * number


def test_every_frame_is_predicted_once_in_order():
    for count in [*range(1, 252), 300]:
        ends, mixed = probabilities(echo, iter(numbered(count)), windows_per_batch=1 + count % 3)
        assert ends.tolist() == list(range(count)) and (mixed == 2 * ends).all(), count
    assert [len(part) for part in probabilities(echo, iter(()))] == [0, 0]


def test_windows_are_seen_as_the_authors_cut_them():
    seen = []

    def record(windows):
        seen.extend(windows[:, :, 0, 0, 0].tolist())
        return echo(windows)

    probabilities(record, iter(numbered(60)), 1)
    assert seen[0] == [0] * 25 + list(range(60)) + [59] * 15  # 25 stand in before, as many as it takes behind
    assert seen[1] == list(range(25, 60)) + [59] * 65
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("marks", "shots"),
    [  # by the authors' predictions_to_scenes, both ends included
        ("0000100000", [(0, 4), (5, 9)]),
        ("0001110000", [(0, 3), (6, 9)]),
        ("1100000000", [(2, 9)]),
        ("0000000011", [(0, 8)]),
        ("0101000000", [(0, 1), (2, 3), (4, 9)]),
        ("1111111111", [(0, 9)]),
        ("0000000000", [(0, 9)]),
    ],
)
def test_shots_are_those_of_the_authors_rule(marks, shots):
    ends = np.array([float(mark) for mark in marks])
    found = transitions_of(ends, np.zeros(len(ends)), 0.5)
    starts, stops = [0, *(one.stop for one in found)], [*(one.start for one in found), len(ends)]
    assert [(a, b - 1) for a, b in zip(starts, stops, strict=True) if a < b] == shots


def test_what_the_second_head_marks_is_cut_out():
    ends, mixed = np.zeros(40), np.zeros(40)
    ends[20], mixed[14:28] = 0.8, 0.9
    ends[35], mixed[35:37] = 0.6, 0.9  # two frames: a hard cut
    found = transitions_of(ends, mixed, 0.5)
    assert [tuple(one) for one in found] == [(14, 28, "gradual", 0.8), (36, 36, "hard", 0.6)]
    ends[16] = 0.7  # two ends within one reach are one transition
    assert [(one.start, one.stop) for one in transitions_of(ends, mixed, 0.5)] == [(14, 28), (36, 36)]


def test_weights_load_from_their_folder_and_run(weights, network):
    detector = TransNet(checkpoint=str(weights.parent), threshold=0.01)
    model = detector.load("cpu")
    ends, _ = model(np.repeat(noise(), 5, axis=1)[:, :10])
    with torch.inference_mode():
        logits, _ = network(torch.from_numpy(np.repeat(noise(), 5, axis=1)[:, :10]))
    np.testing.assert_allclose(ends, logits.sigmoid().numpy(), atol=1e-6)
    assert all(0 <= one.start <= one.stop <= 20 for one in detector.transitions(model, noise()[0], even(20)))


def test_other_files_are_refused_by_name(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(OpenUniError, match=r"other\.pth does not contain PyTorch weights of TransNetV2"):
        TransNet(checkpoint=str(tmp_path / "other.pth")).load("cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OpenUniError, match=r"must contain one \.pth file, got none"):
        TransNet(checkpoint=str(tmp_path / "empty")).load("cpu")


def test_missing_weights_are_named_with_the_command_before_anything_starts(tmp_path, monkeypatch):
    from openuni.report.doctor import run_checks

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    recipe = CorpusRecipe.parse({"ingest": {"shots": "transnet"}})
    (gap,) = [finding for finding in run_checks(recipe) if finding.is_blocking]
    assert gap.what == "transnet" and "openuni checkpoints get Sn4kehead/TransNetV2" in gap.text
    with pytest.raises(MissingRequirement, match="openuni checkpoints get"):
        recipe.shot_detector.load("cpu")


def test_options_out_of_range_are_refused():
    with pytest.raises(OpenUniError, match="threshold"):
        TransNet(threshold=1)
