"""DWPose: keypoints and persons of known pictures are recovered; files, devices and options are validated."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from openuni.annotators import _onnx
from openuni.annotators._onnx import OnnxNetwork, OutOfMemoryError
from openuni.annotators._simcc import peaks
from openuni.annotators._yolox import persons
from openuni.annotators.dwpose import DETECTOR_FILE, POSE_FILE, REPOSITORY, Dwpose
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import MissingRequirement, OpenUniError
from openuni.manifests.modalities._stick_figure import draw
from tests import operator_contract as contract
from tests.annotators.people_networks import PERSON_BGR, POINT_BGR, write_detector, write_networks, write_pose
from tests.onnx_files import Node, tensor_elsewhere, write_onnx

HEIGHT, WIDTH = 256, 320  # twice the detector's input, so that its ratio is 0.5
DOTS = ((-20, -30), (14, 8), (6, 41))  # of the three colours, from the middle of the marker, px


def contract_case(folder, frames):
    """What tests/test_every_operator.py runs: hand-made networks in ONNX, and persons added to the frames."""
    if not (folder / DETECTOR_FILE).exists():
        write_networks(folder)
    shown = frames.copy()
    for number, frame in enumerate(shown):
        frame[8:24, 8 + 2 * number : 28 + 2 * number] = PERSON_BGR[::-1]
    return Dwpose(checkpoint=str(folder)), DecodedClip.from_frames(shown)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("dwpose")
    write_networks(place)
    return place


def frame_with(*cells, shift=(0, 0)):
    """uint8 [256, 320, 3] RGB: black, and at each cell (column, row; 16 px each) a person: a marker and three dots.

    `shift`: of the dots to the right and down, px.
    """
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for column, row in cells:
        frame[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = PERSON_BGR[::-1]
        for (right, down), colour in zip(DOTS, POINT_BGR, strict=True):
            x, y = 16 * column + 8 + right + shift[0], 16 * row + 8 + down + shift[1]
            frame[y - 1 : y + 2, x - 1 : x + 2] = np.array(colour[::-1]) * 0.95  # brightest in the middle
            frame[y, x] = colour[::-1]
    return frame


def truth(cell, shift=(0, 0)):
    """Centres of a person's dots: pixel x has its centre at x + 0.5."""
    return np.array(DOTS) + 16 * np.array(cell) + 8.5 + shift


def annotate(operator, frames):
    return operator.run(operator.load("cpu"), DecodedClip.from_frames(np.stack(frames)))


# ---------------------------------------------------------------------- persons and points


def test_points_come_out_where_they_are_and_persons_keep_their_place(folder):
    ways = [[(4, 5), (5, 5), (6, 5), (7, 5)], [(15, 9), (15, 9), (14, 9), (14, 9)]]
    found = annotate(Dwpose(checkpoint=str(folder)), [frame_with(*cells) for cells in zip(*ways, strict=True)])
    array = found.skeleton.array
    assert array.shape == (4, 2, 133, 3)
    assert found.skeleton.size_px == (HEIGHT, WIDTH)
    for frame, person in itertools.product(range(4), range(2)):
        points = array[frame, person]
        assert points[:3, 2] == pytest.approx([1 / 3] * 3, abs=0.025)  # what these networks say of such dots
        np.testing.assert_allclose(points[:3, :2], truth(ways[person][frame]), atol=1.0)  # a crop's pixel is 1.39 px
        np.testing.assert_array_equal(points[3:6], points[:3])
    assert found.persons_max == found.identity_count == 2
    assert (found.persons_mean, found.person_share, found.relink_count) == (2.0, 1.0, 0)
    assert found.confidence_mean == pytest.approx(float(array[..., 2].mean()), abs=1e-6)
    # boxes are 40 x 64 px of the detector's input, which is half as large as the frame
    assert found.box_share == pytest.approx(80 * 128 / (WIDTH * HEIGHT), rel=1e-5)


def test_the_mean_error_over_many_places_has_no_bias(folder):
    shifts = list(itertools.product(range(-5, 6), range(-3, 3)))
    frames = [frame_with((8, 7), shift=shift) for shift in shifts]
    array = annotate(Dwpose(checkpoint=str(folder)), frames).skeleton.array
    errors = array[:, 0, :3, :2] - np.stack([truth((8, 7), shift) for shift in shifts])
    assert np.abs(errors).max() < 1.0
    assert np.abs(errors.mean(axis=(0, 1))).max() < 0.1  # a forgotten half pixel would be 0.5


def test_the_drawing_shows_a_point_on_its_pixel(folder):
    skeleton = annotate(Dwpose(checkpoint=str(folder)), [frame_with((8, 7))]).skeleton
    alone = np.zeros((1, 133, 3), np.float32)
    alone[0, 2] = skeleton.array[0, 0, 2]  # an eye
    light = draw(alone, HEIGHT, WIDTH).sum(axis=-1)
    rows, columns = np.nonzero(light == light.max())
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx(truth((8, 7))[2], abs=1.0)


def test_nobody_is_nobody(folder):
    found = annotate(Dwpose(checkpoint=str(folder)), [np.zeros((HEIGHT, WIDTH, 3), np.uint8)] * 3)
    assert found.skeleton.array.shape == (3, 0, 133, 3)
    assert found[1:] == (0, 0.0, 0, 0.0, None, None, None, 0, None)
    assert not found.skeleton.to_rgb().any()


def test_in_frames_without_the_person_there_is_nothing(folder):
    cells = [[(6, 6)], [(6, 6)], [], [(6, 6)], []]
    found = annotate(Dwpose(checkpoint=str(folder)), [frame_with(*there) for there in cells])
    array = found.skeleton.array
    assert array.shape[1] == 1
    assert array[..., 2].any(axis=(1, 2)).tolist() == [True, True, False, True, False]
    assert not array[[2, 4]].any()
    assert (found.person_share, found.relink_count, found.identity_count) == (0.6, 1, 1)
    apart = annotate(Dwpose(checkpoint=str(folder), max_gap_s=0.0), [frame_with(*there) for there in cells])
    assert (apart.skeleton.array.shape[1], apart.relink_count, apart.identity_count) == (2, 0, 2)


def test_persons_beyond_the_cap_are_those_seen_least(folder):
    cells = [[(4, 5), (15, 9), (10, 8)], [(4, 5), (15, 9)], [(4, 5)]]
    found = annotate(Dwpose(checkpoint=str(folder), max_persons=2), [frame_with(*there) for there in cells])
    assert (found.persons_max, found.identity_count) == (3, 3)
    assert found.skeleton.array.shape[1] == 2
    assert found.skeleton.array[..., 2].any(axis=2).tolist() == [[True, True], [True, True], [True, False]]
    np.testing.assert_allclose(found.skeleton.array[0, 0, 0, :2], truth((4, 5))[0], atol=1.0)


def test_jitter_is_zero_for_an_even_motion_and_grows_with_noise(folder):
    even = [(4 + step, 6) for step in range(4)]
    uneven = [(4 + step, 6) for step in (0, 2, 0, 2)]
    found = [annotate(Dwpose(checkpoint=str(folder)), [frame_with(cell) for cell in way]) for way in (even, uneven)]
    size_px = np.sqrt(80 * 128)
    assert found[0].jitter_ratio == pytest.approx(0, abs=1.5 / size_px)
    assert found[1].identity_count == 1
    assert found[1].jitter_ratio == pytest.approx(64 / size_px, abs=3 / size_px)  # 32 px there, 32 back
    assert annotate(Dwpose(checkpoint=str(folder)), [frame_with(cell) for cell in even[:2]]).jitter_ratio is None


def test_the_pose_network_sees_blue_green_red_unless_told_otherwise(folder):
    points = [
        annotate(Dwpose(checkpoint=str(folder), channels=order), [frame_with((8, 7))]).skeleton.array[0, 0, :3, :2]
        for order in ("bgr", "rgb")
    ]
    np.testing.assert_allclose(points[1][[0, 2]], points[0][[2, 0]], atol=1.0)  # red and blue have changed places
    assert np.abs(points[1][0] - points[0][0]).max() > 20


@pytest.mark.parametrize("batch", [1, 3])
def test_batches_do_not_change_the_result(folder, tmp_path, batch):
    write_networks(tmp_path, batch=batch)  # the graph's own number; the last pass is filled up
    frames = [frame_with((4, 5), (15, 9)), frame_with((5, 5)), frame_with((6, 5)), frame_with()]
    fixed = annotate(Dwpose(checkpoint=str(tmp_path)), frames)
    for size in (1, 2, 8):
        free = annotate(Dwpose(checkpoint=str(folder), frames_per_batch=size), frames)
        np.testing.assert_allclose(free.skeleton.array, fixed.skeleton.array, atol=1e-4)
        assert free[1:5] == fixed[1:5]


# ---------------------------------------------------------------------- files and devices


def test_cuda_is_asserted_and_never_replaced_in_silence(folder):
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime has CUDA here")
    with pytest.raises(
        MissingRequirement,
        match=r'CUDAExecutionProvider is not available.*backend = "torch".*provider = .*onnxruntime-gpu',
    ):
        Dwpose(checkpoint=str(folder), backend="onnxruntime").load("cuda")
    assert Dwpose(checkpoint=str(folder), provider="cpu").load("cuda").pose.session.get_providers() == [
        "CPUExecutionProvider"
    ]


def test_a_session_that_went_to_the_cpu_by_itself_is_refused():
    """What onnxruntime-gpu does when CUDA's libraries do not load: the session is there, on the CPU."""
    with pytest.raises(MissingRequirement, match=r"only CPUExecutionProvider \(its CUDA libraries"):
        _onnx.require_provider("CUDAExecutionProvider", ["CPUExecutionProvider"], "its CUDA libraries are missing")
    _onnx.require_provider("CUDAExecutionProvider", ["CUDAExecutionProvider", "CPUExecutionProvider"], "")
    assert [name for name, _ in _onnx.providers_of("cuda:1")] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert _onnx.providers_of("cuda:1")[0][1]["device_id"] == "1"
    with pytest.raises(OpenUniError, match=r'"mps" is not supported by onnxruntime\. Allowed: "cpu", "cuda"'):
        _onnx.providers_of("mps")


def test_threads_are_the_workers_share(folder, monkeypatch):
    monkeypatch.setenv("OPENUNI_THREADS", "3")
    session = OnnxNetwork(folder / POSE_FILE, "cpu").session
    options = session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.use_deterministic_compute
    assert not session._enable_fallback  # a pass that fails on a GPU is not done again on the CPU


@pytest.mark.parametrize("where", ["beside", "above", "absolute", "link", "memory"])
def test_weights_in_other_files_are_never_read(tmp_path, where, monkeypatch):
    secret = np.arange(1, 5, dtype=np.float32)
    (tmp_path / "models").mkdir()
    for place in (tmp_path / "secret.bin", tmp_path / "models" / "beside.bin"):
        secret.tofile(place)
    (tmp_path / "models" / "link.bin").symlink_to(tmp_path / "secret.bin")
    monkeypatch.chdir(tmp_path / "models")
    locations = {
        "beside": "beside.bin",
        "above": "../secret.bin",
        "absolute": str(tmp_path / "secret.bin"),
        "link": "link.bin",
        "memory": "*/_ORT_MEM_ADDR_/*",
    }
    offset = secret.ctypes.data if where == "memory" else 0
    far = tensor_elsewhere("far", (1, 1, 1, 4), locations[where], offset)
    path = tmp_path / "models" / "evil.onnx"
    sides = {"pictures": (1, 1, 1, 4)}
    write_onnx(path, [Node("Add", ["pictures", "far"], ["sum"])], {}, sides, {"sum": (1, 1, 1, 4)}, far)
    with pytest.raises(OpenUniError, match="cannot be loaded: damaged, not ONNX, or with external weights"):
        OnnxNetwork(path, "cpu")
    if where == "beside":  # the file is sound otherwise: onnxruntime by itself reads the weights
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        assert session.run(None, {"pictures": np.zeros((1, 1, 1, 4), np.float32)})[0].ravel().tolist() == [1, 2, 3, 4]


def test_a_batch_that_does_not_fit_has_the_name_that_halves_it(tmp_path):
    weights = {"huge": np.array([1, 1 << 22, 1 << 22, 4], np.int64)}  # 256 TB
    shape = (1, "a", "b", 4)
    nodes = [Node("Expand", ["pictures", "huge"], ["much"])]
    path = tmp_path / "huge.onnx"
    write_onnx(path, nodes, weights, {"pictures": (1, 1, 1, 4)}, {"much": shape})
    with pytest.raises(OutOfMemoryError) as caught:
        list(OnnxNetwork(path, "cpu").each([np.zeros((1, 4, 1), np.uint8)], lambda picture: picture, 1))
    assert isinstance(caught.value, RuntimeError) and type(caught.value).__name__ == "OutOfMemoryError"


def test_other_networks_are_refused_with_what_is_needed(tmp_path):
    write_networks(tmp_path)
    write_pose(tmp_path / "body.onnx", points=17)
    with pytest.raises(OpenUniError, match=r"x and y of 133 points as two outputs.*Use such a file as pose_file"):
        Dwpose(checkpoint=str(tmp_path), pose_file="body.onnx").load("cpu")
    with pytest.raises(
        OpenUniError, match=r"expected one output \[batch, 138, 85\] from a YOLOX export without built-in NMS"
    ):
        Dwpose(checkpoint=str(tmp_path), detector_file=POSE_FILE, pose_file=DETECTOR_FILE).load("cpu")
    (tmp_path / "damaged.onnx").write_bytes((tmp_path / POSE_FILE).read_bytes()[:900])
    with pytest.raises(OpenUniError, match=r"damaged\.onnx cannot be loaded: damaged"):
        Dwpose(checkpoint=str(tmp_path), pose_file="damaged.onnx").load("cpu")
    with pytest.raises(MissingRequirement, match=r"other\.onnx not found in"):
        Dwpose(checkpoint=str(tmp_path), pose_file="other.onnx").load("cpu")
    two = {"pictures": (1, 3, 8, 8), "more": (1, 3, 8, 8)}
    write_onnx(tmp_path / "two.onnx", [Node("Add", list(two), ["sum"])], {}, two, {"sum": (1, 3, 8, 8)})
    with pytest.raises(OpenUniError, match="must have one input"):
        OnnxNetwork(tmp_path / "two.onnx", "cpu")


def test_an_output_of_another_kind_is_refused_when_the_graph_did_not_say():
    for shape in ((100, 7), (420, 5), (420,)):
        with pytest.raises(
            OpenUniError, match=r"the detector returned .*expected \(420, 85\) from YOLOX without built-in NMS"
        ):
            persons(np.zeros(shape, np.float32), (128, 160), 1.0, 0.3, 0.45)
    with pytest.raises(OpenUniError, match=r"expected two SimCC outputs \[points, bins\]"):
        peaks(np.zeros((133, 10)), np.zeros((17, 10)))


def test_the_files_by_name_have_their_licence_and_wrong_places_are_explained(folder, monkeypatch, tmp_path):
    (known,) = Dwpose().checkpoints()
    assert (known.ref, known.store, known.only) == (REPOSITORY, "hub", (DETECTOR_FILE, POSE_FILE))
    assert known.terms == "unclear" and not known.requires_acceptance
    monkeypatch.setenv("OPENUNI_CHECKPOINTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(MissingRequirement, match=f"openuni checkpoints get {REPOSITORY}"):
        Dwpose().load("cpu")
    (tmp_path / REPOSITORY).mkdir(parents=True)
    write_networks(tmp_path / REPOSITORY)
    assert Dwpose().load("cpu").pose.height_px == 96
    assert Dwpose(checkpoint="./nowhere").checkpoints()[0].store == "path"
    assert Dwpose(checkpoint="other/repository").checkpoints()[0].store == "hub"
    with pytest.raises(OpenUniError, match="name of a file in `checkpoint`, without a folder"):
        Dwpose(pose_file="../pose.onnx")


def test_the_version_follows_the_two_files_and_no_other(tmp_path):
    operator = Dwpose(checkpoint=write_networks(tmp_path))
    before = operator.version()
    (tmp_path / "notes.txt").write_text("unrelated")
    assert operator.version() == before
    write_detector(tmp_path / DETECTOR_FILE, (44, 64))
    assert operator.version() != before


@pytest.mark.parametrize(
    "wrong",
    [
        *({"channels": "gbr"}, {"provider": "gpu"}, {"max_persons": 0}, {"frames_per_batch": 0}),
        *({"min_score": 1.5}, {"nms_iou": -0.1}, {"max_gap_s": -1.0}, {"max_gap_s": float("nan")}),
    ],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(OpenUniError, match="Allowed"):
        replace(Dwpose(), **wrong)


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_windows_of_whole_batches_give_the_same(folder, backend):
    """Persons of an incomplete batch wait for the next window."""
    frames = [frame_with((4 + n % 5, 5), *[(15, 9)] * (n % 3 > 0)) for n in range(19)]
    operator = Dwpose(checkpoint=str(folder), frames_per_batch=2, backend=backend)
    contract.windows_give_the_same(operator, DecodedClip.from_frames(np.stack(frames)), sizes=[1])
