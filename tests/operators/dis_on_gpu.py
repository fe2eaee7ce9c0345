"""`dis` as an operator that wants a GPU, which Ray counts without having one: the same work in a pool of its own."""

from dataclasses import dataclass
from typing import ClassVar

from openuni.annotators.dis import Dis


@dataclass(frozen=True)
class DisOnGpu(Dis):
    """Optical flow by DIS."""

    gpus: ClassVar[float] = 1.0
