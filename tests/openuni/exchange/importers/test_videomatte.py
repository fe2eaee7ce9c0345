"""Mattes: composites are what the formula says, backgrounds are chosen for good, and planted faults are named."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from openuni.exchange.importers._mattes import classify_foreground, generated
from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.encode import write_video
from tests.moving_pictures import panned, texture
from tests.openuni.exchange.importers.made_sets import (
    bring_in,
    clips_by_key,
    imported,
    reasons,
    results,
    write_planes,
    write_png,
)

FRAMES, HEIGHT_PX, WIDTH_PX = 10, 48, 64


def matte(seed: int = 0, speed: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """A textured disc with a soft edge that goes to the right: straight foreground uint8, alpha uint8 [T, H, W, 1]."""
    rows, columns = np.mgrid[:HEIGHT_PX, :WIDTH_PX]
    colour = np.array([[200, 150, 90], [90, 160, 210], [210, 210, 200]])[seed % 3] / 255
    surface = texture(2 * HEIGHT_PX, 3 * WIDTH_PX, seed=seed, grain_px=2.0) * 0.5 + 110
    fronts, covers = [], []
    for frame in range(FRAMES):
        right = 20 + round(speed * frame)
        distance = np.hypot(rows - 24, columns - right)
        covers.append(np.clip((18 - distance) / 6, 0, 1))
        front = np.roll(surface, right, axis=1)[:HEIGHT_PX, WIDTH_PX : 2 * WIDTH_PX] * colour
        fronts.append(np.where(covers[-1][..., None] > 0, front, 0))
    alpha = np.rint(np.stack(covers)[..., None] * 255).astype(np.uint8)
    return np.rint(np.stack(fronts)).astype(np.uint8), alpha


def write_clip(base: Path, name: str, foreground: np.ndarray, alpha: np.ndarray) -> None:
    write_png(base / "fgr" / name, foreground)
    write_png(base / "pha" / name, alpha)


def composed(clip) -> np.ndarray:
    """What the stored layers give."""
    return np.rint(clip.alpha * clip.foreground + (1 - clip.alpha) * clip.background)


@pytest.fixture
def backgrounds(tmp_path):
    """Two pictures and a video per split; the first row of each has a colour of its own."""
    for split, level in (("train", 40), ("test", 200)):
        folder = tmp_path / "backgrounds" / split
        for name in ("a", "b"):
            write_png(folder / name, np.full((1, 90, 80, 3), level, np.uint8), ".jpg")
        write_video(folder / "pan.mp4", panned([(2 * step, 0) for step in range(4)], 64, 96) // 8 + level, 25.0)
    return tmp_path / "backgrounds"


def test_images_and_videos_are_composited(tmp_path, backgrounds):
    base = tmp_path / "set"
    for number in range(4):
        write_clip(base / "train", f"{number:04}", *matte(number))
        front, alpha = matte(number + 4)
        write_planes(base / f"test/fgr/{number}.mkv", front, 30.0)
        write_planes(base / f"test/pha/{number}.mkv", alpha, 30.0)
    (base / "train/0001.txt").write_text("a disc")
    corpus = bring_in("videomatte", base, tmp_path / "corpus", backgrounds=str(backgrounds), fps=24.0)
    assert reasons(corpus) == {}
    keys = [*(f"train/{number:04}" for number in range(4)), *(f"test/{number}" for number in range(4))]
    rows = clips_by_key(corpus, "videomatte", keys)
    assert [row["split"] for row in rows.values()] == ["train"] * 4 + ["test"] * 4
    assert rows["train/0001"]["caption"] == "a disc"
    chosen = set()
    for number, key in enumerate(keys):
        clip, (front, alpha) = imported(corpus, "videomatte", key), matte(number)
        assert np.array_equal(clip.foreground, front)
        assert np.abs(clip.alpha - alpha / 255).max() <= 1 / 131070
        assert np.array_equal(clip.rgb, composed(clip))
        row = clip.row("videomatte")
        assert row["background_file"].startswith(f"{clip.clip.split}/") and row["seed"] == 0
        level = 40 if clip.clip.split == "train" else 200
        assert clip.background.min() >= level - 3 and clip.background.max() <= level + 36
        assert clip.clip.fps == pytest.approx(24 if clip.clip.split == "train" else 30, rel=0.01)
        assert row["foreground_form"] == "straight" and row["aligned_by_motion"]
        chosen.add(row["background_file"])
    assert len(chosen) > 2


def test_backgrounds_depend_on_key_and_seed_alone(tmp_path):
    for name in ("a", "b"):
        write_clip(tmp_path / "set", name, *matte())
    first = bring_in("videomatte", tmp_path / "set", tmp_path / "first")
    a, b = (imported(first, "videomatte", key) for key in "ab")
    assert np.array_equal(a.rgb, composed(a)) and not np.array_equal(a.background, b.background)
    assert a.row("videomatte")["background_file"] == "generated"
    shutil.rmtree(tmp_path / "set/fgr/a")
    shutil.rmtree(tmp_path / "set/pha/a")
    second = imported(bring_in("videomatte", tmp_path / "set", tmp_path / "second"), "videomatte", "b")
    assert np.array_equal(second.background, b.background)
    other = imported(bring_in("videomatte", tmp_path / "set", tmp_path / "other", seed=1), "videomatte", "b")
    assert not np.array_equal(other.background, b.background)


def test_generated_backgrounds_fill_their_range_and_move_slowly():
    made = generated("a", 0, (20, 48, 64)).astype(int)
    assert np.ptp(made) > 100 and 0 < np.abs(np.diff(made, axis=0)).mean() < 10


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("dtype", "suffix"), [(np.uint8, ".png"), (np.uint16, ".png"), (np.uint8, ".jpg")])
def test_backgrounds_may_be_grey_or_have_16_bits(tmp_path, channels, dtype, suffix):
    level = np.full((1, 90, 80, channels), 40 * (257 if dtype == np.uint16 else 1), dtype)
    write_png(tmp_path / "backgrounds/a", level, suffix)
    write_clip(tmp_path / "set", "a", *matte())
    corpus = bring_in("videomatte", tmp_path / "set", tmp_path / "corpus", backgrounds=str(tmp_path / "backgrounds"))
    assert (imported(corpus, "videomatte", "a").background == 40).all()


def test_a_short_background_video_goes_there_and_back(tmp_path):
    frames = np.stack([np.full((48, 64, 3), level, np.uint8) for level in (40, 100, 160)])
    write_planes(tmp_path / "backgrounds/a.mkv", frames)
    write_clip(tmp_path / "set", "a", *matte())
    corpus = bring_in("videomatte", tmp_path / "set", tmp_path / "corpus", backgrounds=str(tmp_path / "backgrounds"))
    seen = imported(corpus, "videomatte", "a").background[:, 0, 0, 0].tolist()
    assert seen == [40, 100, 160, 100, 40, 100, 160, 100, 40, 100]


def test_premultiplied_foregrounds_are_told_and_divided(tmp_path):
    for number in range(3):
        front, alpha = matte(number)
        write_clip(tmp_path / "set", str(number), np.rint(front * (alpha / 255)).astype(np.uint8), alpha)
    corpus = bring_in("videomatte", tmp_path / "set", tmp_path / "refused")
    assert all("is premultiplied" in reason for reason in reasons(corpus).values()) and len(reasons(corpus)) == 3
    corpus = bring_in("videomatte", tmp_path / "set", tmp_path / "divided", premultiplied=True)
    for number in range(3):
        clip, (front, alpha) = imported(corpus, "videomatte", str(number)), matte(number)
        half = alpha[..., 0] >= 128
        assert np.abs(clip.foreground[half].astype(int) - front[half]).max() <= 1  # rounding, at most doubled
        assert clip.row("videomatte")["foreground_form"] == "unpremultiplied"
    write_clip(tmp_path / "straight", "a", *matte())
    refused = reasons(bring_in("videomatte", tmp_path / "straight", tmp_path / "no", premultiplied=True))
    assert "is straight" in refused["a"]


@pytest.mark.parametrize("shade", [1.0, 0.25])
def test_form_of_bright_and_dark_foregrounds(shade):
    for number in range(3):
        front, alpha = matte(number)
        dark, cover = (front * shade).astype(np.uint8), (alpha / 255).astype(np.float32)
        assert classify_foreground(dark, cover) == "straight"
        assert classify_foreground(np.rint(dark * cover).astype(np.uint8), cover) == "premultiplied"
    assert classify_foreground(front // 60, cover) == "cannot tell"
    assert classify_foreground(front, (cover > 0.5).astype(np.float32)) == "cannot tell"


def test_composites_that_came_along_are_held_against_their_layers(tmp_path):
    front, alpha = matte()
    rear = panned([(step, 0) for step in range(FRAMES)], HEIGHT_PX, WIDTH_PX)
    share = alpha / 255
    whole = np.rint(share * front + (1 - share) * rear).astype(np.uint8)
    late = np.concatenate([alpha[:1], alpha[:-1]])
    given = {"sound": whole, "noisy": np.clip(whole + np.int16(3), 0, 255).astype(np.uint8), "wrong": whole // 2}
    for name, picture in (*given.items(), ("late", whole)):
        write_clip(tmp_path / "set", name, front, late if name == "late" else alpha)
        write_png(tmp_path / "set/bgr" / name, rear)
        write_png(tmp_path / "set/com" / name, picture)
    corpus = bring_in("videomatte", tmp_path / "set", tmp_path / "corpus")
    assert set(reasons(corpus)) == {"wrong", "late"}
    assert "is not alpha x foreground" in reasons(corpus)["wrong"]
    assert "alpha of late is misaligned: 1 frame behind" in reasons(corpus)["late"]
    clip = imported(corpus, "videomatte", "noisy")
    assert np.array_equal(clip.rgb, given["noisy"]) and np.array_equal(clip.background, rear)
    row = clip.row("videomatte")
    assert row["composite_difference"] == 3.0 and row["background_file"] == "bgr/noisy" and row["seed"] is None

    shutil.rmtree(tmp_path / "set/bgr")  # without the background only what no background explains is found
    for name in given:
        shutil.rmtree(tmp_path / "set/com" / name)
        write_video(tmp_path / f"set/com/{name}.mp4", given[name], 25.0, crf=4, pixels="yuv444p")
    corpus = bring_in("videomatte", tmp_path / "set", tmp_path / "without")
    assert "is not alpha x foreground" in reasons(corpus)["wrong"]
    clip = imported(corpus, "videomatte", "sound")
    assert clip.clip.source == str(tmp_path / "set/com/sound.mp4")
    assert clip.row("videomatte")["background"] is None


def damaged_jpeg(base):
    shutil.rmtree(base / "fgr/damaged")
    write_png(base / "fgr/damaged", matte()[0], ".jpg")
    file = base / "fgr/damaged/0005.jpg"
    file.write_bytes(file.read_bytes()[:-200])


def empty(base):
    shutil.rmtree(base / "pha/empty")
    write_png(base / "pha/empty", np.zeros((FRAMES, HEIGHT_PX, WIDTH_PX, 1), np.uint8))


def late(base):
    alpha = matte()[1]
    write_png(base / "pha/late", np.concatenate([alpha[:1], alpha[:-1]]))


def small(base):
    file = base / "pha/small/0003.png"
    shutil.rmtree(base / "pha/small")
    write_png(file.parent, matte()[1])
    write_png(base / "spare", matte()[1][:, ::2, ::2])
    shutil.copy(base / "spare/0003.png", file)
    shutil.rmtree(base / "spare")


def flipped_bit(base):
    file = base / "fgr/flipped/0002.png"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def no_matte(base):
    shutil.rmtree(base / "pha/alone")


def outside(base):
    shutil.move(base / "pha/outside", base.parent / "elsewhere")
    (base / "pha/outside").symlink_to(base.parent / "elsewhere")


FAULTS = {
    "damaged": (damaged_jpeg, r"0005\.jpg is damaged"),
    "empty": (empty, r"alpha is 0 everywhere"),
    "late": (late, r"pha/late is misaligned: 1 frame behind"),
    "small": (small, r"0003\.png is 32 x 24, the frames before it are 64 x 48"),
    "flipped": (flipped_bit, r"0002\.png is damaged"),
    "gap": (lambda base: (base / "pha/gap/0004.png").unlink(), r"1 of the frames 0 to 9 are missing, the first is 4"),
    "short": (lambda base: (base / "fgr/short/0009.png").unlink(), r"pha/short has 10 frames, foreground has 9"),
    "alone": (no_matte, r"pha has no alone"),
    "outside": (outside, r"outside the dataset folder"),
}


def test_each_fault_is_named_and_the_rest_comes_in(tmp_path, ray_workers):
    base = tmp_path / "set"
    for name in ("sound", *FAULTS):
        write_clip(base, name, *matte())
    for fault, _ in FAULTS.values():
        fault(base)
    corpus = bring_in("videomatte", base, tmp_path / "corpus")
    found = reasons(corpus)
    assert set(found) == set(FAULTS)
    for name, (_, reason) in FAULTS.items():
        assert re.search(rf"^(ClipError|\w+Error): .*{reason}", found[name]), f"{name}: {found[name]}"
    before = results(corpus)
    assert results(bring_in("videomatte", base, tmp_path / "corpus")) == before
    write_clip(base, "late", *matte())
    again = bring_in("videomatte", base, tmp_path / "corpus", retry_failed=True)
    assert set(reasons(again)) == set(FAULTS) - {"late"}
    assert results(again) == results(bring_in("videomatte", base, tmp_path / "shared", ray_workers(1)))


def test_what_is_no_such_set(tmp_path):
    (tmp_path / "set/fgr/a").mkdir(parents=True)
    with pytest.raises(OpenUniError, match="no folder contains fgr and pha"):
        bring_in("videomatte", tmp_path / "set", tmp_path / "corpus")
    with pytest.raises(OpenUniError, match="is not a folder"):
        bring_in("videomatte", tmp_path / "set", tmp_path / "corpus", backgrounds=str(tmp_path / "nowhere"))
    with pytest.raises(OpenUniError, match="Allowed"):
        bring_in("videomatte", tmp_path / "set", tmp_path / "corpus", fps=0.0)


def test_layers_are_kept_as_they_are_or_coded_anew(tmp_path):
    front, alpha = matte()
    write_clip(tmp_path / "set", "a", front, alpha)
    kept = imported(bring_in("videomatte", tmp_path / "set", tmp_path / "kept"), "videomatte", "a")
    other = bring_in("videomatte", tmp_path / "set", tmp_path / "coded", passthrough=False)
    coded = imported(other, "videomatte", "a")
    for name in ("rgb", "foreground", "background"):
        assert np.array_equal(getattr(kept, name), getattr(coded, name)), name
    assert np.array_equal(kept.foreground, front)
    assert np.array_equal(kept.alpha, alpha / np.float32(255))
    assert np.abs(kept.alpha - coded.alpha).max() <= 1 / 131070 + 1e-7
    assert np.array_equal(kept.rgb, composed(kept))
