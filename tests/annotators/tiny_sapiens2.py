"""Sapiens2 checkpoints in transformers' format: the real classes, narrow, random weights."""

import torch
import transformers
from transformers import Sapiens2Config, Sapiens2ImageProcessor

SIDES_PX = {"height": 64, "width": 48}


def saved(folder, network, labels, *, pad=False, **options):
    """A checkpoint of the class named `network` with `labels` outputs. `pad`: as for normals."""
    path = folder / f"tiny_{network}"
    if path.exists():
        return str(path)
    head = {"upsample_out_channels": [16, 16], "conv_out_channels": [16]}
    if pad:  # maps have the size of the network's input
        head |= {"use_pixel_shuffle": True, "upsample_out_channels": [16, 16, 8, 8], "upsample_kernel_size": 3}
    config = Sapiens2Config(
        **{
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads_per_layer": [2, 2],
            "num_register_tokens": 2,
            "image_size": list(SIDES_PX.values()),
            "patch_size": 16,
            "num_labels": labels,
            "head_config": head,
        }
        | options
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = getattr(transformers, network)(config)
        with torch.no_grad():
            for weight in made.parameters():  # the library's initial weights give maps that are all alike
                if weight.dim() > 1:
                    torch.nn.init.normal_(weight, 0, 1.2 / weight[0].numel() ** 0.5)
    made.save_pretrained(path)
    Sapiens2ImageProcessor(size=SIDES_PX, do_pad=pad).save_pretrained(path)
    return str(path)
