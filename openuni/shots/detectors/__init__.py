"""Shot detectors, one per file."""
