"""Unified models, one file each, with one interface: dicts of streams in, dicts of velocities out."""
