"""Background: what lies behind the front layer."""

from dataclasses import dataclass
from typing import ClassVar

from openuni.manifests.modalities.rgb import RGB


@dataclass(frozen=True, eq=False)
class Background(RGB):
    """The rear layer: uint8 [T, H, W, 3], red green blue, sRGB, full range 0..255, complete behind the foreground too.

    rgb = alpha x foreground + (1 - alpha) x background, of sRGB values. Stored and rendered as `rgb` is.
    """

    name: ClassVar[str] = "background"
    prompt: ClassVar[str] = "background without the foreground"
