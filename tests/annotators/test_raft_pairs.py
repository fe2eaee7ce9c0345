"""RAFT over a clip: what is computed once, what is copied, and that the flow is torchvision's."""

import numpy as np
import pytest
import torch
from torchvision.models.optical_flow import raft_large

from openuni.annotators import _raft_pairs
from openuni.annotators._pairwise_flow import consistent
from openuni.annotators._raft_pairs import RaftPairs, as_input, correlation_block
from openuni.annotators.raft import Raft
from openuni.manifests.contracts.decoded_clip import DecodedClip
from tests.annotators.test_raft import random_network, saved
from tests.fake_gpu import fake_gpu
from tests.moving_pictures import panned

FRAMES = panned([(2 * step, step % 3) for step in range(4)], 48, 64)
ITERATIONS = 2


def annotate(operator, network=None, frames=FRAMES):
    return operator.run(network or operator.load("cpu"), DecodedClip.from_frames(frames))


def by_torchvision(frames, before, after, iterations):
    """Flow between frames by torchvision's own forward pass and its own correlation block, padded by hand."""
    images = [as_input(torch.from_numpy(frames[numbers]), *frames.shape[1:3]) for numbers in (before, after)]
    with torch.inference_mode():
        flow = random_network("small")(*images, num_flow_updates=iterations)[-1]
    return flow[:, :, 40:88, 32:96].permute(0, 2, 3, 1).numpy()  # 48 x 64, padded to 128 x 128


def test_both_directions_equal_torchvision_pair_by_pair(tmp_path):
    operator = Raft(size="small", checkpoint=saved(tmp_path), iterations=2, frames_per_batch=2)
    found = annotate(operator).flow
    first = np.arange(3)
    forward = by_torchvision(FRAMES, first, first + 1, 2)
    backward = by_torchvision(FRAMES, first + 1, first, 2)
    assert np.abs(forward).mean() > 0.01
    assert np.abs(found.array[:3] - forward).max() < 1e-4, "batches differ by rounding"
    agrees = np.stack([consistent(there, back) for there, back in zip(forward, backward, strict=True)])
    assert 0 < agrees.mean() < 1 and (found.valid[:3, ..., 0] == agrees).mean() > 0.999


@pytest.mark.parametrize(("frames_per_batch", "check"), [(1, False), (2, True)])
def test_every_frame_is_encoded_once_and_masks_are_predicted_at_the_end(tmp_path, frames_per_batch, check):
    operator = Raft(checkpoint=saved(tmp_path, "large"), iterations=2, frames_per_batch=frames_per_batch, check=check)
    network, images = operator.load("cpu"), {"feature_encoder": 0, "context_encoder": 0, "mask_predictor": 0}

    def counted(name):
        def hook(module, given, result):
            images[name] += len(result)

        return hook

    for name in images:
        getattr(network, name).register_forward_hook(counted(name))
    annotate(operator, network)
    pairs = 3 * (1 + check)
    assert images == {"feature_encoder": 4, "context_encoder": 4, "mask_predictor": pairs}


def on_a_gpu():
    """Operators and transfers of a batch of four pairs, behind another batch, on a GPU without values."""
    with fake_gpu() as ops:
        with torch.device("cuda"):
            network = raft_large(corr_block=correlation_block(4)).eval()
        pairs = RaftPairs(network, ITERATIONS, "fp32", both=True, pairs_per_batch=4)
        images = as_input(torch.empty(5, 128, 128, 3, dtype=torch.uint8, device="cuda"), 128, 128)
        pairs._batch(images, 128, 128)
        ops.names.clear(), ops.transfers.clear()
        pairs._batch(images[1:], 128, 128)
    return ops


def test_nothing_is_copied_between_host_and_gpu_within_a_batch():
    ours = on_a_gpu()
    assert not ours.transfers
    assert ours.names["bmm"] == 1, "the correlation of a pair serves both directions"
    with fake_gpu() as theirs:
        with torch.device("cuda"):
            network = raft_large().eval()
        images = torch.empty(4, 3, 128, 128, device="cuda")
        theirs.transfers.clear(), theirs.names.clear()
        network(images, images, num_flow_updates=ITERATIONS)
    assert theirs.transfers == {"cpu to cuda": ITERATIONS + 2}, "the spy finds the copies of torchvision's own loop"
    assert ours.names["convolution"] < 2 * theirs.names["convolution"], "of both directions"


def test_pairs_together_are_bounded_by_their_correlation(tmp_path, monkeypatch):
    operator = Raft(size="small", checkpoint=saved(tmp_path), iterations=1, frames_per_batch=4)
    free = annotate(operator)
    network, largest = operator.load("cpu"), []
    build = network.corr_block.build_pyramid

    def measured(first, second):
        build(first, second)
        largest.append(sum(level.nbytes for level in network.corr_block.corr_pyramid))

    network.corr_block.build_pyramid = measured
    one_pair = 256**2 * 4 * (1 + 1 / 4 + 1 / 16 + 1 / 64)  # of 128 x 128 px
    monkeypatch.setattr(_raft_pairs, "CORRELATION_BYTES", 2.1 * one_pair)
    bounded = annotate(operator, network)
    assert largest == [2 * one_pair, one_pair]
    assert np.abs(bounded.flow.array - free.flow.array).max() < 1e-3


def test_only_transfers_of_a_batch_cross_the_clip(tmp_path):
    """On the CPU, too: as many calls that could wait for a device with more frames in a batch."""
    from tests.manifests.contracts.test_device_batches import CountsTransfers

    calls = []
    for frames_per_batch, iterations in ((1, 1), (1, 3), (3, 1)):
        operator = Raft(size="small", checkpoint=saved(tmp_path), iterations=iterations)
        pairs = RaftPairs(operator.load("cpu"), iterations, "fp32", both=True, pairs_per_batch=frames_per_batch)
        with CountsTransfers() as moved:
            list(pairs(FRAMES))
        calls.append(moved.calls)
    per_batch = 5  # one tensor up, two down and into arrays
    assert calls == [3 * per_batch, 3 * per_batch, per_batch]
