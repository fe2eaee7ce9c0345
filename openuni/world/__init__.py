"""A synthetic scene renderer (solids, people, rooms) with exact ground truth for every modality."""

from openuni.world.clips import WorldClip, make_clip, render_clip
from openuni.world.presets import PRESETS
from openuni.world.write import write_clips

__all__ = ["PRESETS", "WorldClip", "make_clip", "render_clip", "write_clips"]
