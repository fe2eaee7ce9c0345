"""Clips per hour of the encode phase with Wan's VAE, against the bare loop of the VAE on frames in memory.

    python -m tests.benchmarks.encoding [--clips N] [--rounds N] [--size HEIGHT WIDTH] [--frames N] [--batch N]
                                        [--dtype float32] [--full]

Each clip is encoded twice, as RGB and as optical flow. The VAE has Wan 2.1's size on a GPU or with `--full`, else an
eighth of its width; its weights are random. The phase reads and fits the maps, encodes them, checks and stores the
latents; its time is that of the run's ledger. The bare loop gives the codec one video after the other, rendered
beforehand, and does nothing with the latents. Both in turn, medians over the rounds.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.modalities.rgb import RGB
from openuni.manifests.video.encode import write_video
from openuni.pipeline.runners.resources import Resources
from openuni.training.codecs.wan_vae import WanVae
from tests.benchmarks.annotator_networks import clip_frames

GOAL_RATIO = 0.9
FPS = 16.0
MODALITIES = ("rgb", "flow")


def phase_seconds(recipe: dict[str, Any], annotated: Path, resources: Resources) -> float:
    """Seconds of the encode phase of a run on a copy of a corpus that has all its maps."""

    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(annotated, f"{scratch}/corpus")
        corpus = openuni.run(recipe, out=f"{scratch}/corpus", resources=resources, reporter=Reporter(quiet=True))
        path = max(Path(corpus.store.root, "runs").glob("*.json"))
        (phase,) = [one for one in json.loads(path.read_text())["phases"] if one["phase"] == "encode"]
        if phase["failed"]:
            raise SystemExit(f"encoding failed:\n{corpus.summary()}")
        return float(phase["seconds"])


def bare_seconds(codec: WanVae, videos: list[np.ndarray], device: str) -> float:
    """Seconds of the codec alone, one video after the other."""
    model = codec.load(device)
    codec.encode(model, videos[0])
    began = time.perf_counter()
    for rgb in videos:
        codec.encode(model, rgb)
    return time.perf_counter() - began


def main() -> None:
    """Both in turn, one table."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", default=on_gpu, help="the VAE's real size")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 832) if on_gpu else (96, 160), help="pixels")
    parser.add_argument("--frames", type=int, default=81 if on_gpu else 17)
    parser.add_argument("--batch", type=int, default=0, help="videos encoded together; 0: the codec's choice")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    given = parser.parse_args()
    device, resources = "cuda" if on_gpu else "cpu", Resources(workers=0, gpus=float(on_gpu))
    with tempfile.TemporaryDirectory() as scratch:
        from diffusers import AutoencoderKLWan

        torch.manual_seed(0)
        AutoencoderKLWan(**({} if given.full else {"base_dim": 12})).save_pretrained(f"{scratch}/vae")
        for number in range(given.clips):
            write_video(Path(scratch, f"{number:03}.mp4"), clip_frames(number, given.frames, *given.size), FPS)
        maps = {"work": {"short_side_px": 0}, "annotators": {"dis": {"preset": "ultrafast"}}}
        options = {"checkpoint": f"{scratch}/vae", "dtype": given.dtype, "batch_videos": given.batch}
        encode = {"latents": "wan_vae", "modalities": list(MODALITIES), "size_px": list(given.size)}
        recipe = maps | {"encode": encode | {"frames": given.frames, "wan_vae": options}}
        annotated = Path(scratch, "annotated")
        openuni.run(maps, f"{scratch}/*.mp4", out=annotated, resources=Resources(0), reporter=Reporter(quiet=True))
        corpus = Corpus.open(annotated)
        videos = []
        for clip_id in corpus.kept_clip_ids():
            clip = corpus[clip_id]
            for maps_of_clip in (RGB(clip.rgb), clip.modality("flow")):
                videos.append(maps_of_clip.fit(*given.size).to_rgb()[: given.frames])
        codec = WanVae(**options)
        rounds = [
            (bare_seconds(codec, videos, device), phase_seconds(recipe, annotated, resources))
            for _ in range(given.rounds)
        ]
    bare, phase = (statistics.median(column) / given.clips for column in zip(*rounds, strict=True))
    print(
        f"{given.clips} clips of {given.frames} frames, {given.size[0]} x {given.size[1]}, {' and '.join(MODALITIES)}, "
        f"{given.dtype}, batch {given.batch or 'chosen'}; VAE of {'full' if given.full else 'an eighth of its'} width; "
        f"{device}, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}"
    )
    print(f"  bare loop    {bare:8.2f} s per clip, {3600 / bare:10,.0f} clips per hour")
    print(f"  encode phase {phase:8.2f} s per clip, {3600 / phase:10,.0f} clips per hour")
    print(
        f"  bare / phase {bare / phase:8.2f}  goal {GOAL_RATIO}: {'' if bare / phase >= GOAL_RATIO else 'NOT '}reached"
    )


if __name__ == "__main__":
    main()
