"""Result of the segmentation annotators: temporally consistent ids, a table of instances, and scores."""

from typing import Annotated, NamedTuple

import numpy as np

from openuni.annotators._guide_flow import GuideFlow, warp
from openuni.annotators._instances import Tracks, iou_of, joint
from openuni.annotators._threads import in_threads
from openuni.manifests.arrays.resample import resize_nearest
from openuni.manifests.modalities.segmentation import Segmentation


class Instance(NamedTuple):
    """One instance of a clip."""

    id: Annotated[int, "value in the map, from 1, sorted by descending area"]
    first_frame: Annotated[int, "index of the first frame that contains the instance"]
    last_frame: Annotated[int, "index of the last frame that contains the instance"]
    frames: Annotated[int, "number of frames that contain the instance"]
    area_share: Annotated[float, "mean fraction of the frame that it covers, over the frames that contain it, 0 to 1"]
    predicted_iou: Annotated[float, "mean predicted IoU of the masks, about 0 to 1"]
    largest_frame: Annotated[int, "index of the frame in which the instance is largest"]
    box_px: Annotated[list[int], "bounding box in that frame: left, top, width, height in pixels of the map"]


class InstancesOfClip(NamedTuple):
    """Temporally consistent instance ids, the table of instances, and consistency scores."""

    segmentation: Segmentation
    instances: Annotated[list[Instance], "one entry per id: time span, area, position and predicted IoU"]
    instance_count: Annotated[int, "number of instances in the clip"]
    covered_share: Annotated[float, "fraction of all pixels that belong to an instance, 0 to 1"]
    link_iou: Annotated[
        float | None,
        "mean IoU of masks detected in keyframes with the propagated masks that they were linked to, weighted by "
        "area; null if nothing was linked",
    ]
    flow_iou: Annotated[
        float | None,
        "mean IoU of each instance's masks in adjacent frames, warped along the optical flow, weighted by area; 1 is "
        "fully consistent; null for a clip of one frame or without instances",
    ]
    predicted_iou: Annotated[float | None, "mean predicted IoU of the instances; null without instances"]
    new_share: Annotated[
        float | None,
        "area fraction of the masks detected in keyframes after the first that start a new id; high values indicate "
        "fragmented ids; null if nothing was detected there",
    ]
    relinked: Annotated[int, "number of times an instance was re-identified after it had been out of sight"]


def instances_of_clip(labels: np.ndarray, tracks: Tracks, flow: GuideFlow, max_instances: int) -> InstancesOfClip:
    """Columns from maps of track numbers, uint16 [T, H, W]; the `max_instances` largest tracks get ids from 1."""
    areas, order = by_area(labels, len(tracks.known), max_instances)
    ids = np.zeros(len(tracks.known) + 1, np.uint16)
    ids[order] = np.arange(1, len(order) + 1)
    segmentation = np.empty_like(labels)
    in_threads(lambda frame: np.take(ids, frame[0], out=frame[1], mode="clip"), zip(labels, segmentation, strict=True))
    table = [
        Instance(
            id=int(ids[n]),
            predicted_iou=float(np.mean(tracks.known[n].predicted_iou)),
            **extent(areas[:, n], labels, n)._asdict(),
        )
        for n in order
    ]
    links = np.array(tracks.link_iou, np.float64).reshape(-1, 2)
    return InstancesOfClip(
        Segmentation(segmentation[..., None]),
        table,
        len(table),
        float(np.count_nonzero(segmentation) / segmentation.size),
        float(np.average(links[:, 0], weights=links[:, 1])) if len(links) else None,
        flow_iou(segmentation, flow),
        float(np.mean([instance.predicted_iou for instance in table])) if table else None,
        tracks.unlinked_px / tracks.later_px if tracks.later_px else None,
        tracks.relinked,
    )


def flow_iou(labels: np.ndarray, flow: GuideFlow) -> float | None:
    """Mean IoU (area-weighted) of each id in uint16 [T, H, W] with itself one frame later, over valid flow."""
    if len(labels) < 2:
        return None
    small = np.concatenate(in_threads(lambda frame: resize_nearest(frame[None, ..., None], *flow.size_px), labels))[
        ..., 0
    ]

    def overlap(pair: int) -> tuple[float, float]:
        later = warp(small[pair + 1], flow.forward[pair], nearest=True)
        where = flow.forward_valid[pair]
        size = max(int(small[pair].max()), int(later.max())) + 1
        counts = joint(small[pair], later, (size, size), where)
        area = (counts.sum(axis=0) + counts.sum(axis=1))[1:]
        return float((np.diagonal(iou_of(counts))[1:] * area).sum()), float(area.sum())

    total, weight = 0.0, 0.0
    for part, area in in_threads(overlap, range(len(small) - 1)):
        total, weight = total + part, weight + area
    return total / weight if weight else None


class Extent(NamedTuple):
    """Where an instance is, with the meanings of `Instance`."""

    first_frame: int
    last_frame: int
    frames: int
    area_share: float
    largest_frame: int
    box_px: list[int]


def by_area(labels: np.ndarray, count: int, max_instances: int) -> tuple[np.ndarray, list[int]]:
    """Areas of the labels 0..`count` in each frame, int64 [T, 1 + count] (0 for the background), and their order.

    `labels`: uint16 [T, H, W]. The order has the `max_instances` labels of the largest total area that occur.
    """
    areas = np.stack(in_threads(lambda frame: np.bincount(frame.ravel(), minlength=count + 1), labels))
    areas[:, 0] = 0
    total = areas.sum(axis=0)
    first = (areas > 0).argmax(axis=0)
    shown = np.flatnonzero(total).tolist()
    # ties: first frame, then position, so that the order of detection does not matter
    order = sorted(shown, key=lambda n: (-total[n], first[n], int(np.argmax(labels[first[n]] == n))))
    return areas, order[:max_instances]


def extent(areas: np.ndarray, labels: np.ndarray, label: int) -> Extent:
    """Extent of one label of `labels`, uint16 [T, H, W]; `areas`: int64 [T], its areas."""
    shown = np.flatnonzero(areas)
    largest = int(areas.argmax())
    rows, columns = np.nonzero(labels[largest] == label)
    left, top = int(columns.min()), int(rows.min())
    return Extent(
        int(shown[0]),
        int(shown[-1]),
        len(shown),
        float(areas[shown].mean() / labels[0].size),
        largest,
        [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1],
    )
