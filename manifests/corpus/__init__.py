"""Corpus storage: column groups, parts, shards, outcomes, keep rules and splits."""
