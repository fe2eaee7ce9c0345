"""Many generations from one file: JSON lines with prompt, conditions and seed."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openuni.manifests.errors import OpenUniError, did_you_mean

if TYPE_CHECKING:
    from openuni.inference.generate import GenerateRequest

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
KEYS = {"name": str, "prompt": str, "negative_prompt": str, "subject": str, "seed": int, "given": dict}


def read_prompts(path: Path, request: "GenerateRequest") -> dict[str, "GenerateRequest"]:
    """The requests of a JSON-lines file, by name: `request` with the prompt, conditions and seed of each line.

    A line is an object with any of `KEYS`. `given` maps modalities to videos; relative paths start at the file's
    folder. `name`: folder of the results; default: number of the line, 000001 for the first. Raises `OpenUniError` that
    names the line.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise OpenUniError(f"--prompts {path}: {error}") from error
    found: dict[str, GenerateRequest] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        entry = _entry(line, where)
        name = entry.pop("name", f"{number:06d}")
        if not NAME.fullmatch(name) or name.lower() in {other.lower() for other in found}:
            raise OpenUniError(
                f'{where}: name "{name}" must be unique and consist of letters, digits, ".", "_" and "-", at most 200, '
                'and not begin with "."'
            )
        if "given" in entry:
            entry["given"] = _given(entry["given"], path.parent, where)
        found[name] = dataclasses.replace(request, **entry)
    if not found:
        raise OpenUniError(f'--prompts {path}: no lines found. Write one per video: {{"prompt": "a ball rolls"}}')
    return found


def _entry(line: str, where: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise OpenUniError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(entry, dict):
        raise OpenUniError(f'{where}: must be an object such as {{"prompt": "a ball rolls", "seed": 1}}')
    for key, value in entry.items():
        if key not in KEYS:
            raise OpenUniError(
                f'{where}: "{key}" is not known.{did_you_mean(key, list(KEYS))} Known: {", ".join(KEYS)}.'
            )
        if not isinstance(value, KEYS[key]) or isinstance(value, bool):
            raise OpenUniError(f"{where}: {key} must be of type {KEYS[key].__name__}, got {json.dumps(value)[:80]}")
    return entry


def _given(given: Mapping[str, Any], folder: Path, where: str) -> tuple[str, ...]:
    for name, path in given.items():
        if not isinstance(path, str) or not path:
            raise OpenUniError(f"{where}: given.{name} must be the path of a video, got {json.dumps(path)[:80]}")
    return tuple(f"{name}={path if '://' in path else folder / path}" for name, path in given.items())
