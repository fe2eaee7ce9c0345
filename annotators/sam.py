"""Instance segmentation by Segment Anything (SAM): automatic masks in keyframes, propagated along the optical flow."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

from openuni.annotators._automatic_masks import PromptableNetwork
from openuni.annotators._flow_propagation import FlowInterval
from openuni.annotators._guide_flow import guide_flow
from openuni.annotators._segmenter import Segmenter
from openuni.annotators._threads import in_threads
from openuni.manifests.contracts.checkpoint import Checkpoint
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.inference import Precision, decoder_precision, inference
from openuni.manifests.contracts.weights import read_weights
from openuni.manifests.errors import OpenUniError, unknown_name

URL = "https://dl.fbaipublicfiles.com/segment_anything/"
PUBLISHED = {  # size in 10^6 bytes, sha256
    "sam_vit_h_4b8939.pth": (2564.6, "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
    "sam_vit_l_0b3195.pth": (1249.5, "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    "sam_vit_b_01ec64.pth": (375.0, "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
}
PATCH_PX = 16
DECODER_HEADS = 8  # equal for all model sizes; cannot be inferred from the weights
WINDOW_CELLS = 14  # window side of local attention


@dataclass(frozen=True)
class Sam(Segmenter):
    """Instance segmentation by Segment Anything's automatic masks, with temporally consistent ids.

    In keyframes, masks are detected by a grid of point prompts, with the rules and defaults of the authors' generator.
    Between keyframes they are propagated along the optical flow (DIS) in both directions. Detected masks are linked to
    propagated masks by IoU. Instances that were out of sight are re-identified by position, size and colours.
    Everything is segmented, including walls and sky; `max_area_share` excludes large masks.
    """

    checkpoint: Annotated[
        str,
        "sam_vit_h_4b8939.pth, sam_vit_l_0b3195.pth, sam_vit_b_01ec64.pth, or path of a .pth or .safetensors file",
    ] = "sam_vit_h_4b8939.pth"

    origin: ClassVar[str] = "Kirillov et al. 2023 (arXiv:2304.02643); segment_anything 1.0"

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The weights file: a published name, or a path."""
        if self.checkpoint in PUBLISHED:
            return (_published(self.checkpoint),)
        if "/" not in self.checkpoint and not Path(self.checkpoint).exists():
            raise OpenUniError(f"{unknown_name('SAM', self.checkpoint, PUBLISHED)} Or pass the path of a file.")
        return (Checkpoint(self.checkpoint, "path", self.licence),)

    @classmethod
    def published(cls) -> Sequence[Checkpoint]:
        """The authors' checkpoints in three sizes."""
        return tuple(_published(name) for name in PUBLISHED)

    def load(self, device: str) -> Any:
        """Load the network on `device`, with the size inferred from the weights.

        Raises `OpenUniError` for other weights.
        """
        path = self.checkpoints()[0].resolve()
        weights = read_weights(path, f"with: openuni checkpoints get {path.name}")
        try:
            network = build(weights)
            network.load_state_dict(weights)
        except (KeyError, RuntimeError, ValueError, ZeroDivisionError) as error:
            reason = " ".join(str(error).splitlines()[:3])
            raise OpenUniError(
                f"{path} does not contain weights of Segment Anything, version 1 ({reason}). Use a checkpoint such as "
                "sam_vit_b_01ec64.pth."
            ) from error
        return network.eval().requires_grad_(False).to(device)

    def promptable(self, model: Any) -> PromptableNetwork:
        """See `Segmenter.promptable`."""
        return SamPrompted(model, self.precision)

    def keyframe_interval(
        self, model: Any, clip: DecodedClip, labels: np.ndarray, first: int, last: int
    ) -> FlowInterval:
        """See `Segmenter.keyframe_interval`."""
        return FlowInterval(labels, guide_flow(clip), first, last)


class EmbeddedImage(NamedTuple):
    """An image that the encoder has seen."""

    features: Any  # float32 [1, C, S / 16, S / 16]
    size_px: tuple[int, int]  # height and width of the image
    scaled_px: tuple[int, int]  # the same of the part of the network's input that it fills


class SamPrompted:
    """The network as a `PromptableNetwork`.

    With 16-bit `precision`, only the image encoder runs in 16 bits. Masks are selected by thresholds on the decoder's
    numbers, and those of bfloat16 are 0.004 apart near an IoU of 0.9.
    """

    def __init__(self, network: Any, precision: Precision) -> None:
        from segment_anything.utils.transforms import ResizeLongestSide

        self.network, self.precision = network, precision
        self.decoder_precision = decoder_precision(precision)
        self.device = network.pixel_mean.device
        self.resize = ResizeLongestSide(network.image_encoder.img_size)

    def embed(self, images: Sequence[np.ndarray]) -> list[EmbeddedImage]:
        """See `PromptableNetwork.embed`; longest side resized (PIL, bilinear), padded on the right and below."""
        import torch

        scaled = in_threads(lambda image: self.resize.apply_image(np.ascontiguousarray(image)), images)
        if len({one.shape for one in scaled}) == 1:  # one copy to the device
            pixels = self._pixels(np.stack(scaled))
        else:
            pixels = torch.cat([self._pixels(one[None]) for one in scaled])
        with inference(self.device.type, self.precision):
            features = self.network.image_encoder(pixels).float()
        return [
            EmbeddedImage(features[row : row + 1], (image.shape[0], image.shape[1]), (one.shape[0], one.shape[1]))
            for row, (image, one) in enumerate(zip(images, scaled, strict=True))
        ]

    def _pixels(self, scaled: np.ndarray) -> Any:
        """uint8 [N, h, w, 3] RGB, resized -> network input float32 [N, 3, S, S]."""
        import torch

        # contiguous as in the authors' predictor: the memory layout decides how convolutions round
        return self.network.preprocess(torch.from_numpy(scaled).to(self.device).permute(0, 3, 1, 2).contiguous())

    def use(self, embedding: EmbeddedImage) -> None:
        """See `PromptableNetwork.use`."""
        self.image = embedding
        with inference(self.device.type, self.decoder_precision):
            self.places = self.network.prompt_encoder.get_dense_pe()

    def predict_points(self, points_px: Any) -> tuple[Any, Any]:
        """See `PromptableNetwork.predict_points`; three masks per point."""
        import torch

        # float64 until it is on the device, for the same rounding as in the authors' generator
        (height_px, width_px), (scaled_height_px, scaled_width_px) = self.image.size_px, self.image.scaled_px
        given = torch.as_tensor(points_px, device=self.device)
        scales = scaled_width_px / width_px, scaled_height_px / height_px
        points = torch.stack([given[:, axis] * scale for axis, scale in enumerate(scales)], dim=1)
        labels = torch.ones(len(points), 1, dtype=torch.int, device=self.device)
        with inference(self.device.type, self.decoder_precision):
            sparse, dense = self.network.prompt_encoder(points=(points[:, None], labels), boxes=None, masks=None)
            logits, predicted = self.network.mask_decoder(
                image_embeddings=self.image.features,
                image_pe=self.places,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
        return logits.float(), predicted.float()

    def upscale(self, logits: Any) -> Any:
        """See `PromptableNetwork.upscale`: to the input size, crop the padding, then to the image size."""
        import torch

        scaled_px, side, side_px = self.image.scaled_px, logits.shape[-1], self.network.image_encoder.img_size
        if side_px % side:
            return self.network.postprocess_masks(logits[:, None], scaled_px, self.image.size_px)[:, 0]
        # Rows and columns of the padding are not computed. One more than the picture has is kept: the outermost are
        # interpolated with their neighbours, and what is computed is equal to the bit.
        factor = side_px // side
        rows, columns = (min(side, -(-length // factor) + 1) for length in scaled_px)
        enlarge = partial(torch.nn.functional.interpolate, mode="bilinear", align_corners=False)
        full = enlarge(logits[:, None, :rows, :columns], (rows * factor, columns * factor))
        return enlarge(full[..., : scaled_px[0], : scaled_px[1]], self.image.size_px)[:, 0]


def build(weights: Mapping[str, Any]) -> Any:
    """Build the network for these weights, with sizes inferred from the tensors.

    Raises `KeyError` if a tensor that determines a size is missing. (`segment_anything`'s builders support only three
    sizes and load files without `weights_only`.)
    """
    import torch
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, TwoWayTransformer
    from segment_anything.modeling import Sam as Network

    grid, width = weights["image_encoder.pos_embed"].shape[1], weights["image_encoder.pos_embed"].shape[3]
    blocks = _count(weights, r"image_encoder\.blocks\.(\d+)\.")
    reach = [weights[f"image_encoder.blocks.{block}.attn.rel_pos_h"].shape for block in range(blocks)]
    whole = [block for block, (length, _) in enumerate(reach) if length == 2 * grid - 1]
    windows = {(length + 1) // 2 for length, _ in reach if length != 2 * grid - 1} or {WINDOW_CELLS}
    (window,) = windows
    channels = weights["image_encoder.neck.0.weight"].shape[0]
    side_px = grid * PATCH_PX
    encoder = ImageEncoderViT(
        img_size=side_px,
        patch_size=PATCH_PX,
        embed_dim=width,
        depth=blocks,
        num_heads=width // reach[0][1],
        mlp_ratio=weights["image_encoder.blocks.0.mlp.lin1.weight"].shape[0] / width,
        out_chans=channels,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=window,
        global_attn_indexes=tuple(whole),
    )
    prompts = _point_encoder(
        embed_dim=channels,
        image_embedding_size=(grid, grid),
        input_image_size=(side_px, side_px),
        mask_in_chans=weights["prompt_encoder.mask_downscaling.3.weight"].shape[0],
    )
    transformer = TwoWayTransformer(
        depth=_count(weights, r"mask_decoder\.transformer\.layers\.(\d+)\."),
        embedding_dim=channels,
        mlp_dim=weights["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0],
        num_heads=DECODER_HEADS,
    )
    decoder = MaskDecoder(
        transformer_dim=channels,
        transformer=transformer,
        num_multimask_outputs=weights["mask_decoder.mask_tokens.weight"].shape[0] - 1,
        iou_head_depth=_count(weights, r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\."),
        iou_head_hidden_dim=weights["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
    )
    return Network(encoder, prompts, decoder, pixel_mean=[123.675, 116.28, 103.53], pixel_std=[58.395, 57.12, 57.375])


def _point_encoder(**sizes: Any) -> Any:
    """The library's prompt encoder, with equal embeddings of points that never wait for the device.

    The library selects points by their label with boolean masks; on a GPU each selection waits for all queued work.
    """
    import torch
    from segment_anything.modeling import PromptEncoder

    class PointEncoder(PromptEncoder):
        def _embed_points(self, points: Any, labels: Any, pad: bool) -> Any:
            points = points + 0.5
            if pad:
                points = torch.nn.functional.pad(points, (0, 0, 0, 1))
                labels = torch.nn.functional.pad(labels, (0, 1), value=-1)
            found = self.pe_layer.forward_with_coords(points, self.input_image_size)
            labels = labels[..., None]
            found = torch.where(labels == -1, self.not_a_point_embed.weight, found)
            for label in (0, 1):
                found = torch.where(labels == label, found + self.point_embeddings[label].weight, found)
            return found

    return PointEncoder(**sizes)


def _count(weights: Mapping[str, Any], pattern: str) -> int:
    """Number of numbered modules: one more than the largest number in the names."""
    return 1 + max((int(found[1]) for name in weights if (found := re.match(pattern, name))), default=-1)


def _published(name: str) -> Checkpoint:
    size_mb, sha256 = PUBLISHED[name]
    return Checkpoint(name, "url", Sam.licence, URL + name, sha256, size_mb)
