"""Annotators produce modalities for every frame of a clip, one file each."""
