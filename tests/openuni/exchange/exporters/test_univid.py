"""UniVidX's layout: the YAML's paths opened as its scripts open them, and what the pictures mean."""

import json

import av
import numpy as np
import pytest
import yaml

import openuni
from openuni.exchange.export_selection import ExportOptions
from openuni.manifests.arrays.srgb import linear_to_srgb
from tests.openuni.exchange.exporters.rooms import CAPTION, QUIET, every_map, tree

INTRINSIC, ALPHA = ("rgb", "albedo", "irradiance", "normal"), ("rgb", "pha", "fgr", "bgr")


@pytest.fixture(scope="module")
def out(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("univid") / "set"
    openuni.export(corpus, "univid", out=folder, reporter=QUIET)
    return folder


def video_tensor(path: str) -> np.ndarray:
    """float32 [T, H, W, 3] in 0..1 of all frames."""
    with av.open(path) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert float(container.streams.video[0].average_rate) == 12
    return np.stack(frames).astype(np.float32) / 255


def config(path, kind: str) -> dict:
    """The YAML of a clip, with all the keys that the script asks for."""
    text = (path / f"{kind}.yaml").read_text(encoding="utf-8")
    model = "model:\n  name: 'UniVidIntrinsic'\n  params: {}\n"
    found = yaml.safe_load(text + model)  # a user's own section follows
    names = INTRINSIC if kind == "intrinsic" else ALPHA
    assert set(found) == {"experiment_name", "mode", "prompt", "model", *(f"inference_{name}_path" for name in names)}
    return found


def test_the_yaml_names_what_its_mode_is_given(out, ids):
    clip = out / ids["all"]
    intrinsic, alpha = config(clip, "intrinsic"), config(clip, "alpha")
    assert (intrinsic["mode"], alpha["mode"]) == ("R2AIN", "R2PFB")
    assert intrinsic["prompt"] == alpha["prompt"] == CAPTION
    assert intrinsic["inference_rgb_path"] == alpha["inference_rgb_path"] == str(clip / "rgb.mp4")
    assert video_tensor(intrinsic["inference_rgb_path"]).shape == (9, 48, 64, 3)
    rest = [value for key, value in (intrinsic | alpha).items() if key.endswith("_path") and "rgb" not in key]
    assert rest == [None] * 6


def test_a_mode_with_several_inputs_and_a_prefix(corpus, ids, tmp_path):
    options = {"intrinsic_mode": "AIN2R", "alpha_mode": "t2RPFB", "prefix": "/data/rooms"}
    openuni.export(corpus, "univid", out=tmp_path / "a", reporter=QUIET, **options)
    intrinsic = config(tmp_path / "a" / ids["all"], "intrinsic")
    paths = {name: intrinsic[f"inference_{name}_path"] for name in INTRINSIC}
    assert paths == {"rgb": None} | {name: f"/data/rooms/{ids['all']}/{name}.mp4" for name in INTRINSIC[1:]}
    assert config(tmp_path / "a" / ids["mkv"], "alpha")["inference_pha_path"] is None
    assert not (tmp_path / "a" / ids["odd"] / "intrinsic.yaml").exists()  # has no albedo to be given
    assert str(tmp_path).encode() not in b"".join(tree(tmp_path / "a").values())


def test_a_gap_is_a_file_that_is_not_there(out, ids):
    found = {name: sorted(path.name for path in (out / ids[name]).iterdir()) for name in ids if name != "still"}
    assert found["all"] == sorted([*{f"{name}.mp4" for name in INTRINSIC + ALPHA}, "alpha.yaml", "intrinsic.yaml"])
    assert found["depth"] == ["rgb.mp4"]
    assert found["mkv"] == ["alpha.yaml", "pha.mp4", "rgb.mp4"]
    assert found["odd"] == ["intrinsic.yaml", "normal.mp4", "rgb.mp4"]


def test_pictures_are_display_values(out, ids):
    maps = every_map(9, 48, 64)
    clip = out / ids["all"]
    record = json.loads((out / "clips.jsonl").read_text(encoding="utf-8").splitlines()[0])
    white = record["modalities"]["irradiance"]["constants"]["white"]
    assert white == pytest.approx(7, rel=0.01)
    expected = {
        "albedo": linear_to_srgb(maps["albedo"].array),
        "irradiance": linear_to_srgb(np.minimum(maps["irradiance"].array / white, 1)),
        "normal": (maps["normal"].array + 1) / 2,
        "pha": np.repeat(maps["alpha"].array, 3, axis=-1),
        "fgr": maps["foreground"].array / 255,
        "bgr": maps["background"].array / 255,
    }
    for name, values in expected.items():
        assert np.abs(video_tensor(str(clip / f"{name}.mp4")) - values).mean() < 0.012, name
    linear = maps["albedo"].array  # not stored as it is: the curve matters
    assert np.abs(video_tensor(str(clip / "albedo.mp4")) - linear).mean() > 0.1


def test_the_format_s_own_names_choose_modalities(corpus, ids, tmp_path):
    choice = ExportOptions(("pha", "supplied.fgr"), limit=1)
    openuni.export(corpus, "univid", out=tmp_path / "a", export_options=choice, reporter=QUIET)
    assert sorted(path.stem for path in (tmp_path / "a" / ids["all"]).glob("*.mp4")) == ["fgr", "pha", "rgb"]


@pytest.mark.parametrize("mode", ["R2AI", "R2AIX", "RAIN", "2RAIN", "RAIN2", "R2RAIN", "tR2AIN", "r2ain"])
def test_a_mode_that_upstream_does_not_have_is_refused(corpus, tmp_path, mode):
    with pytest.raises(openuni.OpenUniError, match=r"is not a task\. Allowed: each of R, A, I, N once"):
        openuni.export(corpus, "univid", out=tmp_path / "a", intrinsic_mode=mode)
