"""Training of unified video models on the latents of a corpus."""
