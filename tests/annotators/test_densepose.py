"""DensePose: maps become I, U, V by the reference's formula, persons lie where they are, nobody is nobody."""

import hashlib
from pathlib import Path
from typing import Dict, Tuple  # noqa: UP035 - TorchScript knows these

import numpy as np
import pytest
import torch

from openuni.annotators import densepose
from openuni.annotators.densepose import (
    FILE,
    REPOSITORY,
    SHA256,
    Densepose,
    DetectedPersons,
    _paint,
    _stable_parts,
    surface,
)
from openuni.manifests.contracts.checkpoint import Checkpoint
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import ClipError, MissingRequirement, OpenUniError
from openuni.manifests.modalities.densepose import part_colours
from openuni.world import make_clip
from tests.device_waits import Waits
from tests.moving_pictures import texture

MAPS_PX = 12


class Finder(torch.nn.Module):
    """What exports have in common: persons are boxes around pure blue (the first) and pure red (the second) pixels.

    The maps within the boxes are random, but fixed; boxes reach 5 px further than the pixels, to the left and above
    also out of the frame.
    """

    def __init__(self, coarse: int = 2, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for name, channels in (("coarse", coarse), ("fine", 25), ("u", 25), ("v", 25)):
                self.register_buffer(name, torch.randn(2, channels, MAPS_PX, MAPS_PX))
            self.u.mul_(0.4).add_(0.5)  # beyond 0 and 1 here and there
            self.v.mul_(0.4).add_(0.5)

    def find(self, picture: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:  # noqa: UP006
        picture = picture.permute(1, 2, 0) if picture.shape[0] == 3 else picture
        assert picture.dtype == torch.uint8
        boxes = torch.zeros(2, 4, device=picture.device)
        there = torch.zeros(2, dtype=torch.bool, device=picture.device)
        for person in range(2):
            seen = (picture[:, :, 2 * person] > 250) & (picture.sum(dim=2) < 260)  # blue green red
            places = seen.nonzero()
            if len(places) > 0:
                there[person] = True
                boxes[person, :2] = places.min(dim=0)[0].flip(0) - 5.3
                boxes[person, 2:] = places.max(dim=0)[0].flip(0) + 6.3
        return boxes[there], there


class TupleExport(Finder):
    """As the file on the hub: boxes and maps, no scores."""

    def forward(
        self, picture: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # noqa: UP006
        boxes, there = self.find(picture)
        return boxes, self.coarse[there], self.fine[there], self.u[there], self.v[there]


class TableExport(Finder):
    """As detectron2's port gives it: a table with scores; the second person is the surer one."""

    def forward(self, picture: torch.Tensor, bgr: bool = True) -> Dict[str, torch.Tensor]:  # noqa: UP006
        boxes, there = self.find(picture)
        return {
            "pred_boxes": boxes,
            "scores": torch.tensor([0.4, 0.9], device=picture.device)[there],
            "pred_densepose_coarse_segm": self.coarse[there],
            "pred_densepose_fine_segm": self.fine[there],
            "pred_densepose_u": self.u[there],
            "pred_densepose_v": self.v[there],
        }


class Numbers(torch.nn.Module):
    """Something else."""

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return picture.float()


class WrongMaps(Finder):
    """A network of another body."""

    def forward(
        self, picture: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # noqa: UP006
        boxes, there = self.find(picture)
        return boxes, self.coarse[there], self.coarse[there], self.u[there], self.v[there]


class HugeBox(TupleExport):
    """Boxes that no memory holds."""

    def find(self, picture: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:  # noqa: UP006
        return torch.tensor([[0.0, 0.0, 1e9, 1e9]]), torch.tensor([True, False])


def export(folder, module, name="export.torchscript"):
    path = folder / name
    if not path.exists():
        torch.jit.script(module.eval()).save(path)
    return str(path)


def contract_case(folder, frames):
    """What tests/test_every_operator.py runs: an export made by hand, and a person added to the frames."""
    shown = frames.copy()
    for number, frame in enumerate(shown):
        frame[8:24, 8 + 2 * number : 28 + 2 * number] = (0, 0, 255)
    return Densepose(checkpoint=export(folder, TableExport())), DecodedClip.from_frames(shown)


def picture(*places, height=64, width=96):
    """uint8 [H, W, 3] RGB: grey, with a blue and a red rectangle (top, left, bottom, right), or None."""
    frame = np.full((height, width, 3), 90, np.uint8)
    for colour, place in zip(((0, 0, 255), (255, 0, 0)), places, strict=False):
        if place:
            frame[place[0] : place[2], place[1] : place[3]] = colour
    return frame


def annotate(operator, *frames):
    return operator.run(operator.load("cpu"), DecodedClip.from_frames(np.stack(frames)))


def by_reference(module, person, box, height, width):
    """I, U, V of one person in the whole frame, uint8: detectron2's formula, value by value, U and V cut off."""
    left, top, right, bottom = box
    x, y, w, h = int(left), int(top), max(int(right - left), 1), max(int(bottom - top), 1)

    def scaled(maps):
        return torch.nn.functional.interpolate(maps[person][None], (h, w), mode="bilinear", align_corners=False)[0]

    label = scaled(module.fine).argmax(0) * (scaled(module.coarse).argmax(0) > 0)
    u, v = scaled(module.u), scaled(module.v)
    out = np.zeros((height, width, 3), np.uint8)
    for row in range(h):
        for column in range(w):
            part = int(label[row, column])
            if part and 0 <= y + row < height and 0 <= x + column < width:
                place = [float(one[part, row, column].mul(255).clamp(0, 255)) for one in (u, v)]
                out[y + row, x + column] = (part, int(place[0]), int(place[1]))
    return out


@pytest.mark.parametrize("coarse", [2, 15])
@pytest.mark.parametrize("place", [(20, 30, 44, 52), (0, 0, 12, 30), (50, 80, 64, 96), (30, 40, 31, 41)])
def test_maps_become_i_u_v_by_the_references_formula(tmp_path, coarse, place):
    """At the border too, where the box leaves the frame. U and V within 1 level: they are rounded, not cut."""
    module = TupleExport(coarse)
    found = annotate(Densepose(checkpoint=export(tmp_path, module)), picture(place)).densepose.array[0]
    top, left, bottom, right = place
    box = (left - 5.3, top - 5.3, right + 5.3, bottom + 5.3)
    expected = by_reference(module, 0, torch.tensor(box).tolist(), 64, 96)
    np.testing.assert_array_equal(found[..., 0], expected[..., 0])
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert len(np.unique(found[..., 0])) > 10 and found[..., 1:].max() == 255
    assert not found[found[..., 0] == 0].any()


def test_boxes_wholly_out_of_the_frame_paint_nothing():
    maps = tuple(torch.ones(1, channels, 4, 4) for channels in (2, 25, 25, 25))
    maps[0][0, 1] += 1
    maps[1][0, 3] += 1
    for box in ((96, 10, 20, 20), (200, 200, 20, 20), (-30, 5, 20, 20), (10, -20, 20, 20), (10, 64, 5, 5)):
        target = torch.zeros((64, 96, 3), dtype=torch.uint8)
        _paint(target, DetectedPersons(np.array([box]), None, maps))
        assert not target.any()
    _paint(target, DetectedPersons(np.array([(95, 63, 20, 20)]), None, maps))
    assert target[63, 95].tolist() == [3, 255, 255] and (target > 0).any(axis=-1).sum() == 1


def test_u_and_v_are_rounded_and_held_within_0_and_1():
    maps = torch.zeros(25, 1, 1)
    coarse, fine = torch.tensor([0.0, 1.0])[:, None, None], maps.clone()
    fine[7] = 1
    for value, level in ((0.5, 128), (0.4980, 127), (1.7, 255), (-0.2, 0)):
        u = torch.full_like(maps, 9.0)  # of other parts: not looked at
        u[7] = value
        assert surface(coarse, fine, u, maps, 1, 1).tolist() == [[[7, level, 0]]]
    assert not surface(-coarse, fine, maps + 1, maps + 1, 2, 3).any()  # background, U and V too


def test_of_persons_who_overlap_the_surer_one_is_on_top(tmp_path):
    frame = picture((10, 10, 50, 50), (30, 30, 60, 80))
    boxes = [(4.7, 4.7, 55.3, 55.3), (24.7, 24.7, 85.3, 65.3)]
    for module, order in ((TableExport(), (0, 1)), (TupleExport(), (1, 0))):
        path = export(tmp_path, module, type(module).__name__)
        blue = frame.copy()
        blue[30:50, 30:50] = (0, 0, 255)  # what is red there would be out of the blue box otherwise
        blue[49, 49], blue[30, 30] = (255, 0, 0), (255, 0, 0)
        found = annotate(Densepose(checkpoint=path), blue).densepose.array[0, ..., 0]
        expected = np.zeros((64, 96), np.uint8)
        for person in order:
            one = by_reference(module, person, torch.tensor(boxes[person]).tolist(), 64, 96)[..., 0]
            expected = np.where(one > 0, one, expected)
        np.testing.assert_array_equal(found, expected)


def test_nobody_is_nobody_and_counts_follow_the_frames(tmp_path):
    operator = Densepose(checkpoint=export(tmp_path, TableExport()))
    nobody = annotate(operator, picture(), picture())
    assert not nobody.densepose.array.any()
    assert nobody[1:] == (0.0, 0.0, 0, 0.0, None, None)
    found = annotate(
        operator, picture(), picture((20, 30, 44, 52)), picture((20, 30, 44, 52), (5, 60, 30, 80)), picture()
    )
    assert (found.persons_max, found.persons_mean, found.person_share) == (2, 0.75, 0.5)
    assert found.box_score_mean == pytest.approx((0.4 + 0.4 + 0.9) / 3)
    assert found.covered_share == pytest.approx((found.densepose.array[..., 0] > 0).mean())
    assert 0 < found.covered_share < 0.3
    one = annotate(operator, picture((20, 30, 44, 52)))
    assert one.densepose.array.shape == (1, 64, 96, 3) and one.part_stability is None
    assert (
        annotate(Densepose(checkpoint=export(tmp_path, TupleExport(), "t")), picture((2, 3, 9, 9))).box_score_mean
        is None
    )


def test_the_module_sees_blue_green_red(tmp_path):
    """Blue comes first: were the channels turned, the blue person would have the second one's maps."""
    module = TupleExport()
    found = annotate(Densepose(checkpoint=export(tmp_path, module)), picture((20, 30, 44, 52))).densepose.array[0]
    box = torch.tensor((24.7, 14.7, 57.3, 49.3)).tolist()
    assert np.array_equal(found[..., 0], by_reference(module, 0, box, 64, 96)[..., 0])
    assert not np.array_equal(found[..., 0], by_reference(module, 1, box, 64, 96)[..., 0])


def test_an_export_in_half_precision_runs_on_a_cpu(tmp_path):
    frames = [picture((20, 30, 44, 52))]
    whole = annotate(Densepose(checkpoint=export(tmp_path, TableExport(), "whole")), *frames)
    half = Densepose(checkpoint=export(tmp_path, TableExport().half(), "half"))
    found = annotate(half, *frames)
    assert half.load("cpu")[0].fine.dtype == torch.float32
    same = found.densepose.array[..., 0] == whole.densepose.array[..., 0]
    assert same.mean() > 0.999  # 11 bits decide a few pixels between two parts otherwise


@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_frames_at_once_change_nothing(tmp_path, monkeypatch, at_once):
    operator = Densepose(checkpoint=export(tmp_path, TableExport()))
    both = [(20, 30, 44, 52), (5, 60, 30, 80)]
    frames = [picture(*both[: n % 3]) if n % 4 else picture() for n in range(10)]
    expected = annotate(operator, *frames)
    monkeypatch.setattr(densepose, "FRAMES_AT_ONCE", at_once)
    monkeypatch.setattr(densepose, "PERSONS_AT_ONCE", 2 * at_once)
    found = annotate(operator, *frames)
    np.testing.assert_array_equal(found.densepose.array, expected.densepose.array)
    assert found[1:] == expected[1:]


def test_waits_for_the_device_are_three_per_batch_of_frames_whatever_is_in_them(tmp_path):
    operator = Densepose(checkpoint=export(tmp_path, TableExport()))
    model, counts = operator.load("cpu"), []
    for places in ([None, None], [(20, 30, 44, 52), None], [(20, 30, 44, 52), (5, 60, 30, 80)]):
        clip = DecodedClip.from_frames(np.stack([picture(*places)] * 12))
        with Waits() as waits:
            operator.run(model, clip)
        # the network itself, which finds persons by their colour, has `nonzero` and boolean masks in each frame
        counts.append(
            {
                name: count
                for name, count in waits.counts.items()
                if name in ("cpu", "from_numpy", "_local_scalar_dense")
            }
        )
    assert all(one["cpu"] == 3 * 2 and one["from_numpy"] == 2 for one in counts)
    assert counts[1].get("_local_scalar_dense", 0) == counts[2].get("_local_scalar_dense", 0)


def test_parts_that_follow_the_motion_are_stable_and_others_are_not(tmp_path):
    """A texture that moves 2 px a frame, with a person who moves along, jumps, or is there in every second frame."""
    operator = Densepose(checkpoint=export(tmp_path, TableExport()))
    big = texture(96, 160, grain_px=2.5)

    def shown(left, ground):
        frame = big[16:80, 32 - ground : 128 - ground].copy()
        if left is not None:
            frame[20:52, left : left + 24] = frame[20:52, left : left + 24] // 4 + (0, 0, 180)
            frame[[20, 51], left] = frame[[20, 51], left + 23] = (0, 0, 255)  # what is found
        return frame

    steps = range(0, 12, 2)
    along = annotate(operator, *(shown(20 + step, step) for step in steps))
    against = annotate(operator, *(shown(40 - 3 * step, step) for step in steps))
    flickers = annotate(operator, *(shown(20 + step if step % 4 else None, step) for step in steps))
    assert along.part_stability > 0.9
    assert flickers.part_stability < 0.1
    assert against.part_stability < along.part_stability
    assert along.persons_max == 1


def test_the_true_parts_of_a_walking_body_are_stable():
    clip = make_clip(3, preset="person", frames=6, height_px=96, width_px=96, modalities=("densepose",))
    parts = clip.modalities["densepose"].array[..., 0]
    decoded = DecodedClip.from_frames(clip.frames, clip.fps)
    body, same = _stable_parts(decoded, parts)
    assert same / body > 0.7
    shuffled = np.where(parts > 0, (parts * (1 + np.arange(6, dtype=np.uint8)[:, None, None])) % 24 + 1, 0)
    body, same = _stable_parts(decoded, shuffled.astype(np.uint8))
    assert same / body < 0.4


def test_the_picture_is_magicanimates(tmp_path):
    found = annotate(Densepose(checkpoint=export(tmp_path, TupleExport())), picture((20, 30, 44, 52))).densepose
    shown = np.rint(found.to_rgb() * 255)
    assert shown[0, 0, 0].tolist() == [68, 1, 84]
    np.testing.assert_array_equal(shown, np.rint(part_colours()[found.array[..., 0]] * 255))


# ---------------------------------------------------------------------- files


def test_only_the_published_file_and_paths_are_programs_to_load(tmp_path, monkeypatch):
    (known,) = Densepose().checkpoints()
    assert (known.ref, known.only, known.sha256) == (REPOSITORY, (FILE,), SHA256)
    assert known.terms == "copyleft" and known.requires_acceptance
    with pytest.raises(OpenUniError, match="TorchScript is executable, so other files are not downloaded from the hub"):
        Densepose(checkpoint="somebody/else").checkpoints()
    monkeypatch.setenv("OPENUNI_CHECKPOINTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(MissingRequirement, match=f"openuni checkpoints get {REPOSITORY}"):
        Densepose().load("cpu")
    (tmp_path / REPOSITORY).mkdir(parents=True)
    export(tmp_path / REPOSITORY, TupleExport(), FILE)
    with pytest.raises(OpenUniError, match=f"its publisher states {SHA256}"):  # under the published name, another file
        Densepose().load("cpu")


def test_of_the_hubs_cache_the_stated_digest_counts(tmp_path, monkeypatch):
    """The hub names what it sent by its own digest; the one stated here decides."""
    cache = tmp_path / f"models--{REPOSITORY.replace('/', '--')}"
    (cache / "blobs").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "snapshots" / "abc").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    data = Path(export(tmp_path, TupleExport())).read_bytes()
    blob = cache / "blobs" / hashlib.sha256(data).hexdigest()
    blob.write_bytes(data)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert Densepose().checkpoints()[0].find() is None  # the repository is here, the file is not
    (cache / "snapshots" / "abc" / FILE).symlink_to(blob)
    assert Densepose().checkpoints()[0].find() == cache / "snapshots" / "abc"
    with pytest.raises(OpenUniError, match=f"its publisher states {SHA256}"):
        Densepose().load("cpu")
    sound = Checkpoint(REPOSITORY, "hub", sha256=blob.name, only=(FILE,))
    assert sound.verify()


def test_other_files_are_explained(tmp_path):
    (tmp_path / "text.torchscript").write_text("not a module")
    with pytest.raises(OpenUniError, match="is not a TorchScript file, or is damaged"):
        Densepose(checkpoint=str(tmp_path / "text.torchscript")).load("cpu")
    with pytest.raises(MissingRequirement, match="existing file"):
        Densepose(checkpoint="models/nowhere.torchscript").load("cpu")
    with pytest.raises(OpenUniError, match=r"the module returns Tensor; expected a tuple \(boxes"):
        annotate(Densepose(checkpoint=export(tmp_path, Numbers(), "numbers")), picture())
    with pytest.raises(OpenUniError, match=r"\(1, 2, 12, 12\), \(1, 2, 12, 12\).*three times \[n, 25, h, w\]"):
        annotate(Densepose(checkpoint=export(tmp_path, WrongMaps(), "wrong")), picture((20, 30, 44, 52)))


def test_frames_and_boxes_that_cannot_be_are_clip_errors(tmp_path):
    with pytest.raises(ClipError, match="boxes that are not finite or far larger than the frame"):
        annotate(Densepose(checkpoint=export(tmp_path, HugeBox())), picture())
    with pytest.raises(ClipError, match="sides >= 8 px, got 3 x 64"):
        annotate(Densepose(checkpoint=export(tmp_path, TupleExport(), "t")), np.zeros((64, 3, 3), np.uint8))
