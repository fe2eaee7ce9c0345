"""openuni.json, the record of an exported model: what sampling needs of run.json, without paths of this machine."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from openuni.manifests.contracts.checkpoint import hub_or_path
from openuni.manifests.errors import DamagedFile, OpenUniError
from openuni.manifests.storage.checksums import parse_record
from openuni.training.run_files import EXPORT_FILE
from openuni.training.run_record import check_tables
from openuni.training.tasks import Task

FORMAT = 1
KIND = "openuni exported model"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
REFERENCES = ("checkpoint", "pretrained")  # options that hold a hub name or a path


def exported_record(run: Any, hub_names: Mapping[str, str], *, with_base: bool) -> dict[str, Any]:
    """The record of the model of a `Run`. `with_base`: a frozen base is among the weights, not loaded by its name.

    `hub_names`: hub name by local path, for checkpoints that the run refers to by path. Raises `OpenUniError` for paths
    without a name, as they are useless to others and disclose folders of this machine.
    """
    record: dict[str, Any] = run.record
    model = {"name": record["model"]["name"], "options": dict(record["model"]["options"])}
    if with_base and "pretrained" in model["options"]:
        model["options"]["pretrained"] = ""
    recipe = dataclasses.replace(run.recipe, model={"name": model["name"]}, init_from="").to_dict()
    names = ("text_length", "latent_shape", "tokens")
    exported: dict[str, Any] = {
        "format": FORMAT,
        "kind": KIND,
        "recipe": recipe,
        "model": model,
        "latents": dict(record["latents"]) | {"options": dict(record["latents"]["options"])},
        "text": dict(record["text"]) | {"options": dict(record["text"]["options"])},
        "data": {key: value for key, value in record["data"].items() if key != "stages"},
        "tasks": [str(task) for task in run.tasks],
        "step": run.step,
        "is_pretrained": run.is_pretrained,
        **{name: record[name] for name in names if name in record},
    }
    if "tokens" not in exported:
        exported["recipe"]["text"].pop("checkpoint", None)
    used: set[str] = set()
    for where, table, key in _references(exported):
        table[key] = public_name(table[key], hub_names, where, used)
    if unused := sorted(set(hub_names) - used - {run.recipe.model.get("pretrained")}):
        raise OpenUniError(f'--hub-name "{unused[0]}": the run does not refer to this path. Remove it.')
    return exported


def public_name(ref: str, hub_names: Mapping[str, str], where: str, used: set[str] | None = None) -> str:
    """The hub name of a checkpoint. Raises `OpenUniError` if it is a path without a name in `hub_names`."""
    if ref in hub_names:
        if used is not None:
            used.add(ref)
        if not HUB_NAME.fullmatch(hub_names[ref]):
            raise OpenUniError(f'--hub-name {ref}={hub_names[ref]}: must be a hub name such as "owner/name"')
        return hub_names[ref]
    if hub_or_path(ref).store == "hub" and HUB_NAME.fullmatch(ref):
        return ref
    raise OpenUniError(
        f'{where} = "{ref}" is a path of this machine, which others do not have. Pass the name under which they can '
        f"download the same files: --hub-name {ref}=OWNER/NAME"
    )


def _references(record: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Where a record refers to checkpoints: name for messages, table and key."""
    tables = {
        "model": record["model"]["options"],
        "latents": record["latents"]["options"],
        "text": record["text"]["options"],
        "recipe text": record["recipe"].get("text", {}),
    }
    for name, table in tables.items():
        for key, value in table.items():
            if isinstance(value, str) and value and (key in REFERENCES or value.startswith(("/", "~", "."))):
                yield f"{name}.{key}", table, key


def read_exported(folder: Path) -> dict[str, Any]:
    """Read openuni.json. It is untrusted: it can name installed components and hub names only.

    Raises `OpenUniError` if it is missing, damaged, or of another format.
    """
    path = folder / EXPORT_FILE
    if not path.is_file():
        raise OpenUniError(
            f"no exported model at {folder} ({EXPORT_FILE} not found). Create one with: openuni export-model"
        )
    try:
        record = parse_record(path.read_bytes(), str(path))
    except DamagedFile as error:
        raise OpenUniError(f"{path} is damaged: {error.reason}. Download or export it again.") from error
    if record.get("format") != FORMAT or record.get("kind") != KIND:
        raise OpenUniError(f"{path} has format {record.get('format')!r}; this version reads {FORMAT}")
    check_tables(record, path, "Download or export it again.")
    for name, holds in _FACTS.items():
        if not holds(record):
            raise OpenUniError(f"{path} is damaged: {name}. Download or export it again.")
    for where, table, key in _references(record):
        if not HUB_NAME.fullmatch(table[key]):
            raise OpenUniError(f'{path}: {where} = "{table[key]}" must be a hub name such as "owner/name"')
    for task in record["tasks"]:
        Task.parse(task)
    return record


def _sizes(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(type(part) is int and part > 0 for part in value)


_FACTS = {
    "latents must have codec, options, frames and size_px": lambda record: (
        isinstance(record["latents"].get("codec"), str)
        and isinstance(record["latents"].get("options"), dict)
        and _sizes([record["latents"].get("frames")], 1)
        and _sizes(record["latents"].get("size_px"), 2)
    ),
    "text must have codec and options": lambda record: (
        isinstance(record["text"].get("codec"), str) and isinstance(record["text"].get("options"), dict)
    ),
    "latent_shape and text_length must be positive integers": lambda record: (
        _sizes(record.get("latent_shape"), 4) and _sizes([record.get("text_length")], 1)
    ),
    "modalities of the model must be a list of names": lambda record: (
        isinstance(record["model"]["options"].get("modalities"), list)
        and all(isinstance(name, str) for name in record["model"]["options"]["modalities"])
    ),
    "tasks must be a list of names": lambda record: (
        isinstance(record.get("tasks"), list)
        and bool(record["tasks"])
        and all(isinstance(task, str) for task in record["tasks"])
    ),
    "tokens must be a table": lambda record: isinstance(record.get("tokens", {}), dict),
    "data.fps must be a number": lambda record: isinstance(record["data"].get("fps"), float | int | None),
}
