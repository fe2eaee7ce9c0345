"""Sapiens2 networks (transformers), shared by `sapiens2_normals`, `sapiens2_parts` and `sapiens2_pose`."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Ge

from openuni.annotators._transformers_checkpoint import ONLY_DATA, complete_network
from openuni.manifests.contracts.checkpoint import Checkpoint, published_or_path
from openuni.manifests.contracts.inference import Precision, inference
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.errors import ClipError, OpenUniError

# Meta's own terms: commercial use is allowed; surveillance, biometric processing, deepfakes, military and other listed
# uses are not; Meta may audit
LICENCE = "LicenseRef-Sapiens2-License"
NEEDED_FILES = ("config.json", "preprocessor_config.json", "model*.safetensors*")
SIZES = ("0.4b", "0.8b", "1b", "5b")


@dataclass(frozen=True)
class Sapiens2(Annotator):
    """Base of the Sapiens2 annotators: checkpoint, loading, batches."""

    checkpoint: Annotated[str, "Sapiens2 checkpoint in transformers format: Hugging Face name or folder"] = ""
    frames_per_batch: Annotated[int, "images per forward pass", Ge(1)] = 4
    precision: Annotated[Precision, "numerical precision: fp32, tf32 (on CPUs fp32), bf16 or fp16 autocast"] = "fp32"

    gpus: ClassVar[float] = 0.5
    licence: ClassVar[str] = LICENCE
    task: ClassVar[str] = ""  # part of the names of the authors' checkpoints
    network_name: ClassVar[str] = ""  # transformers' class
    outputs: ClassVar[int | None] = None  # number of output channels; None: any

    @abstractmethod
    def run(self, model: Any, clip: Any) -> Any:
        """See `Operator.run`."""

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The Sapiens2 checkpoint."""
        return (published_or_path(self.checkpoint, self.published()),)

    @classmethod
    def published(cls) -> tuple[Checkpoint, ...]:
        """The authors' checkpoints in four sizes."""
        return tuple(
            Checkpoint(f"facebook/sapiens2-{cls.task}-{size}", "hub", LICENCE, only=NEEDED_FILES) for size in SIZES
        )

    def load(self, device: str) -> Any:
        """Load the network on `device` and its image processor.

        Raises `OpenUniError` if the folder is not a complete Sapiens2 checkpoint for this task.
        """
        import transformers

        folder = self.checkpoints()[0].resolve()
        try:
            self._check_config(transformers.AutoConfig.from_pretrained(folder, **ONLY_DATA))
            network = complete_network(getattr(transformers, self.network_name), folder, use_safetensors=True)
            processor = transformers.Sapiens2ImageProcessor.from_pretrained(folder, **ONLY_DATA)
        except (OSError, ValueError, RuntimeError) as error:
            raise OpenUniError(
                f"{folder} is not a checkpoint for {self.name()} (Sapiens2 in transformers format): {error}. Use one "
                f"such as facebook/sapiens2-{self.task}-0.4b."
            ) from error
        return network.eval().requires_grad_(False).to(device), processor

    def _check_config(self, config: Any) -> None:
        if config.model_type != "sapiens2":
            raise ValueError(f'model_type in config.json is "{config.model_type}", must be "sapiens2"')
        named = list(config.architectures or [])
        if named and self.network_name not in named:
            raise ValueError(f"architectures in config.json is {named}, must be {self.network_name}")
        if self.outputs is not None and config.num_labels != self.outputs:
            raise ValueError(f"the network has {config.num_labels} outputs, must have {self.outputs}")

    def predict(self, model: Any, frames: np.ndarray) -> Any:
        """The network's output for whole frames, uint8 [B, H, W, 3] RGB, at most `frames_per_batch`.

        Raises `ClipError` for frames that the network's input would shrink to nothing.
        """
        network, processor = model
        device = next(network.parameters()).device
        height_px, width_px = frames.shape[1:3]
        sides = height_px / processor.size["height"], width_px / processor.size["width"]
        if processor.do_pad and min(height_px, width_px) / max(sides) < 1:
            raise ClipError(
                f"{self.name()}: frames of {width_px} x {height_px} px have less than one pixel of the network's input "
                "on their shorter side. Crop them to another aspect ratio."
            )
        with inference(device.type, self.precision):
            return network(pixel_values=pixels(processor, frames, device))


def pixels(processor: Any, frames: Any, device: Any, **more: Any) -> Any:
    """Network input float32 [B, 3, S, S'] of frames, uint8 [B, H, W, 3] RGB. `more`: for the image processor."""
    import torch

    # channels first, which the processor tries first: a frame with a side of 3 px is read as it is
    images = [torch.from_numpy(frame.transpose(2, 0, 1).copy()) for frame in frames]
    found = processor(images, input_data_format="channels_first", return_tensors="pt", device=device, **more)
    return found["pixel_values"].to(device)
