"""Filters score clips: numbers only, one file each. The recipe's `keep` decides."""
