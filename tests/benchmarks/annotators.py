"""The five OpenUni modalities together on one corpus: clips per hour, against the bare loops of the same annotators.

    python -m tests.benchmarks.annotators [--full] [--clips N] [--rounds N] [--dwpose FOLDER] [--densepose FILE]

Annotators: depth_anything, raft, sam, dwpose, densepose. `--full` builds networks of their real sizes with random
weights (Depth Anything V2 Small, RAFT large, SAM ViT-B), which cost what trained ones cost; it is the default where
there is a GPU. DWPose and DensePose have no architecture in a library: give their published files, else the hand-made
networks of the tests stand in for them, and the table says so. Without `--full` all five are the tests' tiny ones.

Clips are moving textures, 81 frames of 480 x 832 (21 of 120 x 208 without `--full`). The pipeline is `openuni run` in
this process: loading models, decoding, annotating, coding, writing; its time is the annotate phase's in the run's
ledger. The bare loop calls each annotator's `run` on frames in memory, models loaded beforehand, and does nothing with
the results. Both in turn, medians over the rounds. On a GPU also its share of busy time during the pipeline
(nvidia-smi, five times per second) and the memory that each annotator needed, from the ledger.
"""

import argparse
import dataclasses
import importlib
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.video.encode import write_video
from tests.moving_pictures import panned

NAMES = ("depth_anything", "raft", "sam", "dwpose", "densepose")
GOAL_RATIO = 0.9
FPS = 16.0


def tiny(name: str, folder: Path) -> Annotator:
    """The annotator with the tiny checkpoint of its own test."""
    place = folder / name
    place.mkdir()
    module = importlib.import_module(f"tests.annotators.test_{name}")
    operator: Annotator = module.contract_case(place, panned([(0, 0)], 48, 64))[0]
    return operator


def full_depth_anything(folder: Path) -> Annotator:
    """Depth Anything V2 Small, random weights."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    from openuni.annotators.depth_anything import DepthAnything

    backbone = Dinov2Config(
        hidden_size=384,
        num_attention_heads=6,
        image_size=518,
        out_features=["stage3", "stage6", "stage9", "stage12"],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    sizes = {"reassemble_hidden_size": 384, "neck_hidden_sizes": [48, 96, 192, 384], "fusion_hidden_size": 64}
    DepthAnythingForDepthEstimation(DepthAnythingConfig(backbone_config=backbone, **sizes)).save_pretrained(folder)
    DPTImageProcessor(
        size={"height": 518, "width": 518}, keep_aspect_ratio=True, ensure_multiple_of=14, do_rescale=True
    ).save_pretrained(folder)
    return DepthAnything(checkpoint=str(folder))


def full_raft(folder: Path) -> Annotator:
    """RAFT large, random weights."""
    from torchvision.models.optical_flow import raft_large

    from openuni.annotators.raft import Raft

    torch.save(raft_large().state_dict(), folder / "raft.pth")
    return Raft(checkpoint=str(folder / "raft.pth"))


def full_sam(folder: Path) -> Annotator:
    """SAM ViT-B, random weights."""
    from segment_anything import sam_model_registry

    from openuni.annotators.sam import Sam

    torch.save(sam_model_registry["vit_b"]().state_dict(), folder / "sam.pth")
    return Sam(checkpoint=str(folder / "sam.pth"))


FULL = {"depth_anything": full_depth_anything, "raft": full_raft, "sam": full_sam}


def operators(given: argparse.Namespace, folder: Path) -> tuple[dict[str, Annotator], list[str]]:
    """The five, and the names of those that are not of their real size."""
    found, small = {}, []
    torch.manual_seed(0)
    for name in NAMES:
        path = getattr(given, name, None)
        if path:
            kind = type(tiny(name, folder))
            found[name] = kind(checkpoint=str(path))  # type: ignore[call-arg]
        elif given.full and name in FULL:
            (folder / name).mkdir()
            found[name] = FULL[name](folder / name)
        else:
            found[name] = tiny(name, folder)
            small.append(name)
    return found, small


def write_clips(folder: Path, count: int, frames: int, height_px: int, width_px: int) -> None:
    """Moving textures, each on its own path."""
    for number in range(count):
        path = [(2 * frame * (1 + number % 3), frame) for frame in range(frames)]
        write_video(folder / f"{number:03}.mp4", panned(path, height_px, width_px), FPS)


def pipeline(chosen: dict[str, Annotator], raw: Path, device_gpus: float) -> dict[str, Any]:
    """The annotate phase's record in the ledger of a run into a new corpus."""
    import openuni
    from openuni.console.progress import Reporter
    from openuni.pipeline.resources import Resources
    from openuni.pipeline.scope import RunScope

    tables = {
        name: {key: list(v) if isinstance(v, tuple) else v for key, v in vars(one).items()}
        for name, one in chosen.items()
    }
    recipe = {"work": {"short_side_px": 0}, "annotators": tables}
    with tempfile.TemporaryDirectory() as scratch:
        out, resources = f"{scratch}/corpus", Resources(workers=0, gpus=device_gpus)
        only = RunScope(only=("ingest",))
        openuni.run(recipe, raw, out=out, resources=resources, scope=only, reporter=Reporter(quiet=True))
        corpus = openuni.run(recipe, raw, out=out, resources=resources, reporter=Reporter(quiet=True))
        if corpus.summary().failed:
            raise SystemExit(f"annotators failed:\n{corpus.summary()}")
        path = max(Path(corpus.store.root, "runs").glob("*.json"))
        (phase,) = json.loads(path.read_text())["phases"]
        return phase


def bare(chosen: dict[str, Annotator], clips: list[DecodedClip], device: str) -> dict[str, float]:
    """Seconds of each annotator over all clips, frames in memory, models loaded."""
    found = {}
    for name, operator in chosen.items():
        model = operator.load(device)
        began = time.perf_counter()
        for clip in clips:
            operator.run(model, dataclasses.replace(clip, cache={}))
        if device == "cuda":
            torch.cuda.synchronize()
        found[name] = time.perf_counter() - began
    return found


@contextmanager
def busy(on_gpu: bool) -> Iterator[list[float]]:
    """Collects the GPU's share of busy time, 0 to 1, five times per second."""
    shares: list[float] = []
    if not on_gpu:
        yield shares
        return
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield shares
    finally:
        process.terminate()
        shares += [float(line) / 100 for line in (process.communicate()[0] or "").split() if line.strip().isdigit()]


def main() -> None:
    """Both in turn, one table."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", default=on_gpu)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dwpose", type=Path, help="folder with DWPose's two ONNX files")
    parser.add_argument("--densepose", type=Path, help="TorchScript export of DensePose")
    given = parser.parse_args()
    size = (81, 480, 832) if given.full else (21, 120, 208)
    device = "cuda" if on_gpu else "cpu"
    with tempfile.TemporaryDirectory() as scratch:
        folder, raw = Path(scratch), Path(scratch) / "raw"
        raw.mkdir()
        chosen, small = operators(given, folder)
        write_clips(raw, given.clips, *size)
        from openuni.manifests.contracts.decoded_clip import decode
        from openuni.manifests.video.probe import probe_clip

        clips = [decode(probe_clip(str(path))) for path in sorted(raw.iterdir())]
        rounds = []
        for _ in range(given.rounds):
            loops = bare(chosen, clips, device)
            with busy(on_gpu) as shares:
                phase = pipeline(chosen, raw, float(on_gpu))
            rounds.append((loops, phase, statistics.mean(shares) if shares else None))
    report(given, size, small, rounds)


def report(given: argparse.Namespace, size: tuple[int, int, int], small: list[str], rounds: list[Any]) -> None:
    """One table."""
    each = {name: statistics.median(loops[name] for loops, _, _ in rounds) / given.clips for name in NAMES}
    whole = statistics.median(phase["seconds"] for _, phase, _ in rounds) / given.clips
    print(f"{given.clips} clips of {size[0]} frames, {size[1]} x {size[2]}; load {os.getloadavg()[0]:.1f}")
    print(f"not of their real size: {', '.join(small) or 'none'}")
    for name, seconds in each.items():
        needed = max((phase.get("vram_mb", {}).get(name, 0.0) for _, phase, _ in rounds), default=0.0)
        print(f"  {name:<16}{seconds:8.2f} s per clip bare" + (f"{needed:10.0f} MB of GPU memory" if needed else ""))
    ratio = sum(each.values()) / whole
    print(f"  {'pipeline':<16}{whole:8.2f} s per clip, {3600 / whole:,.0f} clips per hour")
    print(f"  bare / pipeline {ratio:8.2f}  goal {GOAL_RATIO}: {'reached' if ratio >= GOAL_RATIO else 'NOT REACHED'}")
    shares = [share for _, _, share in rounds if share is not None]
    if shares:
        print(f"  GPU busy        {statistics.median(shares):8.2f} of the time of the pipeline")
    decodes = {phase["decodes"] / phase["planned"] for _, phase, _ in rounds}
    print(f"  decodes per clip {', '.join(f'{value:g}' for value in sorted(decodes))}")
    print(f"  numpy {np.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
