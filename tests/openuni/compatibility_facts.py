"""Facts of corpora and runs, computed alike by the version that made the data and by this one, and comparing them."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

import openuni
from openuni.manifests.contracts.options import recorded

HERE = Path(__file__).parent
DATA = next(path for path in (HERE.parent / "data" / "version_0_1", HERE / "data", HERE) if path.is_dir())
CORPORA = ("corpus", "annotated")
RUNS = ("unityvideo", "unividx", "univigu")
SOURCES = {"corpus": "memory://raw/", "annotated": "memory://raw/person-000001.mp4"}
IMPORT_OPTIONS = {"scene": "([a-z]+)_[0-9]+$", "fps": 8.0, "irradiance_scale": 4.0}
TIMINGS = ("ms", "samples_per_s", "data_wait_share")  # what differs between two runs that do the same
NEWER = ("tokens_per_s", "stream_loss", "sigma_loss")  # columns of the log that runs of version 0.1 do not have
PLACES = ("shard", "offset", "nbytes", "xxh3", "source", "split", "collection")  # and what between two corpora
# With several threads FFmpeg now and then hands out fewer vectors than a frame has: in two of 800 decodings in 0.1.0
UNSTEADY = ("length_sides", "least_patch_sides", "predicted_share")
LOCKS = (".driver.lock", ".workers.lock", ".train.lock")


# ---------------------------------------------------------------------- facts, as make_data.py wrote them down


def corpus_facts(folder: Path) -> dict[str, Any]:
    """All that a corpus says of itself; every payload is read and its checksum proved."""
    corpus = openuni.open_corpus(folder)
    facts = {
        "record": {key: value for key, value in corpus.record.items() if key != "created"},
        "summary": summary_facts(corpus),
        "kept": corpus.kept_clip_ids(),
        "groups": {group: group_facts(corpus, group) for group in corpus.groups()},
        "latent_families": corpus.families(),
        "text_families": corpus.text_families(),
        "rgb": {clip.clip_id: spread(clip.rgb) for clip in corpus},
        "maps": {},
    }
    for annotator in corpus.operators("annotator"):
        for row in corpus.table(f"annotations/{annotator}").to_pylist():
            for modality, value in row[annotator].items():
                if isinstance(value, dict) and value.get("shard"):
                    array = corpus[row["clip_id"]].modality(modality, annotator).array
                    facts["maps"][f"{row['clip_id']} {annotator} {modality}"] = spread(array)
    return jsonable(facts)


def summary_facts(corpus: Any) -> dict[str, Any]:
    """The summary; without `not_done`, which 0.1.0 did not count, unless there is any: these corpora are complete."""
    facts = plain(corpus.summary())
    return {key: value for key, value in facts.items() if key != "not_done" or value}


def group_facts(corpus: Any, group: str) -> dict[str, Any]:
    rows = sorted(corpus.table(group).to_pylist(), key=lambda row: row["clip_id"])
    digest, count, nbytes = hashlib.sha256(), 0, 0
    for extent in extents(rows):
        data = corpus.read(group, *(extent[key] for key in ("shard", "offset", "nbytes", "xxh3")))
        digest.update(data)
        count, nbytes = count + 1, nbytes + len(data)
    return {
        "version": corpus.group_version(group),
        "rows": len(rows),
        "digest": hashlib.sha256(json.dumps(without(rows, TIMINGS), sort_keys=True).encode()).hexdigest(),
        "payloads": {"count": count, "nbytes": nbytes, "sha256": digest.hexdigest()},
    }


def recipe_facts(path: str) -> dict[str, Any]:
    """The options of a recipe, and the versions of its parts."""
    recipe = openuni.CorpusRecipe.load(path)
    operators = {f"filters/{name}": operator for name, operator in recipe.filters.items()}
    operators |= {f"annotators/{name}": operator for name, operator in recipe.annotators.items()}
    parts = operators | {
        "shots": recipe.shot_detector,
        "latents": recipe.latent_codec,
        "text": recipe.text_codec,
    }
    tables = recipe.as_tables()
    for kind in ("filters", "annotators"):  # renamed options under their former names
        tables[kind] = {name: recorded(operator) for name, operator in getattr(recipe, kind).items()}
    return jsonable({"tables": tables, "versions": {name: part.version() for name, part in parts.items()}})


def run_facts(folder: Path) -> dict[str, Any]:
    """All that a training run says of itself, and what it makes in each of its tasks."""
    run = openuni.open_run(folder)
    made: dict[str, Any] = {}
    for task in run.tasks:
        prompt = "a person walks" if run.caption_streams(task) else ""
        make = [*task.targets, *(["text"] if task.generates_text else [])]
        given = {name: gradient(run) for name in task.conditions}
        made[str(task)] = {
            "kinds": {name: type(value).__name__ for name, value in run.generate(prompt, make, given).items()},
            "renderings": {name: spread(array) for name, array in run.render(prompt, make, given).items()},
        }
    checkpoint = run.checkpoint
    weights = {file: weight_facts(checkpoint.tensors(file)) for file in ("model", "ema", "optimizer")}
    # `run.record` is of the run as it began; its recipe is there once more with the defaults of this version
    return jsonable(
        {
            "step": checkpoint.step,
            "record": run.record,
            "recipe": run.recipe.to_dict(),
            "log": without(run.log, (*TIMINGS, *NEWER)),
            "tasks": made,
            "weights": weights,
        }
    )


def weight_facts(tensors: dict[str, Any]) -> dict[str, Any]:
    """Names, and how large the values are: of each part of the model, or of each kind of an optimiser's state."""
    parts: dict[str, list[np.ndarray]] = {}
    for name in sorted(tensors):
        part = name.partition("/")[0] if "/" in name else name.partition(".")[0]
        parts.setdefault(part, []).append(tensors[name].float().numpy().ravel())
    joined = {part: np.concatenate(arrays).astype(np.float64) for part, arrays in parts.items()}
    facts: dict[str, Any] = {
        part: {"count": len(values), "size": float(np.abs(values).mean()), "std": float(values.std())}
        for part, values in joined.items()
    }
    return facts | {"names": hashlib.sha256("\n".join(sorted(tensors)).encode()).hexdigest()}


def gradient(run: Any) -> np.ndarray:
    """A rendering to give, float32 [T, H, W, 3] in 0..1."""
    frames, (height_px, width_px) = run.record["latents"]["frames"], run.record["latents"]["size_px"]
    grid = np.indices((frames, height_px, width_px, 3)).astype(np.float32)
    return (0.5 + 0.4 * np.sin(grid[0] * 0.3 + grid[1] * 0.2 + grid[2] * 0.1 + grid[3])).astype(np.float32)


def spread(array: np.ndarray) -> dict[str, Any]:
    values = np.asarray(array, np.float64)
    return {"shape": list(values.shape), "mean": float(values.mean()), "std": float(values.std())}


def extents(value: Any) -> list[dict[str, Any]]:
    """All places of payloads in rows, in order."""
    if isinstance(value, list):
        return [extent for item in value for extent in extents(item)]
    if not isinstance(value, dict):
        return []
    own = [value] if value.get("shard") else []
    return own + [extent for key in sorted(value) for extent in extents(value[key])]


def without(value: Any, names: tuple[str, ...]) -> Any:
    """The same without these keys, at any depth."""
    if isinstance(value, list):
        return [without(item, names) for item in value]
    if isinstance(value, dict):
        return {key: without(item, names) for key, item in value.items() if key not in names}
    return value


def plain(value: Any) -> Any:
    """NamedTuples as dicts."""
    if hasattr(value, "_asdict"):
        return {key: plain(item) for key, item in value._asdict().items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def jsonable(facts: Any) -> Any:
    return json.loads(json.dumps(facts))


# ---------------------------------------------------------------------- comparing


def assert_near(found: Any, wanted: Any, where: str = "", rel: float = 2e-2, least: float = 2e-3) -> None:
    """Equal, but for what another processor does to floating-point numbers."""
    if isinstance(wanted, dict):
        assert isinstance(found, dict) and sorted(found) == sorted(wanted), where
        for key, item in wanted.items():
            assert_near(found[key], item, f"{where}/{key}", rel, least)
    elif isinstance(wanted, list):
        assert isinstance(found, list) and len(found) == len(wanted), where
        for number, item in enumerate(wanted):
            assert_near(found[number], item, f"{where}/{number}", rel, least)
    elif isinstance(wanted, float) and isinstance(found, float):
        assert math.isclose(found, wanted, rel_tol=rel, abs_tol=least), f"{where}: {found}, was {wanted}"
    else:
        assert found == wanted, where


def assert_holds(found: Any, wanted: Any, where: str = "") -> None:
    """All that is wanted is there, the same; of dicts, more may be there: options that are new."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key, item in wanted.items():
            assert key in found, f"{where}/{key} is gone"
            assert_holds(found[key], item, f"{where}/{key}")
    else:
        assert found == wanted, where


def files(folder: Path) -> dict[str, str]:
    """Name -> digest of every file, but for locks and the ledgers of runs."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in LOCKS)
    names = {path.relative_to(folder).as_posix(): path for path in found}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in names.items()
        if not name.startswith(("runs/", "tensorboard/"))
    }


def ledgers(corpus: Path) -> set[str]:
    return {path.name for path in (corpus / "runs").glob("*.json")}


def assert_nothing_done(corpus: Path, before: set[str]) -> None:
    """One ledger more, of a run that found nothing to do."""
    (new,) = ledgers(corpus) - before
    record = json.loads((corpus / "runs" / new).read_text())
    assert record["phases"] == [] and record["error"] is None
