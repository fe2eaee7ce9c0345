"""The contract between the parts: clips, video I/O, modalities, operators, corpus storage."""
