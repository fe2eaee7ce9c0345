import json
from dataclasses import replace

import fsspec
import numpy as np
import pytest

from openuni.annotators.supplied import Supplied, SuppliedMaps
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import find_modality, modality_names
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.modalities.depth import Depth
from openuni.manifests.modalities.flow import Flow
from openuni.manifests.modalities.segmentation import Segmentation
from openuni.manifests.modalities.skeleton import Skeleton
from tests.manifests.modalities.people import standing

T, H, W = 3, 24, 32
EVERY = tuple(name for name in modality_names() if name != "rgb")


def truth(count=T, height_px=H, width_px=W):
    """One of each modality, known at every pixel."""
    ramp = np.arange(count * height_px * width_px, dtype=np.float32).reshape(count, height_px, width_px, 1)
    flow = np.zeros((count, height_px, width_px, 2), np.float32)
    flow[..., 0], flow[..., 1] = 4.0, -2.0
    ids = np.zeros((count, height_px, width_px, 1), np.uint16)
    ids[:, : height_px // 2] = 7
    made = {"depth": Depth(1 + ramp / 100, unit="metres"), "flow": Flow(flow), "segmentation": Segmentation(ids)}
    person = standing((width_px / 2, height_px / 4), height_px / 10)
    made["skeleton"] = Skeleton(np.tile(person, (count, 1, 1, 1)), height_px, width_px)
    picture = np.random.default_rng(0).random((count, height_px, width_px, 3)).astype(np.float32)
    rest = {name: find_modality(name).from_rgb(picture) for name in EVERY if name not in made}
    return made | rest


def supply(folder, maps, frames=T, name="a"):
    """Write the sidecar layout into `folder` (a path or an fsspec URL); returns the table in the JSON."""
    entries = {}
    for modality in maps.values():
        payload = modality.encode(25.0)
        file = f"{name}.{modality.name}.{payload.suffix}"
        with fsspec.open(f"{folder}/{file}", "wb") as out:
            out.write(payload.data)
        entries[modality.name] = {"file": file, "constants": payload.constants._asdict()}
    table = {"format": "openuni-supplied-1", "fps": 25.0, "frames": frames, "caption": "", "modalities": entries}
    write(folder, table, name)
    return table


def write(folder, table, name="a"):
    with fsspec.open(f"{folder}/{name}.json", "w") as out:
        out.write(table if isinstance(table, str) else json.dumps(table))


def clip_beside(folder, frames=None, name="a", video_scale=1):
    """A clip whose video is `video_scale` times as large as its frames."""
    clip = DecodedClip.from_frames(np.zeros((T, H, W, 3), np.uint8) if frames is None else frames)
    size = {"width_px": clip.clip.width_px * video_scale, "height_px": clip.clip.height_px * video_scale}
    return DecodedClip(replace(clip.clip, source=f"{folder}/{name}.mp4", **size), clip.frames, clip.times_s)


def read(folder, *names, video_scale=1):
    return Supplied(modalities=names or ("depth",)).run(None, clip_beside(folder, video_scale=video_scale))


def contract_case(folder, frames):
    """What tests/test_every_operator.py runs: maps for these frames beside a video."""
    count, height_px, width_px = frames.shape[:3]
    supply(folder, truth(count, height_px, width_px), frames=count, name=f"clip{count}")
    return Supplied(modalities=("depth", "flow", "skeleton", "normal", "alpha")), clip_beside(
        folder, frames, name=f"clip{count}"
    )


def test_every_modality_but_the_video_itself_can_be_supplied():
    assert sorted(SuppliedMaps._fields[:-1]) == sorted(EVERY)
    assert SuppliedMaps._fields[-1] == "supplied_count"
    for name in EVERY:
        assert SuppliedMaps.__annotations__[name] == find_modality(name) | None


def test_all_come_back(tmp_path):
    supply(tmp_path, truth())
    found = read(tmp_path, *EVERY)
    assert found.supplied_count == len(EVERY) == 11
    assert found.depth.unit == "metres"
    for name, maps in truth().items():
        payload = maps.encode(25.0)
        stored = type(maps).decode(payload.data, payload.constants)  # as precise as stored
        assert type(getattr(found, name)) is find_modality(name)
        assert np.array_equal(getattr(found, name).array, stored.array), name
        assert getattr(found, name).constants() == stored.constants()


def test_what_was_not_asked_for_or_not_supplied_is_none(tmp_path):
    supply(tmp_path, {"depth": truth()["depth"], "flow": truth()["flow"]})
    found = read(tmp_path, "flow", "segmentation")
    assert found.depth is None
    assert found.segmentation is None
    assert found.skeleton is None
    assert found.flow is not None
    assert found.supplied_count == 1


def test_urls_work_too():
    supply("memory://supplied-test", truth())
    assert read("memory://supplied-test").depth.array.shape == (T, H, W, 1)


def test_maps_larger_than_the_frames_are_scaled_down_and_flow_keeps_its_meaning(tmp_path):
    supply(tmp_path, truth(T, 2 * H, 2 * W))
    found = read(tmp_path, *EVERY, video_scale=2)
    for name in EVERY:
        assert getattr(found, name).size_px == (H, W), name
    assert np.allclose(found.skeleton.array, truth()["skeleton"].array, atol=1e-4)
    assert found.depth.array.shape == (T, H, W, 1)
    assert found.flow.array.shape == (T, H, W, 2)
    assert np.allclose(found.flow.array, [2.0, -1.0], atol=1 / 64)
    assert set(np.unique(found.segmentation.array)) == {0, 7}


def test_maps_smaller_than_the_frames_stay_as_they_are(tmp_path):
    supply(tmp_path, truth(T, H // 2, W // 2))
    assert read(tmp_path).depth.array.shape == (T, H // 2, W // 2, 1)


def test_no_sidecar_says_what_was_looked_for(tmp_path):
    with pytest.raises(ClipError, match=r"sidecar file .*/a\.json not found.*openuni-supplied-1"):
        read(tmp_path)
    with pytest.raises(ClipError, match=r"sidecar file memory://nowhere-at-all/a\.json not found"):
        read("memory://nowhere-at-all")


def test_a_missing_map_is_named(tmp_path):
    supply(tmp_path, truth())
    (tmp_path / "a.depth.mkv").unlink()
    with pytest.raises(ClipError, match=r"sidecar file .*/a\.depth\.mkv not found"):
        read(tmp_path)


def test_a_part_of_a_longer_video_is_refused(tmp_path):
    supply(tmp_path, truth(5), frames=5)
    with pytest.raises(ClipError, match=r"describes 5 frames, the clip has 3.*shots"):
        read(tmp_path)


def test_a_map_with_another_number_of_frames_than_its_sidecar_says_is_refused(tmp_path):
    supply(tmp_path, truth(2))
    with pytest.raises(ClipError, match="has 2 maps of 32 x 24, the video has 3 frames"):
        read(tmp_path)
    supply(tmp_path, truth(5))
    with pytest.raises(ClipError, match="has more than 3 frames"):  # known before anything is decoded
        read(tmp_path)


def test_maps_larger_than_the_video_are_refused_before_decoding(tmp_path):
    supply(tmp_path, truth(T, 2 * H, 2 * W))
    with pytest.raises(ClipError, match=r"maps of 64 x 48, the video has 3 frames of 32 x 24\. Allowed"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["depth", "skeleton"])
def test_maps_of_another_shape_are_refused(tmp_path, name):
    supply(tmp_path, truth(T, W, H))
    with pytest.raises(ClipError, match="aspect ratio"):
        read(tmp_path, name, video_scale=2)


def test_a_skeleton_of_another_length_is_refused(tmp_path):
    supply(tmp_path, truth(5))
    with pytest.raises(ClipError, match="modality skeleton: 5 maps, the video has 3 frames"):
        read(tmp_path, "skeleton")


def test_a_skeleton_of_a_huge_picture_is_scaled_down_before_anything_is_drawn(tmp_path):
    table = supply(tmp_path, truth())
    table["modalities"]["skeleton"]["constants"] |= {"picture_height_px": 48 * 1024, "picture_width_px": 64 * 1024}
    write(tmp_path, table)
    assert read(tmp_path, "skeleton").skeleton.size_px == (H, W)


@pytest.mark.parametrize(("name", "other"), [("normal", "alpha"), ("alpha", "normal"), ("albedo", "foreground")])
def test_a_file_of_another_modality_is_refused(tmp_path, name, other):
    table = supply(tmp_path, truth())
    table["modalities"][name]["file"] = f"a.{other}.mkv"
    write(tmp_path, table)
    with pytest.raises(ClipError, match=f"{name}: stored planes must be"):
        read(tmp_path, name)


@pytest.mark.parametrize("file", ["../a.depth.mkv", "/etc/passwd", "sub/a.mkv", "..", ".", "", "b\\c", "s3://b", "a\0"])
def test_the_sidecar_cannot_point_out_of_its_folder(tmp_path, file):
    inside = tmp_path / "inside"
    inside.mkdir()
    table = supply(inside, truth())
    supply(tmp_path, truth())  # so that ../a.depth.mkv exists
    table["modalities"]["depth"]["file"] = file
    write(inside, table)
    with pytest.raises(ClipError, match="plain file name"):
        read(inside)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not JSON"),
        ("\xff\x00", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "format is 'list'"),
        ('{"format": "openuni-supplied-9"}', "format is 'openuni-supplied-9'. Allowed: \"openuni-supplied-1\""),
        ('{"format": "openuni-supplied-1", "frames": 3, "modalities": []}', "must be an object"),
        ('{"format": "openuni-supplied-1", "frames": "3", "modalities": {}}', "describes '3' frames"),
        ('{"format": "openuni-supplied-1", "frames": 3, "modalities": {"depth": 5}}', "must be {"),
        ('{"format": "openuni-supplied-1", "frames": 3, "modalities": {"depth": {"file": "x"}}}', "must be {"),
        (" " * (1 << 20) + "{}", "at most 1,048,576"),
    ],
)
def test_a_malformed_sidecar_fails_the_clip_with_the_reason(tmp_path, text, reason):
    write(tmp_path, text)
    with pytest.raises(ClipError, match=reason.replace("{", r"\{")):
        read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"unit": 5},
        {"lo": "1"},
        {"hi": None},
        {"lo": float("nan")},
        {"hi": float("inf")},
        {"extra": 1},
        {"lo": -1.0},
    ],
)
def test_wrong_constants_are_refused(tmp_path, change):
    table = supply(tmp_path, truth())
    table["modalities"]["depth"]["constants"] |= change
    write(tmp_path, table)
    with pytest.raises(ClipError):
        read(tmp_path)


def test_missing_constants_are_named(tmp_path):
    table = supply(tmp_path, truth())
    del table["modalities"]["depth"]["constants"]["hi"]
    write(tmp_path, table)
    with pytest.raises(ClipError, match="constants of Depth are unit, lo, hi"):
        read(tmp_path)


def test_damaged_or_foreign_bytes_fail_the_clip(tmp_path):
    supply(tmp_path, truth())
    whole = (tmp_path / "a.depth.mkv").read_bytes()
    for data in (b"", b"\x00" * 5000, whole[: len(whole) // 2], (tmp_path / "a.json").read_bytes()):
        (tmp_path / "a.depth.mkv").write_bytes(data)
        with pytest.raises(ClipError):
            read(tmp_path)


def test_a_file_over_the_limit_is_not_read(tmp_path):
    supply(tmp_path, truth())
    (tmp_path / "a.depth.mkv").write_bytes(b"\0" * 1_000_001)
    with pytest.raises(ClipError, match=r"1,000,001 bytes; at most 1,000,000"):
        Supplied(max_file_mb=1).run(None, clip_beside(tmp_path))


def test_wrong_options_are_refused():
    with pytest.raises(OpenUniError, match=r'"dept" is not known\. Did you mean "depth"'):
        Supplied(modalities=("dept",))
    with pytest.raises(OpenUniError, match="at least 1"):
        Supplied(max_file_mb=0)
