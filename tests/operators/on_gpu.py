"""As `logged`, for workers with a GPU: Ray counts GPUs that nobody has as readily as real ones."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from tests.operators.logged import Logged


@dataclass(frozen=True)
class OnGpu(Logged):
    """Splits each frame at its mean brightness."""

    gpus: ClassVar[float] = 0.5
    share: Annotated[str, "makes a second one with options of its own"] = ""
