"""A small corpus with every modality and every kind of gap, built by the real pipeline from files with known maps."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.modalities.albedo import Albedo
from openuni.manifests.modalities.alpha import Alpha
from openuni.manifests.modalities.background import Background
from openuni.manifests.modalities.densepose import DensePose
from openuni.manifests.modalities.depth import Depth
from openuni.manifests.modalities.flow import Flow
from openuni.manifests.modalities.foreground import Foreground
from openuni.manifests.modalities.irradiance import Irradiance
from openuni.manifests.modalities.normal import Normal
from openuni.manifests.modalities.segmentation import Segmentation
from openuni.manifests.modalities.skeleton import Skeleton
from openuni.manifests.video.encode import encode_lossless, write_video
from tests.moving_pictures import texture

QUIET = Reporter(quiet=True)
CAPTION = 'He said "go", twice; 背景为 a room'
MODALITIES = [
    *("albedo", "alpha", "background", "densepose", "depth", "flow"),
    *("foreground", "irradiance", "normal", "segmentation", "skeleton"),
]
RECIPE = {
    "keep": "motion.speed_diag_per_s > 0.01",
    "filters": {"motion": {}},
    "annotators": {"supplied": {"modalities": MODALITIES}},
}


def pictures(frames: int, height_px: int, width_px: int, step_px: int = 2) -> np.ndarray:
    """uint8 [T, H, W, 3]: a tinted texture that pans; 0 px: a clip that the recipe drops."""
    tint = np.array([1.0, 0.8, 0.6])
    first = (texture(height_px, width_px, grain_px=2.0) * tint).astype(np.uint8)
    return np.stack([np.roll(first, step_px * number, axis=1) for number in range(frames)])


def every_map(frames: int, height_px: int, width_px: int) -> dict[str, Modality]:
    """One of each, with values that are easy to tell apart; depth at half the size."""
    rng = np.random.default_rng(1)
    shape = (frames, height_px, width_px)
    rows = np.linspace(0, 1, height_px, dtype=np.float32)[None, :, None, None]
    colours = np.clip(rows * np.array([0.2, 0.5, 1.0], np.float32), 0, 1) * np.ones((*shape, 1), np.float32)
    mask = np.zeros((*shape, 1), np.uint16)
    top, left = height_px // 4 + 1, width_px // 4 + 1  # odd: the edges cut through 4:2:0's blocks
    mask[:, top : 2 * top - 1, left : 2 * left - 1] = 3
    points = np.zeros((frames, 1, 133, 3), np.float32)
    points[..., 0] = rng.uniform(4, width_px - 4, (1, 1, 133))
    points[..., 1] = rng.uniform(4, height_px - 4, (1, 1, 133))
    points[..., 2] = 0.9
    tilted = np.array([0.6, 0.0, 0.8], np.float32)
    normals = np.where(mask > 0, tilted, np.array([0, 0, 1], np.float32)) * np.ones((*shape, 1), np.float32)
    still = np.zeros((*shape, 2), np.float32) + np.array([2, -1], np.float32)
    small = np.linspace(1, 9, height_px // 2, dtype=np.float32)[None, :, None, None]
    maps = [
        Depth(np.ascontiguousarray(np.broadcast_to(small, (frames, height_px // 2, width_px // 2, 1))), "metres"),
        Flow(still * np.linspace(0, 1, width_px, dtype=np.float32)[None, None, :, None]),
        Segmentation(mask),
        Skeleton(points, height_px, width_px),
        DensePose((mask * np.array([5, 30, 60])).astype(np.uint8)),
        Normal(normals.astype(np.float32)),
        Albedo(colours),
        Irradiance(colours * 7),
        Alpha((mask > 0).astype(np.float32) * np.float32(0.75)),
        Foreground(np.full((*shape, 3), (200, 30, 30), np.uint8)),
        Background(np.full((*shape, 3), (10, 40, 220), np.uint8)),
    ]
    return {type(map_).name: map_ for map_ in maps}


def supply(video: Path, frames: np.ndarray, names: Sequence[str], caption: str | None = None) -> dict[str, Modality]:
    """A video of these frames with maps beside it, in the layout that the annotator `supplied` reads."""
    count, height_px, width_px, _ = frames.shape
    if video.suffix == ".mkv":
        video.write_bytes(encode_lossless(frames, 12))
    else:
        write_video(video, frames, 12, crf=4, pixels="yuv444p" if width_px % 2 else "yuv420p")
    maps = {name: map_ for name, map_ in every_map(count, height_px, width_px).items() if name in names}
    entries = {}
    for name, map_ in maps.items():
        payload = map_.encode(12)
        file = video.with_name(f"{video.stem}.{name}.{payload.suffix}")
        file.write_bytes(payload.data)
        entries[name] = {"file": file.name, "constants": payload.constants._asdict()}
    record = {"format": "openuni-supplied-1", "frames": count, "modalities": entries}
    video.with_suffix(".json").write_text(json.dumps(record))
    if caption is not None:
        video.with_suffix(".txt").write_text(caption)
    return maps


def make_corpus(folder: Path) -> Corpus:
    """`all` has everything, `depth` no caption, `odd` odd sides, `mkv` is no mp4; `still` is dropped."""
    raw = folder / "raw"
    raw.mkdir(parents=True)
    supply(raw / "all.mp4", pictures(9, 48, 64), MODALITIES, CAPTION)
    supply(raw / "depth.mp4", pictures(6, 48, 64), ["depth"])
    supply(raw / "mkv.mkv", pictures(5, 48, 64), ["alpha", "segmentation"], "two\tthree")
    supply(raw / "odd.mp4", pictures(5, 33, 47), ["flow", "normal"], "odd sides")
    supply(raw / "still.mp4", pictures(5, 48, 64, step_px=0), ["depth"], "nothing moves")
    sources = sorted(str(path) for path in raw.iterdir() if path.suffix == ".mp4" or path.name == "mkv.mkv")
    return openuni.run(RECIPE, sources, out=folder / "corpus", reporter=QUIET)


def ids_by_name(corpus: Corpus) -> dict[str, str]:
    """The clips' ids by the stems of their sources."""
    return {Path(clip.clip.source).stem: clip.clip_id for clip in corpus}


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
