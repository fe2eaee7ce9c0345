"""Codecs, one file each: video <-> latents, text -> embeddings."""
