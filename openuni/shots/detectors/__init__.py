"""Shot detectors: one per file, found by name."""
