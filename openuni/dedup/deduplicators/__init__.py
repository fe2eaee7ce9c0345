"""Deduplicators, one per file: components that compare all clips of a corpus."""
