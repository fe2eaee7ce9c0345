"""The demo's report from given numbers and videos: it is complete, correct and needs no network."""

import base64
import copy
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from openuni.demo import statements
from openuni.demo.charts import ChartLine, line_chart, smoothed, ticks
from openuni.demo.page import demo_page
from openuni.demo.statements import look_up
from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.probe import make_clip, probe
from openuni.pages.videos import VideoRow, make_page_video, turbo


def errors(abs_rel, delta1=0.5):
    return {"abs_rel": abs_rel, "delta1": delta1}


NUMBERS = {
    "size": "quick",
    "made": "2031-05-04T03:02:01+00:00",
    "command": "openuni demo --quick --out it's <here>",
    "commands": {"corpus": 'openuni run a "b/*.mp4"', "train": "openuni train x"},
    "settings": {"solids": 20, "still": 2, "dark": 3, "frames": 5, "side_px": 32},
    "machine": {
        "processor": "Abacus <9000>",
        "cores": 2,
        "memory_gb": 25.3,
        "gpus": [],
        "system": "Linux",
        "load_average": 1.25,
    },
    "versions": {"openuni": "0.1.0", "python": "3.11"},
    "seconds": {"make clips": 12.5, "train": 30.25},
    "total_s": 42.75,
    "ledger": {
        "clips": 25,
        "ok": 19,
        "dropped": [{"rule": "motion.moving_share > 0.01", "clips": 3}, {"rule": "luminance.mean > 0.1", "clips": 2}],
        "failed": [{"operator": "supplied", "reason": "<b>ClipError</b>", "clips": 1}],
        "pending": 0,
        "keep": "",
    },
    "training": {
        "model": "unityvideo",
        "parameters": 1234567,
        "steps": 150,
        "batch_size": 4,
        "clips": 16,
        "held_out": 3,
        "estimate_loss_begin": 1.75,
        "estimate_loss_end": 0.5,
        "estimate_loss_held_out": 0.625,
        "curves": {"rgb->depth": {"train": [[1, 2.0], [2, 1.0], [3, 0.5]], "validation": [[3, 0.625]]}},
    },
    "flow": {
        "clips": 19,
        "dis": {"epe_px": 0.25, "outlier_share": 0.01},
        "zero": {"epe_px": 1.0, "outlier_share": 0.02},
    },
    "depth": {
        "clips": 3,
        "better_than_mean_map": 2,
        "gain": {"abs_rel": 0.125, "standard_error": 0.03125},
        "steps": 10,
        "alignment": "one scale & one shift",
        "estimate": errors(0.125, 0.75),
        "constant": errors(0.375),
        "mean_map": errors(0.25),
        "codec": errors(0.03125),
    },
    "joint": {"clips": 1, "steps": 30, "detail_share": 0.25},
}


def with_depth(standard_error=0.03125, **abs_rel):
    numbers = copy.deepcopy(NUMBERS)
    for name, value in abs_rel.items():
        numbers["depth"][name]["abs_rel"] = value
    depth = numbers["depth"]
    gain = depth["mean_map"]["abs_rel"] - depth["estimate"]["abs_rel"]
    depth["gain"] = {"abs_rel": gain, "standard_error": standard_error}
    return numbers


def pictures(frames=5, height_px=32, width_px=48):
    values = np.random.default_rng(0).integers(0, 256, (frames, 4, 6, 3), np.uint8)
    return values.repeat(height_px // 4, axis=1).repeat(width_px // 6, axis=2)


@pytest.fixture(scope="module")
def rows():
    video = make_page_video("RGB <given>", pictures(), 16.0)
    row = VideoRow([video, video], "A <script>alert(1)</script> ball & a box")
    return {"corpus": [row], "flow": [row], "depth": [row, row], "joint": [row]}


@pytest.fixture(scope="module")
def page(rows):
    return demo_page(NUMBERS, rows)


class Reader(HTMLParser):
    """Collects what a browser would see: elements with attributes, their nesting, numbers with their paths."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.numbers, self.texts = [], [], [], []
        self.path = None
        self.feed(text)
        assert self.open == []  # every element was closed, in order

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.path = dict(attrs).get("data-number")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.path = None

    def handle_data(self, data):
        self.texts.append(data)
        if self.path:
            self.numbers.append((self.path, data))


def test_it_needs_no_network(page):
    for tag, attributes in Reader(page).elements:
        for name in ("src", "href", "poster", "srcset", "data", "action"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, name)
    without_videos = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert len(without_videos) < 30_000
    assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch\(|XMLHttp|import\(", without_videos, re.IGNORECASE)


def test_every_number_is_the_one_of_the_json(page):
    numbers = json.loads(json.dumps(NUMBERS))
    found = Reader(page).numbers
    assert len(found) > 40
    for path, printed in found:
        share = 100 if printed.endswith("%") else 1
        digits = len(printed.rstrip("%").partition(".")[2])
        value = look_up(numbers, path) * share
        assert abs(float(printed.rstrip("%").replace(",", "")) - value) <= 0.5001 * 10**-digits, (path, printed)
    paths = {path for path, _ in found}
    for name in ("estimate", "constant", "mean_map", "codec"):
        assert {f"depth.{name}.abs_rel", f"depth.{name}.delta1"} <= paths
    assert {"flow.dis.epe_px", "flow.zero.epe_px", "ledger.dropped.1.clips", "seconds.train", "total_s"} <= paths


def test_text_from_files_is_escaped(page):
    assert "<script>alert" not in page and "<b>ClipError" not in page and "<here>" not in page
    texts = " ".join(Reader(page).texts)
    assert "A <script>alert(1)</script> ball & a box" in texts
    assert "supplied: <b>ClipError</b>" in texts and "Abacus <9000>" in texts


def test_videos_play_and_have_a_still(page, tmp_path):
    videos = [attributes for tag, attributes in Reader(page).elements if tag == "video"]
    assert len(videos) == 10
    kind, _, data = videos[0]["src"].partition(",")
    assert kind == "data:video/mp4;base64"
    path = tmp_path / "video.mp4"
    path.write_bytes(base64.b64decode(data))
    info = probe(str(path))
    clip = make_clip(str(path), info)
    assert (clip.codec, clip.frame_count, clip.width_px, clip.height_px) == ("h264", 5, 240, 160)
    seen = decode(clip).frames[:, 2::5, 2::5]  # the middle of every enlarged pixel
    assert np.abs(seen.astype(int) - pictures()).mean() < 12
    import cv2

    kind, _, data = videos[0]["poster"].partition(",")
    still = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert still.shape == (160, 240, 3)
    assert np.abs(still[2::5, 2::5, ::-1].astype(int) - pictures()[2]).mean() < 12
    assert {"muted", "autoplay", "loop", "playsinline"} <= videos[0].keys()


def test_floats_are_encoded_too():
    video = make_page_video("depth", np.linspace(-0.5, 1.5, 3 * 200 * 170 * 3).reshape(3, 200, 170, 3), 16.0)
    assert (video.height_px, video.width_px) == (200, 170)


def test_depth_is_coloured_from_far_in_blue_to_near_in_red():
    far, near = turbo(np.array([0.05, 0.95]).repeat(3).reshape(2, 1, 1, 3))[:, 0, 0].astype(int)
    assert far[2] > far[0] and near[0] > near[2] + 100


def test_labels_are_enlarged_without_mixing_colours():
    import cv2

    frames = np.zeros((5, 8, 12, 3), np.uint8)
    frames[:, :, 6:] = 255
    edges = {}
    for smooth in (False, True):
        video = make_page_video("segmentation", frames, 16.0, smooth=smooth)
        assert (video.height_px, video.width_px) == (160, 240)
        still = cv2.imdecode(np.frombuffer(video.still, np.uint8), cv2.IMREAD_COLOR).astype(int)
        edges[smooth] = still[80, 121].mean() - still[80, 118].mean()
    assert edges[False] > 230 and edges[True] < 120


@pytest.mark.parametrize(
    ("numbers", "little"),
    [
        (with_depth(), False),
        (with_depth(estimate=0.26), True),  # beats the constant, not the mean map
        (with_depth(estimate=0.4), True),
        (with_depth(estimate=0.375, mean_map=0.5), True),  # as good as the constant is not better
    ],
)
def test_it_says_when_little_was_learnt(numbers, little, rows):
    page = demo_page(numbers, rows)
    assert ("learnt little" in page) is little
    assert ('class="verdict bad"' in page, 'class="verdict good"' in page) == (little, not little)


@pytest.mark.parametrize(("clips", "standard_error"), [(10, 0.07), (1, None)])
def test_it_says_when_the_clips_are_too_few_to_tell(clips, standard_error, rows):
    numbers = with_depth(standard_error=standard_error)
    numbers["depth"]["clips"] = clips
    page = demo_page(numbers, rows)
    assert "too few" in page and "learnt little" not in page
    assert 'class="verdict bad"' not in page and 'class="verdict good"' not in page


def test_the_words_follow_the_numbers():
    def said(verdict, numbers):
        return statements.fill(verdict(numbers), numbers)

    assert "not better than the best constant map (0.375)" in said(statements.depth, with_depth(estimate=0.4))
    assert "not better than the mean depth map of the training clips (0.250)" in said(
        statements.depth, with_depth(estimate=0.3)
    )
    good = said(statements.depth, NUMBERS)
    assert "estimates depth from RGB" in good and "57% of the way" in good and "on 2 of the 3 clips" in good
    assert "has begun to estimate depth from RGB" in said(
        statements.depth, with_depth(estimate=0.24, standard_error=0.001)
    )
    assert "explains 75% of the true motion" in said(statements.flow, NUMBERS)
    worse = NUMBERS | {"flow": {"dis": {"epe_px": 2.0}, "zero": {"epe_px": 1.0}}}
    assert "worse than assuming no motion" in said(statements.flow, worse)
    assert "Of 25 clips, 19 passed all rules, 5 were dropped by a rule and 1 failed" in said(statements.ledger, NUMBERS)


@pytest.mark.parametrize(("end", "held_out", "words"), [
    (0.5, 0.625, "decreased from 1.750 to 0.500. On 3 held-out clips it is 0.625."),
    (0.5, 0.9, "it is 0.900: the model overfits to its training clips."),
    (1.7, 1.7, "hardly decreased, from 1.750 to 1.700: the model has learnt little."),
    (0.5, None, "decreased from 1.750 to 0.500."),
])  # fmt: skip
def test_the_words_about_training(end, held_out, words):
    training = NUMBERS["training"] | {"estimate_loss_end": end, "estimate_loss_held_out": held_out}
    numbers = NUMBERS | {"training": training}
    assert words in statements.fill(statements.training(numbers), numbers)


@pytest.mark.parametrize(
    ("share", "words"), [(0.25, "blurred"), (1.0, "Compare them with their captions by eye"), (2.0, "noise")]
)
def test_the_words_about_generated_pictures(share, words):
    assert words in statements.joint({"joint": {"detail_share": share}})


def test_a_number_that_is_not_there_is_an_error():
    with pytest.raises(OpenUniError, match=r"no depth\.estimate\.rmse"):
        statements.fill("{depth.estimate.rmse:.3f}", NUMBERS)


def test_a_chart_places_its_points():
    chart = line_chart([ChartLine("a <b>", "one", [(0, 0.0), (50, 1.0), (100, 2.0)], dots=True)], "step", "loss & more")
    (path,) = re.findall(r'class="line one" d="M([^"]*)"', chart)
    points = [tuple(map(float, point.split())) for point in path.split("L")]
    (left, low), (middle, _), (right, high) = points
    assert abs((left + right) / 2 - middle) < 0.2 and left < middle < right and high < low
    grid = [float(y) for y in re.findall(r'class="grid" d="M[\d.]+ ([\d.]+)H', chart)]
    assert max(grid) == low  # the axis begins at zero
    assert chart.count("<circle") == 3 and "a &lt;b&gt;" in chart and "loss &amp; more" in chart


def test_ticks_are_round():
    assert ticks(10) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.7) == [0, 0.2, 0.4, 0.6]
    assert ticks(150) == [0, 50, 100, 150]


def test_smoothing_keeps_lines_and_flattens_noise():
    ramp = [(x, 2.0 * x) for x in range(100)]
    assert np.allclose(smoothed(ramp)[:-3], ramp[:-3])
    noise = [(x, float(x % 2)) for x in range(100)]
    assert all(abs(y - 0.5) < 0.11 for _, y in smoothed(noise)[3:])
    assert smoothed([]) == [] and smoothed([(1, 3.0)]) == [(1, 3.0)]
