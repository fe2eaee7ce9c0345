"""Deduplication over a whole corpus: the contract, and one deduplicator per file in deduplicators/."""
