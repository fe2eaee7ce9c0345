"""The recipe of the smallest corpus that has a column group of every kind, and its inputs."""

import tomllib
from pathlib import Path

import openuni
from openuni.console.progress import Reporter
from tests.raw_clips import write_clips

MEASURED = """
keep = "luminance.mean > 0.05"
[work]
short_side_px = 32
[filters.luminance]
[annotators.dis]
preset = "ultrafast"
"""
ENCODED = """
[encode]
modalities = ["rgb", "flow"]
size_px = [16, 16]
frames = 5
"""
MEASURED_RECIPE = tomllib.loads(MEASURED)
RECIPE = tomllib.loads(MEASURED + ENCODED)


def make_tiny(folder: Path, clips: int = 2) -> Path:
    """Write videos to raw/, the recipe to corpus.toml, and run it: corpus/ has one part per column group."""
    write_clips(folder / "raw", clips)
    (folder / "corpus.toml").write_text(MEASURED + ENCODED)
    openuni.run(RECIPE, folder / "raw", out=folder / "corpus", reporter=Reporter(quiet=True))
    return folder
