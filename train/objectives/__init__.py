"""Training objectives: flow matching of latents, discrete flow matching of text, and the losses."""
