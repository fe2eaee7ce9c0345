"""What the segmentation annotators give: ids that mean one instance through the clip, their table, and scores."""

from typing import Annotated, NamedTuple

import numpy as np

from openuni.annotators._guide_flow import GuideFlow, warp
from openuni.annotators._instances import Tracks, iou_of, joint
from openuni.manifests.arrays.resample import resize_nearest
from openuni.manifests.modalities.segmentation import Segmentation


class Instance(NamedTuple):
    """One instance of a clip."""

    id: Annotated[int, "its value in the map, from 1, the largest instance first"]
    first_frame: Annotated[int, "index of the first frame that shows it"]
    last_frame: Annotated[int, "index of the last frame that shows it"]
    frames: Annotated[int, "how many frames show it"]
    area_share: Annotated[float, "mean share of the frame that it covers, where it is shown, 0 to 1"]
    predicted_iou: Annotated[float, "mean of the network's own estimate of its masks' IoU, about 0 to 1"]
    largest_frame: Annotated[int, "index of the frame that shows most of it"]
    box_px: Annotated[list[int], "there: left, top, width, height in pixels of the map"]


class InstancesOfClip(NamedTuple):
    """Instance ids that stay the same through the clip, the table of the instances, and how steady they are."""

    segmentation: Segmentation
    instances: Annotated[list[Instance], "one entry per id: when it is seen, how large, where, how sure the network is"]
    instance_count: Annotated[int, "instances in the clip"]
    covered_share: Annotated[float, "share of all pixels that belong to an instance, 0 to 1"]
    link_iou: Annotated[
        float | None,
        "mean IoU of masks found in key frames and the same instances' masks carried there, by area; null where "
        "nothing was linked",
    ]
    flow_iou: Annotated[
        float | None,
        "mean IoU of every instance's masks in adjacent frames along the optical flow, by area; 1 is steady; null for "
        "one frame, and where nothing is found",
    ]
    predicted_iou: Annotated[float | None, "mean of the instances' predicted IoU; null where nothing is found"]
    new_share: Annotated[
        float | None,
        "share of what was found in key frames after the first that is no instance known before, by area: much of it "
        "means ids that break; null where nothing was found there",
    ]
    relinked: Annotated[int, "how often an instance was taken up again after it had been out of sight"]


def instances_of_clip(labels: np.ndarray, tracks: Tracks, flow: GuideFlow, max_instances: int) -> InstancesOfClip:
    """Columns from maps of track numbers, uint16 [T, H, W]: the `max_instances` largest get the ids from 1 on."""
    areas = np.stack([np.bincount(frame.ravel(), minlength=len(tracks.known) + 1) for frame in labels])
    areas[:, 0] = 0
    total = areas.sum(axis=0)
    first = (areas > 0).argmax(axis=0)
    shown = [number for number in tracks.known if total[number]]
    # of two equally large, the one that is seen first, then the one that is farther up: no matter how they were found
    order = sorted(shown, key=lambda n: (-total[n], first[n], int(np.argmax(labels[first[n]] == n))))[:max_instances]
    ids = np.zeros(len(total), np.uint16)
    ids[order] = np.arange(1, len(order) + 1)
    segmentation = ids[labels]
    table = [_instance(int(ids[n]), areas[:, n], labels, n, tracks.known[n].predicted_iou) for n in order]
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
    """Mean IoU, by area, of every id of uint16 [T, H, W] and itself a frame later, where the flow can be followed."""
    small = resize_nearest(labels[..., None], *flow.size_px)[..., 0]
    total, weight = 0.0, 0.0
    for pair in range(len(small) - 1):
        later = warp(small[pair + 1], flow.forward[pair], nearest=True)
        where = flow.forward_valid[pair]
        size = max(int(small[pair].max()), int(later.max())) + 1
        counts = joint(small[pair], later, (size, size), where)
        area = (counts.sum(axis=0) + counts.sum(axis=1))[1:]
        total += float((np.diagonal(iou_of(counts))[1:] * area).sum())
        weight += float(area.sum())
    return total / weight if weight else None


def _instance(number: int, areas: np.ndarray, labels: np.ndarray, track: int, predicted: list[float]) -> Instance:
    shown = np.flatnonzero(areas)
    largest = int(areas.argmax())
    rows, columns = np.nonzero(labels[largest] == track)
    left, top = int(columns.min()), int(rows.min())
    return Instance(
        number,
        int(shown[0]),
        int(shown[-1]),
        len(shown),
        float(areas[shown].mean() / labels[0].size),
        float(np.mean(predicted)),
        largest,
        [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1],
    )
