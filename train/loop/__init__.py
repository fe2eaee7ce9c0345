"""The training loop: setup, steps, validation, checkpoints, logs."""
