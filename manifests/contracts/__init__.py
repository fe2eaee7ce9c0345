"""The contracts: components, operators, modalities, checkpoints, schemas."""
