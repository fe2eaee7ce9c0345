"""What a phase does: items, which operators share a worker, where the maps come from that they start from."""
