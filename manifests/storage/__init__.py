"""Storage of corpora: files under one root, locks and leases, checksums."""
