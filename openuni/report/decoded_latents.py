"""What is known of the quality of a corpus's latents: the PSNR of pictures decoded from a sample of them."""

from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.layout import LATENTS


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
