import dataclasses

import numpy as np
import pytest

from openuni.filters.resolution import Resolution
from openuni.manifests.contracts.decoded_clip import DecodedClip, decode
from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.encode import write_video
from openuni.manifests.video.probe import make_clip, probe
from tests.moving_pictures import texture

PICTURE = np.maximum(texture(120, 180), 40)


def scores(frames, **options):
    return Resolution(**options).run(None, DecodedClip.from_frames(np.asarray(frames)))


def test_a_whole_picture():
    assert scores([PICTURE]) == (120, 120 * 180, 1.5, 0.0, 120, 1.5)


def test_a_letterbox_and_a_pillarbox():
    wide, tall = PICTURE.copy(), PICTURE.copy()
    wide[:15] = wide[-15:] = 0
    tall[:, :45] = tall[:, -45:] = 0
    assert scores([wide])[3:] == (0.25, 90, 2.0)
    assert scores([tall])[3:] == (0.5, 90, 0.75)


def test_bars_that_are_not_there_all_the_time_are_picture():
    boxed = PICTURE.copy()
    boxed[:15] = 0
    assert scores([boxed, PICTURE]).bars_share == 0.0


def test_black_within_the_picture_is_no_bar_and_a_speck_in_a_bar_is_no_picture():
    holed, boxed = PICTURE.copy(), PICTURE.copy()
    holed[30:60] = 0
    boxed[:15] = 10
    boxed[3, 7] = 255
    assert scores([holed]).bars_share == 0.0
    assert scores([boxed]).bars_share == 0.125


def test_all_black():
    assert scores(np.zeros((2, 30, 40, 3), np.uint8))[3:] == (1.0, 0, None)


def test_sizes_are_those_of_the_source_not_of_the_working_size(tmp_path):
    boxed = np.repeat(PICTURE[None], 3, axis=0).copy()
    boxed[:, :30] = boxed[:, -30:] = 0
    write_video(tmp_path / "x.mp4", boxed, 25.0)
    clip = make_clip(str(tmp_path / "x.mp4"), probe(str(tmp_path / "x.mp4")))
    small = decode(clip, short_side_px=60)
    assert small.frames.shape[1:3] == (60, 90)
    found = Resolution().run(None, small)
    assert found[:3] == (120, 120 * 180, 1.5)
    assert found.picture_short_side_px == pytest.approx(60, abs=2)
    turned = dataclasses.replace(small, clip=dataclasses.replace(clip, width_px=120, height_px=180))
    assert Resolution().run(None, turned).aspect_ratio == pytest.approx(2 / 3)


def test_samples_are_few():
    assert len(Resolution().sample(np.arange(3000) / 25)) == 8
    assert Resolution().sample(np.arange(50) / 25).tolist() == [0, 25]


@pytest.mark.parametrize("wrong", [{"frames_per_s": 0.0}, {"max_frames": 0}, {"black_below": 2.0}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(OpenUniError, match="Allowed"):
        Resolution(**wrong)
