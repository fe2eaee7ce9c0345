"""Importers: one file per dataset format that `openuni import` reads."""
