"""Errors of depth and optical flow with answers worked out by hand."""

import numpy as np
import pytest

from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.depth import Depth
from openuni.manifests.modalities.flow import Flow
from openuni.training.metrics.depth import DepthMetric, best_constant, constant_errors, depth_errors
from openuni.training.metrics.flow import FlowMetric, flow_errors


def disparity(*distances: float) -> np.ndarray:
    return (1 / np.array(distances)).reshape(1, 1, -1, 1)


def test_depth_is_free_of_scale_and_shift() -> None:
    true = disparity(1, 2, 4, 8)
    errors = depth_errors(0.3 * true + 7, true)
    assert errors.abs_rel == pytest.approx(0, abs=1e-6) and errors.delta1 == 1


def test_depth_errors_by_hand() -> None:
    # the prediction is a constant: the least squares give the mean disparity (1 + 0.5) / 2, distance 4/3
    errors = depth_errors(np.ones((1, 1, 2, 1)), disparity(1, 2))
    assert errors.abs_rel == pytest.approx((1 / 3 + 1 / 3) / 2)
    assert errors.delta1 == 0


def test_depth_valid_pixels_only() -> None:
    true, valid = disparity(1, 2, 4, 5), np.array([True, True, True, False]).reshape(1, 1, 4, 1)
    predicted = true.copy()
    predicted[..., 3, 0] = 100
    assert depth_errors(predicted, true, valid).abs_rel < 1e-6 < depth_errors(predicted, true).abs_rel


def test_best_constant_is_the_best_of_all() -> None:
    true = 1 / np.random.default_rng(0).uniform(1, 9, (2, 4, 4, 1))
    found = best_constant(true)
    losses = {c: np.abs(c * true - 1).mean() for c in [found, *np.linspace(0.5, 10, 2000)]}
    assert losses[found] == pytest.approx(min(losses.values()), abs=1e-5)
    assert constant_errors(true).abs_rel == pytest.approx(losses[found])


def test_depth_refuses_what_it_cannot_judge() -> None:
    with pytest.raises(ClipError, match="one shape"):
        depth_errors(disparity(1, 2), disparity(1, 2, 3))
    with pytest.raises(ClipError, match="above 0"):
        depth_errors(disparity(1, 2), np.zeros((1, 1, 2, 1)))


def test_flow_errors_by_hand() -> None:
    true = np.zeros((1, 1, 3, 2))
    predicted = np.array([[[[3.0, 4.0], [0, 0], [90, 0]]]])
    valid = np.array([[[True, True, False]]])
    errors = flow_errors(predicted, true, valid)
    assert errors.epe_px == 2.5 and errors.outlier_share == 0.5
    assert flow_errors(predicted, true, valid[..., None]) == errors
    with pytest.raises(ClipError, match=r"\[T, H, W, 2\]"):
        flow_errors(predicted[..., :1], true[..., :1])


def test_alignment_of_depth() -> None:
    true = disparity(1, 2, 4, 8)
    twice = 2 * true
    assert depth_errors(twice, true, alignment="scale").abs_rel == pytest.approx(0, abs=1e-9)
    assert depth_errors(twice, true, alignment="none").abs_rel == pytest.approx(0.5)
    assert depth_errors(twice + 1, true, alignment="scale").abs_rel > 0.1


def test_deltas_by_hand() -> None:
    true = disparity(1, 1, 1, 1)
    predicted = disparity(1.2, 1.5, 1.9, 2.5)
    errors = depth_errors(predicted, true, alignment="none")
    assert (errors.delta1, errors.delta2, errors.delta3) == (0.25, 0.5, 0.75)


def test_depth_of_another_unit() -> None:
    metres = Depth(np.array([1, 2, 4, 8], np.float32).reshape(1, 1, 4, 1), "metres")
    relative = Depth(3 * disparity(1, 2, 4, 8).astype(np.float32) + 1)
    assert DepthMetric().of_clip(relative, metres)["abs_rel"] == pytest.approx(0, abs=1e-6)
    assert DepthMetric("none").of_clip(Depth(2 * metres.array, "metres"), metres)["abs_rel"] == pytest.approx(1)
    with pytest.raises(ClipError, match='"none" requires metres, got disparity'):
        DepthMetric("none").of_clip(relative, metres)


def test_pixels_at_infinity_do_not_count() -> None:
    true = Depth(np.array([1, 0.5, 0, 0.25], np.float32).reshape(1, 1, 4, 1))
    predicted = Depth(np.array([1, 0.5, 9, 0.25], np.float32).reshape(1, 1, 4, 1))
    assert DepthMetric().of_clip(predicted, true)["abs_rel"] == pytest.approx(0, abs=1e-6)


def test_the_repeated_last_frame_of_flow_does_not_count() -> None:
    true = np.zeros((3, 2, 2, 2), np.float32)
    predicted = true.copy()
    predicted[2] = 100
    assert FlowMetric().of_clip(Flow(predicted), Flow(true)) == {"epe_px": 0.0, "outlier_share": 0.0}
    with pytest.raises(ClipError, match="two frames"):
        FlowMetric().of_clip(Flow(true[:1]), Flow(true[:1]))
