"""Reports about a corpus and a machine: explain, coverage, histograms, doctor, checkpoints, parity."""
