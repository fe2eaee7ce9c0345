"""Parity with a pretrained backbone: a ladder of checks."""
