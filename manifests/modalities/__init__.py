"""The modalities, one file each: definition, storage, RGB rendering and its inverse."""
