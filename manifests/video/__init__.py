"""Video and image files: clips, probing, decoding, encoding and passthrough storage."""
