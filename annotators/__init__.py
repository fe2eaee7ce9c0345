"""Annotators: operators that produce modality maps or captions for every frame of a clip, one per file."""
