"""The emulation of TF32 on a CPU, which the figures of `tests.benchmarks.precision` rest on."""

import math

import pytest
import torch

from tests.benchmarks.precision import Tf32, rounded


def test_numbers_have_ten_bits_of_mantissa_rounded_to_nearest_even():
    step = 2.0**-10
    given = [1 + step / 2, 1 + 3 * step / 2, 1 + step * 0.51, 1 + step * 0.49, -1 - step / 2, 0.0, 2.0**100]
    wanted = [1.0, 1 + 2 * step, 1 + step, 1.0, -1.0, 0.0, 2.0**100]
    assert rounded(torch.tensor(given)).tolist() == wanted
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    for value, found in zip(values.tolist(), rounded(values).tolist(), strict=True):
        unit = 2.0 ** (math.frexp(value)[1] - 11)
        assert found == round(value / unit) * unit
    assert torch.equal(rounded(values.double()), values.double())  # only float32


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (torch.nn.Linear(32, 32), (4, 32)),
        (torch.nn.Conv2d(8, 8, 3), (1, 8, 8, 8)),
        (torch.nn.Conv3d(4, 4, 3), (1, 4, 4, 6, 6)),
        (torch.nn.ConvTranspose2d(8, 8, 2, 2), (1, 8, 4, 4)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_layer_gives_the_product_of_rounded_operands(layer, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), Tf32():
        found = layer(x)
    with torch.no_grad():
        exact = layer(x)
        layer.weight.copy_(rounded(layer.weight))
        wanted = layer(rounded(x))
    assert torch.equal(found, wanted)
    assert not torch.equal(found, exact)


def test_attention_rounds_both_products():
    q, k, v = torch.randn(3, 2, 4, 16, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), Tf32():
        found = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    weights = (rounded(q) @ rounded(k).transpose(-1, -2) / math.sqrt(8)).softmax(-1)
    torch.testing.assert_close(found, rounded(weights) @ rounded(v), rtol=0, atol=1e-6)
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert 1e-5 < (found - exact).abs().max() < 1e-2
