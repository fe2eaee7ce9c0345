"""Export of a trained model to a folder or the Hugging Face Hub."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from openuni.manifests.contracts.checkpoint import hub_or_path
from openuni.manifests.corpus.writer import StorageFull, is_disk_full
from openuni.manifests.errors import OpenUniError
from openuni.manifests.storage.checksums import record_bytes
from openuni.manifests.storage.store import is_unused, require_folder
from openuni.training.data.fixed_texts import EMPTY, fixed_rows
from openuni.training.export.card import CardFacts, model_card
from openuni.training.export.hub import upload
from openuni.training.export.licence import chosen_licence, licence_of_base
from openuni.training.export.record import HUB_NAME, exported_record, public_name
from openuni.training.loop.training_checkpoint import load_model
from openuni.training.run_files import EXPORT_FILE, RUN_FILE, TEXTS_FILE, tensor_files

Format = Literal["openuni", "diffusers", "peft"]
SavedWeights = Literal["ema", "model"]
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported."""

    format: Format = "openuni"  # diffusers: also a backbone that diffusers loads; peft: LoRAs only
    weights: SavedWeights = "ema"
    licence: str = ""  # empty: that of the base model's card
    hub_names: Mapping[str, str] = field(default_factory=dict)  # by local path, for checkpoints given by path
    include_base: bool = False  # store a frozen base too, instead of its name
    dtype: Dtype = "float32"  # bfloat16: of the layers that bfloat16 autocast rounds anyway; half the size

    def __post_init__(self) -> None:
        choices = {"format": get_args(Format), "weights": get_args(SavedWeights), "dtype": get_args(Dtype)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise OpenUniError(f'{name} = "{getattr(self, name)}". Allowed: {", ".join(allowed)}')
        if self.include_base and self.format != "openuni":
            raise OpenUniError(f"--include-base: --format {self.format} does not store a frozen base. Remove one.")
        if self.dtype != "float32" and self.format == "peft":
            raise OpenUniError(f"--dtype {self.dtype}: LoRAs are stored in float32. Remove it.")


class Exportable:
    """Export of the model of a training run, for `openuni.training.run.Run`."""

    folder: Path
    record: dict[str, Any]

    @property
    def defining_files(self) -> list[Path]:
        """The files that determine what the model computes: its record and its EMA weights."""
        run: Any = self
        return [self.folder / RUN_FILE, *tensor_files(run.checkpoint.path, "ema")]

    def save_pretrained(self, folder: str | Path, **options: Any) -> Path:
        """Write the model of the latest checkpoint to a new folder, which `openuni.from_pretrained` opens.

        `options`: of `ExportOptions`: format, weights, licence, hub_names, include_base, dtype. Raises `OpenUniError`
        if the licence is unknown, the folder is in use, the format does not fit the model, or the run refers to paths
        of this machine.
        """
        place = Path(folder).expanduser()
        require_folder(place)
        if place.exists() and not is_unused(place):
            raise OpenUniError(f"{place} is not empty. Pass a new folder.")
        _export(self, place, ExportOptions(**options), where=".")
        return place

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        revision: str | None = None,
        **options: Any,
    ) -> str:
        """Upload the model as one commit to a model repository of the Hugging Face Hub, created if missing.

        `repo_id`: "owner/name". `token`: default: that of `hf auth login`, or HF_TOKEN. `options`: as of
        `save_pretrained`. Returns the URL of the commit. Raises `OpenUniError`, also for HTTP and connection errors.
        """
        if not HUB_NAME.fullmatch(repo_id):
            raise OpenUniError(f'"{repo_id}" is not a repository of the Hub: it must be "owner/name"')
        with tempfile.TemporaryDirectory(prefix="openuni-export-") as temporary:
            place = Path(temporary) / "model"
            _export(self, place, ExportOptions(**options), where=repo_id)
            return upload(place, repo_id, revision, token, private=private)


def _export(run: Any, place: Path, options: ExportOptions, where: str) -> None:
    """Write everything under a temporary name, then rename: `place` is whole or absent."""
    from openuni.training.export.formats import rounded, write_diffusers, write_model, write_peft  # imports diffusers

    model = run.architecture
    frozen_base: str = run.record["model"]["options"].get("pretrained") or ""
    base: str = frozen_base or run.recipe.model.get("pretrained") or ""
    licence = chosen_licence(options.licence, base)
    checkpoint = run.checkpoint
    with_base = options.include_base or not frozen_base
    record = exported_record(run, options.hub_names, with_base=with_base)
    base_name = public_name(base, options.hub_names, "the base model") if base else ""
    facts = CardFacts(
        where,
        checkpoint.step,
        options.weights,
        licence,
        base_name,
        licence_of_base(base),
        _subfolder(base),
        options.format,
    )
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.export.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed export
    temporary.mkdir()
    try:
        tensors = checkpoint.tensors(options.weights)
        if options.dtype == "bfloat16":
            tensors = rounded(model, tensors)
        if options.format == "peft":
            facts = replace(facts, adapters=write_peft(temporary, model, tensors, base_name))
        else:
            if options.format == "diffusers":
                write_diffusers(temporary, model, tensors)
            elif frozen_base and options.include_base:
                module = model.load("cpu")
                load_model(module, tensors, checkpoint.path)
                write_model(temporary, module.state_dict())
            else:
                write_model(temporary, tensors)
            modalities = tuple(record["model"]["options"]["modalities"])
            fixed_rows(record["text"], modalities, temporary / TEXTS_FILE, _known_texts(run))
            record |= {"step": checkpoint.step, "weights": options.weights, "licence": licence, "base": base_name}
            (temporary / EXPORT_FILE).write_bytes(record_bytes(record))
        (temporary / "README.md").write_text(model_card(record, facts), encoding="utf-8", newline="\n")
        if place.exists():
            shutil.rmtree(place)  # empty, as checked
        temporary.rename(place)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if is_disk_full(error):
            raise StorageFull(
                f"no space left while writing to {place} ({error}). Nothing of it is left. Free some space, then rerun."
            ) from error
        raise


def _subfolder(base: str) -> str:
    """Folder of the transformer inside a local base model; empty if the model is the transformer."""
    root = hub_or_path(base).find() if base else None
    return "transformer" if root is not None and (root / "transformer").is_dir() else ""


def _known_texts(run: Any) -> dict[str, Any]:
    """Embeddings of the fixed texts by text, so that the text codec is not loaded."""
    from openuni.manifests.contracts.modality import find_modality

    return {"" if name == EMPTY else find_modality(name).prompt: row for name, row in run.texts.rows.items()}
