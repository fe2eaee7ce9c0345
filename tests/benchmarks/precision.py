"""Errors of tf32, bf16 and fp16 against 32-bit arithmetic, network by network, on real pictures.

    python -m tests.benchmarks.precision [CLIPS] [--only NAME ...] [--pictures N] [--small]

CLIPS: a folder of videos; N of them give a pair of adjacent frames each, of a short side of 192 px (made-up textures
without CLIPS). Networks have their real architecture and the random weights of their library: rounding does to them
about what it does to trained ones, but not the same. On a CPU, Depth Anything's input has 266 px instead of 518, SAM
and SAM 2 see 2 pictures, and the VAE has half its width. `--small` takes small pictures, to try it.

With a GPU everything runs there, and tf32 is the GPU's. Without, tf32 is emulated: operands of matrix products,
convolutions and attention are rounded to 10 bits of mantissa, sums are float32. bf16 and fp16 are autocast of the
device; the VAE's bf16 has weights and arithmetic in bfloat16, as its option does. The VAE encodes windows of 9 frames
that glide over 4 pictures.

"stored" is what storing the 32-bit result in a corpus costs: an error well below it cannot be seen in a corpus.
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from openuni.manifests.contracts.decoded_clip import DecodedClip, decode
from openuni.manifests.contracts.inference import Precision
from openuni.manifests.modalities.depth import Depth
from openuni.manifests.modalities.flow import Flow
from openuni.manifests.video.probe import probe_clip
from tests.benchmarks.annotator_networks import full_depth_anything, full_raft, full_sam
from tests.moving_pictures import panned

PRECISIONS: tuple[Precision, ...] = ("tf32", "bf16", "fp16")
SHORT_SIDE_PX = 192
PICTURES_OF_1024_PX = 2  # on a CPU
VAE_FRAMES = 9


# ---------------------------------------------------------------- TF32 on a CPU

PRODUCTS = ("linear", "matmul", "mm", "addmm", "bmm", "baddbmm", "einsum", "mv", "dot")
CONVOLUTIONS = ("convolution", "_convolution", "conv1d", "conv2d", "conv3d", "conv_transpose2d", "conv_transpose3d")
ATTENTION = ("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu")
SUSPECT = ("mm", "conv", "attention", "linear", "matmul", "einsum")  # in the name of an operation that was forgotten
HARMLESS = ("_weight_norm", "mkldnn_reorder", "upsample", "linear_combination")


def rounded(value: Any) -> Any:
    """A float32 tensor rounded to 10 bits of mantissa, to nearest even; others unchanged, lists entry by entry."""
    if isinstance(value, list | tuple):
        return type(value)(rounded(one) for one in value)
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
        return value
    bits = value.contiguous().view(torch.int32)
    even = (bits >> 13) & 1
    return ((bits + 0xFFF + even) & ~0x1FFF).view(torch.float32)


class Tf32(TorchDispatchMode):
    """Rounds the operands of matrix products and convolutions of float32, as a GPU does in TF32."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = operation.overloadpacket.__name__, kwargs or {}
        if name in ATTENTION:
            return attention(operation, *args, **kwargs)
        if name in CONVOLUTIONS:  # the bias is added in float32
            return operation(rounded(args[0]), rounded(args[1]), *args[2:], **kwargs)
        if name in ("addmm", "baddbmm"):
            return operation(args[0], rounded(args[1]), rounded(args[2]), *args[3:], **kwargs)
        if name == "linear":
            return operation(rounded(args[0]), rounded(args[1]), *args[2:], **kwargs)
        if name in PRODUCTS:
            return operation(*(rounded(one) for one in args), **kwargs)
        if any(word in name for word in SUSPECT) and not any(word in name for word in HARMLESS):
            raise NotImplementedError(f"{name} may be a matrix product: say in {__file__} how TF32 rounds it")
        return operation(*args, **kwargs)


def attention(operation: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> Any:
    """Softmax attention whose two products have rounded operands."""
    mask = options.get("attn_mask", rest[0] if rest and isinstance(rest[0], torch.Tensor) else None)
    if options.get("is_causal") or options.get("enable_gqa"):
        raise NotImplementedError("causal or grouped attention")
    scale = options.get("scale") or query.shape[-1] ** -0.5
    scores = rounded(query) @ rounded(key).transpose(-1, -2) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    out = rounded(scores.softmax(-1)) @ rounded(value)
    return out if operation.overloadpacket.__name__ == ATTENTION[0] else (out, scores.logsumexp(-1))


# ---------------------------------------------------------------- networks


class Network(NamedTuple):
    """A loaded network and what its errors mean."""

    run: Callable[[Precision], list[np.ndarray]]  # one result per picture
    errors: Callable[[np.ndarray, np.ndarray], dict[str, float]]  # of one result against that in fp32
    stored: Callable[[np.ndarray], np.ndarray] | None  # what a corpus gives back of a result in fp32


def ranges(values: np.ndarray) -> float:
    """5th to 95th percentile."""
    low, high = np.percentile(values, (5, 95))
    return float(high - low) or 1.0


def depth_anything(folder: Path, pairs: Sequence[np.ndarray], device: str) -> Network:
    """Depth Anything V2 Small: errors as a share of the picture's range of disparity."""
    operator: Any = full_depth_anything(folder)
    operator = operator if device == "cuda" else dataclasses.replace(operator, input_size=266)
    model = operator.load(device)

    def run(precision: Precision) -> list[np.ndarray]:
        chosen = dataclasses.replace(operator, precision=precision)
        return [chosen.each_frame(model, pair[:1])[0] for pair in pairs]

    def errors(exact: np.ndarray, found: np.ndarray) -> dict[str, float]:
        distance = np.abs(found - exact) / ranges(exact)
        return {"share of range, mean": float(distance.mean()), "99 %": float(np.percentile(distance, 99))}

    def stored(exact: np.ndarray) -> np.ndarray:
        payload = Depth(exact[..., None], unit="disparity").encode(25.0)
        return Depth.decode(payload.data, payload.constants).array[..., 0]

    return Network(run, errors, stored)


def raft(folder: Path, pairs: Sequence[np.ndarray], device: str) -> Network:
    """RAFT large: end-point error in pixels."""
    operator: Any = full_raft(folder)
    model = operator.load(device)

    def run(precision: Precision) -> list[np.ndarray]:
        chosen = dataclasses.replace(operator, precision=precision, check=False)
        return [chosen.run(model, DecodedClip.from_frames(pair)).flow.array[:1] for pair in pairs]

    def errors(exact: np.ndarray, found: np.ndarray) -> dict[str, float]:
        distance = np.linalg.norm(found - exact, axis=-1)
        return {"end-point error, px, mean": float(distance.mean()), "99 %": float(np.percentile(distance, 99))}

    def stored(exact: np.ndarray) -> np.ndarray:
        payload = Flow(exact).encode(25.0)
        return Flow.decode(payload.data, payload.constants).array

    return Network(run, errors, stored)


def prompted(seen: Callable[[Precision], Any], pairs: Sequence[np.ndarray]) -> Network:
    """A promptable network on a 4 x 4 grid: IoU of masks with those of fp32, for masks of 1 to 99 % of the picture."""
    from openuni.annotators._automatic_masks import point_grid

    def run(precision: Precision) -> list[np.ndarray]:
        found = []
        for pair in pairs:
            network = seen(precision)
            network.use(*network.embed([pair[0]]))
            logits, _ = network.predict_points(point_grid(4) * pair.shape[2:0:-1])
            found.append(logits.flatten(0, 1).cpu().numpy())
        return found

    def errors(exact: np.ndarray, found: np.ndarray) -> dict[str, float]:
        one, other = exact > 0, found > 0
        share = one.mean(axis=(1, 2))
        chosen = (share > 0.01) & (share < 0.99)
        union = (one | other)[chosen].sum(axis=(1, 2))
        iou = (one & other)[chosen].sum(axis=(1, 2)) / np.maximum(union, 1)
        logits = np.abs(found - exact).mean() / exact.std()
        return {
            "1 - IoU, mean": float(1 - iou.mean()) if chosen.any() else np.nan,
            "worst mask": float(1 - iou.min()) if chosen.any() else np.nan,
            "logits, share of deviation": float(logits),
        }

    return Network(run, errors, None)


def sam(folder: Path, pairs: Sequence[np.ndarray], device: str) -> Network:
    """SAM ViT-B."""
    from openuni.annotators.sam import SamPrompted

    model = full_sam(folder).load(device)
    return prompted(
        lambda precision: SamPrompted(model, precision), pairs if device == "cuda" else pairs[:PICTURES_OF_1024_PX]
    )


def sam2(folder: Path, pairs: Sequence[np.ndarray], device: str) -> Network:
    """SAM 2.1 tiny: image encoder and mask decoder."""
    from transformers import Sam2ImageProcessor, Sam2VideoConfig, Sam2VideoModel, Sam2VideoProcessor
    from transformers import Sam2VideoVideoProcessor as VideoProcessor

    from openuni.annotators._sam2_memory import Sam2Prompted
    from openuni.annotators.sam2 import Sam2

    Sam2VideoModel(Sam2VideoConfig()).save_pretrained(folder)
    Sam2VideoProcessor(Sam2ImageProcessor(), VideoProcessor()).save_pretrained(folder)
    model = Sam2(checkpoint=str(folder)).load(device)
    return prompted(
        lambda precision: Sam2Prompted(*model, precision), pairs if device == "cuda" else pairs[:PICTURES_OF_1024_PX]
    )


def clip(folder: Path, pairs: Sequence[np.ndarray], device: str) -> Network:
    """CLIP ViT-L/14: cosine distance of embeddings."""
    import json

    import open_clip
    from safetensors.torch import save_file

    from openuni.filters._clip import CONFIG, WEIGHTS, Embedder
    from tests.tiny_clip import MODEL, PREPROCESS

    vision = {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14}
    sizes = MODEL | {"vision_cfg": vision}
    save_file({key: one.contiguous() for key, one in open_clip.CLIP(**sizes).state_dict().items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"model_cfg": sizes, "preprocess_cfg": PREPROCESS}))
    embedder = Embedder(folder, device, quick_gelu=True)

    def run(precision: Precision) -> list[np.ndarray]:
        embedder.frame_cache.clear()
        return [embedder.frames(pair[:1], precision, 1) for pair in pairs]

    def errors(exact: np.ndarray, found: np.ndarray) -> dict[str, float]:
        return {"cosine distance": float(1 - (exact.astype(np.float64) * found).sum() / _norms(exact, found))}

    return Network(run, errors, None)


def _norms(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one.astype(np.float64)) * np.linalg.norm(other.astype(np.float64)))


def wan_vae(folder: Path, pairs: Sequence[np.ndarray], device: str) -> Network:
    """Wan 2.1's VAE: latents, and the decoded video (PSNR against that of fp32)."""
    from diffusers import AutoencoderKLWan

    from openuni.training.codecs.wan_vae import WanVae

    AutoencoderKLWan(**({} if device == "cuda" else {"base_dim": 48})).save_pretrained(folder)
    exactly = WanVae(checkpoint=str(folder), tf32=False)
    codecs = {"fp32": exactly, "tf32": exactly, "bf16": dataclasses.replace(exactly, dtype="bfloat16")}
    if device == "cuda":
        codecs["tf32"] = dataclasses.replace(exactly, tf32=True)
    models = {name: codec.load(device) for name, codec in codecs.items() if name != "tf32"}
    models["tf32"] = models["fp32"]
    videos = [_glide(pair[0]) for pair in pairs[:4]]

    def run(precision: Precision) -> list[np.ndarray]:
        if precision == "fp16":
            return []
        codec, model = codecs[precision], models[precision]
        latents = [codec.encode(model, video) for video in videos]
        return [np.concatenate([one.ravel(), codec.decode(model, one).ravel()]) for one in latents]

    count = 16 * ((VAE_FRAMES - 1) // 4 + 1) * (videos[0].shape[1] // 8) * (videos[0].shape[2] // 8)

    def errors(exact: np.ndarray, found: np.ndarray) -> dict[str, float]:
        latents = np.linalg.norm(found[:count] - exact[:count]) / np.linalg.norm(exact[:count])
        squares = float(np.square(found[count:] - exact[count:]).mean())
        psnr = -10 * np.log10(squares) if squares else np.nan
        return {"latents, relative": float(latents), "decoded, PSNR in dB": float(psnr)}

    def stored(exact: np.ndarray) -> np.ndarray:
        latents = exact[:count].astype(np.float16).astype(np.float32)
        shape = (16, (VAE_FRAMES - 1) // 4 + 1, videos[0].shape[1] // 8, videos[0].shape[2] // 8)
        return np.concatenate([latents, exactly.decode(models["fp32"], latents.reshape(shape)).ravel()])

    return Network(run, errors, stored)


def _glide(frame: np.ndarray) -> np.ndarray:
    """A window of 96 x 160 px (or 32 x 32) that glides over a picture: float32 [9, H, W, 3] in 0..1."""
    height, width = (96, 160) if min(frame.shape[:2]) > 112 and frame.shape[1] > 200 else (32, 32)
    return np.stack([frame[t : t + height, 2 * t : 2 * t + width] for t in range(VAE_FRAMES)]).astype(np.float32) / 255


NETWORKS = {one.__name__: one for one in (depth_anything, raft, sam, sam2, clip, wan_vae)}


# ---------------------------------------------------------------- the table


def pictures(folder: Path | None, count: int, short_side_px: int) -> list[np.ndarray]:
    """Pairs of adjacent frames, uint8 [2, H, W, 3], from the middle of each video."""
    if folder is None:
        return [panned([(0, 0), (3 + n, 1)], short_side_px, short_side_px * 16 // 9) for n in range(count)]
    videos = [path for path in sorted(folder.iterdir()) if path.suffix in (".mp4", ".mkv", ".webm", ".mov")]
    found = []
    for path in videos[:count]:
        one = probe_clip(str(path))
        middle = one.frame_count // 2
        found.append(decode(one, np.array([middle, middle + 1]), short_side_px).frames)
    return found


def measure(network: Network, device: str) -> Iterator[tuple[str, dict[str, float]]]:
    """Mean errors over the pictures, by precision; infinite and NaN results are counted."""
    exact = network.run("fp32")
    if network.stored is not None:
        yield "stored", mean([network.errors(one, network.stored(one)) for one in exact])
    for precision in PRECISIONS:
        emulated = precision == "tf32" and device == "cpu"
        context: AbstractContextManager[Any] = Tf32() if emulated else nullcontext()
        with context:
            results = network.run("fp32" if emulated else precision)
        if results:
            sound = [(a, b) for a, b in zip(exact, results, strict=True) if np.isfinite(b).all()]
            row = mean([network.errors(a, b) for a, b in sound])
            yield precision, row | ({"not finite": len(results) - len(sound)} if len(sound) < len(results) else {})


def mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each column, without what could not be measured."""
    return {key: float(np.nanmean([row[key] for row in rows])) for key in rows[0]} if rows else {}


def main() -> None:
    """One block of rows per network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, nargs="?", help="folder of videos")
    parser.add_argument("--only", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), help="networks to measure")
    parser.add_argument("--pictures", type=int, default=10, help="number of videos that give a pair of frames")
    parser.add_argument("--small", action="store_true", help="pictures of a short side of 128 px, to try it")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.mha.set_fastpath_enabled(False)  # one fused operation, which the emulation does not look into
    pairs = pictures(given.clips, given.pictures, 128 if given.small else SHORT_SIDE_PX)
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU, tf32 emulated"
    print(f"{len(pairs)} pictures of {given.clips or 'textures'}, random weights; {where}; torch {torch.__version__}")
    for name in given.only:
        began = time.process_time()
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            for precision, errors in measure(NETWORKS[name](Path(folder), pairs, device), device):
                cells = ", ".join(f"{key} {value:.3g}" for key, value in errors.items())
                print(f"  {name:<16}{precision:<8}{cells}", flush=True)
        print(f"  {name:<16}{time.process_time() - began:.0f} s of CPU", flush=True)


if __name__ == "__main__":
    main()
