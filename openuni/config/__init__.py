"""Corpus recipes: parsing, templates, and the listing of components."""
