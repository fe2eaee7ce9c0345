"""Using a trained run: generation, and windows over long clips."""
