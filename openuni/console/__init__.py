"""Terminal output: progress, log messages and tables."""
