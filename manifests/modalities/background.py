"""Background: the layer behind the foreground."""

from dataclasses import dataclass
from typing import ClassVar

from openuni.manifests.modalities.rgb import RGB


@dataclass(frozen=True, eq=False)
class Background(RGB):
    """Background layer, complete also behind the foreground: uint8 [T, H, W, 3], RGB, sRGB, full range 0..255.

    rgb = alpha x foreground + (1 - alpha) x background, in sRGB values.

    Storage and rendering: as `rgb`.
    """

    name: ClassVar[str] = "background"
    prompt: ClassVar[str] = "background without the foreground"
