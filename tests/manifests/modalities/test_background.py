"""Background: the rear layer is not the front one. What both share is in `test_foreground.py`."""

from openuni.manifests.modalities.background import Background
from openuni.manifests.modalities.foreground import Foreground


def test_the_layers_are_told_apart() -> None:
    assert Background.name == "background"
    assert Background.prompt != Foreground.prompt
    assert not issubclass(Background, Foreground)
