"""Foreground: the front layer's own colours."""

from dataclasses import dataclass
from typing import ClassVar

from openuni.manifests.modalities.rgb import RGB


@dataclass(frozen=True, eq=False)
class Foreground(RGB):
    """The front layer: uint8 [T, H, W, 3], red green blue, sRGB, full range 0..255, straight (not premultiplied).

    rgb = alpha x foreground + (1 - alpha) x background, of sRGB values. Where alpha is 0 the colour does not show, but
    resizing averages it in, so it should continue the nearest colour that does. Stored and rendered as `rgb` is.
    """

    name: ClassVar[str] = "foreground"
    prompt: ClassVar[str] = "foreground layer"
