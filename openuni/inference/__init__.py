"""Inference with a training run: generation to files, and windows over long clips."""
