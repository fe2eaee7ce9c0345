"""Evaluation metrics, one file each."""
