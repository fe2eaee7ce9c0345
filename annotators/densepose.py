"""Body surface coordinates of persons by DensePose, from a TorchScript export: detectron2 is not needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

from openuni.annotators._guide_flow import guide_flow, warp
from openuni.manifests.arrays.resample import resize_nearest
from openuni.manifests.contracts.checkpoint import Checkpoint, hub_or_path
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.inference import inference
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.errors import ClipError, MissingRequirement, OpenUniError
from openuni.manifests.modalities.densepose import PART_COUNT, DensePose

REPOSITORY = "LayerNorm/DensePose-TorchScript-with-hint-image"
FILE = "densepose_r50_fpn_dl.torchscript"
SHA256 = "4f7260daa498ce8d4b4679f0692ef2f1f426e39121a907181eab37b8b0585878"
# the weights are CC-BY-SA 3.0 (detectron2's model zoo); the code that exported them has no licence
LICENCE = "CC-BY-SA-3.0 AND LicenseRef-unlicensed-export-code"
PUBLISHED = Checkpoint(REPOSITORY, "hub", LICENCE, sha256=SHA256, size_mb=265.0, only=(FILE,))

MIN_SIDE_PX = 8  # a frame 3 px wide could be taken for one with its channels last
LARGEST_BOX = 2  # sides of a box over the longer one of the frame; a network gives boxes within its padded input
KEYS = ("pred_boxes", "pred_densepose_coarse_segm", "pred_densepose_fine_segm", "pred_densepose_u", "pred_densepose_v")


class DensePoseOfClip(NamedTuple):
    """The body surface of every frame, and how far it can be relied on."""

    densepose: DensePose
    covered_share: Annotated[float, "share of all pixels that show a body, 0 to 1"]
    person_share: Annotated[float, "share of the frames with at least one person, 0 to 1"]
    persons_max: Annotated[int, "most persons found in one frame"]
    persons_mean: Annotated[float, "mean number of persons found in a frame"]
    box_score_mean: Annotated[
        float | None, "mean score of the persons' boxes, 0 to 1; null when nobody is there or the export tells none"
    ]
    part_stability: Annotated[
        float | None,
        "share of the body's pixels that show the same part in the next frame where the guide flow leads, 0 to 1; null "
        "when no body is seen in two adjacent frames where that flow holds",
    ]


@dataclass(frozen=True)
class Densepose(Annotator):
    """Part of the body's surface (1 to 24) and place on it (U, V) for every pixel that shows a person.

    The network's maps are scaled to each person's box (corner and sides cut to whole pixels) bilinearly; a pixel's part
    is the likeliest of 24 and background where the likeliest coarse label is a body, its U and V are that part's, held
    within 0..1. Of persons who overlap, the one with the higher score lies on top; the exporter's own drawing paints in
    the order of the network's output, which puts the least sure person on top. Boxes may leave the frame.

    The checkpoint is a program: `torch.jit.load` runs code that the file's author chose, which may do more than
    compute. So only the published file, held against its sha256, and files that you name by path are loaded. The
    published weights are CC-BY-SA 3.0 (share alike), and the code that exported them has no licence at all.
    """

    checkpoint: Annotated[str, "the published export's name, or the path of a TorchScript file that you trust"] = (
        REPOSITORY
    )

    gpus: ClassVar[float] = 0.25
    licence: ClassVar[str] = LICENCE
    origin: ClassVar[str] = "Gueler et al. 2018 (arXiv:1802.00434); detectron2's DensePose, dajes/DensePose-TorchScript"

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The published export or a file; no other name, since what is loaded is a program."""
        if self.checkpoint == REPOSITORY:
            return (PUBLISHED,)
        given = hub_or_path(self.checkpoint)
        if given.store != "path" and not Path(self.checkpoint).suffix:
            raise OpenUniError(
                f'densepose: checkpoint = "{self.checkpoint}". Allowed: "{REPOSITORY}", or the path of a TorchScript '
                "file. Such a file is a program, so it is never taken from the hub by another name: get it yourself, "
                "and give its path if you trust its author."
            )
        return (Checkpoint(self.checkpoint, "path"),)

    @classmethod
    def published(cls) -> tuple[Checkpoint, ...]:
        """The one export whose digest is known; share alike."""
        return (PUBLISHED,)

    def load(self, device: str) -> Any:
        """The module on `device`. Raises `OpenUniError` for what is no TorchScript, or not the file published."""
        import torch
        import torchvision  # noqa: F401 - the module calls its operators, which importing it makes known

        (checkpoint,) = self.checkpoints()
        path = checkpoint.resolve()
        checkpoint.verify()  # before any of it runs
        if path.is_dir():
            path = path / FILE
        if not path.is_file():
            raise MissingRequirement(
                f"densepose: there is no {FILE} in {path.parent}. Give the path of a TorchScript file."
            )
        try:
            module = torch.jit.load(path, map_location=device)
        except RuntimeError as error:
            raise OpenUniError(
                f"{path} is not a TorchScript file, or is damaged: {str(error).splitlines()[0]}. Give an export of "
                "DensePose such as densepose_r50_fpn_dl.torchscript."
            ) from error
        where = torch.device(device)
        module = module.eval()
        return (module.float() if where.type == "cpu" else module), where  # exports in half precision need a GPU

    def run(self, model: Any, clip: DecodedClip) -> DensePoseOfClip:
        """I, U and V at the size of the frames. Raises `ClipError` for frames thinner than 8 px."""
        height_px, width_px = clip.frames.shape[1:3]
        if min(height_px, width_px) < MIN_SIDE_PX:
            raise ClipError(f"densepose needs frames of at least {MIN_SIDE_PX} px a side, got {width_px} x {height_px}")
        module, device = model
        array = np.zeros(clip.frames.shape, np.uint8)
        counts: list[int] = []
        scores: list[float] = []
        for frame, target in zip(clip.frames, array, strict=True):
            found = _look(module, device, frame)
            counts.append(len(found.boxes))
            scores += [] if found.scores is None else found.scores.tolist()
            _paint(target, found)
        there = np.array(counts) > 0
        return DensePoseOfClip(
            DensePose(array),
            covered_share=float((array[..., 0] > 0).mean()),
            person_share=float(there.mean()),
            persons_max=max(counts),
            persons_mean=float(np.mean(counts)),
            box_score_mean=float(np.mean(scores)) if scores else None,
            part_stability=_part_stability(clip, array[..., 0]) if there.any() else None,
        )


class DetectedPersons(NamedTuple):
    """What the network says of one frame: n persons, the maps of each within its box."""

    boxes: np.ndarray  # int64 [n, 4]: left, top, width, height in pixels of the frame
    scores: np.ndarray | None  # float64 [n]
    maps: tuple[Any, Any, Any, Any]  # tensors [n, C, h, w], float32: coarse (C >= 2), fine, u and v (C = 25)


def _look(module: Any, device: Any, frame: np.ndarray) -> DetectedPersons:
    """`frame`: uint8 [H, W, 3] RGB. Raises `OpenUniError` for a module that gives something else."""
    import torch

    blue_first = torch.from_numpy(np.ascontiguousarray(frame[..., ::-1].transpose(2, 0, 1))).to(device)
    with inference(device.type, "fp32"), torch.jit.optimized_execution(False):  # the optimised one differs by the run
        given = module(blue_first)
    scores = None
    if isinstance(given, dict) and all(key in given for key in KEYS):
        scores = given.get("scores")
        given = tuple(given[key] for key in KEYS)
    tensors = isinstance(given, tuple) and all(isinstance(one, torch.Tensor) for one in given)
    if not tensors or len(given) != len(KEYS):
        raise OpenUniError(
            f"densepose: the module gives {type(given).__name__}; an export of DensePose gives boxes, coarse and fine "
            f"segments, u and v as a tuple, or a table with {', '.join(KEYS)}. Give such a file."
        )
    boxes, *maps = given[0], *(one.float() for one in given[1:])
    parts, count = PART_COUNT + 1, len(boxes)
    fits = all(one.ndim == 4 and one.shape[0] == count for one in maps)
    fits = fits and [one.shape[1] for one in maps[1:]] == [parts] * 3
    if boxes.shape[1:] != (4,) or not fits:
        shapes = ", ".join(str(tuple(one.shape)) for one in (boxes, *maps))
        allowed = f"[n, 4], [n, C, h, w] and three times [n, {parts}, h, w]"
        raise OpenUniError(f"densepose: the module gives {shapes}; allowed: {allowed}. Give an export of DensePose.")
    sides = boxes[:, 2:] - boxes[:, :2]
    if not torch.isfinite(boxes).all() or (sides > LARGEST_BOX * max(frame.shape)).any():
        raise ClipError(f"densepose gives boxes far larger than the frame: {boxes.tolist()}")
    return DetectedPersons(
        torch.cat([boxes[:, :2], sides], dim=1).long().cpu().numpy(),  # cut to whole pixels, each by itself
        None if scores is None else scores.double().cpu().numpy(),
        (maps[0], maps[1], maps[2], maps[3]),
    )


def _paint(target: np.ndarray, found: DetectedPersons) -> None:
    """Into one frame's I, U, V (uint8 [H, W, 3]): all persons, the surest on top; background covers nothing.

    Without scores the network's order counts: it tells the surest first.
    """
    by_score = range(len(found.boxes)) if found.scores is None else np.argsort(-found.scores, kind="stable")
    for place in list(by_score)[::-1]:
        left, top, wide, high = found.boxes[place].tolist()
        coarse, fine, u, v = (one[place] for one in found.maps)
        whole = surface(coarse, fine, u, v, max(1, high), max(1, wide))
        x, y = max(0, left), max(0, top)
        seen = whole[y - top : max(0, target.shape[0] - top), x - left : max(0, target.shape[1] - left)]
        window = target[y : y + seen.shape[0], x : x + seen.shape[1]]
        np.copyto(window, seen, where=seen[..., :1] > 0)


def surface(coarse: Any, fine: Any, u: Any, v: Any, height_px: int, width_px: int) -> np.ndarray:
    """I, U, V of one person, uint8 [height, width, 3], from the network's maps: tensors [C, h, w].

    U and V are 0..1 times 255, rounded; 0 on background.
    """
    import torch

    def scaled(maps: torch.Tensor) -> torch.Tensor:
        size = (height_px, width_px)
        return torch.nn.functional.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]

    part = scaled(fine).argmax(dim=0) * (scaled(coarse).argmax(dim=0) > 0)
    on_it = [scaled(maps).gather(0, part[None])[0].clamp(0, 1).mul(255).round() * (part > 0) for maps in (u, v)]
    out: np.ndarray = torch.stack([part.float(), *on_it], dim=-1).to(torch.uint8).cpu().numpy()
    return out


def _part_stability(clip: DecodedClip, parts: np.ndarray) -> float | None:
    """See `DensePoseOfClip.part_stability`. `parts`: uint8 [T, H, W]."""
    guide = guide_flow(clip)
    small = resize_nearest(parts[..., None], *guide.size_px)[..., 0]
    body, same = 0, 0
    for now, after, flow, valid in zip(small, small[1:], guide.forward, guide.forward_valid, strict=False):
        then = warp(after, flow, nearest=True)
        either = valid & ((now > 0) | (then > 0))
        body += int(either.sum())
        same += int((either & (now == then)).sum())
    return same / body if body else None
