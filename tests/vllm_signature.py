"""The part of vLLM's public interface that we use, as vLLM 0.11 to 0.33 document it, and nothing of what it does.

vLLM needs a GPU, or a build for CPUs that no installation here has. What is asked of it is checked: the names of
arguments, and the form of requests. `LLM.generate` answers with the text that each request has, and how long it is.
"""

from typing import Any, NamedTuple

started: list["LLM"] = []


class EngineDeadError(Exception):
    """As `vllm.v1.engine.exceptions.EngineDeadError`."""


class SamplingParams(NamedTuple):
    """As `vllm.SamplingParams`."""

    temperature: float = 1.0
    max_tokens: int | None = 16
    seed: int | None = None


class CompletionOutput(NamedTuple):
    """As `vllm.outputs.CompletionOutput`."""

    text: str
    finish_reason: str | None


class RequestOutput(NamedTuple):
    """As `vllm.outputs.RequestOutput`."""

    outputs: list[CompletionOutput]


class LLM:
    """As `vllm.LLM`."""

    def __init__(  # noqa: PLR0913
        self,
        model: str,
        *,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        seed: int = 0,
        gpu_memory_utilization: float = 0.92,
        limit_mm_per_prompt: dict[str, int] | None = None,
        max_model_len: int | None = None,
        distributed_executor_backend: str | None = None,
    ) -> None:
        if not 0 < gpu_memory_utilization <= 1:
            raise ValueError(f"GPU memory utilization must be in (0, 1]. Got {gpu_memory_utilization}.")
        self.arguments = {key: value for key, value in locals().items() if key != "self"}
        self.batches: list[list[dict[str, Any]]] = []
        self.dies = False
        started.append(self)

    def generate(
        self, prompts: list[dict[str, Any]], sampling_params: SamplingParams, *, use_tqdm: bool = True
    ) -> list[RequestOutput]:
        assert sampling_params.temperature == 0
        self.batches.append(prompts)
        if self.dies:
            raise EngineDeadError("EngineCore encountered an issue.")
        answers = []
        for request in prompts:
            assert set(request) <= {"prompt", "multi_modal_data", "mm_processor_kwargs", "multi_modal_uuids"}
            for kind, data in request["multi_modal_data"].items():
                allowed = (self.arguments["limit_mm_per_prompt"] or {}).get(kind, 999)
                if len(data) > allowed:
                    raise ValueError(f"At most {allowed} {kind}(s) may be provided in one prompt.")
            question = request["prompt"].split("<|im_end|>")[0].split(">")[-1]
            words = question.split()
            is_cut = len(words) > (sampling_params.max_tokens or 999)
            answers.append(
                RequestOutput(
                    [
                        CompletionOutput(
                            "  ".join(words[: sampling_params.max_tokens]) + "\n", "length" if is_cut else "stop"
                        )
                    ]
                )
            )
        return answers
