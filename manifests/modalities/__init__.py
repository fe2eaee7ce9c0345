"""Modalities, one file each: what a dense signal means, how it is stored, how it looks as RGB and the way back."""
