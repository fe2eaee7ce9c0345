"""Export of trained models: the folder that others load, its model card, and formats of diffusers and PEFT."""
