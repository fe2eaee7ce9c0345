"""On a GPU every annotator, filter and codec gives what it gives on the CPU: `pytest -m cuda`.

`OPENUNI_STAND_IN_DEVICE=cpu` runs the same comparisons with the CPU as the second device, to test the comparisons.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from openuni.manifests.contracts.inference import Precision, inference
from openuni.manifests.errors import MissingRequirement
from tests.devices import TOLERANCES, DeviceCase, case_names, differences, make_case, same

DEVICE = os.environ.get("OPENUNI_STAND_IN_DEVICE", "cuda")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(),
        reason="no CUDA GPU: torch.cuda.is_available() is false on this machine",
    ),
]


@pytest.fixture(scope="module", params=case_names())
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, DeviceCase]:
    """Skipped where a library of the case is not installed."""
    folder: Path = tmp_path_factory.mktemp("case")
    try:
        return request.param, make_case(request.param, folder)
    except ModuleNotFoundError as error:
        pytest.skip(f"{request.param}: the package {error.name} is not installed")


def run_on(device: str, case: DeviceCase) -> Any:
    try:
        return case.run(case.load(device))
    except MissingRequirement as error:
        pytest.skip(str(error))


def test_the_device_gives_what_the_cpu_gives(case: tuple[str, DeviceCase]) -> None:
    name, made = case
    found = differences(name, run_on("cpu", made), run_on(DEVICE, made))
    assert not found, "\n".join(found)


def test_two_runs_on_the_device_are_equal(case: tuple[str, DeviceCase]) -> None:
    """cuDNN's deterministic mode is off: see `openuni.manifests.contracts.inference`."""
    _, made = case
    assert same(run_on(DEVICE, made), run_on(DEVICE, made))


PRODUCTS: dict[str, Any] = {
    "matrix product": (torch.nn.Linear(512, 512), (512, 512)),
    "convolution": (torch.nn.Conv2d(64, 64, 3), (2, 64, 32, 32)),
    "transposed convolution": (torch.nn.ConvTranspose2d(64, 64, 2, 2), (2, 64, 16, 16)),
    "convolution in time": (torch.nn.Conv3d(32, 32, 3), (1, 32, 5, 16, 16)),
}
ERRORS: dict[Precision, tuple[float, float]] = {  # of the largest magnitude: at least, at most
    "fp32": (0.0, 1e-5),
    "tf32": (2e-5, 2e-3),
    "bf16": (2e-4, 1e-2),
    "fp16": (2e-5, 2e-3),
}


@pytest.mark.skipif(DEVICE == "cpu", reason="a CPU has no TF32")
@pytest.mark.parametrize("precision", list(ERRORS))
@pytest.mark.parametrize("operation", list(PRODUCTS))
def test_a_precision_reaches_the_kernels(operation: str, precision: Precision) -> None:
    if precision == "tf32" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("GPUs before Ampere have no TF32")
    layer, shape = PRODUCTS[operation]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exact = layer.double()(x.double()).detach()
    layer = layer.float().to(DEVICE)
    with inference(DEVICE, precision):
        found = layer(x.to(DEVICE)).double().cpu()
    layer.cpu()
    error = float((found - exact).abs().max() / exact.abs().max())
    least, most = ERRORS[precision]
    assert least <= error <= most


def test_every_case_has_a_tolerance() -> None:
    assert set(TOLERANCES) == set(case_names())
