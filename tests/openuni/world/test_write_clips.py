"""The supplied layout: what is written is what was rendered, whoever writes it, and it reads back."""

import json
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest

from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.contracts.modality import find_modality
from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.probe import probe
from openuni.world import PRESETS, make_clip, write_clips

SIZE = {"frames": 5, "height_px": 32, "width_px": 48, "fps": 12.0}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_number_of_processes_changes_nothing(tmp_path: Path) -> None:
    done: list[int] = []
    presets = ["solids", "person", "layers", "interiors"]
    alone = write_clips(tmp_path / "alone", [4, 5, 6, 7], preset=presets, workers=1, progress=done.append, **SIZE)
    together = write_clips(tmp_path / "together", [4, 5, 6, 7], preset=presets, workers=2, **SIZE)
    names = ["solids-000004", "person-000005", "layers-000006", "interiors-000007"]
    assert [path.name for path in alone] == [path.name for path in together] == [f"{name}.mp4" for name in names]
    assert done == [1, 2, 3, 4]
    written = contents(tmp_path / "alone")
    assert written == contents(tmp_path / "together")
    own = {name: PRESETS[preset].modalities for name, preset in zip(names, presets, strict=True)}
    maps = {f"{name}.{kind}.mkv" for name in names for kind in own[name] if kind != "skeleton"}
    points = {f"{name}.skeleton.safetensors" for name in names if "skeleton" in own[name]}
    assert set(written) == maps | points | {f"{name}.{suffix}" for name in names for suffix in ("mp4", "txt", "json")}


def test_everything_reads_back_within_its_bound(tmp_path: Path) -> None:
    (video,) = write_clips(tmp_path, [21], **SIZE)
    clip = make_clip(21, **SIZE)
    facts = json.loads(video.with_suffix(".json").read_text())
    assert {key: facts[key] for key in ("format", "fps", "frames", "preset", "seed")} == {
        "format": "openuni-supplied-1",
        "fps": 12.0,
        "frames": 5,
        "preset": "solids",
        "seed": 21,
    }
    assert facts["caption"] == clip.caption == video.with_suffix(".txt").read_text().strip()
    read = {}
    for name, entry in facts["modalities"].items():
        modality = find_modality(name)
        constants = modality.constants_type(**entry["constants"])
        read[name] = modality.decode((tmp_path / entry["file"]).read_bytes(), constants)
    truth = clip.modalities
    assert np.array_equal(read["segmentation"].array, truth["segmentation"].array)
    assert np.abs(read["flow"].array - truth["flow"].array).max() <= 1 / 128
    assert np.array_equal(read["flow"].valid, truth["flow"].valid)
    depth = truth["depth"].array
    bound = np.log(depth.max() / depth.min()) / 131070 + 2**-22
    assert (np.abs(read["depth"].array - depth) / depth).max() <= bound
    assert read["depth"].unit == "metres"


def test_the_video_shows_the_frames(tmp_path: Path) -> None:
    (video,) = write_clips(tmp_path, [21], **SIZE)
    info = probe(str(video))
    assert (info.width_px, info.height_px, len(info.pts)) == (48, 32, 5)
    frames = decode_frames(video)
    assert np.abs(frames.astype(int) - make_clip(21, **SIZE).frames).mean() < 6.0  # lossy, 4:2:0


def decode_frames(video: Path) -> np.ndarray:
    from openuni.manifests.video.probe import make_clip

    return decode(make_clip(str(video), probe(str(video)))).frames


def test_writing_again_replaces_the_clip(tmp_path: Path) -> None:
    write_clips(tmp_path, [3], **SIZE)
    first = contents(tmp_path)
    write_clips(tmp_path, [3], **(SIZE | {"frames": 3}))
    second = contents(tmp_path)
    assert first.keys() == second.keys()
    assert json.loads(second["solids-000003.json"])["frames"] == 3


def test_a_clip_that_fails_has_no_json(tmp_path: Path) -> None:
    write_clips(tmp_path, [3], **SIZE)
    (tmp_path / "solids-000003.txt").unlink()
    (tmp_path / "solids-000003.txt").mkdir()  # nothing can be renamed onto it
    with pytest.raises(OSError):
        write_clips(tmp_path, [3], **SIZE)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert "solids-000003.json" not in names
    assert not any(name.endswith(".tmp") for name in names)


def test_ctrl_c_stops_and_the_rest_is_made_later(tmp_path: Path) -> None:
    def stop(done: int) -> None:
        raise KeyboardInterrupt

    size = SIZE | {"frames": 2, "modalities": ("segmentation",)}
    with pytest.raises(KeyboardInterrupt):
        write_clips(tmp_path, range(40), workers=2, progress=stop, **size)
    assert not active_children()
    whole = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert 1 <= len(whole) < 40
    (tmp_path / ".solids-000039.segmentation.mkv.0123.tmp").write_bytes(b"of a process that was killed")
    done: list[int] = []
    videos = write_clips(tmp_path, range(40), workers=1, resume=True, progress=done.append, **size)
    assert all(video.is_file() for video in videos)
    assert done == list(range(len(whole), 41))
    assert all((tmp_path / name).stat().st_mtime_ns == then for name, then in whole.items())
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "stil"}, 'Did you mean "still"'),
        ({"preset": ["solids", "dark", "dark"]}, "2 seeds but 3 presets"),
        ({"height_px": 33}, "height_px = 33.*even numbers"),
    ],
)
def test_wrong_orders_are_refused_before_anything_is_written(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(OpenUniError, match=message):
        write_clips(tmp_path / "out", [1, 2], **options)
    with pytest.raises(OpenUniError, match="solids-000001 is requested twice"):
        write_clips(tmp_path / "out", [1, 1])
    assert not (tmp_path / "out").exists()
