"""Parity checks of models against diffusers on a pretrained backbone."""
