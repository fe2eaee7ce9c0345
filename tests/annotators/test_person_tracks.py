"""Who is who: through crossings, occlusions and gaps, on persons whose identity is known."""

import numpy as np
import pytest

from openuni.annotators._person_tracks import Persons, box_overlap, pose_similarity, track_identities
from openuni.world.clips import render_clip
from openuni.world.figures.body import Body
from openuni.world.figures.gait import Walk
from openuni.world.figures.people import dress
from openuni.world.rendering.camera import CameraPath, Lens
from openuni.world.sample import draw_room
from openuni.world.scene import Light, Scene
from tests.manifests.modalities.people import standing

FPS = 12.0


def two_who_cross(frames):
    """A clip of two persons who walk past one another, one before the other; who is half hidden is not found.

    Returns what a detector finds in each frame, in an order that changes, and who that truly is.
    """
    rng = np.random.default_rng(0)
    walks = [
        Walk((-1.0, 0.5), np.pi / 2, 0.8, 0.0, 1.1, 0.1),  # to the right
        Walk((1.2, -0.6), -np.pi / 2, 0.9, 0.0, 1.1, 0.6),  # to the left, behind
    ]
    bodies = [Body(1, 1.75, 1.0, walks[0]), Body(2, 1.7, 1.0, walks[1])]
    dressed = [dress(rng, body, shirt)[0] for body, shirt in zip(bodies, ("red", "blue"), strict=True)]
    lamp = Light((0.0, 2.7, 2.0), 5.5)
    camera = CameraPath("static", (0.0, 1.3, 3.4), (0.0, 0.9, 0.0))
    scene = Scene((*draw_room(rng), *dressed[0], *dressed[1]), (lamp,), 0.4, camera, bodies=tuple(bodies))
    clip = render_clip(scene, frames, FPS, Lens.with_view(72, 96, 60.0), ("segmentation", "skeleton"))
    ids, skeleton = clip.modalities["segmentation"].array[..., 0], clip.modalities["skeleton"].array
    most = [max((ids[frame] == person + 1).sum() for frame in range(frames)) for person in range(2)]
    found, truth = [], []
    for frame in range(frames):
        seen = [p for p in rng.permutation(2).tolist() if (ids[frame] == p + 1).sum() > 0.5 * most[p]]
        truth.append(seen)
        boxes = [box_around(ids[frame] == person + 1) for person in seen]
        points = skeleton[frame, seen].copy()
        points[..., :2] += rng.normal(0, 0.5, (*points.shape[:-1], 2))  # as exact as an estimate
        found.append(Persons(np.array(boxes, np.float32).reshape(-1, 4), points))
    return found, truth


def box_around(mask):
    rows, columns = np.nonzero(mask)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_two_who_cross_stay_themselves():
    found, truth = two_who_cross(30)
    counts = [len(seen) for seen in truth]
    assert counts.count(1) >= 2 and counts[0] == counts[-1] == 2  # one was hidden for some frames, and came back
    order = [float(persons.boxes[seen.index(0), 0] - persons.boxes[seen.index(1), 0])
             for persons, seen in zip(found, truth, strict=True) if len(seen) == 2]  # fmt: skip
    assert order[0] < -15 and order[-1] > 15  # they have truly changed sides
    numbers = track_identities(found, np.arange(30) / FPS, 1.0)
    names = {}
    for mine, seen in zip(numbers, truth, strict=True):
        for number, person in zip(mine.tolist(), seen, strict=True):
            assert names.setdefault(person, number) == number
    assert sorted(names.values()) == [0, 1]


def person_at(x, y=100.0, height=60.0):
    """Box and points of a person who stands with the neck at x, y."""
    points = standing((x, y), height / 6)
    low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
    return np.concatenate([low, high]), points


def frame_of(*places, without=False):
    """Persons in this order; `without` points."""
    pairs = [person_at(place) for place in places]
    boxes = np.array([box for box, _ in pairs], np.float32).reshape(-1, 4)
    points = np.array([points for _, points in pairs], np.float32).reshape(-1, 133, 3)
    return Persons(boxes, np.zeros_like(points) if without else points)


def numbers_of(frames, max_gap_s=1.0, fps=10.0):
    return [mine.tolist() for mine in track_identities(frames, np.arange(len(frames)) / fps, max_gap_s)]


def test_the_order_within_a_frame_does_not_matter():
    assert numbers_of([frame_of(50, 150), frame_of(152, 52), frame_of(54, 154)]) == [[0, 1], [1, 0], [0, 1]]


@pytest.mark.parametrize(("gap", "expected"), [(1, 0), (9, 0), (10, 0), (11, 1)])
def test_gaps_are_bridged_up_to_their_limit(gap, expected):
    frames = [frame_of(50), *[frame_of()] * (gap - 1), frame_of(50)]
    assert numbers_of(frames, 1.0)[-1] == [expected]


def test_who_walks_on_behind_something_is_found_where_he_comes_out():
    places = [50, 56, 62, 68, None, None, None, None, None, None, None, None, 122, 128]  # 6 px a frame
    frames = [frame_of() if place is None else frame_of(place) for place in places]
    assert numbers_of(frames)[-2:] == [[0], [0]]
    assert box_overlap(person_at(68)[0], person_at(122)[0]) == 0  # nothing but his speed told it


def test_who_stops_behind_something_is_found_there_too():
    places = [50, 56, 62, 68, None, None, None, None, None, 70, 70]
    frames = [frame_of() if place is None else frame_of(place) for place in places]
    assert numbers_of(frames)[-2:] == [[0], [0]]


def test_one_who_is_lost_takes_no_one_elses_place():
    """The one who stays is matched first, though the one who was lost lay nearer to where he is now."""
    frames = [frame_of(50, 62), frame_of(50), frame_of(57)]
    assert numbers_of(frames) == [[0, 1], [0], [0]]


def test_postures_tell_apart_whom_boxes_do_not():
    one, other = person_at(100)[1], person_at(100)[1]
    other[7:11, 1] -= 25  # arms up
    box = np.array([80.0, 80.0, 120.0, 170.0])
    frames = [Persons(np.float32([box, box]), np.stack([one, other])) for _ in range(2)]
    frames[1] = Persons(frames[1].boxes, frames[1].points[::-1])
    assert numbers_of(frames) == [[0, 1], [1, 0]]
    assert numbers_of([frame_of(50, 150, without=True), frame_of(152, 52, without=True)]) == [[0, 1], [1, 0]]


def test_times_count_not_frames():
    frames = [frame_of(50), frame_of(), frame_of(50)]
    near, far = (track_identities(frames, np.array([0.0, 0.1, end]), 1.0)[-1].tolist() for end in (0.9, 1.1))
    assert (near, far) == ([0], [1])


def test_nobody_at_all():
    assert numbers_of([frame_of(), frame_of()]) == [[], []]


def test_likeness_is_1_for_the_same_and_0_for_others():
    box, points = person_at(50)
    assert pose_similarity(box, points, box, points) == pytest.approx(1)
    other_box, other = person_at(300)
    assert pose_similarity(box, points, other_box, other) == pytest.approx(0, abs=1e-6)
    half = box + np.array([0.5, 0, 0.5, 0]) * (box[2] - box[0])
    assert box_overlap(box, half) == pytest.approx(1 / 3)
    unsure = points.copy()
    unsure[:, 2] = 0.29
    assert pose_similarity(box, unsure, half, other) == pytest.approx(1 / 3)
