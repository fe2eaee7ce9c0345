"""Corpus-wide deduplication: the deduplicator contract, and one deduplicator per file in deduplicators/."""
