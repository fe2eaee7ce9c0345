"""Evaluation metrics, one file per modality."""
