"""The Wan backbone: blocks, attention, LoRA, pretrained weights."""
