"""What depth, flow and normals cost over their bare networks: CPU time in one thread, in turns.

    python -m tests.benchmarks.networks [--rounds N] [--frames N]

An annotator's `run` on frames in memory (inputs, network, maps, scores) over its networks alone, on inputs that are
ready. Random weights; Depth Anything V2 Small and RAFT large (three iterations) have their real widths, Marigold narrow
ones. The bare loops call the library's network: torchvision's RAFT once per batch and direction, so that a ratio below
1 is work that a clip saves. Frames are a moving texture of 192 x 336.

Also what a batch of four pairs of 480 x 832 does on a GPU, counted without one (`tests/fake_gpu.py`): operators, and
copies between host and GPU, for each of which the host would wait until the GPU is idle.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torchvision.models.optical_flow import raft_large

from openuni.annotators._raft_pairs import RaftPairs, as_input, correlation_block
from openuni.annotators.depth_anything import DepthAnything
from openuni.annotators.marigold_normals import MarigoldNormals
from openuni.annotators.raft import Raft
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Annotator
from tests.benchmarks.annotators import full_depth_anything, full_raft
from tests.fake_gpu import DeviceOps, fake_gpu
from tests.moving_pictures import panned
from tests.tiny_marigold import tiny_marigold

SIZE_PX, DEPTH_PX, MARIGOLD_PX = (192, 336), 252, 128
ITERATIONS, STEPS, BATCH = 3, 2, 4
VIEWS = {"view", "permute", "expand", "unsqueeze", "select", "slice", "split_with_sizes", "detach"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    frames = panned([(2 * step, step % 3) for step in range(given.frames)], *SIZE_PX)
    print(f"torch {torch.__version__}, {given.frames} frames, {given.rounds} rounds, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        for name, operator, bare in cases(Path(folder), frames):
            seconds = in_turns(given.rounds, annotated(operator, frames), bare)
            ratio = statistics.median(whole / alone for whole, alone in seconds)
            whole, alone = (statistics.median(column) for column in zip(*seconds, strict=True))
            print(f"  {name:<36} {whole:7.2f} s, bare network {alone:7.2f} s, ratio {ratio:5.2f}", flush=True)
    for name, ops in on_a_gpu().items():
        launched = sum(count for operator, count in ops.names.items() if operator not in VIEWS)
        print(f"  {name:<36} {launched:6d} operators, {sum(ops.transfers.values()):3d} copies from the host")


def annotated(operator: Annotator, frames: np.ndarray) -> Callable[[], Any]:
    """The annotator's run, on a new clip each time: nothing is left in a cache."""
    model = operator.load("cpu")
    return lambda: operator.run(model, DecodedClip.from_frames(frames))


def in_turns(rounds: int, *works: Callable[[], Any]) -> list[tuple[float, ...]]:
    """CPU seconds of each, round by round, after one round to warm up."""
    found = []
    for _ in range(rounds + 1):
        seconds = []
        for work in works:
            started = time.process_time()
            with torch.inference_mode():
                work()
            seconds.append(time.process_time() - started)
        found.append(tuple(seconds))
    return found[1:]


def cases(folder: Path, frames: np.ndarray) -> list[tuple[str, Annotator, Callable[[], Any]]]:
    """Name, annotator, bare loop."""
    torch.manual_seed(0)
    depth = full_depth_anything(made(folder / "depth"))
    found: list[tuple[str, Annotator, Callable[[], Any]]] = []
    for resize in ("transformers", "original"):
        options = {"input_size": DEPTH_PX, "resize": resize, "frames_per_batch": BATCH}
        operator: Annotator = DepthAnything(checkpoint=depth.checkpoint, **options)  # type: ignore[attr-defined]
        found.append((f"depth_anything, {resize}", operator, bare_depth(operator, frames)))
    weights = full_raft(made(folder / "raft")).checkpoint  # type: ignore[attr-defined]
    for check in (False, True):
        operator = Raft(checkpoint=weights, iterations=ITERATIONS, frames_per_batch=BATCH, check=check)
        found.append((f"raft, {'both directions' if check else 'forward'}", operator, bare_raft(operator, frames)))
    for batch in (1, BATCH):
        normals = {"processing_px": MARIGOLD_PX, "steps": STEPS, "frames_per_batch": batch}
        operator = MarigoldNormals(checkpoint=tiny_marigold(folder), **normals)
        found.append((f"marigold_normals, batches of {batch}", operator, bare_marigold(operator, frames)))
    return found


def made(folder: Path) -> Path:
    """The folder, which is new."""
    folder.mkdir()
    return folder


def bare_depth(operator: Any, frames: np.ndarray) -> Callable[[], Any]:
    """The network on pixels of the size that the annotator takes."""
    network, _ = operator.load("cpu")
    sizes: list[torch.Size] = []
    handle = network.register_forward_pre_hook(
        lambda module, given, named: sizes.append(named["pixel_values"].shape), with_kwargs=True
    )
    operator.raw_frames((network, operator.load("cpu")[1]), frames)
    handle.remove()
    batches = [torch.rand(size) for size in sizes]
    return lambda: [network(pixel_values=batch) for batch in batches]


def bare_raft(operator: Any, frames: np.ndarray) -> Callable[[], Any]:
    """torchvision's network, once per batch and direction."""
    network = raft_large().eval()
    images = as_input(torch.from_numpy(frames.copy()), *SIZE_PX)
    starts = range(0, len(frames) - 1, BATCH)
    pairs = [(images[i : i + BATCH][: len(images) - 1 - i], images[i + 1 : i + 1 + BATCH]) for i in starts]

    def run() -> None:
        for before, after in pairs:
            network(before, after, num_flow_updates=ITERATIONS)
            if operator.check:
                network(after, before, num_flow_updates=ITERATIONS)

    return run


def bare_marigold(operator: Any, frames: np.ndarray) -> Callable[[], Any]:
    """Encoder, denoising steps, decoder."""
    pipeline, count, batch = operator.load("cpu"), len(frames), operator.frames_per_batch
    height_px = -(-SIZE_PX[0] * MARIGOLD_PX // SIZE_PX[1] // 8) * 8
    text, step = torch.zeros(1, 2, pipeline.unet.config.cross_attention_dim), torch.tensor(500)

    def run() -> None:
        for start in range(0, count, batch):
            images = torch.rand(min(batch, count - start), 3, height_px, MARIGOLD_PX)
            latents = pipeline.vae.encode(images).latent_dist.mode()
            noise = torch.randn_like(latents)
            for _ in range(STEPS):
                noise = pipeline.unet(torch.cat([latents, noise], 1), step, text.repeat(len(images), 1, 1)).sample
            pipeline.vae.decode(noise)

    return run


def on_a_gpu() -> dict[str, DeviceOps]:
    """Operators and copies of four pairs of 480 x 832, 12 iterations, both directions."""
    with fake_gpu() as theirs:
        with torch.device("cuda"):
            network = raft_large().eval()
        images = torch.empty(5, 3, 480, 832, device="cuda")
        theirs.names.clear(), theirs.transfers.clear()
        for before, after in ((images[:-1], images[1:]), (images[1:], images[:-1])):
            network(before, after, num_flow_updates=12)
    with fake_gpu() as ours:
        with torch.device("cuda"):
            network = raft_large(corr_block=correlation_block(4)).eval()
        pairs = RaftPairs(network, 12, "fp32", both=True, pairs_per_batch=4)
        frames = torch.empty(5, 480, 832, 3, dtype=torch.uint8, device="cuda")
        pairs._batch(as_input(frames, 480, 832), 480, 832)
        ours.names.clear(), ours.transfers.clear()
        pairs._batch(as_input(frames[1:], 480, 832), 480, 832)
    return {"raft, torchvision's forward": theirs, "raft, ours": ours}


if __name__ == "__main__":
    main()
