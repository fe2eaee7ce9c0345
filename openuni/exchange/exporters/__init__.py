"""Formats that corpora are exported to: one file each, found by its name."""
