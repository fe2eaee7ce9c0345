"""Contracts: components, operators, modalities, checkpoints and schemas."""
