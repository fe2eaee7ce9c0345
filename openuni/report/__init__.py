"""Reports: catalogue, explain, coverage, histograms, doctor, checkpoints, parity."""
