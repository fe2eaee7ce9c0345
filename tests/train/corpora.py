"""Small corpora written through the real writer, for tests of the trainer."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.schema import LATENT_SCHEMA, clip_schema
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.shards import SafetensorsShard
from openuni.manifests.video.clip import clip_id
from openuni.training.codecs.bytes import Bytes
from openuni.training.codecs.dct import Dct

FAMILY = "dct-0123456789abcdef"
TEXT_FAMILY = "bytes-0123456789abcdef"


def put_tensor(writer: Any, clip: str, array: np.ndarray | None, dtype: str = "float16") -> None:
    """One row of a latent or text group; None is a failed one."""
    row = dict.fromkeys(LATENT_SCHEMA.names) | {"clip_id": clip, "status": "failed", "error": "no such stream"}
    if array is not None:
        stored = array.astype(dtype)
        row |= writer.put(clip, stored.tobytes(), dtype, stored.shape)
        row |= {"status": "ok", "error": None, "shape": list(stored.shape), "dtype": dtype}
        row |= {"absmax": float(np.abs(stored).max()), "std": float(stored.std())}
    writer.commit(row)


def write_corpus(
    folder: Path,
    clips: list[dict[str, Any]],
    *,
    codec: Dct | None = None,
    text: Bytes | None = None,
    size: tuple[int, int, int] = (5, 16, 16),
) -> Corpus:
    """`clips`: dicts with `latents` (modality -> float [C, T, H, W] or None), and optionally source, split, collection,
    caption.
    """
    codec, text = codec or Dct(channels=4), text or Bytes(dim=8, max_bytes=31)
    corpus = Corpus.create(str(folder))
    modalities = sorted({name for clip in clips for name in clip["latents"]})
    groups = {name: f"latents/{FAMILY}/{name}" for name in modalities} | {"text": f"text/{TEXT_FAMILY}"}
    writers = {name: corpus.writer(group, LATENT_SCHEMA, "1", SafetensorsShard) for name, group in groups.items()}
    rows = corpus.writer("clips", clip_schema(), "1")
    for number, clip in enumerate(clips):
        source = clip.get("source", f"source-{number}.mp4")
        one = DecodedClip.from_frames(
            np.zeros((size[0], 16, 16, 3), np.uint8), caption=clip.get("caption", "a cube")
        ).clip
        named = {name: clip.get(name) for name in ("split", "collection")}
        one = dataclasses.replace(one, clip_id=clip_id(source, number, number + 1, ""), source=source, **named)
        rows.commit(dataclasses.asdict(one) | {"status": "ok", "error": None})
        for name, latents in clip["latents"].items():
            put_tensor(writers[name], one.clip_id, None if latents is None else np.asarray(latents))
        if one.caption is not None:
            put_tensor(writers["text"], one.clip_id, text.encode(None, one.caption))
    for writer in [rows, *writers.values()]:
        writer.finish()
    record = {"codec": "dct", "options": dataclasses.asdict(codec), "frames": size[0], "size_px": list(size[1:])}
    corpus.write_json(f"latents/{FAMILY}/family.json", record | {"modalities": modalities, "fingerprint": "0"})
    corpus.write_json(f"text/{TEXT_FAMILY}/family.json", {"codec": "bytes", "options": dataclasses.asdict(text)})
    return corpus


def random_clips(count: int, modalities: tuple[str, ...] = ("rgb", "depth"), channels: int = 4) -> list[dict[str, Any]]:
    """Clips with smooth random latents [channels, 2, 2, 2]; depth is a fixed linear map of rgb, so it can be learnt."""
    random = np.random.default_rng(0)
    mixing = random.standard_normal((channels, channels)) / channels**0.5
    clips = []
    for _ in range(count):
        rgb = random.standard_normal((channels, 2, 2, 2))
        latents = {name: rgb if name == "rgb" else np.einsum("ij,jthw->ithw", mixing, rgb) for name in modalities}
        clips.append({"latents": latents})
    return clips
