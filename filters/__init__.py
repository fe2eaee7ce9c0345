"""Filters: operators that compute scores of clips, one per file. They drop nothing; the keep rule does."""
