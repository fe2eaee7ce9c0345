"""Captions by a vision-language model: a brief and a detailed one of every clip."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from annotated_types import Ge

from openuni.manifests.contracts.checkpoint import Checkpoint, published_or_path
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.inference import Precision, inference
from openuni.manifests.contracts.operator import Annotator, sample_evenly
from openuni.manifests.errors import ClipError, OpenUniError

BRIEF = (
    "Describe this video in one sentence of at most 25 words: who or what is seen, what happens, and where. Say only "
    "what can be seen."
)
DETAILED = (
    "Describe this video in one paragraph, in the order in which things happen: the persons and objects with their "
    "looks and actions, the setting, the light and colours, and how the camera moves. Say only what can be seen; do "
    "not guess names or feelings, and do not begin with 'the video'."
)


class CaptionOfClip(NamedTuple):
    """What the model says about a clip, and what it was asked and shown."""

    brief: Annotated[str | None, "one sentence; null when the model said nothing"]
    detailed: Annotated[str | None, "one paragraph; null when the model said nothing"]
    source: Annotated[str, 'always "model": written by a network, which may be wrong']
    model: Annotated[str, "name or path of the checkpoint, as the recipe gives it"]
    prompt_hash: Annotated[str, "16 hex digits of the two prompts' sha256: equal prompts, equal digits"]
    frame_times_s: Annotated[list[float], "the frames that the model saw, seconds since the clip's first"]
    cut_short: Annotated[bool, "whether one of the texts was cut off at max_new_tokens"]


@dataclass(frozen=True)
class Caption(Annotator):
    """A brief and a detailed caption by a vision-language model, decoded greedily, so the same each time.

    Any checkpoint of transformers' AutoModelForImageTextToText with a chat template will do. It sees the frames as one
    video where its processor knows videos, else as several pictures. The default is Apache-2.0; Qwen2.5-VL-3B is
    for research only, 72B has Qwen's own licence. The captions are a machine's: read some before you train on them.
    """

    checkpoint: Annotated[str, "Hugging Face name or folder of a vision-language model in transformers' format"] = (
        "Qwen/Qwen2.5-VL-7B-Instruct"
    )
    brief_prompt: Annotated[str, "what to ask for the brief caption"] = BRIEF
    detailed_prompt: Annotated[str, "what to ask for the detailed caption"] = DETAILED
    frames_per_s: Annotated[
        float, "frames shown per second of the clip; 0: always max_frames, evenly spread", Ge(0)
    ] = 2.0
    max_frames: Annotated[int, "most frames shown; longer clips are shown this many, evenly spread", Ge(1)] = 16
    max_new_tokens: Annotated[int, "longest answer, tokens", Ge(1)] = 512
    precision: Annotated[Precision, "bf16: weights and computation in bfloat16, half the memory; or fp32"] = "bf16"

    gpus: ClassVar[float] = 1.0
    licence: ClassVar[str] = "Apache-2.0"
    origin: ClassVar[str] = "Bai et al. 2025 (arXiv:2502.13923); transformers.AutoModelForImageTextToText"

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("brief_prompt", "detailed_prompt"):
            if not getattr(self, option).strip():
                raise OpenUniError(f"caption: {option} is empty. Allowed: the text of a question.")

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The one checkpoint."""
        return (published_or_path(self.checkpoint, self.published()),)

    @classmethod
    def published(cls) -> tuple[Checkpoint, ...]:
        """Qwen's models of this kind; their licences differ by size."""
        models = {
            "7B": ("Apache-2.0", 16584.0),
            "32B": ("Apache-2.0", 66906.0),
            "3B": ("LicenseRef-Qwen-Research", 7509.0),
            "72B": ("LicenseRef-Qwen", 146822.0),
        }
        needed = ("*.json", "*.safetensors", "merges.txt", "*.jinja")
        return tuple(
            Checkpoint(f"Qwen/Qwen2.5-VL-{size}-Instruct", "hub", licence, size_mb=size_mb, only=needed)
            for size, (licence, size_mb) in models.items()
        )

    def load(self, device: str) -> Any:
        """Network on `device` and its processor. Raises `OpenUniError` for another kind of checkpoint."""
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder = self.checkpoints()[0].resolve()
        only_data = {"local_files_only": True, "trust_remote_code": False}  # no download, no code from the folder
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        try:
            processor = AutoProcessor.from_pretrained(folder, **only_data)
            if not getattr(processor, "chat_template", None):
                raise ValueError("its processor has no chat template")
            network = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, **only_data
            )
        except (OSError, ValueError, KeyError) as error:
            raise OpenUniError(
                f"{folder} is not a vision-language model in transformers' format: {error}. Give one such as "
                "Qwen/Qwen2.5-VL-7B-Instruct."
            ) from error
        return network.eval().to(device), processor

    def run(self, model: Any, clip: DecodedClip) -> CaptionOfClip:
        """Both captions. Raises `ClipError` for frames that the model's processor cannot take."""
        indices = self.select_frames(clip.times_s)
        brief, brief_cut = self._answer(model, clip, indices, self.brief_prompt)
        detailed, detailed_cut = self._answer(model, clip, indices, self.detailed_prompt)
        prompts = f"{self.brief_prompt}\0{self.detailed_prompt}"
        return CaptionOfClip(
            brief=brief or None,
            detailed=detailed or None,
            source="model",
            model=self.checkpoint,
            prompt_hash=hashlib.sha256(prompts.encode()).hexdigest()[:16],
            frame_times_s=[round(time_s, 6) for time_s in clip.times_s[indices].tolist()],
            cut_short=brief_cut or detailed_cut,
        )

    def select_frames(self, times_s: np.ndarray) -> np.ndarray:
        """Which frames are shown: float64 [T] seconds -> int64 [n] increasing indices, n <= max_frames."""
        if self.frames_per_s:
            indices = sample_evenly(times_s, self.frames_per_s)
            if len(indices) <= self.max_frames:
                return indices
        grid = np.linspace(times_s[0], times_s[-1], self.max_frames)
        return np.unique(np.abs(times_s[None, :] - grid[:, None]).argmin(axis=1)).astype(np.int64)

    def _answer(self, model: Any, clip: DecodedClip, indices: np.ndarray, prompt: str) -> tuple[str, bool]:
        """The model's text, and whether it was cut off."""
        network, processor = model
        try:
            inputs = build_inputs(processor, clip, indices, prompt).to(network.device)
        except ValueError as error:
            size = f"{clip.frames.shape[2]} x {clip.frames.shape[1]}"
            raise ClipError(f"the model's processor refuses {len(indices)} frames of {size} px: {error}") from error
        for name, value in inputs.items():
            if hasattr(value, "is_floating_point") and value.is_floating_point() and name.startswith("pixel"):
                inputs[name] = value.to(network.dtype)
        with inference(network.device.type, "fp32"):  # the weights have the precision asked for
            tokens = network.generate(
                **inputs,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
            )
        new = tokens[0, inputs["input_ids"].shape[1] :]
        ends = network.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        cut = len(new) >= self.max_new_tokens and int(new[-1]) not in ends
        text: str = processor.tokenizer.decode(new, skip_special_tokens=True)
        return " ".join(text.split()), cut


def build_inputs(processor: Any, clip: DecodedClip, indices: np.ndarray, prompt: str) -> Any:
    """A model's inputs for one question about the frames at `indices`: as a video with its times, or as pictures."""
    frames = clip.frames[indices]  # a copy: the processor may not write to the clip
    video = getattr(processor, "video_processor", None) is not None
    seen = [{"type": "video"}] if video else [{"type": "image"}] * len(frames)
    turn = {"role": "user", "content": [*seen, {"type": "text", "text": prompt}]}
    text = processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    if not video:
        return processor(text=[text], images=[list(frames)], return_tensors="pt")
    facts = {
        "total_num_frames": len(clip.frames),
        "fps": clip.fps,
        "duration": len(clip.frames) / clip.fps,
        "frames_indices": indices.tolist(),
    }
    options = {"do_sample_frames": False, "video_metadata": [facts]}
    return processor(text=[text], videos=[list(frames)], videos_kwargs=options, return_tensors="pt")
