"""Networks for DWPose made by hand, in ONNX: what they find is known from the colours of the picture.

The detector sees a person where a cell of 8 px is all `PERSON_BGR`; the pose network puts each of its points on the
pixel that has most of the point's colour.
"""

from pathlib import Path

import numpy as np

from openuni.manifests.modalities.skeleton import POINT_COUNT
from tests.onnx_files import Node, write_onnx

PERSON_BGR = (200, 40, 40)  # blue: told apart from red, so that a swap of channels is seen
POINT_BGR = ((255, 0, 0), (0, 255, 0), (0, 0, 255))  # of points 0, 3, ...; 1, 4, ...; 2, 5, ...
STRIDES = (8, 16, 32)
CLASSES = 80
DETECTOR_PX, POSE_PX = (128, 160), (96, 72)  # height, width of the networks' inputs


def write_networks(folder: Path, box_px: tuple[float, float] = (40, 64), batch: int | str = "n") -> str:
    """Both files by their published names; `box_px`: width and height of all boxes, in the detector's input."""
    write_detector(folder / "yolox_l.onnx", box_px, batch)
    write_pose(folder / "dw-ll_ucoco_384.onnx", batch)
    return str(folder)


def write_detector(path: Path, box_px: tuple[float, float], batch: int | str = "n") -> str:
    """[N, 3, 128, 160] -> [N, 420, 85]: of the finest grid each cell has a box in its middle, the coarser have none.

    Objectness is 1 less the mean distance of the cell's colour from `PERSON_BGR` in tenths of 255; class 0 is certain.
    """
    height, width = DETECTOR_PX
    cells = [(height // stride) * (width // stride) for stride in STRIDES]
    here = np.zeros((1, 4, 1), np.float32)
    here[0, :, 0] = (0.5, 0.5, np.log(box_px[0] / 8), np.log(box_px[1] / 8))
    classes = np.zeros((1, CLASSES, 1), np.float32)
    classes[0, 0] = 1
    weights = {
        "colour": np.array(PERSON_BGR, np.float32).reshape(1, 3, 1, 1),
        "scale": np.array([-10 / 255], np.float32),
        "one": np.array([1], np.float32),
        "zero": np.array([0], np.float32),
        "axis": np.array([1], np.int64),
        "flat": np.array([0, 1, -1], np.int64),
        "place": np.repeat(here, cells[0], axis=2),
        "classes": np.repeat(classes, cells[0], axis=2),
        "none": np.zeros((1, 5 + CLASSES, cells[1] + cells[2]), np.float32),
    }
    nodes = [
        Node("Sub", ["pictures", "colour"], ["off"]),
        Node("Abs", ["off"], ["far"]),
        Node("AveragePool", ["far"], ["pooled"], {"kernel_shape": (8, 8), "strides": (8, 8)}),
        Node("ReduceMean", ["pooled"], ["mean"], {"axes": (1,), "keepdims": 1}),
        Node("Mul", ["mean", "scale"], ["minus"]),
        Node("Add", ["minus", "one"], ["raw"]),
        Node("Max", ["raw", "zero"], ["sure4"]),
        Node("Reshape", ["sure4", "flat"], ["sure"]),  # [N, 1, cells]
        Node("Mul", ["sure", "zero"], ["nothing"]),  # carries the batch
        Node("Add", ["nothing", "place"], ["places"]),
        Node("Add", ["nothing", "classes"], ["kinds"]),
        Node("Concat", ["places", "sure", "kinds"], ["fine"], {"axis": 1}),
        Node("ReduceSum", ["nothing", "last"], ["still"], {"keepdims": 1}),
        Node("Add", ["still", "none"], ["coarse"]),
        Node("Concat", ["fine", "coarse"], ["upright"], {"axis": 2}),
        Node("Transpose", ["upright"], ["found"], {"perm": (0, 2, 1)}),
    ]
    weights["last"] = np.array([2], np.int64)
    shape = (batch, sum(cells), 5 + CLASSES)
    return write_onnx(path, nodes, weights, {"pictures": (batch, 3, height, width)}, {"found": shape})


def write_pose(path: Path, batch: int | str = "n", points: int = POINT_COUNT) -> str:
    """[N, 3, 96, 72] -> [N, 133, 144], [N, 133, 192]: of each column and row the most of the point's colour in it.

    The input is normalised; the network takes that back, since its colours are plain.
    """
    height, width = POSE_PX
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    colours = np.array([POINT_BGR[number % 3] for number in range(points)], np.float64) * 2 / 255 - 1  # and no other
    kernel = (colours * std / 765).astype(np.float32).reshape(points, 3, 1, 1)
    bias = (colours * mean / 765).sum(axis=1).astype(np.float32)
    weights = {
        "kernel": kernel,
        "bias": bias,
        "last": np.array([3], np.int64),
        "across": np.array([0, points, 2 * width], np.int64),
        "down": np.array([0, points, 2 * height], np.int64),
    }
    nodes = [
        Node("Conv", ["crops", "kernel", "bias"], ["much"], {"kernel_shape": (1, 1)}),
        Node("ReduceMax", ["much"], ["columns"], {"axes": (2,), "keepdims": 0}),
        Node("ReduceMax", ["much"], ["rows"], {"axes": (3,), "keepdims": 0}),
    ]
    for name, target in (("columns", "across"), ("rows", "down")):  # two bins a pixel, equal: the first is the centre
        nodes += [
            Node("Unsqueeze", [name, "last"], [f"{name}1"]),
            Node("Concat", [f"{name}1", f"{name}1"], [f"{name}2"], {"axis": 3}),
            Node("Reshape", [f"{name}2", target], [f"simcc_{target}"]),
        ]
    outputs = {"simcc_across": (batch, points, 2 * width), "simcc_down": (batch, points, 2 * height)}
    return write_onnx(path, nodes, weights, {"crops": (batch, 3, height, width)}, outputs)
