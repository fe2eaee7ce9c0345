"""Captions by transformers: one `generate` call for several clips, padded on the left."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.inference import Precision, inference
from openuni.manifests.errors import OpenUniError


class ShownFrames(NamedTuple):
    """What a model is shown of a clip: some of its frames, and when they are."""

    frames: np.ndarray  # uint8 [n, H, W, 3], RGB; not a view of the clip's frames
    indices: np.ndarray  # int64 [n], their numbers in the clip
    times_s: np.ndarray  # float64 [n], seconds from the clip's first frame
    frame_count: int  # of the clip
    fps: float  # of the clip

    @classmethod
    def of(cls, clip: DecodedClip, indices: np.ndarray) -> "ShownFrames":
        """The frames of a clip at `indices`, copied."""
        return cls(clip.frames[indices], indices, clip.times_s[indices], len(clip.frames), clip.fps)

    @property
    def metadata(self) -> dict[str, Any]:
        """What video processors want to know of a video from which frames were sampled."""
        return {
            "total_num_frames": self.frame_count,
            "fps": self.fps,
            "duration": self.frame_count / self.fps,
            "frames_indices": self.indices.tolist(),
        }


class Answer(NamedTuple):
    """A model's response to a prompt."""

    text: str
    is_cut: bool  # at the maximum length


class TransformersModel(NamedTuple):
    """A network and its processor."""

    network: Any
    processor: Any


def load_processor(folder: Path) -> Any:
    """The processor of a checkpoint. Raises `OpenUniError` if the folder has none with a chat template."""
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if not getattr(processor, "chat_template", None):
            raise ValueError("its processor has no chat template")
    except (OSError, ValueError, KeyError) as error:
        raise not_a_model(folder, error) from error
    return processor


def load_transformers(folder: Path, precision: Precision, device: str) -> TransformersModel:
    """The network on `device`, and its processor. Raises `OpenUniError` if the folder does not have them."""
    import torch
    from transformers import AutoModelForImageTextToText

    processor = load_processor(folder)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    try:
        network = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,  # no downloads
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError) as error:
        raise not_a_model(folder, error) from error
    return TransformersModel(network.eval().to(device), processor)


def not_a_model(folder: Path, error: Exception) -> OpenUniError:
    """The error for a folder that is not a vision-language model."""
    return OpenUniError(
        f"{folder} is not a vision-language model in transformers format: {error}. Use one such as "
        "Qwen/Qwen2.5-VL-7B-Instruct."
    )


def answers(
    model: Any, shown: Sequence[ShownFrames], prompt: str, max_new_tokens: int, precision: Precision
) -> list[Answer]:
    """The responses to a prompt about each clip, with greedy decoding. `model`: network and processor.

    `precision`: the weights already have its dtype; TF32 is a matter of the arithmetic. Raises `ValueError` for frames
    that the processor rejects.
    """
    network, processor = model
    inputs = build_inputs(processor, shown, prompt).to(network.device)
    for name, value in inputs.items():
        if hasattr(value, "is_floating_point") and value.is_floating_point() and name.startswith("pixel"):
            inputs[name] = value.to(network.dtype)
    with inference(network.device.type, "tf32" if precision == "tf32" else "fp32"):
        tokens = network.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
        )
    ends = network.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    return [_answer(processor, row, ends, max_new_tokens) for row in tokens[:, inputs["input_ids"].shape[1] :].tolist()]


def build_inputs(processor: Any, shown: Sequence[ShownFrames], prompt: str) -> Any:
    """Model inputs for a prompt about several clips: each as a video with timestamps, or as images."""
    video = takes_videos(processor)
    texts = [chat_text(processor, one, prompt) for one in shown]
    padding: dict[str, Any] = {}
    if len(shown) > 1:
        tokenizer = processor.tokenizer
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token  # masked: any token does
        padding = {"padding": True, "padding_side": "left"}  # the responses begin at the same place
    frames = [list(one.frames) for one in shown]
    if not video:
        return processor(text=texts, images=frames, return_tensors="pt", **padding)
    options = {"do_sample_frames": False, "video_metadata": [one.metadata for one in shown]}
    return processor(text=texts, videos=frames, videos_kwargs=options, return_tensors="pt", **padding)


def chat_text(processor: Any, shown: ShownFrames, prompt: str) -> str:
    """The prompt about a clip in the model's chat template."""
    seen = [{"type": "video"}] if takes_videos(processor) else [{"type": "image"}] * len(shown.frames)
    turn = {"role": "user", "content": [*seen, {"type": "text", "text": prompt}]}
    text: str = processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    return text


def takes_videos(processor: Any) -> bool:
    """Whether the model takes videos; else images."""
    return getattr(processor, "video_processor", None) is not None


def _answer(processor: Any, tokens: list[int], ends: set[int], max_new_tokens: int) -> Answer:
    """A response from new tokens: up to the first that ends it; those of a batch are padded behind."""
    stop = next((place + 1 for place, token in enumerate(tokens) if token in ends), None)
    text = processor.tokenizer.decode(tokens[:stop], skip_special_tokens=True)
    return Answer(" ".join(text.split()), stop is None and len(tokens) >= max_new_tokens)
