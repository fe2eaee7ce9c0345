"""Tensors as the index reads them."""

import numpy as np
import pytest
import torch

from openuni.training.data import extents
from openuni.training.data.extents import all_finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_found_wherever_they_are(monkeypatch, dtype, wrong):
    monkeypatch.setattr(extents, "FINITE_CHECK_BYTES", 64)
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, torch.finfo(dtype).max, torch.finfo(dtype).min, 1e-30] * 20).to(dtype)
    data = memoryview(values.view(torch.uint8).numpy())
    assert all_finite(data, dtype)
    for place in (0, 31, 32, 33, len(values) - 1):
        kept = values[place].clone()
        values[place] = wrong
        assert not all_finite(data, dtype)
        values[place] = kept
    assert all_finite(data, dtype)
