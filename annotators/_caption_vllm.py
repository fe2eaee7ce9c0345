"""Captions by vLLM's offline engine: all clips of a batch are requests that it schedules itself.

The public interface is used: `vllm.LLM`, `LLM.generate` with multi-modal data, `vllm.SamplingParams`.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from openuni.annotators._caption_transformers import (
    Answer,
    ShownFrames,
    chat_text,
    load_processor,
    not_a_model,
    takes_videos,
)
from openuni.manifests.contracts.component import missing_package
from openuni.manifests.errors import MissingRequirement, OpenUniError

SHARE_OF_GPU = 0.9  # of what the worker has of a GPU's memory: the rest is for CUDA and other processes
GPUS_VARIABLE = "OPENUNI_GPUS"  # what the runner has reserved for this worker; below 1: a share of one GPU
DEAD = "EngineDeadError"  # vLLM's class: the process of its engine has ended


class EngineOptions(NamedTuple):
    """How an engine is started."""

    folder: Path
    dtype: str  # bfloat16, float16 or float32
    max_frames: int
    tensor_parallel_size: int
    gpu_memory_share: float  # of each GPU, 0 to 1; 0: see `memory_share`
    context_tokens: int  # 0: the model's


class VllmModel:
    """An engine and the model's processor. The engine is started again if its process has died."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self.processor = load_processor(options.folder)
        self.vllm = _import()
        self.engine: Any = self._start()

    def answers(self, shown: Sequence[ShownFrames], prompt: str, max_new_tokens: int) -> list[Answer]:
        """The responses to a prompt about each clip, with greedy decoding.

        Raises `ValueError` for clips that the engine rejects, such as those with too many tokens.
        """
        if self.engine is None:
            self.engine = self._start()
        sampling = self.vllm.SamplingParams(temperature=0.0, max_tokens=max_new_tokens, seed=0)
        requests = [self._request(one, prompt) for one in shown]
        try:
            outputs = self.engine.generate(requests, sampling, use_tqdm=False)
        except Exception as error:
            if type(error).__name__ == DEAD:
                self.engine = None  # the worker tries the clips of the batch in parts: the next one needs an engine
            raise
        found = [output.outputs[0] for output in outputs]
        return [Answer(" ".join(one.text.split()), one.finish_reason == "length") for one in found]

    def _request(self, shown: ShownFrames, prompt: str) -> dict[str, Any]:
        request: dict[str, Any] = {"prompt": chat_text(self.processor, shown, prompt)}
        if not takes_videos(self.processor):
            from PIL import Image

            return request | {"multi_modal_data": {"image": [Image.fromarray(frame) for frame in shown.frames]}}
        facts = shown.metadata | {"do_sample_frames": False, "video_backend": "openuni"}
        request["multi_modal_data"] = {"video": [(shown.frames, facts)]}
        request["mm_processor_kwargs"] = {"do_sample_frames": False}
        return request

    def _start(self) -> Any:
        given, is_video = self.options, takes_videos(self.processor)
        optional: dict[str, Any] = {"max_model_len": given.context_tokens} if given.context_tokens else {}
        if given.tensor_parallel_size > 1:
            optional["distributed_executor_backend"] = "mp"  # on the GPUs of this worker, also in a Ray actor
        try:
            return self.vllm.LLM(
                model=str(given.folder),
                dtype=given.dtype,
                seed=0,
                trust_remote_code=False,  # no code of the checkpoint
                tensor_parallel_size=given.tensor_parallel_size,
                gpu_memory_utilization=memory_share(given.gpu_memory_share),
                limit_mm_per_prompt={"video": 1, "image": 0} if is_video else {"image": given.max_frames},
                **optional,
            )
        except (OSError, KeyError) as error:
            raise not_a_model(given.folder, error) from error
        except (ValueError, RuntimeError, AssertionError) as error:
            raise OpenUniError(
                f"vLLM cannot start with {given.folder}: {error}. If the GPU has too little memory: raise "
                "tensor_parallel_size, or lower context_tokens; if other processes use it: lower gpu_memory_share. "
                'backend = "transformers" needs less memory.'
            ) from error


def memory_share(given: float) -> float:
    """The share of each GPU's memory that the engine reserves; `given` 0: by what the runner gave this worker."""
    if given:
        return given
    reserved = float(os.environ.get(GPUS_VARIABLE, "0")) or 1.0
    return round(SHARE_OF_GPU * min(1.0, reserved), 4)


def _import() -> Any:
    try:
        import vllm
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise _broken(error) from error
        raise MissingRequirement(
            f'caption: backend = "vllm": {missing_package("vllm")}, or use backend = "transformers".'
        ) from error
    except (ImportError, RuntimeError, OSError) as error:  # its libraries do not match the driver, or torch
        raise _broken(error) from error
    return vllm


def _broken(error: Exception) -> MissingRequirement:
    return MissingRequirement(
        f'caption: backend = "vllm": the package vllm cannot be imported: {error}. Reinstall it with: '
        "pip install --force-reinstall 'openuni[vllm]', or use backend = \"transformers\"."
    )
