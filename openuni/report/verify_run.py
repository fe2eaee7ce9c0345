"""Verification of a training run: record, log, training checkpoints."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from openuni.console.progress import Reporter
from openuni.manifests.corpus.layout import set_aside
from openuni.manifests.errors import DamagedFile
from openuni.manifests.storage.checksums import file_checksum, parse_record
from openuni.report.verify_report import Damage, VerifyReport
from openuni.training.run_files import (
    CHECKSUMS_FILE,
    LOG_FILE,
    RUN_FILE,
    STATE_FILE,
    TENSORS,
    UNFINISHED_CHECKPOINTS,
    checkpoint_folders,
    tensor_files,
)


def verify_run(folder: Path, reporter: Reporter, *, repair: bool) -> VerifyReport:
    """Verify the files of a training run; `repair`: move damaged checkpoints to `damaged/TIME/` of the run."""
    damage, notes = list(_record(folder)), []
    lines, log_damage = _log(folder)
    damage += log_damage
    checkpoints = checkpoint_folders(folder)
    places: list[tuple[int | None, Path]] = [(None, folder), *checkpoints]
    nbytes = files = 0
    bad: list[Path] = []
    with reporter.phase("checkpoints", len(checkpoints) + 1) as counter:
        for step, place in places:
            required = [path.name for name in TENSORS for path in tensor_files(place, name)] if step is not None else []
            found = list(_tensors(place, folder, required))
            tensors = sorted(place.glob("*.safetensors"))
            files, nbytes = files + len(tensors), nbytes + sum(path.stat().st_size for path in tensors)
            if step is not None:
                found += _state(place, folder, step)
                bad += [place] if found else []
            damage += found
            counter.add("failed" if found else "ok")
    leftovers = [path.name for path in folder.glob(UNFINISHED_CHECKPOINTS)]
    if leftovers:
        notes.append(f"{', '.join(leftovers)}: left by a killed process; the next checkpoint deletes them")
    if checkpoints and not any((place / CHECKSUMS_FILE).is_file() for _, place in checkpoints):
        notes.append("checkpoints have no checksums: only sizes and headers of their tensors were verified")
    if repair and bad:
        time = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
        for place in bad:
            target = folder / set_aside(place.name, time)
            target.parent.mkdir(parents=True, exist_ok=True)
            place.rename(target)
        names = {place.name for place in bad}
        text = f"checkpoint moved to {set_aside('', time)}; training resumes from the previous one"
        damage = [one._replace(repaired=text) if one.file.split("/")[0] in names else one for one in damage]
    return VerifyReport(str(folder), 1 + lines, 0, files, nbytes, files, tuple(damage), tuple(notes))


def _record(folder: Path) -> Iterator[Damage]:
    depends = ("resuming", "sampling")
    try:
        if "recipe" not in parse_record((folder / RUN_FILE).read_bytes(), RUN_FILE):
            yield Damage(RUN_FILE, "record", "it has no recipe", depends)
    except FileNotFoundError:
        yield Damage(RUN_FILE, "record", "the file is missing", depends)
    except DamagedFile as error:
        yield Damage(RUN_FILE, "record", error.reason, depends)


def _log(folder: Path) -> tuple[int, list[Damage]]:
    """Number of sound lines, and the damage."""
    path = folder / LOG_FILE
    lines = path.read_bytes().splitlines() if path.is_file() else []
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
            is_row = isinstance(row, dict) and isinstance(row.get("step"), int)
        except (ValueError, RecursionError):
            is_row = False
        if not is_row:
            reason = f"line {number + 1} of {len(lines)} is not a row of the log"
            return number, [Damage(LOG_FILE, "log", reason, ("plots and validation losses from there on; no weights",))]
    return len(lines), []


def _state(place: Path, folder: Path, step: int) -> list[Damage]:
    name = f"{place.name}/{STATE_FILE}"
    try:
        state = parse_record((folder / name).read_bytes(), name)
    except FileNotFoundError:
        return [Damage(name, "checkpoint", "the file is missing", ("resuming",))]
    except DamagedFile as error:
        return [Damage(name, "checkpoint", error.reason, ("resuming",))]
    if state.get("step") != step:
        return [Damage(name, "checkpoint", f"step {state.get('step')!r} in the folder of step {step}", ("resuming",))]
    return []


def _tensors(place: Path, folder: Path, required: list[str]) -> Iterator[Damage]:
    """Damage of the files of a folder: wrong checksums, and tensor files with wrong headers or sizes."""
    known: dict[str, object] = {}
    prefix = "" if place == folder else f"{place.name}/"
    if (place / CHECKSUMS_FILE).is_file():
        try:
            known = parse_record((place / CHECKSUMS_FILE).read_bytes(), CHECKSUMS_FILE)
        except DamagedFile as error:
            yield Damage(prefix + CHECKSUMS_FILE, "checkpoint", error.reason, ("verification of this folder",))
    present = {path.name for path in place.glob("*.safetensors")}
    for name in sorted(present | set(required) | {name for name in known if "/" not in name}):
        path = place / name
        depends = ("resuming",) if name.startswith(("model", "optimizer")) else ("sampling",)
        if not path.is_file():
            yield Damage(prefix + name, "checkpoint", "the file is missing", depends)
        elif name in known and file_checksum(path) != known[name]:
            yield Damage(prefix + name, "checkpoint", f"checksum mismatch with {CHECKSUMS_FILE}", depends)
        elif name.endswith(".safetensors") and (problem := _tensor_problem(path)):
            yield Damage(prefix + name, "checkpoint", problem, depends)


def _tensor_problem(path: Path) -> str:
    """What is wrong with the header or the size of a safetensors file; empty if nothing."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return "" if list(file.keys()) else "it has no tensors"
    except (SafetensorError, OSError, ValueError) as error:
        return f"not readable: {error}"
