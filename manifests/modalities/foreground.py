"""Foreground: the colours of the front layer."""

from dataclasses import dataclass
from typing import ClassVar

from openuni.manifests.modalities.rgb import RGB


@dataclass(frozen=True, eq=False)
class Foreground(RGB):
    """Foreground layer, straight (not premultiplied): uint8 [T, H, W, 3], RGB, sRGB, full range 0..255.

    rgb = alpha x foreground + (1 - alpha) x background, in sRGB values. Colours where alpha is 0 are invisible, but
    resizing mixes them in, so they should extend the nearest visible colour.

    Storage and rendering: as `rgb`.
    """

    name: ClassVar[str] = "foreground"
    prompt: ClassVar[str] = "foreground layer"
