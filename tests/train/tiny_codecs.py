"""Tiny random codecs in their libraries' own formats."""

from pathlib import Path

import torch


def tiny_vae(folder: Path) -> str:
    """A pipeline's folder with an AutoencoderKLWan of narrow layers in `vae/`."""
    from diffusers import AutoencoderKLWan

    if not (folder / "vae").exists():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            vae = AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
        vae.save_pretrained(folder / "vae")
    return str(folder)


def tiny_umt5(folder: Path) -> str:
    """A folder with a umT5 encoder of two narrow layers, and a tokenizer of eight words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    words = ["<pad>", "</s>", "<unk>", "a", "red", "ball", "rolls", "&"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = UMT5Config(vocab_size=8, d_model=12, d_kv=4, d_ff=16, num_layers=2, num_heads=3)
        UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")
    return str(folder)
