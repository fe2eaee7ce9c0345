"""SAM 2's memory for many instances at once: the video network's modules, called with a batch of instances.

`transformers.Sam2VideoModel` computes a frame instance by instance, because prompts may differ between them. Here every
instance has the same prompt, a mask in the first frame, so that memory attention, mask decoder and memory encoder run
once per frame for a batch of instances. Results equal those of the library's session up to rounding.
"""

from collections import deque
from typing import Any, NamedTuple

NO_OBJECT_LOGIT = -1024.0  # of all pixels of an instance that is out of sight
MASK_LOGITS = 20.0, -10.0  # scale and bias that turn a given mask into logits


class Vision(NamedTuple):
    """What the image encoder gives for one frame, from the finest to the coarsest level."""

    features: list[Any]  # float32 [h * w, 1, C]
    positions: Any  # float32 [h * w, 1, C], of the coarsest level


class _Segmented(NamedTuple):
    """Answer of the mask decoder for B instances."""

    logits: Any  # float32 [B, s, s], at low resolution
    pointers: Any  # float32 [B, C]: what identifies each instance in later frames
    score_logits: Any  # float32 [B, 1, 1]: above 0 if the instance is in sight


class TrackedInstances:
    """The memory of up to a batch of instances that are followed from one frame to the next.

    It holds what later frames need and no more: memories of the first frame and of the last `num_maskmem - 1`, pointers
    of the first frame and of the last `max_object_pointers_in_encoder - 1`. To be called in `inference`.
    """

    def __init__(self, network: Any, vision: Vision, masks: Any) -> None:
        """`masks`: float32 [B, 1, S, S], 0 or 1, at the network's input size, of the frame of `vision`."""
        self.network, self.config, self.count = network, network.config, len(masks)
        self.places = network.get_image_wide_positional_embeddings().expand(self.count, -1, -1, -1)
        # of the latest frames, the last one at the end: memories bfloat16 [h * w, B, C], pointers float32 [B, C]
        self.memories: deque[Any] = deque(maxlen=max(0, self.config.num_maskmem - 1))
        self.pointers: deque[Any] = deque(maxlen=max(0, self.config.max_object_pointers_in_encoder - 1))
        self.step = 0  # frames since the first
        scale, bias = MASK_LOGITS
        found = self._decoded(vision, self._map(vision, -1), network.mask_downsample(masks), is_multimask=True)
        in_sight = (masks.flatten(1) > 0).any(dim=1)[:, None].float()
        self.first_pointers = in_sight * found.pointers + (1 - in_sight) * network.no_object_pointer
        self.first_memory, self.positions = self._remembered(
            vision, masks * scale + bias, (in_sight * scale + bias)[..., None], is_given=True
        )

    def follow(self, vision: Vision, *, is_last: bool) -> Any:
        """Low-resolution logits of all instances in the next frame, float32 [B, s, s]. The last is not remembered."""
        self.step += 1
        found = self._decoded(vision, self._attended(vision), None, is_multimask=self._is_multimask())
        if not is_last:
            side = self.config.image_size
            masks = enlarged(found.logits.float(), (side, side)).to(found.logits.dtype)
            memory, _ = self._remembered(vision, masks[:, None], found.score_logits, is_given=False)
            self.memories.append(memory)
            self.pointers.append(found.pointers)
        return found.logits.float()

    def _map(self, vision: Vision, level: int) -> Any:
        """Features of one level as maps, [B, C, h, w]; the same for all instances."""
        height, width = self.network.backbone_feature_sizes[level]
        features = vision.features[level].permute(1, 2, 0)
        return features.reshape(1, -1, height, width).expand(self.count, -1, -1, -1)

    def _is_multimask(self) -> bool:
        """Whether several masks are decoded in a frame without prompts, of which the best is taken."""
        config = self.config
        return bool(
            config.multimask_output_in_sam
            and config.multimask_output_for_tracking
            and config.multimask_min_pt_num <= 0 <= config.multimask_max_pt_num
        )

    def _attended(self, vision: Vision) -> Any:
        """The frame's features after attention to the memory, [B, C, h, w]."""
        import torch

        encodings = self.network.memory_temporal_positional_encoding
        ages = range(len(self.memories), 0, -1)  # in frames, of the memories in the order in which they are held
        positions = [self.positions + encodings[age - 1] for age in (0, *ages)]  # a given mask has the last encoding
        pointers, pointer_positions = self._pointer_tokens()
        attended = self.network.memory_attention(
            vision.features[-1].expand(-1, self.count, -1),
            torch.cat([self.first_memory, *self.memories, pointers]).float(),
            vision.positions.expand(-1, self.count, -1),
            torch.cat([*positions, pointer_positions]),
            len(pointers),
        )
        height, width = self.network.backbone_feature_sizes[-1]
        return attended[0].transpose(1, 2).reshape(self.count, -1, height, width)

    def _pointer_tokens(self) -> tuple[Any, Any]:
        """Pointers of the first frame and of the latest as memory tokens, [tokens, B, c], and their encodings."""
        import torch

        network, config = self.network, self.config
        pointers = torch.stack([self.first_pointers, *reversed(self.pointers)])
        channels, width = pointers.shape[-1], network.mem_dim
        if config.enable_temporal_pos_encoding_for_object_pointers:
            age = torch.arange(len(pointers), dtype=torch.float32, device=pointers.device)
            age[0] = self.step
            rows = torch.arange(channels // 2, dtype=torch.float32, device=pointers.device)
            angle = age[:, None] / float(config.max_object_pointers_in_encoder - 1)
            angle = angle / 10000 ** (2 * (rows // 2) / (channels // 2))
            sines = torch.cat([angle.sin(), angle.cos()], dim=-1).to(pointers.dtype)
            positions = network.temporal_positional_encoding_projection_layer(sines)
            positions = positions[:, None].expand(-1, self.count, width)
        else:
            positions = pointers.new_zeros(len(pointers), self.count, width)
        if width < channels:  # several tokens per pointer
            parts = channels // width
            pointers = pointers.unflatten(2, (parts, width)).permute(0, 2, 1, 3).flatten(0, 1)
            positions = positions.repeat_interleave(parts, dim=0, output_size=len(positions) * parts)
        return pointers, positions

    def _decoded(self, vision: Vision, coarse: Any, masks: Any, *, is_multimask: bool) -> "_Segmented":
        """Answer of the mask decoder without points. `masks`: mask prompts float32 [B, 1, s, s], or None."""
        import torch

        network = self.network
        if masks is not None and masks.shape[-2:] != network.prompt_encoder.mask_input_size:
            masks = _resized(masks, network.prompt_encoder.mask_input_size)
        points = torch.zeros(self.count, 1, 1, 2, device=coarse.device)
        labels = torch.full((self.count, 1, 1), -1, dtype=torch.int32, device=coarse.device)  # no point
        sparse, dense = network.prompt_encoder(
            input_points=points, input_labels=labels, input_boxes=None, input_masks=masks
        )
        logits, predicted, tokens, scores = network.mask_decoder(
            image_embeddings=coarse,
            image_positional_embeddings=self.places,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=is_multimask,
            high_resolution_features=[self._map(vision, level) for level in range(len(vision.features) - 1)],
        )
        row = torch.arange(self.count, device=coarse.device)
        best = predicted[:, 0].argmax(dim=-1) if is_multimask else torch.zeros_like(row)
        token = tokens[row, 0, best if tokens.shape[2] > 1 else torch.zeros_like(best)]
        is_there = scores > 0  # [B, 1, 1]
        chosen = torch.where(is_there, logits[row, 0, best], NO_OBJECT_LOGIT)
        seen = is_there[:, 0].to(token.dtype)
        pointers = seen * network.object_pointer_proj(token) + (1 - seen) * network.no_object_pointer
        return _Segmented(chosen, pointers, scores)

    def _remembered(self, vision: Vision, masks: Any, scores: Any, *, is_given: bool) -> tuple[Any, Any]:
        """Memory of a frame, bfloat16 [h * w, B, C] as in the library, and its spatial encoding.

        `masks`: logits [B, 1, S, S]; `is_given`: they are a prompt.
        """
        import torch

        network, config = self.network, self.config
        size = tuple(4 * side for side in network.prompt_encoder.mask_input_size)
        if masks.shape[2:] != size:
            masks = _resized(masks, size)
        seen = (masks > 0).to(masks.dtype) if is_given else torch.sigmoid(masks)
        seen = seen * config.sigmoid_scale_for_mem_enc + config.sigmoid_bias_for_mem_enc
        memory, positions = network.memory_encoder(self._map(vision, -1), seen)
        if network.occlusion_spatial_embedding_parameter is not None:
            hidden = 1 - (scores > 0).float()
            memory = memory + hidden[..., None] * network.occlusion_spatial_embedding_parameter[..., None, None]
        return memory.to(torch.bfloat16).flatten(2).permute(2, 0, 1), positions.to(masks.dtype).flatten(2).permute(
            2, 0, 1
        )


def vision_of(network: Any, pixels: Any) -> list[Vision]:
    """What the image encoder gives for frames, float32 [N, 3, S, S]: one pass, to be called in `inference`."""
    found = network.get_image_features(pixels, return_dict=True)
    return [
        Vision(
            [level[:, row : row + 1] for level in found.fpn_hidden_states],
            found.fpn_position_encoding[-1][:, row : row + 1],
        )
        for row in range(len(pixels))
    ]


def prompt_masks(masks: Any, side_px: int) -> Any:
    """Masks of a frame as prompts: bool [B, H, W] -> float32 [B, 1, side_px, side_px], 0 or 1."""
    given = masks[:, None].float()
    return given if masks.shape[1:] == (side_px, side_px) else (_resized(given, (side_px, side_px)) >= 0.5).float()


def enlarged(logits: Any, size_px: tuple[int, ...]) -> Any:
    """Bilinear upscaling, [K, s, s] -> [K, H, W]."""
    import torch

    return torch.nn.functional.interpolate(logits[:, None], size_px, mode="bilinear", align_corners=False)[:, 0]


def _resized(masks: Any, size_px: tuple[int, ...]) -> Any:
    """Bilinear resizing with antialiasing, [B, 1, h, w], as the library resizes masks."""
    import torch

    resized = torch.nn.functional.interpolate(
        masks.float(), size=size_px, mode="bilinear", align_corners=False, antialias=True
    )
    return resized.to(masks.dtype)
