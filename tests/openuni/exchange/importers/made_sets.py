"""Sets as other projects lay them out, small and made on the spot, and what an import made of them."""

from pathlib import Path

import cv2
import numpy as np

import openuni
from openuni.console.progress import Reporter
from openuni.exchange.import_job import ImportOptions
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.corpus_clip import CorpusClip
from openuni.manifests.video.clip import clip_id
from openuni.manifests.video.encode import encode_lossless
from openuni.pipeline.runners.resources import Resources
from tests.raw_clips import contents


def write_exr(folder: Path, frames: np.ndarray, first: int = 0) -> None:
    """float [T, H, W, 3] as half floats, 0000.exr and on."""
    import OpenEXR

    folder.mkdir(parents=True, exist_ok=True)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    for number, image in enumerate(frames):
        half = np.ascontiguousarray(image.astype(np.float16))
        OpenEXR.File(header, {"RGB": half}).write(str(folder / f"{first + number:04}.exr"))


def write_png(folder: Path, frames: np.ndarray, suffix: str = ".png") -> None:
    """uint8 or uint16 [T, H, W, 1 or 3], 0000.png and on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(frames):
        assert cv2.imwrite(str(folder / f"{number:04}{suffix}"), image[..., ::-1] if image.shape[-1] == 3 else image)


def write_planes(path: Path, frames: np.ndarray, fps: float = 16.0) -> None:
    """uint8 or uint16 [T, H, W, 1 or 3] without loss, as a video."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_lossless(frames, fps))


def levels16(unit: np.ndarray) -> np.ndarray:
    """0..1 as uint16."""
    return np.rint(np.clip(unit, 0, 1) * 65535).astype(np.uint16)


def bring_in(
    format: str,
    folder: Path,
    out: Path,
    resources: Resources | None = None,
    retry_failed: bool = False,
    **options: object,
) -> Corpus:
    """`openuni import`, in this process unless `resources` says otherwise, without a table on the terminal."""
    return openuni.import_set(
        format,
        folder,
        out=out,
        options=options,
        resources=resources,
        import_options=ImportOptions("set", retry_failed=retry_failed),
        reporter=Reporter(quiet=True),
    )


def clips_by_key(corpus: Corpus, importer: str, keys: list[str]) -> dict[str, dict[str, object]]:
    """The rows of `clips/` by the key that the importer gave: the id is made of it."""
    rows = {row["clip_id"]: row for row in corpus.table("clips").to_pylist()}
    return {key: rows[clip_id(f"{importer}:set:{key}", 0, 0, "")] for key in keys}


def imported(corpus: Corpus, importer: str, key: str) -> CorpusClip:
    """One clip of the corpus by its key."""
    row = clips_by_key(corpus, importer, [key])[key]
    assert row["status"] == "ok", row["error"]
    return corpus[row["clip_id"]]


def reasons(corpus: Corpus) -> dict[str, str]:
    """Key -> reason, of the clips that were refused."""
    return {row["source"]: row["error"] for row in corpus.table("clips").to_pylist() if row["status"] == "failed"}


def results(corpus: Corpus) -> dict[str, list[dict[str, object]]]:
    """All rows with checksums, but for where within the corpus the pixels lie."""
    found = contents(corpus)
    for row in found["clips"]:
        row["source"] = row["source"].partition("annotations/")[0] if row["status"] == "ok" else row["source"]
    return found
