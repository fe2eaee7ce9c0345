"""Body surface coordinates of persons by DensePose, from a TorchScript export (without detectron2)."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

from openuni.annotators._guide_flow import guide_flow, warp
from openuni.annotators._threads import in_threads
from openuni.manifests.arrays.resample import resize_nearest
from openuni.manifests.contracts.checkpoint import Checkpoint, hub_or_path
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.device_batches import transfers
from openuni.manifests.contracts.inference import inference
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.contracts.windows import WindowedRun, run_at_once
from openuni.manifests.errors import ClipError, MissingRequirement, OpenUniError
from openuni.manifests.modalities.densepose import PART_COUNT, DensePose

REPOSITORY = "LayerNorm/DensePose-TorchScript-with-hint-image"
FILE = "densepose_r50_fpn_dl.torchscript"
SHA256 = "4f7260daa498ce8d4b4679f0692ef2f1f426e39121a907181eab37b8b0585878"
# the weights are CC-BY-SA 3.0 (detectron2's model zoo); the export code has no licence
LICENCE = "CC-BY-SA-3.0 AND LicenseRef-unlicensed-export-code"
PUBLISHED = Checkpoint(REPOSITORY, "hub", LICENCE, sha256=SHA256, size_mb=265.0, only=(FILE,))

MIN_SIDE_PX = 8  # a frame with a width of 3 px could be mistaken for a channels-last image
# maximum box side relative to the frame's longer side; a network predicts boxes within its padded input
LARGEST_BOX = 2
FRAMES_AT_ONCE = 8  # copied to the device, and their pictures back, together
PERSONS_AT_ONCE = 32  # whose maps are on the device before they are painted: 5 MB each
KEYS = ("pred_boxes", "pred_densepose_coarse_segm", "pred_densepose_fine_segm", "pred_densepose_u", "pred_densepose_v")


class DensePoseOfClip(NamedTuple):
    """Body surface coordinates of every frame, and quality scores."""

    densepose: DensePose
    covered_share: Annotated[float, "fraction of all pixels that show a body, 0 to 1"]
    person_share: Annotated[float, "fraction of frames with at least one person, 0 to 1"]
    persons_max: Annotated[int, "maximum number of persons in a frame"]
    persons_mean: Annotated[float, "mean number of persons per frame"]
    box_score_mean: Annotated[
        float | None, "mean detection score, 0 to 1; null without persons or if the export has no scores"
    ]
    part_stability: Annotated[
        float | None,
        "fraction of body pixels with the same part in the next frame, along the optical flow, 0 to 1; null if no body "
        "pixel has valid flow",
    ]


@dataclass(frozen=True)
class Densepose(Annotator):
    """Body part (1 to 24) and surface coordinates (U, V) for every pixel that shows a person.

    The network's maps are resized to each person's box (corner and sides truncated to whole pixels), bilinearly. Where
    the most likely coarse label is a body, a pixel's part is the most likely of 24 parts and background; U and V are
    those of that part, clipped to 0..1. Where persons overlap, the one with the higher score is on top. (The exporter's
    own visualization draws in the order of the network's output, with the least confident person on top.) Boxes may
    extend beyond the frame.

    A TorchScript checkpoint is executable: `torch.jit.load` runs code by the file's author. Only the published file
    (verified by its SHA-256) and files given by path are loaded. The published weights are CC-BY-SA 3.0 (share alike);
    the export code has no licence.
    """

    checkpoint: Annotated[str, "name of the published export, or path of a TorchScript file that you trust"] = (
        REPOSITORY
    )

    gpus: ClassVar[float] = 0.25
    licence: ClassVar[str] = LICENCE
    origin: ClassVar[str] = "Gueler et al. 2018 (arXiv:1802.00434); detectron2's DensePose, dajes/DensePose-TorchScript"

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The published export, or a file. Other hub names are rejected, because the checkpoint is executable."""
        if self.checkpoint == REPOSITORY:
            return (PUBLISHED,)
        given = hub_or_path(self.checkpoint)
        if given.store != "path" and not Path(self.checkpoint).suffix:
            raise OpenUniError(
                f'densepose: checkpoint = "{self.checkpoint}". Allowed: "{REPOSITORY}", or the path of a TorchScript '
                "file. TorchScript is executable, so other files are not downloaded from the hub: download the file "
                "yourself and pass its path if you trust its author."
            )
        return (Checkpoint(self.checkpoint, "path"),)

    @classmethod
    def published(cls) -> tuple[Checkpoint, ...]:
        """The only export with a known digest; share alike."""
        return (PUBLISHED,)

    def load(self, device: str) -> Any:
        """Load the module on `device`.

        Raises `OpenUniError` for a file that is not TorchScript or does not match the published digest,
        `MissingRequirement` for a missing file.
        """
        import torch
        import torchvision  # noqa: F401 - registers the operators that the module calls

        (checkpoint,) = self.checkpoints()
        path = checkpoint.resolve()
        checkpoint.verify()  # before executing it
        if path.is_dir():
            path = path / FILE
        if not path.is_file():
            raise MissingRequirement(
                f"densepose: {FILE} not found in {path.parent}. Pass the path of a TorchScript file."
            )
        try:
            module = torch.jit.load(path, map_location=device)
        except RuntimeError as error:
            raise OpenUniError(
                f"{path} is not a TorchScript file, or is damaged: {str(error).splitlines()[0]}. Use a DensePose "
                "export such as densepose_r50_fpn_dl.torchscript."
            ) from error
        where = torch.device(device)
        module = module.eval()
        return (module.float() if where.type == "cpu" else module), where  # half precision requires a GPU

    def run(self, model: Any, clip: DecodedClip) -> DensePoseOfClip:
        """I, U and V at the size of the frames. Raises `ClipError` for frames with a side below 8 px."""
        return run_at_once(self.start_windows(model), clip)

    def start_windows(self, model: Any) -> "DensePoseWindows":
        """See `Operator.start_windows`."""
        return DensePoseWindows(model)


class DensePoseWindows(WindowedRun[DensePoseOfClip]):
    """Maps of the new frames of each window, and what the scores need of them."""

    def __init__(self, model: Any) -> None:
        self.module, self.device = model
        self.counts: list[int] = []  # persons per frame
        self.scores: list[float] = []
        self.covered = self.pixels = 0
        self.last: np.ndarray | None = None  # parts of the last frame, [1, H, W]
        self.body = self.same = 0  # pixels of a body that have a successor, and those of the same part

    def add(self, window: DecodedClip) -> Mapping[str, Modality]:
        """See `WindowedRun.add`."""
        height_px, width_px = window.frames.shape[1:3]
        if min(height_px, width_px) < MIN_SIDE_PX:
            raise ClipError(f"densepose: frames must have sides >= {MIN_SIDE_PX} px, got {width_px} x {height_px}")
        array = np.zeros(window.new_frames.shape, np.uint8)
        with ThreadPoolExecutor(1, thread_name_prefix="flow") as beside:  # on the CPU, while the network runs
            flow = None
            for rows, found, painted in _painted_frames(self.module, self.device, window.new_frames):
                array[rows] = painted
                self.counts += [len(one.boxes) for one in found]
                for one in found:
                    self.scores += [] if one.scores is None else one.scores.tolist()
                if flow is None and any(self.counts[-len(found) :]):
                    flow = beside.submit(guide_flow, window)
            if flow is not None:
                flow.result()
        parts = array[..., 0]
        self.covered, self.pixels = self.covered + int(np.count_nonzero(parts)), self.pixels + parts.size
        joined = parts if self.last is None else np.concatenate([self.last, parts])
        self.last = parts[-1:].copy()
        if joined.any():  # else there is no body, and the flow is not needed
            body, same = _stable_parts(window, joined)
            self.body, self.same = self.body + body, self.same + same
        return {"densepose": DensePose(array)}

    def result(self) -> DensePoseOfClip:
        """See `WindowedRun.result`."""
        return DensePoseOfClip(
            None,  # type: ignore[arg-type]  # `add` has returned all maps
            covered_share=self.covered / self.pixels,
            person_share=float((np.array(self.counts) > 0).mean()),
            persons_max=max(self.counts),
            persons_mean=float(np.mean(self.counts)),
            box_score_mean=float(np.mean(self.scores)) if self.scores else None,
            part_stability=self.same / self.body if self.body else None,
        )


class DetectedPersons(NamedTuple):
    """The network's output for one frame: n persons, each with maps within its box."""

    boxes: np.ndarray  # int64 [n, 4]: left, top, width, height in pixels of the frame
    scores: np.ndarray | None  # float64 [n]
    maps: tuple[Any, Any, Any, Any]  # tensors [n, C, h, w]: coarse (C >= 2), fine, u and v (C = 25)


class _Output(NamedTuple):
    """The same as it comes, on the device."""

    boxes: Any  # [n, 4]: left, top, right, bottom
    scores: Any  # [n], or None
    maps: tuple[Any, Any, Any, Any]


def _painted_frames(
    module: Any, device: Any, frames: np.ndarray
) -> Iterator[tuple[slice, list[DetectedPersons], np.ndarray]]:
    """Persons and I, U, V (uint8 [n, H, W, 3]) of a few frames at a time, with the rows of `frames` that they are of.

    The network takes one frame at a time. Frames are copied to the device together; boxes and pictures come back
    together, so that the host waits for the device a few times per `FRAMES_AT_ONCE` frames, beside the network itself.
    """
    import torch

    copies = transfers(device)
    for start in range(0, len(frames), FRAMES_AT_ONCE):
        part = copies.up(frames[start : start + FRAMES_AT_ONCE])
        blue_first = part.flip(-1).permute(0, 3, 1, 2)
        outputs: list[_Output] = []
        done = start
        for row, frame in enumerate(blue_first, start):
            outputs.append(_look(module, device, frame.contiguous()))
            if row + 1 == start + len(part) or sum(len(one.boxes) for one in outputs) >= PERSONS_AT_ONCE:
                with inference(device.type, "fp32"):
                    found = _on_host(outputs, frames.shape[1:3])
                    canvas = torch.zeros((len(found), *frames.shape[1:]), dtype=torch.uint8, device=device)
                    for target, persons in zip(canvas, found, strict=True):
                        _paint(target, persons)
                    painted = canvas.cpu().numpy()
                yield slice(done, row + 1), found, painted
                outputs, done = [], row + 1


def _look(module: Any, device: Any, blue_first: Any) -> _Output:
    """Run the network on a frame, uint8 [3, H, W] BGR on the device. Raises `OpenUniError` for unexpected outputs."""
    import torch

    # the optimized executor is not deterministic
    with inference(device.type, "fp32"), torch.jit.optimized_execution(False):
        given = module(blue_first)
    scores = None
    if isinstance(given, dict) and all(key in given for key in KEYS):
        scores = given.get("scores")
        given = tuple(given[key] for key in KEYS)
    tensors = isinstance(given, tuple) and all(isinstance(one, torch.Tensor) for one in given)
    if not tensors or len(given) != len(KEYS):
        raise OpenUniError(
            f"densepose: the module returns {type(given).__name__}; expected a tuple (boxes, coarse, fine, u, v) or a "
            f"dictionary with {', '.join(KEYS)}. Use a DensePose export."
        )
    boxes, *maps = given
    parts, count = PART_COUNT + 1, len(boxes)
    fits = all(one.ndim == 4 and one.shape[0] == count for one in maps)
    fits = fits and [one.shape[1] for one in maps[1:]] == [parts] * 3
    if boxes.shape[1:] != (4,) or not fits:
        shapes = ", ".join(str(tuple(one.shape)) for one in (boxes, *maps))
        allowed = f"[n, 4], [n, C, h, w] and three times [n, {parts}, h, w]"
        raise OpenUniError(f"densepose: the module returns {shapes}; expected {allowed}. Use a DensePose export.")
    return _Output(boxes, scores, (maps[0], maps[1], maps[2], maps[3]))


def _on_host(outputs: list[_Output], size_px: tuple[int, ...]) -> list[DetectedPersons]:
    """Boxes and scores of several frames, in one copy each. Raises `ClipError` for boxes that no frame has."""
    import torch

    # in the type of the network, so that sides round as they do there
    boxes = torch.cat([torch.cat([one.boxes, one.boxes[:, 2:] - one.boxes[:, :2]], dim=1) for one in outputs]).cpu()
    scores = None
    if outputs[0].scores is not None:
        scores = torch.cat([one.scores for one in outputs]).double().cpu().numpy()
    found, start = [], 0
    for one in outputs:
        rows = slice(start, start + len(one.boxes))
        mine = boxes[rows]
        if not torch.isfinite(mine[:, :4]).all() or (mine[:, 4:] > LARGEST_BOX * max(size_px)).any():
            raise ClipError(
                "densepose: the network returned boxes that are not finite or far larger than the frame: "
                f"{mine[:, :4].tolist()}"
            )
        whole = mine[:, [0, 1, 4, 5]].long().numpy()  # corner and sides are truncated separately
        found.append(DetectedPersons(whole, None if scores is None else scores[rows], one.maps))
        start = rows.stop
    return found


def _paint(target: Any, found: DetectedPersons) -> None:
    """Draw all persons into one frame's I, U, V (tensor uint8 [H, W, 3]), most confident on top.

    Background is transparent. Without scores, the network's order is used (most confident first).
    """
    import torch

    by_score = range(len(found.boxes)) if found.scores is None else np.argsort(-found.scores, kind="stable").tolist()
    for place in list(by_score)[::-1]:
        left, top, wide, high = found.boxes[place].tolist()
        coarse, fine, u, v = (one[place].float() for one in found.maps)
        x, y = max(0, left), max(0, top)
        if y - top >= max(1, high) or x - left >= max(1, wide) or y >= target.shape[0] or x >= target.shape[1]:
            continue
        whole = surface(coarse, fine, u, v, max(1, high), max(1, wide))
        seen = whole[y - top : target.shape[0] - top, x - left : target.shape[1] - left]
        window = target[y : y + seen.shape[0], x : x + seen.shape[1]]
        window.copy_(torch.where(seen[..., :1] > 0, seen, window))


def surface(coarse: Any, fine: Any, u: Any, v: Any, height_px: int, width_px: int) -> Any:
    """I, U, V of one person, tensor uint8 [height, width, 3], from the network's maps (tensors [C, h, w]).

    U and V are scaled from 0..1 to 0..255 and rounded; 0 on background.
    """
    import torch

    def scaled(maps: torch.Tensor) -> torch.Tensor:
        size = (height_px, width_px)
        return torch.nn.functional.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]

    part = scaled(fine).argmax(dim=0) * (scaled(coarse).argmax(dim=0) > 0)
    on_it = [scaled(maps).gather(0, part[None])[0].clamp(0, 1).mul(255).round() * (part > 0) for maps in (u, v)]
    return torch.stack([part.float(), *on_it], dim=-1).to(torch.uint8)


def _stable_parts(clip: DecodedClip, parts: np.ndarray) -> tuple[int, int]:
    """Pixels of a body that have a successor, and those of the same part there. `parts`: uint8 [T, H, W]."""
    guide = guide_flow(clip)
    small = resize_nearest(parts[..., None], *guide.size_px)[..., 0]

    def counts(pair: int) -> tuple[int, int]:
        now, then = small[pair], warp(small[pair + 1], guide.forward[pair], nearest=True)
        either = guide.forward_valid[pair] & ((now > 0) | (then > 0))
        return int(np.count_nonzero(either)), int(np.count_nonzero(either & (now == then)))

    found = in_threads(counts, range(min(len(small) - 1, len(guide.forward))))
    return sum(body for body, _ in found), sum(same for _, same in found)
