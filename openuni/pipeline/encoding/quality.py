"""The PSNR of pictures decoded from a sample of a corpus's latents: measuring it, and what is known of it."""

import heapq
import logging
import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.layout import LATENTS
from openuni.manifests.corpus.shards import checksum
from openuni.manifests.errors import ClipError
from openuni.pipeline.failures import format_error
from openuni.training.codec import LatentCodec

ONE_IN = 1000  # clips whose latents are decoded
MIN_CLIPS = 4  # in a run
MAX_PSNR_DB = 100.0  # of equal pictures

logger = logging.getLogger(__name__)


def is_drawn(clip_id: str) -> bool:
    """Whether a clip is one of the thousandth that is measured: by its id alone."""
    return checksum(clip_id.encode()) % ONE_IN == 0


def psnr_clips(ids: Iterable[str]) -> frozenset[str]:
    """The clips of a run that are measured in any case, by their ids alone."""
    return frozenset(heapq.nsmallest(MIN_CLIPS, ids, key=lambda one: checksum(one.encode())))


def decoded_psnr_db(codec: LatentCodec, model: Any, rgb: np.ndarray, latents: np.ndarray) -> float | None:
    """PSNR of pictures decoded from latents as they are stored; None if they cannot be decoded here.

    `rgb`: float32 [T, H, W, 3] in 0..1, what was encoded. `latents`: float32 [C, T', H', W']. A measurement never fails
    a clip: decoding takes more memory than encoding, and a codec may have no decoder.
    """
    try:
        decoded = codec.decode(model, latents.astype(np.float16).astype(np.float32))
        error = float(np.square(rgb.astype(np.float64) - decoded).mean())
    except (RuntimeError, MemoryError, ValueError, ClipError) as fault:  # of torch: RuntimeError
        logger.warning("the PSNR of decoded latents was not measured: %s", format_error(fault))
        return None
    return min(MAX_PSNR_DB, -10 * math.log10(max(error, 1e-12))) if math.isfinite(error) else None


class DecodedQuality(NamedTuple):
    """Pictures decoded from the latents of a family, compared with what was encoded."""

    family: str
    codec: str
    clips: int  # that were measured
    median_psnr_db: float
    min_psnr_db: float


def decoded_quality(corpus: Corpus) -> list[DecodedQuality]:
    """The latent families of a corpus of which clips were measured, in all runs; of a clip, the latest time counts."""
    families = {folder.split("/")[1] for folder in corpus.group_folders() if folder.startswith(f"{LATENTS}/")}
    found: dict[str, dict[str, float]] = {}
    for ledger in corpus.runs():
        measured = ledger.get("psnr_db")
        for family, clips in measured.items() if isinstance(measured, dict) else ():
            if family in families and isinstance(clips, dict):
                found.setdefault(family, {}).update(_numbers(clips))
    return [
        DecodedQuality(
            family,
            family.rpartition("-")[0],
            len(clips),
            round(median(clips.values()), 2),
            round(min(clips.values()), 2),
        )
        for family, clips in sorted(found.items())
        if clips
    ]


def format_quality(measured: Sequence[DecodedQuality]) -> str:
    """One line per family; empty if nothing was measured."""
    lines = [
        f"  {one.family:<24} {one.median_psnr_db:6.2f} dB median, {one.min_psnr_db:6.2f} dB minimum of "
        f"{one.clips:,} clip{'s' if one.clips > 1 else ''}"
        for one in measured
    ]
    return "\n".join(["PSNR of decoded RGB latents", *lines]) if lines else ""


def _numbers(clips: dict[Any, Any]) -> dict[str, float]:
    """Values of another type are left out: a ledger is data."""
    return {clip: float(value) for clip, value in clips.items() if isinstance(value, int | float)}
