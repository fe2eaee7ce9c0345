"""A SAM 3 video checkpoint in transformers' format: the real classes, narrow, random weights, one token per letter."""

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTokenizer,
    Sam2VideoVideoProcessor,
    Sam3ImageProcessor,
    Sam3VideoConfig,
    Sam3VideoModel,
    Sam3VideoProcessor,
)

SIDE_PX, PATCH_PX, WIDE = 112, 14, 128
GRID = SIDE_PX // PATCH_PX
LETTERS = sorted(ByteLevel.alphabet())
VOCABULARY = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(letter + "</w>" for letter in LETTERS)]
LAYERS = {"num_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "hidden_size": WIDE}


def config(**options):
    """`options`: of the fusion of detections and tracks, such as `hotstart_delay`."""
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE_PX,
        "patch_size": PATCH_PX,
        "window_size": 4,
        "global_attn_indexes": [1],
        "pretrain_image_size": SIDE_PX // 2,
    }
    vision = {
        "model_type": "sam3_vision_model",
        "backbone_config": backbone,
        "fpn_hidden_size": WIDE,
        "backbone_feature_sizes": [[4 * GRID, 4 * GRID], [2 * GRID, 2 * GRID], [GRID, GRID]],
    }
    text = {
        "model_type": "clip_text_model",
        "vocab_size": len(VOCABULARY),
        "hidden_size": 32,
        "intermediate_size": 64,
        "projection_dim": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "hidden_act": "gelu",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    detector = {
        "model_type": "sam3",
        "vision_config": vision,
        "text_config": text,
        "geometry_encoder_config": LAYERS,
        "detr_encoder_config": LAYERS,
        "detr_decoder_config": LAYERS | {"num_queries": 6},
        "mask_decoder_config": {"hidden_size": WIDE, "num_attention_heads": 2},
    }
    tracker = {
        "model_type": "sam3_tracker_video",
        "vision_config": vision,
        "image_size": SIDE_PX,
        "prompt_encoder_config": {
            "hidden_size": WIDE,
            "image_size": SIDE_PX,
            "patch_size": PATCH_PX,
            "mask_input_channels": 8,
        },
        "mask_decoder_config": {
            "hidden_size": WIDE,
            "mlp_dim": 64,
            "iou_head_hidden_dim": 64,
            "num_attention_heads": 2,
        },
        "memory_attention_hidden_size": WIDE,
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 64,
        "memory_encoder_hidden_size": WIDE,
        "memory_encoder_output_channels": 64,  # the library builds its memory attention for no other width
        "mask_downsampler_embed_dim": WIDE,
        "memory_fuser_embed_dim": WIDE,
        "memory_fuser_intermediate_dim": 64,
        "memory_fuser_num_layers": 1,
    }
    return Sam3VideoConfig(
        detector_config=detector, tracker_config=tracker, low_res_mask_size=4 * GRID, fill_hole_area=4, **options
    )


def saved(folder, seed=0, **options):
    """The checkpoint in `folder`; see `config`."""
    path = folder / "tiny_sam3"
    if path.exists():
        return str(path)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Sam3VideoModel(config(**options))
        with torch.no_grad():
            for weight in network.parameters():  # the library's initial weights give masks that are all alike
                if weight.dim() > 1:
                    torch.nn.init.normal_(weight, 0, 0.3 / max(1, weight[0].numel() / 64) ** 0.5)
            head = network.tracker_model.mask_decoder.pred_obj_score_head.proj_out
            head.weight.mul_(0.05)
            head.bias.fill_(2.0)  # what is followed is in sight
    network.save_pretrained(path)
    size = {"height": SIDE_PX, "width": SIDE_PX}
    tokenizer = CLIPTokenizer(vocab={token: number for number, token in enumerate(VOCABULARY)}, merges=[])
    videos = Sam2VideoVideoProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    Sam3VideoProcessor(Sam3ImageProcessor(size=size), videos, tokenizer).save_pretrained(path)
    return str(path)
