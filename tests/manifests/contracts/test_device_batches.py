"""Batches through a network: order, one batch ahead, and what is copied."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from openuni.manifests.contracts.device_batches import each_batch, on_device

COPIES = ("_to_copy", "copy_", "clone")


class CountsCopies(TorchDispatchMode):
    """Counts the copies of tensors."""

    def __init__(self):
        super().__init__()
        self.copies = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.copies += func.overloadpacket.__name__ in COPIES
        return func(*args, **(kwargs or {}))


class CountsTransfers(TorchFunctionMode):
    """Counts the calls that move tensors between devices, or wait for one."""

    WAITS = ("cpu", "item", "tolist", "to", "numpy", "cuda")

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += getattr(func, "__name__", "") in self.WAITS
        return func(*args, **(kwargs or {}))


def batches(count, frames=3):
    return [(np.full((frames, 4, 5), number, np.float32),) for number in range(count)]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_results_come_in_order_as_arrays(count):
    found = list(each_batch("cpu", batches(count), lambda given: given * 2))
    assert [array.shape for array in found] == [(3, 4, 5)] * count
    assert all(isinstance(array, np.ndarray) and (array == 2 * number).all() for number, array in enumerate(found))


def test_several_arrays_in_and_out_keep_their_types():
    given = [(np.arange(3, dtype=np.uint8), np.array([True, False])), (np.arange(4, dtype=np.int64), np.array([True]))]
    for arrays, found in zip(given, each_batch("cpu", given, lambda *tensors: tensors[::-1]), strict=True):
        assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(arrays[::-1], found, strict=True))


def test_the_next_batch_is_queued_before_a_result_is_awaited():
    happened = []

    def prepared():
        for number, arrays in enumerate(batches(3)):
            happened.append(f"prepare {number}")
            yield arrays

    def compute(given):
        happened.append(f"compute {int(given[0, 0, 0])}")
        return given

    for array in each_batch("cpu", prepared(), compute):
        happened.append(f"use {int(array[0, 0, 0])}")
    assert happened == [
        "prepare 0", "compute 0", "prepare 1", "compute 1", "use 0", "prepare 2", "compute 2", "use 1", "use 2",
    ]  # fmt: skip


def test_read_only_arrays_stay_as_they_are():
    array = np.zeros((2, 3), np.uint8)
    array.flags.writeable = False
    (found,) = each_batch("cpu", [(array,)], lambda given: given.add_(1))
    assert (found == 1).all() and not array.any()


@pytest.mark.parametrize("frames", [1, 7])
def test_copies_and_waits_are_per_batch_not_per_frame(frames):
    with CountsCopies() as copied, CountsTransfers() as moved:
        list(each_batch("cpu", batches(4, frames), lambda given: given * 2))
    assert moved.calls == 4 * 3, "one tensor up; down and into an array"
    assert copied.copies == 0, "on the CPU, tensors are the arrays"


def test_errors_of_the_network_arrive():
    def compute(given):
        raise torch.OutOfMemoryError("batch too large")

    with pytest.raises(torch.OutOfMemoryError, match="batch too large"):
        list(each_batch("cpu", batches(2), compute))


def test_convolutions_on_a_device_are_channels_last():
    def network():
        return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(4, 4))

    placed = on_device(network(), "meta")
    assert not placed.training and placed[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert on_device(network(), "cpu")[0].weight.is_contiguous()
    with FakeTensorMode(), torch.device("cuda"):
        weight = torch.empty(8, 3, 3, 3).to(memory_format=torch.channels_last)
        result = torch.nn.functional.conv2d(torch.empty(2, 3, 16, 16), weight)
    assert result.is_contiguous(memory_format=torch.channels_last), "whatever the format of the image"
