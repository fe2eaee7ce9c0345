"""Annotators for `tests.benchmarks.annotators`: of their real sizes with random weights, or the tests' tiny ones.

Depth Anything V2 Small, RAFT large and SAM ViT-B are built by their libraries. No library builds DWPose and DensePose:
stand-ins take about as many operations (YOLOX-L 640x640 155 GFLOP per frame; RTMPose-L 384x288 about 19 per person;
DensePose R50-FPN at 800 px about 180 per frame and 30 per person), in plain 3x3 convolutions, and find the two persons
that `clip_frames` draws. Their speed is only an estimate of that of the real ones.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.modalities.skeleton import POINT_COUNT
from tests.moving_pictures import panned
from tests.onnx_files import Node, write_onnx

NAMES = ("depth_anything", "raft", "sam", "dwpose", "densepose")
STAND_INS = ("dwpose", "densepose")
PERSON_RGB = (40, 40, 200)
DETECTOR_PX, POSE_PX = 640, (384, 288)
STRIDES, CLASSES = (8, 16, 32), 80
DETECTOR_LAYERS, POSE_LAYERS, BACKBONE_LAYERS, HEAD_LAYERS = 19, 8, 8, 8
PARTS, SURFACE_PX, PERSONS = 25, 112, 2


def clip_frames(number: int, frames: int, height_px: int, width_px: int) -> np.ndarray:
    """uint8 [T, H, W, 3]: a texture that moves on its own path, with the marks of two persons."""
    path = [(2 * frame * (1 + number % 3), frame) for frame in range(frames)]
    found = panned(path, height_px, width_px)
    side = max(8, height_px // 12)
    for frame, image in enumerate(found):
        for left in (width_px // 4, width_px // 2):
            shift = left + frame * max(1, width_px // 800)
            image[height_px // 3 : height_px // 3 + side, shift : shift + side] = PERSON_RGB
    return found


def tiny(name: str, folder: Path) -> Annotator:
    """The annotator with the tiny checkpoint of its own test."""
    folder.mkdir()
    module = importlib.import_module(f"tests.annotators.test_{name}")
    operator: Annotator = module.contract_case(folder, panned([(0, 0)], 48, 64))[0]
    return operator


def full_depth_anything(folder: Path) -> Annotator:
    """Depth Anything V2 Small, random weights."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    from openuni.annotators.depth_anything import DepthAnything

    backbone = Dinov2Config(
        hidden_size=384,
        num_attention_heads=6,
        image_size=518,
        out_features=["stage3", "stage6", "stage9", "stage12"],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    sizes = {"reassemble_hidden_size": 384, "neck_hidden_sizes": [48, 96, 192, 384], "fusion_hidden_size": 64}
    DepthAnythingForDepthEstimation(DepthAnythingConfig(backbone_config=backbone, **sizes)).save_pretrained(folder)
    DPTImageProcessor(
        size={"height": 518, "width": 518}, keep_aspect_ratio=True, ensure_multiple_of=14, do_rescale=True
    ).save_pretrained(folder)
    return DepthAnything(checkpoint=str(folder))


def full_raft(folder: Path) -> Annotator:
    """RAFT large, random weights."""
    from torchvision.models.optical_flow import raft_large

    from openuni.annotators.raft import Raft

    torch.save(raft_large().state_dict(), folder / "raft.pth")
    return Raft(checkpoint=str(folder / "raft.pth"))


def full_sam(folder: Path) -> Annotator:
    """SAM ViT-B, random weights."""
    from segment_anything import sam_model_registry

    from openuni.annotators.sam import Sam

    torch.save(sam_model_registry["vit_b"]().state_dict(), folder / "sam.pth")
    return Sam(checkpoint=str(folder / "sam.pth"))


def full_dwpose(folder: Path) -> Annotator:
    """Stand-ins for YOLOX-L and RTMPose-L in ONNX."""
    from openuni.annotators.dwpose import DETECTOR_FILE, POSE_FILE, Dwpose

    _write_detector(folder / DETECTOR_FILE)
    _write_pose(folder / POSE_FILE)
    return Dwpose(checkpoint=str(folder))


def full_densepose(folder: Path) -> Annotator:
    """A stand-in for DensePose R50-FPN in TorchScript."""
    from openuni.annotators.densepose import Densepose

    path = folder / "densepose.torchscript"
    torch.jit.script(SurfaceNetwork().eval()).save(str(path))
    return Densepose(checkpoint=str(path))


FULL: dict[str, Callable[[Path], Annotator]] = {
    "depth_anything": full_depth_anything,
    "raft": full_raft,
    "sam": full_sam,
    "dwpose": full_dwpose,
    "densepose": full_densepose,
}


def build(name: str, folder: Path, checkpoint: Path | None, *, full: bool) -> Annotator:
    """The annotator: with a published checkpoint, of its real size with random weights, or tiny."""
    if checkpoint is not None:
        module = importlib.import_module(f"openuni.annotators.{name}")
        kind = next(
            one
            for one in vars(module).values()
            if getattr(one, "__module__", "") == module.__name__
            and isinstance(one, type)
            and issubclass(one, Annotator)
        )
        return kind(checkpoint=str(checkpoint))  # type: ignore[call-arg]
    if not full:
        return tiny(name, folder)
    folder.mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FULL[name](folder)


# ---------------------------------------------------------------------- DWPose


def _tower(source: str, layers: int, weights: dict[str, np.ndarray]) -> list[Node]:
    """Convolutions of 3x3: three that halve the size, up to 256 channels, then `layers` more. Ends as `carry`, 0."""
    rng, nodes, before = np.random.default_rng(0), [], source
    widths = [(3, 64, 2), (64, 128, 2), (128, 256, 2), *[(256, 256, 1)] * layers]
    for number, (given, made, stride) in enumerate(widths):
        kernel = rng.standard_normal((made, given, 3, 3)).astype(np.float32) * np.float32((2 / (9 * given)) ** 0.5)
        weights[f"w{number}"] = kernel / np.float32(255 if not number else 1)
        attributes = {"kernel_shape": (3, 3), "strides": (stride, stride), "pads": (1, 1, 1, 1)}
        nodes.append(Node("Conv", [before, f"w{number}"], [f"c{number}"], attributes))
        nodes.append(Node("Relu", [f"c{number}"], [f"r{number}"]))
        before = f"r{number}"
    weights["nought"] = np.array([0], np.float32)
    nodes.append(Node("ReduceMean", [before], ["mean_of_tower"], {"axes": (1, 2, 3), "keepdims": 1}))
    return [*nodes, Node("Mul", ["mean_of_tower", "nought"], ["carry"])]


def _write_detector(path: Path) -> None:
    """[N, 3, 640, 640] BGR -> [N, 8400, 85]: a person where a cell of 8 px has `PERSON_RGB`."""
    side = DETECTOR_PX
    cells = [(side // stride) ** 2 for stride in STRIDES]
    place = np.zeros((1, 4, 1), np.float32)
    place[0, :, 0] = (0.5, 0.5, np.log(120 / 8), np.log(240 / 8))  # box of 120 x 240 px
    classes = np.zeros((1, CLASSES, 1), np.float32)
    classes[0, 0] = 1
    weights = {
        "colour": np.array(PERSON_RGB[::-1], np.float32).reshape(1, 3, 1, 1),
        "scale": np.array([-10 / 255], np.float32),
        "one": np.array([1], np.float32),
        "zero": np.array([0], np.float32),
        "flat": np.array([0, 1, -1], np.int64),
        "place": np.repeat(place, cells[0], axis=2),
        "classes": np.repeat(classes, cells[0], axis=2),
        "none": np.zeros((1, 5 + CLASSES, cells[1] + cells[2]), np.float32),
        "last": np.array([2], np.int64),
    }
    nodes = [
        *_tower("pictures", DETECTOR_LAYERS, weights),
        Node("Sub", ["pictures", "colour"], ["off"]),
        Node("Abs", ["off"], ["far"]),
        Node("AveragePool", ["far"], ["pooled"], {"kernel_shape": (8, 8), "strides": (8, 8)}),
        Node("ReduceMean", ["pooled"], ["mean"], {"axes": (1,), "keepdims": 1}),
        Node("Mul", ["mean", "scale"], ["minus"]),
        Node("Add", ["minus", "one"], ["raw"]),
        Node("Add", ["raw", "carry"], ["carried"]),
        Node("Max", ["carried", "zero"], ["sure4"]),
        Node("Reshape", ["sure4", "flat"], ["sure"]),
        Node("Mul", ["sure", "zero"], ["nothing"]),
        Node("Add", ["nothing", "place"], ["places"]),
        Node("Add", ["nothing", "classes"], ["kinds"]),
        Node("Concat", ["places", "sure", "kinds"], ["fine"], {"axis": 1}),
        Node("ReduceSum", ["nothing", "last"], ["still"], {"keepdims": 1}),
        Node("Add", ["still", "none"], ["coarse"]),
        Node("Concat", ["fine", "coarse"], ["upright"], {"axis": 2}),
        Node("Transpose", ["upright"], ["found"], {"perm": (0, 2, 1)}),
    ]
    write_onnx(path, nodes, weights, {"pictures": ("n", 3, side, side)}, {"found": ("n", sum(cells), 5 + CLASSES)})


def _write_pose(path: Path) -> None:
    """[N, 3, 384, 288] -> [N, 133, 576], [N, 133, 768]: each point where the crop is brightest in its own colour."""
    height, width = POSE_PX
    rng = np.random.default_rng(1)
    weights = {
        "kernel": (rng.standard_normal((POINT_COUNT, 3, 1, 1)) / 10).astype(np.float32),
        "bias": np.full(POINT_COUNT, 0.5, np.float32),
        "third": np.array([3], np.int64),
        "across": np.array([0, POINT_COUNT, 2 * width], np.int64),
        "down": np.array([0, POINT_COUNT, 2 * height], np.int64),
    }
    nodes = [
        *_tower("crops", POSE_LAYERS, weights),
        Node("Conv", ["crops", "kernel", "bias"], ["plain"], {"kernel_shape": (1, 1)}),
        Node("Add", ["plain", "carry"], ["much"]),
        Node("ReduceMax", ["much"], ["columns"], {"axes": (2,), "keepdims": 0}),
        Node("ReduceMax", ["much"], ["rows"], {"axes": (3,), "keepdims": 0}),
    ]
    for name, target in (("columns", "across"), ("rows", "down")):
        nodes += [
            Node("Unsqueeze", [name, "third"], [f"{name}1"]),
            Node("Concat", [f"{name}1", f"{name}1"], [f"{name}2"], {"axis": 3}),
            Node("Reshape", [f"{name}2", target], [f"simcc_{target}"]),
        ]
    outputs = {"simcc_across": ("n", POINT_COUNT, 2 * width), "simcc_down": ("n", POINT_COUNT, 2 * height)}
    write_onnx(path, nodes, weights, {"crops": ("n", 3, height, width)}, outputs)


# ---------------------------------------------------------------------- DensePose


def _convolutions(widths: list[tuple[int, int, int]]) -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    for given, made, stride in widths:
        layers += [torch.nn.Conv2d(given, made, 3, stride, 1), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers)


class SurfaceNetwork(torch.nn.Module):
    """uint8 or float [3, H, W] BGR -> boxes [2, 4], and maps [2, C, 112, 112] of two persons."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = _convolutions([(3, 64, 2), (64, 128, 2), (128, 256, 2), *[(256, 256, 1)] * BACKBONE_LAYERS])
        self.head = _convolutions([(256, 512, 1), *[(512, 512, 1)] * (HEAD_LAYERS - 1)])
        self.maps = torch.nn.Conv2d(512, 2 + 3 * PARTS, 1)
        with torch.no_grad():
            assert self.maps.bias is not None
            self.maps.bias[[1, 2 + 3]] += 10.0  # a body everywhere in the box, of part 3

    def forward(
        self, image: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """See the class."""
        height, width = image.shape[1], image.shape[2]
        scale = 800.0 / float(min(height, width))
        size = [int(height * scale), int(width * scale)]
        pixels = image.to(self.maps.weight.dtype)[None] / 255.0
        pixels = torch.nn.functional.interpolate(pixels, size, mode="bilinear", align_corners=False)
        features = self.backbone(pixels)
        crop = torch.nn.functional.interpolate(features, [28, 28], mode="bilinear", align_corners=False)
        maps = self.maps(self.head(crop.expand(2, -1, -1, -1)))
        maps = torch.nn.functional.interpolate(maps, [112, 112], mode="bilinear", align_corners=False)
        left, top = 0.2 * float(width), 0.2 * float(height)
        one = [left, top, left + 0.2 * float(width), top + 0.6 * float(height)]
        other = [2.5 * left, top, 2.5 * left + 0.2 * float(width), top + 0.6 * float(height)]
        boxes = torch.tensor([one, other], dtype=torch.float32, device=image.device)
        return boxes, maps[:, :2], maps[:, 2:27], maps[:, 27:52], maps[:, 52:77]


def parameters_of(model: Any) -> float:
    """Millions of parameters of the torch modules in a loaded model."""
    from tests.benchmarks.annotator_measures import modules_in

    return sum(one.numel() for module in modules_in(model) for one in module.parameters()) / 1e6
