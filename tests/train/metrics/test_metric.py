"""What all metrics have in common."""

import numpy as np
import pytest

from openuni.manifests.contracts.discovery import component_names, find_component
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.modalities.albedo import Albedo
from openuni.manifests.modalities.alpha import Alpha
from openuni.manifests.modalities.densepose import DensePose
from openuni.manifests.modalities.depth import Depth
from openuni.manifests.modalities.flow import Flow
from openuni.manifests.modalities.normal import Normal
from openuni.manifests.modalities.segmentation import Segmentation
from openuni.manifests.modalities.skeleton import Skeleton
from openuni.training.metric import Metric, metrics_of
from tests.manifests.modalities.people import standing

NAMES = component_names("metrics")
SIZE = 3, 24, 32  # frames, height, width


def maps(modality: str, noise: float) -> Modality:
    """Maps of a clip, the same for each `noise`, which disturbs them."""
    draw = np.random.default_rng(0)

    def smooth(channels: int) -> np.ndarray:
        rows, columns = np.mgrid[: SIZE[1], : SIZE[2]]
        waves = [np.sin(rows / (5 + c)) * np.cos(columns / (7 + c)) for c in range(channels)]
        clean = np.stack([np.stack(waves, axis=-1) * (0.8 + 0.1 * t) for t in range(SIZE[0])])
        return (clean + noise * draw.normal(size=clean.shape)).astype(np.float32)

    if modality == "depth":
        return Depth(np.exp(smooth(1)))
    if modality == "flow":
        return Flow(4 * smooth(2))
    if modality == "normal":
        vectors = smooth(3) + np.array([0, 0, 2], np.float32)
        return Normal((vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32))
    if modality == "alpha":
        return Alpha(np.clip(smooth(1) + 0.5, 0, 1))
    if modality == "segmentation":
        ids = np.where(smooth(1) > 0.4, 1, np.where(smooth(1) < -0.3, 2, 0))
        return Segmentation(ids.astype(np.uint16))
    if modality == "densepose":
        parts = np.clip(np.rint(3 * smooth(1)), 0, 24)
        return DensePose(np.concatenate([parts, 100 + 50 * smooth(2)], axis=-1).clip(0, 255).astype(np.uint8))
    if modality == "skeleton":
        points = np.stack([standing((x, 4.0), 2.5) for x in (8, 22)])[None].repeat(SIZE[0], axis=0)
        points[..., :2] += noise * 8 * draw.normal(size=points[..., :2].shape)
        return Skeleton(points.astype(np.float32), *SIZE[1:])
    return Albedo(np.clip(smooth(3) / 2 + 0.5, 0, 1))


@pytest.mark.parametrize("name", NAMES)
def test_equal_maps_have_the_best_figures_and_noise_makes_each_worse(name: str) -> None:
    metric = find_component("metrics", Metric, name)()
    modality = "albedo" if "albedo" in metric.modalities else metric.modalities[0]
    true = maps(modality, 0.0)
    equal, noisy, worse = (metric.of_clip(maps(modality, noise), true) for noise in (0.0, 0.1, 0.4))
    for figure in metric.figures():
        best = {"lower": 0.0, "higher": 100.0 if figure.name == "psnr_db" else 1.0}[figure.better]
        assert equal[figure.name] == pytest.approx(best, abs=1e-5), figure
        found = [equal[figure.name], noisy[figure.name], worse[figure.name]]
        assert found == sorted(found, reverse=figure.better == "higher"), (figure, found)
        assert figure.doc


@pytest.mark.parametrize("name", NAMES)
def test_maps_of_another_size_are_resized_and_other_maps_are_errors(name: str) -> None:
    metric = find_component("metrics", Metric, name)()
    modality = "albedo" if "albedo" in metric.modalities else metric.modalities[0]
    true = maps(modality, 0.0)
    halved = metric.of_clip(true.resize(12, 16), true)
    assert set(halved) == {figure.name for figure in metric.figures()}
    assert halved == metric.of_clip(true.resize(12, 16).resize(*SIZE[1:]), true)
    with pytest.raises(ClipError, match="2 predicted and 3 true frames"):
        metric.of_clip(true.take(0, 2), true)
    other = maps("flow" if modality == "depth" else "depth", 0.0)
    with pytest.raises(ClipError, match=f"compares .*{modality}"):
        metric.of_clip(other, true)


def test_a_modality_without_a_metric_is_named() -> None:
    assert set(metrics_of("depth")) == {"depth"} and set(metrics_of("albedo")) == {"pictures"}
    with pytest.raises(OpenUniError, match=r"no metric for warmth.*albedo.*depth"):
        metrics_of("warmth")
