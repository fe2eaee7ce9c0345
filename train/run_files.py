"""Names of the files of a training run. Verification and exports read them without importing torch."""

import re
from pathlib import Path

RUN_FILE = "run.json"
EXPORT_FILE = "openuni.json"  # the record of an exported model
LOG_FILE = "log.jsonl"
TEXTS_FILE = "texts.safetensors"  # cache of the embeddings of fixed texts
SUBJECTS_FILE = "subjects.safetensors"  # cache of the embeddings of subjects
INDEX_FILE = "index.safetensors"  # cache of the index of a large corpus; may be deleted
LOCK_FILE = ".train.lock"
SAMPLES_FOLDER = "samples"

# in the folder of a training checkpoint
STATE_FILE = "state.json"
CHECKSUMS_FILE = "checksums.json"  # file name -> xxh3-64 of its bytes, 16 hex digits; written last
TENSORS = ("model", "ema", "optimizer")  # NAME.safetensors, or with several ranks a file of each: see `part_name`
PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")

CHECKPOINT = re.compile(r"step-(\d{6,})")
UNFINISHED_CHECKPOINTS = ".step-*.tmp"  # glob; a checkpoint gets its name when it is complete


def checkpoint_name(step: int) -> str:
    """Folder name of the training checkpoint of a step."""
    return f"step-{step:06d}"


def checkpoint_folders(run: Path) -> list[tuple[int, Path]]:
    """Step and path of every checkpoint of a run, damaged ones included, oldest first."""
    found = [(CHECKPOINT.fullmatch(path.name), path) for path in run.glob("step-*") if path.is_dir()]
    return sorted((int(match[1]), path) for match, path in found if match)


def is_written(checkpoint: Path) -> bool:
    """Whether the folder of a checkpoint is one that a run can resume from, as far as its files exist."""
    return any((checkpoint / name).is_file() for name in (STATE_FILE, CHECKSUMS_FILE))


def part_name(name: str, rank: int, world: int) -> str:
    """Name of the file in which a rank stores its rows of "model", "ema" or "optimizer"."""
    return f"{name}.safetensors" if world == 1 else f"{name}-{rank + 1:05d}-of-{world:05d}.safetensors"


def tensor_files(checkpoint: Path, name: str) -> list[Path]:
    """The files of "model", "ema" or "optimizer" in a checkpoint, in the order of the ranks; they may be missing."""
    parts = [match for path in checkpoint.glob(f"{name}-*.safetensors") if (match := PART.fullmatch(path.name))]
    world = max([1, *(int(match[3]) for match in parts if match[1] == name)])
    return [checkpoint / part_name(name, rank, world) for rank in range(world)]
