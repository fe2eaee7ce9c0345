"""ONNX graphs run by PyTorch: equal to onnxruntime, without waits for the device, clear about what is not supported."""

from pathlib import Path

import numpy as np
import pytest
import torch

from openuni.annotators._onnx import OnnxNetwork
from openuni.annotators._onnx_graph import read_graph
from openuni.annotators._onnx_torch import TorchGraph
from openuni.annotators.dwpose import DETECTOR_FILE, POSE_FILE, Dwpose
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import OpenUniError
from tests.annotators.people_networks import write_networks
from tests.annotators.test_dwpose import frame_with
from tests.device_waits import Waits
from tests.onnx_files import Node, tensor_elsewhere, write_onnx

SIDES = (2, 6, 8, 10)
RANDOM = np.random.default_rng(0)


def integers(*values):
    return np.array(values, np.int64)


def floats(*sides):
    return RANDOM.normal(size=sides).astype(np.float32)


def compare(path, images, outputs=1):
    """Both libraries on one file, and the waits of ours."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options)
    theirs = session.run(None, {session.get_inputs()[0].name: images})
    graph = TorchGraph(Path(path), "cpu")
    given = torch.from_numpy(images.copy())
    with torch.inference_mode(), Waits() as waits:
        ours = graph(given)
    assert not waits.counts
    assert len(ours) == len(theirs) == outputs
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine.shape == expected.shape
        np.testing.assert_allclose(mine.numpy(), expected, rtol=1e-5, atol=1e-5)


# name -> nodes from "x" to "y", weights
GRAPHS = {
    "conv with uneven padding, groups and dilation": (
        [
            Node(
                "Conv",
                ["x", "k", "b"],
                ["y"],
                {"pads": (1, 0, 2, 1), "group": 2, "strides": (2, 1), "dilations": (1, 2)},
            )
        ],
        {"k": floats(4, 3, 3, 3), "b": floats(4)},
    ),
    "pools": (
        [
            Node("MaxPool", ["x"], ["a"], {"kernel_shape": (5, 5), "pads": (2, 2, 2, 2)}),
            Node("MaxPool", ["x"], ["b"], {"kernel_shape": (2, 3), "strides": (1, 1), "pads": (1, 0, 0, 2)}),
            Node("AveragePool", ["x"], ["c"], {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1)}),
            Node("GlobalAveragePool", ["x"], ["d"]),
            Node("Add", ["a", "b"], ["e"]),
            Node("Add", ["e", "c"], ["f"]),
            Node("Mul", ["f", "d"], ["y"]),
        ],
        {},
    ),
    "focus, upsampling and concatenation": (
        [
            Node("Slice", ["x", "zero", "last", "rows", "two"], ["a"]),
            Node("Slice", ["x", "one", "last", "rows", "two"], ["b"]),
            Node("Concat", ["a", "b"], ["c"], {"axis": 1}),
            Node(
                "Resize",
                ["c", "", "scales"],
                ["y"],
                {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
            ),
        ],
        {
            "zero": integers(0),
            "one": integers(1),
            "two": integers(2),
            "last": integers(2**63 - 1),
            "rows": integers(2),
            "scales": np.array([1, 1, 2, 3], np.float32),
        },
    ),
    "shapes computed by the graph": (
        [
            Node("Shape", ["x"], ["shape"]),
            Node("Slice", ["shape", "zero", "two"], ["front"]),
            Node("Concat", ["front", "rest"], ["wanted"], {"axis": 0}),
            Node("Reshape", ["x", "wanted"], ["flat"]),
            Node("Gather", ["shape", "axis"], ["batch"], {"axis": 0}),
            Node("Unsqueeze", ["batch", "zero"], ["batches"]),
            Node("Concat", ["batches", "ones"], ["big"], {"axis": 0}),
            Node("Expand", ["row", "big"], ["rows"]),
            Node("Add", ["flat", "rows"], ["y"]),
        ],
        {
            "zero": integers(0),
            "two": integers(2),
            "rest": integers(-1),
            "axis": np.array(0, np.int64),
            "ones": integers(1, 80),
            "row": floats(1, 1, 80),
        },
    ),
    "scale norm and attention": (
        [
            Node("Reshape", ["x", "tokens"], ["t"]),
            Node("ReduceL2", ["t"], ["n"], {"axes": (-1,), "keepdims": 1}),
            Node("Clip", ["n", "low"], ["c"]),
            Node("Div", ["t", "c"], ["d"]),
            Node("MatMul", ["d", "w"], ["uv"]),
            Node("Split", ["uv", "parts"], ["u", "v"], {"axis": 2}),
            Node("Transpose", ["v"], ["vt"], {"perm": (0, 2, 1)}),
            Node("MatMul", ["v", "vt"], ["k"]),
            Node("Relu", ["k"], ["r"]),
            Node("Pow", ["r", "square"], ["s"]),
            Node("Softmax", ["s"], ["soft"], {"axis": -1}),
            Node("MatMul", ["soft", "u"], ["y"]),
        ],
        {
            "tokens": integers(0, 6, 80),
            "low": np.array(1e-5, np.float32),
            "w": floats(80, 24),
            "parts": integers(16, 8),
            "square": np.array(2, np.float32),
        },
    ),
    "gates": (
        [
            Node("HardSigmoid", ["x"], ["a"]),
            Node("Sigmoid", ["x"], ["b"]),
            Node("LeakyRelu", ["x"], ["d"]),
            Node("Tanh", ["d"], ["e"]),
            Node("Max", ["a", "b", "x"], ["f"]),
            Node("Min", ["f", "e"], ["g"]),
            Node("Clip", ["g", "", "high"], ["y"]),
        ],
        {"high": np.array(0.5, np.float32)},
    ),
    "normalization, reductions, squeezing": (
        [
            Node("BatchNormalization", ["x", "s", "b", "m", "v"], ["n"]),
            Node("ReduceMean", ["n"], ["a"], {"axes": (2,), "keepdims": 1}),
            Node("ReduceMin", ["n"], ["c"], {"axes": (3,), "keepdims": 0}),
            Node("Squeeze", ["a", "two"], ["d"]),
            Node("ReduceSum", ["c", "two"], ["e"], {"keepdims": 1}),
            Node("Sub", ["d", "e"], ["f"]),
            Node("Flatten", ["f"], ["g"]),
            Node("Gemm", ["g", "w", "o"], ["y"], {"transB": 1}),
        ],
        {
            "s": floats(6),
            "b": floats(6),
            "m": floats(6),
            "v": np.abs(floats(6)) + 1,
            "two": integers(2),
            "w": floats(5, 60),
            "o": floats(5),
        },
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_operators_are_those_of_onnxruntime(tmp_path, name):
    nodes, weights = GRAPHS[name]
    path = write_onnx(tmp_path / "net.onnx", nodes, weights, {"x": ("n", *SIDES[1:])}, {"y": ()})
    for batch in (1, 3):
        compare(path, floats(batch, *SIDES[1:]))


def test_both_networks_are_those_of_onnxruntime(tmp_path):
    write_networks(tmp_path)
    compare(tmp_path / DETECTOR_FILE, floats(3, 3, 128, 160) * 60 + 100)
    compare(tmp_path / POSE_FILE, floats(3, 3, 96, 72), outputs=2)


def test_skeletons_are_the_same_with_either_library(tmp_path):
    write_networks(tmp_path)
    frames = np.stack([frame_with((4 + n % 3, 5), (15, 9)) if n % 4 else frame_with() for n in range(19)])
    found = []
    for backend in ("onnxruntime", "torch"):
        operator = Dwpose(checkpoint=str(tmp_path), backend=backend)
        found.append(operator.run(operator.load("cpu"), DecodedClip.from_frames(frames)))
    assert found[0].persons_max == 2
    np.testing.assert_allclose(found[0].skeleton.array, found[1].skeleton.array, atol=1e-5)
    assert found[0][1:] == pytest.approx(found[1][1:], abs=1e-5)
    assert Dwpose(checkpoint=str(tmp_path), backend="torch").version() == Dwpose(checkpoint=str(tmp_path)).version()


def test_waits_for_the_device_are_one_per_batch_and_output(tmp_path):
    write_networks(tmp_path)
    clip = DecodedClip.from_frames(np.stack([frame_with((4, 5), (15, 9))] * 12))
    counts = []
    for size in (4, 12):
        operator = Dwpose(checkpoint=str(tmp_path), backend="torch", frames_per_batch=size)
        model = operator.load("cpu")
        with Waits() as waits:
            operator.run(model, clip)
        counts.append(waits.counts["cpu"])
        assert waits.counts.keys() == {"cpu", "from_numpy"}
        assert waits.counts["from_numpy"] <= counts[-1] + 1  # images, and the table of levels
    assert counts == [3 + 6 * 2, 1 + 2 * 2]  # 12 frames and 24 persons; the pose network has two outputs


def test_images_are_prepared_in_batches_of_four_times_the_size_on_a_gpu(tmp_path):
    write_networks(tmp_path)
    network = OnnxNetwork(tmp_path / POSE_FILE, "cpu", "torch")
    assert network.batch_size(4) == 4
    network.device = "cuda"
    assert network.batch_size(4) == 16
    write_networks(tmp_path, batch=3)
    assert OnnxNetwork(tmp_path / POSE_FILE, "cpu", "torch").batch_size(4) == 3


def test_what_is_not_supported_is_said_with_what_to_do(tmp_path):
    sides, path = {"x": SIDES}, tmp_path / "net.onnx"
    write_onnx(path, [Node("Erf", ["x"], ["a"]), Node("Sin", ["a"], ["y"])], {}, sides, {"y": SIDES})
    with pytest.raises(OpenUniError, match=r'counterpart here: Erf, Sin\. Use .*backend = "onnxruntime"'):
        OnnxNetwork(path, "cpu", "torch")
    write_onnx(
        path,
        [Node("Slice", ["x", "from", "to", "axis", "step"], ["y"])],
        {"from": integers(-1), "to": integers(-9), "axis": integers(2), "step": integers(-1)},
        sides,
        {"y": SIDES},
    )
    with pytest.raises(OpenUniError, match=r'Slice backwards is not supported\. Use backend = "onnxruntime"'):
        TorchGraph(path, "cpu")(torch.zeros(SIDES))


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "elsewhere"])
def test_files_that_are_no_graphs_are_refused(tmp_path, damage):
    path = tmp_path / "net.onnx"
    extra = tensor_elsewhere("far", (1, 1, 1, 4), "../secret.bin") if damage == "elsewhere" else b""
    write_onnx(path, [Node("Add", ["x", "x"], ["y"])], {"w": floats(3, 5)}, {"x": SIDES}, {"y": SIDES}, extra)
    assert damage == "elsewhere" or read_graph(path).weights["w"].shape == (3, 5)
    data = {"truncated": path.read_bytes()[:-40], "text": b"not a network", "empty": b""}
    path.write_bytes(data.get(damage, path.read_bytes()))
    with pytest.raises(OpenUniError, match=r"cannot be read as ONNX .*Use an ONNX file"):
        read_graph(path)


@pytest.mark.parametrize("seed", range(3))
def test_damaged_bytes_end_in_an_error_that_says_so(tmp_path, seed):
    write_networks(tmp_path)
    sound = bytearray((tmp_path / POSE_FILE).read_bytes())
    rng, path = np.random.default_rng(seed), tmp_path / "damaged.onnx"
    for _ in range(100):
        data = bytearray(sound)
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            read_graph(path)
        except OpenUniError as error:
            assert "cannot be read as ONNX" in str(error)
