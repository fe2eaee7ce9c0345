"""The record of a training run, run.json: reading, verifying and writing it."""

from pathlib import Path
from typing import Any, get_type_hints

from openuni.manifests.contracts.discovery import find_component
from openuni.manifests.contracts.options import annotation_extras
from openuni.manifests.contracts.parsing import parse_options
from openuni.manifests.errors import DamagedFile, OpenUniError
from openuni.manifests.storage.checksums import parse_record, record_bytes
from openuni.manifests.storage.store import Store
from openuni.training.loop.training_checkpoint import list_checkpoints
from openuni.training.model import Model, UnrecordedDefault
from openuni.training.run_files import RUN_FILE

FORMAT = 1


def read_record(folder: Path) -> dict[str, Any]:
    """Read run.json of the run in a folder, without its checksum.

    Raises `OpenUniError` if it is missing, damaged or of another format.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        begun = (
            ", but checkpoints exist: restore it" if list_checkpoints(folder) else ". Create one with: openuni train"
        )
        raise OpenUniError(f"no run at {folder} ({RUN_FILE} not found){begun}")
    try:
        record = parse_record(path.read_bytes(), str(path))
    except DamagedFile as error:
        raise OpenUniError(f"{path} is damaged: {error.reason}. Restore it from a backup.") from error
    if record.get("format") != FORMAT:
        raise OpenUniError(f"{path} has format {record.get('format')!r}; this version reads {FORMAT}")
    check_tables(record, path, "Restore it from a backup.")
    return record


def check_tables(record: dict[str, Any], path: Path, remedy: str) -> None:
    """Raise `OpenUniError` unless the record has the tables that describe a trained model."""
    tables = ("recipe", "model", "latents", "text", "data")
    if odd := [name for name in tables if not isinstance(record.get(name), dict)]:
        raise OpenUniError(f"{path} is damaged: {', '.join(odd)} must be tables. {remedy}")
    if not isinstance(record["model"].get("name"), str) or not isinstance(record["model"].get("options"), dict):
        raise OpenUniError(f"{path} is damaged: model must have a name and options. {remedy}")


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write run.json with its checksum, unless it has the same contents.

    The file is part of the version of `openuni.unified`: an unchanged record must keep its bytes.
    """
    if (folder / RUN_FILE).is_file():
        try:
            if read_record(folder) == record:
                return
        except OpenUniError:  # damaged: replaced
            pass
    Store(str(folder)).put(RUN_FILE, record_bytes(record))


def empty_model(record: dict[str, Any]) -> Model:
    """The architecture that run.json records. Only a frozen base requires a file of weights."""
    base: Any = Model
    kind = find_component("models", base, record["model"]["name"])
    options = unrecorded_options(kind, record["model"]["options"]) | record["model"]["options"]
    model: Model = parse_options(kind, options, kind.name(), quiet=True)
    return model


def unrecorded_options(kind: type[Model], recorded: dict[str, Any]) -> dict[str, Any]:
    """Values of options that are newer than the record of a run: those that the run was trained with."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        name: extra.value
        for name, hint in hints.items()
        for extra in annotation_extras(hint)
        if isinstance(extra, UnrecordedDefault) and name not in recorded
    }
