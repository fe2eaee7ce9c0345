"""Shot detection: the detector contract, and one detector per file in detectors/."""
