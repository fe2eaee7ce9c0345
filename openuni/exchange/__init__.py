"""Importing other projects' datasets and exporting corpora in their formats."""
