"""The drawing: the right colours in the right places, widths that follow the picture, nothing from doubtful points."""

import hashlib

import numpy as np
import pytest

from openuni.manifests.modalities._stick_figure import BODY, FACE, HANDS, NeckRule, draw, openpose_points
from openuni.world import make_clip
from tests.manifests.modalities.people import standing

NOSE, LEFT_SHOULDER, RIGHT_SHOULDER, RIGHT_ELBOW, RIGHT_WRIST, LEFT_HIP, LEFT_KNEE = 0, 5, 6, 8, 10, 11, 13
FEET = slice(17, 23)


def person(*parts: slice | int) -> np.ndarray:
    """float32 [1, 133, 3] of a person of whom only these points are there."""
    whole = standing((256.0, 100.0), 60.0)
    kept = np.zeros_like(whole)
    for part in parts:
        kept[part] = whole[part]
    return kept[None]


def colour_between(points: np.ndarray, one: int, other: int) -> list[int]:
    """Colour of the drawing halfway between two points."""
    x, y = points[0, [one, other], :2].mean(axis=0)
    return colour_at(draw(points, 512, 512), x, y)


def colour_at(drawing: np.ndarray, x: float, y: float) -> list[int]:
    """Rounded to 8 bits."""
    found: list[int] = np.rint(drawing[int(y), int(x)] * 255).astype(int).tolist()
    return found


@pytest.mark.parametrize(
    ("one", "other", "colour"),
    [
        (RIGHT_SHOULDER, RIGHT_ELBOW, (255, 170, 0)),
        (RIGHT_ELBOW, RIGHT_WRIST, (255, 255, 0)),
        (LEFT_HIP, LEFT_KNEE, (0, 170, 255)),
        (13, 15, (0, 85, 255)),  # left shin
        (12, 14, (0, 255, 85)),  # right thigh
        (7, 9, (85, 255, 0)),  # left forearm
    ],
)
def test_limbs_have_openposes_colours_dimmed(one: int, other: int, colour: tuple[int, ...]) -> None:
    assert colour_between(person(BODY), one, other) == [round(0.6 * level) for level in colour]


@pytest.mark.parametrize(
    ("point", "colour"),
    [(NOSE, (255, 0, 0)), (RIGHT_SHOULDER, (255, 170, 0)), (LEFT_SHOULDER, (85, 255, 0)), (15, (85, 0, 255))],
)
def test_joints_have_openposes_colours(point: int, colour: tuple[int, ...]) -> None:
    points = person(BODY)
    x, y = points[0, point, :2]
    assert colour_at(draw(points, 512, 512), x, y) == list(colour)


def test_the_neck_is_between_the_shoulders_and_needs_both() -> None:
    both = person(LEFT_SHOULDER, RIGHT_SHOULDER)
    x, y = both[0, [LEFT_SHOULDER, RIGHT_SHOULDER], :2].mean(axis=0)
    assert colour_at(draw(both, 512, 512), x, y) == [255, 85, 0]
    quarters = [colour_at(draw(both, 512, 512), x - share * 48, y) for share in (0.5, -0.5)]
    assert quarters == [[153, 0, 0], [153, 51, 0]]  # the limbs to the right and to the left shoulder
    alone = draw(person(RIGHT_SHOULDER), 512, 512)
    assert alone.sum() == pytest.approx(np.pi * 4**2 * (1 + 2 / 3), rel=0.02)  # its dot and nothing else


@pytest.mark.parametrize("place", [(100.5, 80.5), (100.0, 80.0), (100.3, 80.8)])
def test_a_dot_lies_where_its_point_is(place: tuple[float, float]) -> None:
    points = np.zeros((1, 133, 3), np.float32)
    points[0, NOSE] = (*place, 1)
    light = draw(points, 512, 512)[..., 0].astype(float)
    rows, columns = np.mgrid[:512, :512] + 0.5  # pixel centres
    centre = [(light * columns).sum() / light.sum(), (light * rows).sum() / light.sum()]
    np.testing.assert_allclose(centre, place, atol=1e-2)
    assert light.sum() == pytest.approx(np.pi * 4**2, rel=0.02)  # radius 4


@pytest.mark.parametrize(("side", "width"), [(512, 4), (256, 2), (1024, 8), (64, 1)])
def test_lines_are_as_wide_as_the_picture_wants(side: int, width: int) -> None:
    points = np.zeros((1, 133, 3), np.float32)
    points[0, [LEFT_HIP, LEFT_KNEE]] = [(side / 2, side / 4, 1), (side / 2, side * 3 / 4, 1)]
    across = draw(points, side, side)[side // 2].max(axis=-1).astype(float)
    assert across.sum() / 0.6 == pytest.approx(width, rel=1e-5)


def test_hands_are_sticks_with_blue_joints_and_faces_white_dots() -> None:
    left, right = HANDS
    drawing = draw(person(left), 512, 512)
    assert (drawing == (0, 0, 1)).all(axis=-1).any()
    assert {int(np.argmax(colour)) for colour in drawing.reshape(-1, 3)} == {0, 1, 2}
    assert not np.array_equal(drawing, draw(person(right), 512, 512))
    face = draw(person(FACE), 512, 512)
    assert face.max() == 1
    assert (face == face[..., :1]).all()


def test_feet_are_not_drawn() -> None:
    assert not draw(person(FEET), 512, 512).any()


@pytest.mark.parametrize(("confidence", "drawn"), [(0.3, True), (0.29, False)])
def test_doubtful_points_are_not_drawn_nor_what_hangs_on_them(confidence: float, drawn: bool) -> None:
    points = person(RIGHT_ELBOW, RIGHT_WRIST)
    points[0, RIGHT_WRIST, 2] = confidence
    x, y = points[0, RIGHT_WRIST, :2]
    drawing = draw(points, 512, 512)
    assert drawing[int(y), int(x)].any() == drawn
    assert (sum(colour_between(points, RIGHT_ELBOW, RIGHT_WRIST)) > 0) == drawn
    assert drawing.any()  # the elbow


def test_later_persons_cover_earlier_ones_and_faces_cover_bodies() -> None:
    one, other = (np.zeros((133, 3), np.float32) for _ in range(2))
    one[RIGHT_SHOULDER], other[LEFT_SHOULDER] = (50.5, 50.5, 1), (50.5, 50.5, 1)
    assert draw(np.stack([one, other]), 100, 100)[50, 50] == pytest.approx([1 / 3, 1, 0])
    assert draw(np.stack([other, one]), 100, 100)[50, 50] == pytest.approx([1, 2 / 3, 0])
    one[FACE] = (50.5, 50.5, 1)
    assert draw(np.stack([one, other]), 100, 100)[50, 50].tolist() == [1, 1, 1]


def test_nobody_is_black_and_points_far_away_do_no_harm() -> None:
    assert not draw(np.zeros((0, 133, 3), np.float32), 40, 50).any()
    far = np.full((1, 133, 3), 3e38, np.float32)
    far[..., 2] = 1
    assert not draw(far, 40, 50).any()
    far[0, LEFT_HIP] = (25, 20, 1)
    assert np.isfinite(draw(far, 40, 50)).all()
    crossing = np.zeros((1, 133, 3), np.float32)
    crossing[0, [LEFT_HIP, LEFT_KNEE]] = [(25, -500, 1), (25, 500, 1)]
    assert draw(crossing, 40, 50)[:, 25].any(axis=-1).all()


def by_dwpose(points: np.ndarray) -> np.ndarray:
    """The order of the authors' code: the neck goes in at 17, then these places take what stood in those."""
    neck = points[:, [5, 6]].mean(axis=1)
    neck[:, 2] = (points[:, 5, 2] > 0.3) & (points[:, 6, 2] > 0.3)
    whole = np.insert(points, 17, neck, axis=1)
    to, of = [1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 14, 15, 16, 17], [17, 6, 8, 10, 7, 9, 12, 14, 16, 13, 15, 2, 1, 4, 3]
    whole[:, to] = whole[:, of]
    return whole


def test_the_134_points_are_in_dwposes_order() -> None:
    points = np.arange(2 * 133 * 3, dtype=np.float64).reshape(2, 133, 3)
    np.testing.assert_array_equal(openpose_points(points, "both"), by_dwpose(points))
    least = openpose_points(points)
    assert least[:, 1, 2].tolist() == points[:, 5, 2].tolist()  # shoulder 5 has the lesser number
    least[:, 1, 2] = 1
    np.testing.assert_array_equal(least, by_dwpose(points))


@pytest.mark.parametrize(
    ("shoulders", "rule", "confidence"),
    [((0.9, 0.4), "least", 0.4), ((0.9, 0.4), "both", 1.0), ((0.9, 0.3), "both", 0.0), ((0.2, 0.9), "least", 0.2)],
)
def test_the_neck_is_as_sure_as_its_rule_says(
    shoulders: tuple[float, float], rule: NeckRule, confidence: float
) -> None:
    points = standing((256.0, 100.0), 60.0)[None]
    points[0, [LEFT_SHOULDER, RIGHT_SHOULDER], 2] = shoulders
    assert openpose_points(points, rule)[0, 1, 2] == pytest.approx(confidence)
    assert openpose_points(points, rule).dtype == np.float32
    assert openpose_points(points[:0], rule).shape == (0, 134, 3)


def test_a_persons_drawing_stays_as_it_is() -> None:
    """To the level: a change of widths, colours or order that nobody meant shows up here."""
    points = standing((400.13, 100.31), 50.0)[None]  # no level lies within a thousandth of where it changes
    levels = (draw(points, 480, 832) * 255 + 0.17).astype(np.uint8)
    assert hashlib.sha256(levels.tobytes()).hexdigest()[:16] == "4618ae478a7a691f"


def test_vaces_style_has_no_hands_and_blue_for_red() -> None:
    points = standing((400.0, 100.0), 50.0)[None]
    handless = points.copy()
    for hand in HANDS:
        handless[:, hand] = 0
    np.testing.assert_array_equal(draw(points, 480, 832, "vace"), draw(handless, 480, 832)[..., ::-1])
    assert draw(points, 480, 832, "vace").any(axis=-1).sum() < draw(points, 480, 832).any(axis=-1).sum()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_walking_body_is_drawn_where_it_is(seed: int) -> None:
    """The world's own key points over its own segmentation: sticks lie on the body, and reach from head to foot."""
    clip = make_clip(
        seed, preset="person", frames=2, height_px=192, width_px=192, modalities=("skeleton", "segmentation")
    )
    (body,) = {instance.instance for instance in clip.scene.bodies}
    for drawn, ids in zip(
        clip.modalities["skeleton"].to_rgb().any(axis=-1), clip.modalities["segmentation"].array[..., 0], strict=True
    ):
        rows = np.nonzero((ids == body).any(axis=1))[0]
        near = np.zeros_like(drawn)
        for down in range(-3, 4):
            for across in range(-3, 4):
                near |= np.roll(ids == body, (down, across), axis=(0, 1))
        assert drawn.sum() > 50
        assert (drawn & near).sum() / drawn.sum() > 0.9
        lines = np.nonzero(drawn.any(axis=1))[0]
        assert np.ptp(lines) > 0.75 * np.ptp(rows)
