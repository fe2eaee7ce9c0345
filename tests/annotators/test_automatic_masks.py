"""Held against Segment Anything's own generator, on one network: masks, their numbers and their order."""

import cv2
import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam as Network
from segment_anything.utils.amg import MaskData, batched_mask_to_box, mask_to_rle_pytorch, rle_to_mask

from openuni.annotators._automatic_masks import (
    MaskRules,
    Masks,
    automatic_masks,
    box_of,
    clean_masks,
    crop_boxes,
    fill_holes,
    remove_islands,
)
from openuni.annotators.sam import Sam, SamPrompted
from openuni.manifests.contracts.component import fingerprint
from openuni.manifests.contracts.options import recorded
from tests.annotators.test_sam import random_network
from tests.moving_pictures import panned

SIDE_PX = 256


class Coordinates(torch.nn.Module):
    """A prompt encoder that passes the points on as they are."""

    def forward(self, points, boxes, masks):
        return points[0], None

    def get_dense_pe(self):
        return None


class Picture(torch.nn.Module):
    """An image encoder that passes the picture on."""

    img_size = SIDE_PX

    def forward(self, pixels):
        return pixels


class Discs(torch.nn.Module):
    """A mask decoder that draws three discs and a smaller one beside each around every point, with holes.

    Radii, edges and confidence vary from point to point and with the picture, so that every rule has something to do.
    """

    def forward(self, image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings, multimask_output):
        points = sparse_prompt_embeddings[:, 0].float() / 4  # the masks' size is a quarter of the picture's
        y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
        shade = image_embeddings.mean() / 10
        logits, sure = [], []
        for which in range(3):
            wobble = torch.sin(points[:, 0] * (3 + which) + points[:, 1] * 7 + shade)
            radius = 3 + 4 * which + 2 * wobble
            centre = torch.stack([(points[:, axis] / 6).round() * 6 for axis in (0, 1)], dim=1)
            away = torch.hypot(x - centre[:, 0, None, None], y - centre[:, 1, None, None])
            beside = torch.hypot(x - centre[:, 0, None, None] - radius[:, None, None] - 3, y - centre[:, 1, None, None])
            disc = torch.maximum(radius[:, None, None] - away, 1.2 - beside)
            logits.append(torch.minimum(disc, away - 0.8) * (2 + wobble)[:, None, None] * 5)
            sure.append(0.9 + 0.1 * torch.cos(points[:, 0] * 5 + points[:, 1] + which))
        return torch.stack(logits, dim=1), torch.stack(sure, dim=1)


@pytest.fixture(scope="module")
def discs():
    return Network(Picture(), Coordinates(), Discs(), [0.0] * 3, [1.0] * 3).eval()


def theirs(network, image, rules, crop_downscale=1):
    generator = SamAutomaticMaskGenerator(
        network,
        points_per_side=rules.points_per_side,
        points_per_batch=rules.points_per_batch,
        pred_iou_thresh=rules.min_predicted_iou,
        stability_score_thresh=rules.min_stability,
        stability_score_offset=rules.stability_offset,
        box_nms_thresh=rules.nms_iou,
        crop_nms_thresh=rules.nms_iou,
        crop_n_layers=rules.crop_layers,
        min_mask_region_area=rules.min_region_px,
    )
    return generator.generate(image)


def check_equal(ours, records):
    """Everything exact, and in the same order: both run the same operations on the same tensors."""
    assert len(ours.masks) == len(records)
    for row, record in enumerate(records):
        assert np.array_equal(ours.masks[row], record["segmentation"])
        assert ours.masks[row].sum() == record["area"]
        assert ours.predicted_iou[row] == record["predicted_iou"]
        assert ours.stability[row] == record["stability_score"]
        assert np.array_equal(ours.points_px[row], record["point_coords"][0])
        x0, y0, x1, y1 = ours.boxes_px[row]
        assert [x0, y0, x1 - x0, y1 - y0] == record["bbox"]


@pytest.mark.parametrize(
    ("rules", "least"),
    [
        (MaskRules(8, 64), 10),
        (MaskRules(8, 5, min_predicted_iou=0.8, min_stability=0.6, nms_iou=0.3), 10),
        (MaskRules(8, 64, min_stability=0.5, crop_layers=1), 20),
        (MaskRules(4, 64, min_stability=0.5, crop_layers=2), 20),
        (MaskRules(8, 64, min_stability=0.5, min_region_px=30), 10),
    ],
    ids=["defaults", "small batches", "crops", "two layers of crops", "small regions"],
)
def test_masks_of_discs_are_those_of_the_authors_generator(discs, rules, least):
    image = panned([(0, 0)], 150, 203)[0]
    ours = automatic_masks(SamPrompted(discs, "fp32"), image, rules)
    assert len(ours.masks) >= least
    check_equal(ours, theirs(discs, image, rules))


def test_each_rule_changes_what_is_found(discs):
    image, loose = panned([(0, 0)], 150, 203)[0], MaskRules(8, 64, 0.8, 0.3)
    counts = [
        len(automatic_masks(SamPrompted(discs, "fp32"), image, rules).masks)
        for rules in (loose, loose._replace(min_predicted_iou=0.95), loose._replace(min_stability=0.9))
    ]
    assert counts[0] > max(counts[1:])
    assert len(automatic_masks(SamPrompted(discs, "fp32"), image, loose._replace(nms_iou=0.1)).masks) < counts[0]


def test_masks_of_random_weights_are_those_of_the_authors_generator():
    network = random_network()
    image = panned([(0, 0)], 96, 128)[0]
    rules = MaskRules(8, 64, min_predicted_iou=-99, min_stability=0.6, nms_iou=1.0)  # random masks have like boxes
    ours = automatic_masks(SamPrompted(network, "fp32"), image, rules)
    assert len(ours.masks) > 20
    check_equal(ours, theirs(network, image, rules))


def test_the_batch_changes_nothing(discs):
    image = panned([(0, 0)], 150, 203)[0]
    one, other = (
        automatic_masks(SamPrompted(discs, "fp32"), image, MaskRules(8, size, min_stability=0.5)) for size in (3, 64)
    )
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_an_empty_mask_has_no_stability_and_nothing_found_is_no_error(discs):
    image = panned([(0, 0)], 64, 64)[0]

    class Nothing(SamPrompted):
        def predict_points(self, points_px):
            logits, predicted = super().predict_points(points_px)
            return torch.full_like(logits, -50.0), predicted

    rules = MaskRules(4, 64, min_predicted_iou=0, min_stability=0.01, crop_layers=1)
    found = automatic_masks(Nothing(discs, "fp32"), image, rules)  # the authors' generator fails here
    assert found.masks.shape == (0, 64, 64)
    everything = automatic_masks(Nothing(discs, "fp32"), image, MaskRules(4, 64, 0, 0.0, nms_iou=1.0))
    assert np.array_equal(everything.stability, np.zeros(len(everything.masks)))  # theirs is NaN


def test_crops_cover_the_picture_and_stay_inside():
    boxes = crop_boxes(100, 160, 2)
    assert len(boxes) == 1 + 4 + 16
    assert boxes[0] == (0, 0, 160, 100)
    for layer in (boxes[1:5], boxes[5:]):
        seen = np.zeros((100, 160), int)
        for x0, y0, x1, y1 in layer:
            assert 0 <= x0 < x1 <= 160
            assert 0 <= y0 < y1 <= 100
            seen[y0:y1, x0:x1] += 1
        assert seen.min() >= 1
        assert seen.max() > 1


def test_small_holes_are_filled_and_small_islands_removed():
    mask = np.zeros((12, 12), bool)
    mask[2:9, 2:9] = True
    mask[4, 4] = mask[6, 5] = mask[7, 6] = False  # holes of 1 and, over a corner, 2 pixels
    mask[0, 11] = mask[10:12, 10:12] = True  # islands of 1 and 4
    assert fill_holes(mask, 2)[4, 4]
    assert not fill_holes(mask, 2)[6, 5]
    assert fill_holes(mask, 3)[2:9, 2:9].all()
    assert np.array_equal(fill_holes(mask, 3) & ~mask, np.pad(~mask[2:9, 2:9], ((2, 3), (2, 3))))
    assert not remove_islands(mask, 4)[0, 11]
    assert remove_islands(mask, 4)[11, 11]
    assert not remove_islands(mask, 5)[11, 11]
    assert np.array_equal(remove_islands(mask, 999), np.pad(mask[2:9, 2:9], ((2, 3), (2, 3))))  # the largest stays
    empty, full = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    for clean in (fill_holes, remove_islands):
        assert np.array_equal(clean(empty, 5), empty) or clean is fill_holes
        assert np.array_equal(clean(full, 5), full)
    assert box_of(mask).tolist() == [2, 0, 11, 11]
    assert box_of(empty).tolist() == [0, 0, 0, 0]


def cleaned_by_authors(masks: np.ndarray, min_area: int, iou: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks, boxes and former indices after the clean-up of Segment Anything."""
    tensors = torch.from_numpy(masks)
    data = MaskData(
        rles=mask_to_rle_pytorch(tensors), boxes=batched_mask_to_box(tensors), points=torch.arange(len(masks))
    )
    data = SamAutomaticMaskGenerator.postprocess_small_regions(data, min_area, iou)
    found = np.array([rle_to_mask(rle) for rle in data["rles"]], bool).reshape(-1, *masks.shape[1:])
    return found, data["boxes"].numpy(), data["points"].numpy()


def as_masks(masks: np.ndarray) -> Masks:
    order = np.arange(len(masks), dtype=float)  # stands for what else a mask has, to see where it went
    return Masks(masks, order, order, np.stack([box_of(mask) for mask in masks]), np.stack([order, order], axis=1))


def test_a_mask_below_the_threshold_that_stays_counts_as_changed():
    masks = np.zeros((2, 20, 40), bool)
    masks[0, 2:6, 2:6] = True  # A: 16 px, below the threshold of 25, so its largest part stays
    masks[1, 1:17, 20:38] = True  # B
    found = clean_masks(as_masks(masks), 25, 0.7)
    assert found.predicted_iou.tolist() == [1, 0]  # B, A
    assert np.array_equal(found.masks, masks[::-1])


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("min_area", [1, 5, 40, 400, 10_000])
def test_clean_up_of_random_masks_is_the_authors(seed, min_area):
    """Blobs, specks, empty and full masks; order, choice, pixels and boxes are equal."""
    rng = np.random.default_rng(seed)
    masks = []
    for number in range(40):
        noise = rng.normal(size=(36, 64)).astype(np.float32)
        smooth = cv2.GaussianBlur(noise, (0, 0), rng.uniform(0.5, 5))
        masks.append(smooth > np.quantile(smooth, rng.uniform(0.3, 0.99)))
        if number % 3 == 0:  # a near copy: suppression has to choose
            masks.append(masks[-1] ^ (rng.random((36, 64)) > 0.999))
    masks += [np.zeros((36, 64), bool), np.ones((36, 64), bool)]
    given = as_masks(np.array(masks))
    ours = clean_masks(given, min_area, 0.7)
    pixels, boxes, rows = cleaned_by_authors(given.masks, min_area, 0.7)
    assert np.array_equal(ours.predicted_iou, rows)
    assert np.array_equal(ours.masks, pixels)
    assert np.array_equal(ours.boxes_px, boxes)


def test_more_masks_than_the_authors_code_compares_at_once_stay_in_order():
    rng = np.random.default_rng(0)
    masks = np.zeros((1100, 24, 24), bool)
    for mask in masks:
        y, x = rng.integers(0, 18, 2)
        mask[y : y + rng.integers(1, 7), x : x + rng.integers(1, 7)] = True
    ours = clean_masks(as_masks(masks), 9, 0.95)
    pixels, _, rows = cleaned_by_authors(masks, 9, 0.95)
    assert np.array_equal(ours.predicted_iou, rows) and np.array_equal(ours.masks, pixels)
    assert len(rows) > 200


def test_only_results_with_clean_up_are_computed_anew(tmp_path):
    """Version 0.1 called results with and without clean-up by these versions."""
    (tmp_path / "sam.pth").write_bytes(b"weights")
    plain, cleaned = (Sam(checkpoint=str(tmp_path / "sam.pth"), min_region_px=area) for area in (0, 25))
    facts = {"name": "sam", "revision": 1, "weights": [checkpoint.digest() for checkpoint in plain.checkpoints()]}
    assert plain.version() == fingerprint(options=recorded(plain), **facts)
    assert cleaned.version() != fingerprint(options=recorded(cleaned), **facts)
