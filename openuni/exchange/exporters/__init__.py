"""Exporters: one file per format that `openuni export` writes."""
