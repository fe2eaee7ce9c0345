"""A small world of moving solids that knows its own ground truth: RGB, depth, optical flow, segmentation, caption."""

from openuni.world.clips import WorldClip, make_clip, render_clip
from openuni.world.sample import PRESETS
from openuni.world.write import write_clips

__all__ = ["PRESETS", "WorldClip", "make_clip", "render_clip", "write_clips"]
