"""Compiled blocks: backends and options of torch.compile."""

from typing import Any, Literal

Compiler = Literal["none", "inductor", "aot_eager"]
# Graphs are made per set of streams, with and without gradients, and for batches and streams of one and of several; the
# second latent shape makes one for all others. PyTorch ends the training at its limit of 8.
COMPILE: dict[str, Any] = {"fullgraph": True, "recompile_limit": 128}
