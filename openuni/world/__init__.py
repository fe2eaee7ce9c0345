"""A small world of moving solids, people and rooms that knows its own ground truth, for every modality."""

from openuni.world.clips import WorldClip, make_clip, render_clip
from openuni.world.presets import PRESETS
from openuni.world.write import write_clips

__all__ = ["PRESETS", "WorldClip", "make_clip", "render_clip", "write_clips"]
