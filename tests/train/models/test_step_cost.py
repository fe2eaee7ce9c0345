"""What one stream with all additions at their initial state costs beyond the plain transformer, as operators."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from openuni.training.models.unityvideo import UnityVideo
from openuni.training.models.unividx import UniVidX
from tests.benchmarks.models import inputs, plain_of

SIZES: dict[str, Any] = {"num_layers": 3, "heads": 2, "head_dim": 12, "ffn_dim": 48, "text_dim": 8, "freq_dim": 16}
NAMES = ("rgb", "albedo", "normal")
VIEWS = (
    *("view", "_unsafe_view", "t", "transpose", "expand", "permute", "slice", "select", "unsqueeze", "squeeze"),
    *("split", "split_with_sizes", "detach", "alias", "as_strided", "unbind", "empty_like", "new_empty_strided"),
)


class Operators(TorchDispatchMode):
    """Context that counts operators by name, without views."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name not in VIEWS:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


def per_block(build: Callable[[int], Any], call: Callable[[Any], torch.Tensor]) -> Counter[str]:
    """Operators of a block in a forward and backward pass under bfloat16 autocast: of a model with one more block."""
    found = []
    for layers in (2, 3):
        model = build(layers)
        with Operators() as operators:
            with torch.autocast("cpu", torch.bfloat16):
                out = call(model)
            out.float().square().mean().backward()
        found.append(operators.counts)
    return found[1] - found[0]


def test_one_stream_costs_few_operators() -> None:
    given = inputs(UnityVideo(modalities=NAMES, **SIZES), ("rgb",), (2, 3, 4))
    stream, sigma, text = (group["rgb"] for group in given)
    plain = per_block(
        lambda layers: plain_of(UnityVideo(**SIZES | {"num_layers": layers})),
        lambda model: model(stream, sigma * 1000.0, text).sample,
    )
    ours = {
        kind: per_block(
            lambda layers, kind=kind, options=options: kind(
                modalities=NAMES, **SIZES | {"num_layers": layers} | options
            ).load("cpu"),
            lambda model: model(*given)["rgb"],
        )
        for kind, options in ((UnityVideo, {}), (UniVidX, {"rank": 4, "train_base": True}))
    }
    whole = sum(plain.values())
    assert whole > 200
    switcher, loras = ours[UnityVideo], ours[UniVidX]
    assert sum(switcher.values()) <= whole, (switcher, plain)
    assert sum(loras.values()) <= 1.18 * whole, (loras, plain)
    assert switcher["copy_"] == loras["copy_"] == 0 < plain["copy_"]  # rotations write no slices
    # the switcher: two layers; a LoRA product for queries, keys and values, and one for each of three other layers
    assert switcher["mm"] - plain["mm"] <= 4 and loras["mm"] - plain["mm"] <= 24
