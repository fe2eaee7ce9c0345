"""Text detectors: from a frame to quadrilaterals around its text lines."""

import importlib.util
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openuni.manifests.contracts.weights import read_weights
from openuni.manifests.errors import MissingRequirement, OpenUniError

Detector = Callable[[np.ndarray], list[np.ndarray]]  # uint8 [H, W, 3] RGB -> float32 [4, 2] each: x, y in pixels

READ_MARGIN = 0.25  # margin around a text line for recognition, relative to its height
CRAFT_FILE = "craft_mlt_25k"
# as in EasyOCR; copied, because importing it would import torch
CRAFT_URL = f"https://github.com/JaidedAI/EasyOCR/releases/download/pre-v1.1.6/{CRAFT_FILE}.zip"
MAX_CHECKPOINT_BYTES = 512 * 2**20  # unpacked; CRAFT has 83 MB


class RapidOcrOptions(NamedTuple):
    """Settings of `rapidocr`; see the options of `ocr`."""

    long_side_px: int
    unclip: float
    min_score: float
    min_recognition: float


def rapidocr_weights(task: str) -> Path:
    """A model in the RapidOCR wheel: "det" for detection, "rec" for recognition. Raises `MissingRequirement`."""
    spec = importlib.util.find_spec("rapidocr")
    places = spec.submodule_search_locations if spec is not None else None
    found = sorted((Path(next(iter(places))) / "models").glob(f"*_{task}_*.onnx")) if places else []
    if not found:
        raise MissingRequirement(
            'ocr: RapidOCR or its models are not installed. Install it with: pip install "rapidocr>=3.10"'
        )
    return found[0]


def rapidocr_detector(find: Path, read: Path, how: RapidOcrOptions) -> Detector:
    """PP-OCR (differentiable binarization, then recognition) on the CPU; larger frames are downscaled.

    Recognition verifies the detections, because detection alone also responds to textures, at times half the frame.
    """
    from rapidocr import RapidOCR

    engine: Any = RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.use_cls": False,
            "Det.model_path": str(find),
            "Det.limit_type": "max",
            "Det.limit_side_len": how.long_side_px,
            "Det.unclip_ratio": how.unclip,
            "Det.use_dilation": False,
            "Det.box_thresh": how.min_score,
            "Rec.model_path": str(read),
            "Global.text_score": 0.0,
            "EngineConfig.onnxruntime.intra_op_num_threads": int(os.environ.get("OPENUNI_THREADS", "0")) or -1,
        }
    )

    def detect(frame: np.ndarray) -> list[np.ndarray]:
        bgr = np.ascontiguousarray(frame[..., ::-1])  # expected channel order of arrays
        found = engine(bgr, use_det=True, use_cls=False, use_rec=False).boxes
        quads = [] if found is None else list(np.asarray(found, np.float32))
        return [quad for quad in quads if not how.min_recognition or confidence(bgr, quad) >= how.min_recognition]

    def confidence(bgr: np.ndarray, quad: np.ndarray) -> float:
        scores = engine(_line(bgr, quad), use_det=False, use_cls=False, use_rec=True).scores
        return float(scores[0]) if scores else 0.0

    return detect


def _line(image: np.ndarray, quad: np.ndarray) -> np.ndarray:
    """Rectified crop of a text line with a margin; vertical text is rotated by 90 degrees."""
    import cv2

    right, down = quad[1] - quad[0], quad[3] - quad[0]
    width_px, height_px = float(np.hypot(*right)), float(np.hypot(*down))
    margin_px = READ_MARGIN * min(width_px, height_px)
    right, down = margin_px * right / max(width_px, 1.0), margin_px * down / max(height_px, 1.0)
    outer = quad + np.array([-right - down, right - down, right + down, -right + down])
    size = (max(1, round(width_px + 2 * margin_px)), max(1, round(height_px + 2 * margin_px)))
    corners = np.array([(0, 0), (size[0], 0), size, (0, size[1])], np.float32)
    warp = cv2.getPerspectiveTransform(outer.astype(np.float32), corners)
    line = cv2.warpPerspective(image, warp, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.ascontiguousarray(np.rot90(line)) if size[1] > 1.5 * size[0] else line


def craft_folder() -> Path:
    """EasyOCR's local model folder."""
    base = os.environ.get("EASYOCR_MODULE_PATH") or os.environ.get("MODULE_PATH") or "~/.EasyOCR"
    return Path(base).expanduser() / "model"


def easyocr_detector(weights: Path, device: str, long_side_px: int) -> Detector:
    """EasyOCR's CRAFT with its default thresholds and line grouping, on RGB input as in CRAFT's training."""
    import torch
    from easyocr.craft import CRAFT
    from easyocr.detection import get_textbox
    from easyocr.utils import diff, group_text_box

    tensors = _read_craft(weights)
    with torch.device("meta"):  # skip random initialization
        network = CRAFT(pretrained=False)
    try:
        network.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise OpenUniError(
            f"{weights} does not contain the weights of CRAFT: {str(error)[:300]}. Use {CRAFT_FILE}.pth of EasyOCR."
        ) from error
    network = network.eval().to(device)

    def detect(frame: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            (polygons,) = get_textbox(
                network,
                np.ascontiguousarray(frame),
                canvas_size=long_side_px,
                mag_ratio=1.0,
                text_threshold=0.7,
                link_threshold=0.4,
                low_text=0.4,
                poly=False,
                device=device,
            )
        level, slanted = group_text_box(polygons, 0.1, 0.5, 0.5, 0.5, 0.1, True)
        quads = [((left, top), (right, top), (right, bottom), (left, bottom)) for left, right, top, bottom in level]
        sizes = [max(right - left, bottom - top) for left, right, top, bottom in level]
        quads += slanted
        sizes += [max(diff([x for x, _ in quad]), diff([y for _, y in quad])) for quad in slanted]
        return [np.array(quad, np.float32) for quad, size in zip(quads, sizes, strict=True) if size > 20]

    return detect


def _read_craft(path: Path) -> dict[str, Any]:
    """Tensors by name from a .pth, or from the .zip that EasyOCR publishes."""
    again = f"with: openuni checkpoints get {CRAFT_FILE}.zip"
    tensors = read_weights(path, again, _unpacked(path, again) if path.suffix == ".zip" else None)
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def _unpacked(path: Path, again: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo(f"{CRAFT_FILE}.pth")
            if entry.file_size > MAX_CHECKPOINT_BYTES:
                raise OpenUniError(
                    f"{path}: {entry.filename} unpacks to {entry.file_size} bytes; at most {MAX_CHECKPOINT_BYTES} are "
                    f"allowed. Download it again {again}"
                )
            return archive.read(entry)
    except (zipfile.BadZipFile, KeyError, RuntimeError, EOFError, OSError) as error:
        raise OpenUniError(
            f"{path} cannot be read as weights: not a zip that contains {CRAFT_FILE}.pth ({error}). Download it again "
            f"{again}"
        ) from error
