"""Unified models, one file each, behind one interface: dicts of streams in, dicts of velocities out."""
