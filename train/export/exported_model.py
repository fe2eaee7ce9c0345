"""Opening exported models, from a folder or the Hugging Face Hub."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from openuni.manifests.contracts.component import fingerprint
from openuni.manifests.errors import OpenUniError
from openuni.training.backbone.pretrained import WEIGHTS as DIFFUSERS_FILE
from openuni.training.backbone.pretrained import weight_files, weight_shards
from openuni.training.export.formats import ADDITIONS_FILE, MODEL_FILE, check_stored, stored_sizes
from openuni.training.export.hub import download
from openuni.training.export.record import HUB_NAME, read_exported
from openuni.training.finite import all_finite
from openuni.training.loop.training_checkpoint import TrainingCheckpoint, check_matches
from openuni.training.run import Run
from openuni.training.run_files import EXPORT_FILE, RUN_FILE
from openuni.training.tasks import Task


class ExportedModel(Run):
    """A trained model without its training: samples and generates as a `Run` does, and cannot be resumed."""

    @classmethod
    def open(cls, folder: str | Path, device: str = "auto") -> "ExportedModel":
        """Open the model in a folder. Raises `OpenUniError` if there is none."""
        return cls(Path(folder), read_exported(Path(folder)), device)

    @property
    def tasks(self) -> list[Task]:
        """Tasks the model was trained for."""
        return [Task.parse(task) for task in self.record["tasks"]]

    @property
    def checkpoint(self) -> TrainingCheckpoint:
        """Raises `OpenUniError`: an exported model has no training checkpoints."""
        raise OpenUniError(
            f"{self.folder} is an exported model: it has weights, but no training checkpoint. Use the training run."
        )

    @property
    def step(self) -> int:
        """Training step of the weights; 0 if the record does not say it."""
        step = self.record.get("step")
        return step if type(step) is int else 0

    @property
    def is_pretrained(self) -> bool:
        """See `Run.is_pretrained`."""
        return bool(self.record.get("is_pretrained"))

    @property
    def weights_identity(self) -> str:
        """See `Run.weights_identity`: names, sizes and times of change of the files."""
        stats = {path.name: path.stat() for path in self.defining_files}
        return fingerprint(**{name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()})

    @cached_property
    def model(self) -> Any:
        """The model with the exported weights, on the device, frozen.

        Raises `OpenUniError` if names or sizes of the weights differ, or they have NaN or infinite values.
        """
        sizes = stored_sizes(self._weight_files)
        check_stored(self.architecture, sizes, self.folder)
        model = self.architecture.load("cpu")
        check_matches(model, sizes, self.folder)
        own = model.state_dict()
        with torch.no_grad():
            for shard in (shard for name in self._weight_names for shard in weight_shards(self.folder, name)):
                for name, tensor in shard.items():
                    if not all_finite([tensor]):
                        raise OpenUniError(f"{self.folder}: {name} has NaN or infinite values. Download it again.")
                    own[name].copy_(tensor)
        return model.to(self.device).eval().requires_grad_(False)

    @property
    def defining_files(self) -> list[Path]:
        """See `Exportable.defining_files`."""
        return [self.folder / EXPORT_FILE, *self._weight_files]

    @property
    def _weight_names(self) -> list[str]:
        whole = any((self.folder / name).is_file() for name in (MODEL_FILE, f"{MODEL_FILE}.index.json"))
        return [MODEL_FILE] if whole else [DIFFUSERS_FILE, ADDITIONS_FILE]

    @property
    def _weight_files(self) -> list[Path]:
        return [path for name in self._weight_names for path in weight_files(self.folder, name)]


def from_pretrained(
    name: str | Path, device: str = "auto", *, revision: str | None = None, token: str | None = None
) -> ExportedModel:
    """Open an exported model: a folder, or "owner/name" of the Hugging Face Hub, which is downloaded if needed.

    `revision`: branch, tag or commit. Only JSON and safetensors are read. Raises `OpenUniError` if it is not found or
    not an exported model, and `MissingRequirement` later for a base model or codec that is not available locally.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return ExportedModel.open(folder, device)
    if not HUB_NAME.fullmatch(str(name)):
        raise OpenUniError(f'no folder "{name}". Pass the folder of an exported model, or "owner/name" of the Hub.')
    return ExportedModel.open(download(str(name), revision, token), device)


def open_trained(folder: str | Path, device: str = "auto") -> Run:
    """The training run or the exported model in a folder. Raises `OpenUniError` if there is neither."""
    place = Path(folder)
    if (place / EXPORT_FILE).is_file() and not (place / RUN_FILE).is_file():
        return ExportedModel.open(place, device)
    return Run.open(place, device)
