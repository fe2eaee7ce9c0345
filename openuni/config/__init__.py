"""Corpus recipes: parsing, the template of `openuni init`, component pages of `openuni show`."""
