"""Eight clips of the synthetic world as a corpus of latents: what models are shown to be able to learn by heart."""

from collections.abc import Sequence
from pathlib import Path

import fsspec

import openuni
from openuni.manifests.corpus.corpus import Corpus
from openuni.world.write import write_clips

CLIPS = 8
TEXT_DIM = 32  # width of the captions' embeddings


def world_corpus(
    folder: Path,
    preset: str,
    modalities: Sequence[str],
    *,
    frames: int = 5,
    size_px: tuple[int, int] = (32, 48),
    channels: int = 16,
    text_bytes: int = 255,
) -> Corpus:
    """Eight clips of a preset with their exact maps, encoded with the codecs that need no weights.

    `modalities`: what gets latents, rgb included. `frames`: 4k + 1. `size_px`: height, width, multiples of 16.
    Latents are [channels, (frames - 1) / 4 + 1, height / 8, width / 8].
    """
    maps = [name for name in modalities if name != "rgb"]
    height_px, width_px = size_px
    videos = write_clips(
        folder / "raw",
        range(CLIPS),
        preset=preset,
        modalities=maps,
        workers=0,
        frames=frames,
        height_px=height_px,
        width_px=width_px,
    )
    recipe = {
        "work": {"short_side_px": 0},
        "annotators": {"supplied": {"modalities": maps}},
        "encode": {
            "latents": "dct",
            "text": "bytes",
            "modalities": list(modalities),
            "size_px": list(size_px),
            "frames": frames,
            "dct": {"channels": channels},
            "bytes": {"dim": TEXT_DIM, "max_bytes": text_bytes},
        },
    }
    return openuni.run(recipe, in_memory(videos, f"{preset}-{frames}x{height_px}x{width_px}"), out=folder / "corpus")


def in_memory(videos: Sequence[Path], name: str) -> list[str]:
    """The videos and what lies beside them, as URLs that are the same in every run.

    Ids of clips are made of their sources, and the order of training of the ids: in a new temporary folder each time,
    a model would learn in another order each time, a little better or worse.
    """
    memory = fsspec.filesystem("memory")
    for path in sorted({neighbour for video in videos for neighbour in video.parent.iterdir()}):
        memory.pipe(f"/world/{name}/{path.name}", path.read_bytes())
    return [f"memory://world/{name}/{video.name}" for video in videos]
