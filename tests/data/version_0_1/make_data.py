"""Makes tests/data/version_0_1: corpora and training runs as OpenUni 0.1.0 left them, before its code was rearranged.

Run it with that version, in its checkout (the commit before the restructuring) and with its environment:

    PYTHONPATH=CHECKOUT CHECKOUT/.venv/bin/python make_data.py OUT

Everything is made in /tmp/openuni-compat, so that no path of the machine gets into the data, and then copied to OUT.
Seeds are fixed: made again, all is the same but times of day, durations, and the names of parts and ledgers. What is
taken away afterwards: `tensorboard/` of the runs (names of its files hold the host; a run resumes without), the empty
lock files `.driver.lock` and `.workers.lock` of the corpora (made anew when needed), empty folders. The corpora and
the imported set are packed, since their shards of latents each reserve 256 KB for a header.

The sources are URLs of fsspec's file system "memory": the same on any machine, wherever a test puts the data.
"""

import importlib.util
import json
import os
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from manifests.operator import operator_names

import openuni
from openuni.api import duplicates
from openuni.pipeline import Scope
from openuni.world import write_clips
from tests.openuni.importers.rooms import pictures, render

HERE = Path(__file__).parent
PLACE = Path("/tmp/openuni-compat")
FRAMES, HEIGHT_PX, WIDTH_PX, FPS = 9, 32, 48, 8.0
SIZE = {"frames": FRAMES, "height_px": HEIGHT_PX, "width_px": WIDTH_PX, "fps": FPS}
PACKED = ("corpus", "annotated", "rooms")

CORPUS = """\
# As it was used with OpenUni 0.1.0: sources, an imported set, everything that needs no weights.
keep = "motion.speed_diag_per_s > 0.001 and luminance.mean > 0.02 and duplicates.is_representative"

[ingest]
collection = "world"

[work]
short_side_px = 32

[filters.motion]
[filters.motion_vectors]
[filters.luminance]
[filters.sharpness]
[filters.still]
[filters.resolution]
[filters.perceptual_hash]
[filters.flow_score]

[annotators.dis]
preset = "ultrafast"
[annotators.supplied]
modalities = ["depth", "segmentation", "skeleton"]
[annotators.retinex]
scales = [0.15, 0.3]
[annotators.normals_from_depth]
depth = "supplied.depth"
[annotators.template_caption]

[encode]
latents = "dct"
text = "bytes"
modalities = ["rgb", "depth", "flow", "retinex.albedo", "retinex.irradiance"]
size_px = [32, 48]
frames = 5
[encode.dct]
channels = 4
[encode.bytes]
dim = 8
max_bytes = 31
"""

ANNOTATED = """\
# As it was used with OpenUni 0.1.0: windows of a film, compact maps, a trained run as annotator, its own captions.
[ingest]
shots = "fixed"
min_s = 0.3
[ingest.fixed]
window_s = 0.5

[work]
short_side_px = 0
storage = "compact"

[filters.luminance]

[annotators.dis]
[annotators.template_caption]
[annotators."openuni.unified"]
run_dir = "runs/unityvideo"
modalities = ["depth"]
steps = 1
overlap_frames = 1

[encode]
caption = "template_caption.brief"
modalities = ["rgb", "openuni.unified.depth"]
size_px = [16, 32]
frames = 1
[encode.bytes]
dim = 4
"""

TRAINING = """\
# As it was used with OpenUni 0.1.0: as small as it gets.
{first}
precision = "float32"

[model]
name = "{model}"
num_layers = 1
heads = 1
head_dim = 6
ffn_dim = 12
freq_dim = 8
{options}
[data]
text_length = 0
{data}
[optimizer]
steps = 2
batch_size = 2
learning_rate = 1e-2
added_rate_factor = 1.0
warmup_steps = 2

[ema]
decay = 0.5

[validation]
every_steps = 2
clips = 1
quantiles = 1

[checkpoints]
every_steps = 2
keep = 1
"""

CURRICULUM = """
[[curriculum]]
from_step = 1
tasks = { joint = 6, control = 2 }
modality_weights = { depth = 2.0 }
collections = ["world"]
"""

RUNS = {
    "unityvideo": {
        "first": "tasks = { estimate = 1 }",
        "options": 'modalities = ["rgb", "depth", "flow"]\nswitcher_dim = 8',
        "data": CURRICULUM,
    },
    "unividx": {
        "first": "tasks = { partitions = 1.0 }",
        "options": 'modalities = ["rgb", "albedo", "irradiance"]\nrank = 2\ntrain_base = true',
        "data": "caption_dropout = 0.0",
    },
    "univigu": {
        "first": "tasks = { t2v = 1.0, v2t = 1.0, t2vt = 1.0 }",
        "options": "",
        "data": '\n[text]\ntokenizer = "bytes"\nlength = 64',
    },
}


def main(out: Path) -> None:
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir(parents=True)
    os.chdir(PLACE)
    make_raw(Path("raw"))
    make_set(Path("rooms"))
    Path("corpus.toml").write_text(CORPUS)
    Path("annotated.toml").write_text(ANNOTATED)
    for name, parts in RUNS.items():
        Path(f"{name}.toml").write_text(TRAINING.format(model=name, **parts))
    facts = load_test()
    facts.sources_in_memory(Path("raw"))
    make_corpus(Path("corpus"), facts)
    for name in RUNS:
        openuni.train(f"{name}.toml", "corpus", out=f"runs/{name}")
    openuni.run("annotated.toml", "memory://raw/person-000001.mp4", out="annotated")
    expected = {
        "made_with": openuni.__version__,
        "corpora": {name: facts.corpus_facts(Path(name)) for name in ("corpus", "annotated")},
        "recipes": {name: facts.recipe_facts(f"{name}.toml") for name in ("corpus", "annotated")},
        "components": component_facts(),
        "runs": {},
    }
    for name in RUNS:
        expected["runs"][name] = facts.run_facts(Path("runs") / name)
        shutil.copytree(Path("runs") / name, Path("resumed") / name)
        raised = Path("resumed") / f"{name}.toml"
        raised.write_text(Path(f"{name}.toml").read_text().replace("steps = 2\n", "steps = 3\n", 1))
        openuni.train(raised, "corpus", out=f"resumed/{name}")
        expected["runs"][name]["resumed"] = facts.run_facts(Path("resumed") / name)
    shutil.rmtree("resumed")
    tidy()
    for name in PACKED:
        with tarfile.open(f"{name}.tar.xz", "w:xz", format=tarfile.USTAR_FORMAT, preset=9) as tar:
            tar.add(name, filter=anonymous)
        shutil.rmtree(name)
    Path("expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(PLACE, out)
    shutil.rmtree(PLACE)


def make_raw(folder: Path) -> None:
    """Two walks to keep, one that is there twice, one clip in which nothing moves, one file that is no video."""
    write_clips(folder, range(3), preset="person", modalities=("depth", "segmentation", "skeleton"), workers=1, **SIZE)
    for path in folder.glob("person-000002.*.*"):
        path.unlink()  # a clip with depth alone
    write_clips(folder, [2], preset="person", modalities=("depth",), workers=1, **SIZE)
    write_clips(folder, [0], preset="still", modalities=(), workers=1, **SIZE)
    shutil.copy(folder / "person-000000.mp4", folder / "zz-copy.mp4")
    (folder / "broken.mp4").write_bytes(b"no video")


def make_set(folder: Path) -> None:
    """Rendered rooms as `interiorvid` reads them: 16-bit PNG, 8-bit PNG, lossless video; one clip lacks a frame."""
    from manifests.video import encode_lossless

    for number, key in enumerate(("train/attic_001", "val/loft_001", "test/cellar_001")):
        room = render(5, HEIGHT_PX, WIDTH_PX, phase=0.3 * number)
        clip = folder / key
        write_png(clip / "rgb", pictures(room))
        write_png(clip / "albedo", np.rint(room.albedo * 65535).astype(np.uint16))
        write_png(clip / "normal", np.rint((room.normal + 1) / 2 * 255).astype(np.uint8))
        light = np.rint(np.clip(room.irradiance / 4, 0, 1) * 65535).astype(np.uint16)
        (clip / "irradiance.mkv").write_bytes(encode_lossless(light, FPS))
        (clip / "caption.txt").write_text(f"a room, number {number}\n")
    (folder / "test/cellar_001/normal/0004.png").unlink()


def write_png(folder: Path, frames: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for number, image in enumerate(frames):
        assert cv2.imwrite(str(folder / f"{number:04}.png"), image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])


def make_corpus(out: Path, facts: Any) -> None:
    """Import, measure, find copies, make the rest, split: as a user would, in several commands."""
    openuni.import_set("interiorvid", "rooms", out=out, options=facts.IMPORT_OPTIONS)
    filters = tuple(openuni.Recipe.load("corpus.toml").filters)
    openuni.run("corpus.toml", "memory://raw/", out=out, scope=Scope(only=("ingest", *filters), add=True))
    print(duplicates(out))
    openuni.run("corpus.toml", "memory://raw/", out=out)
    print(openuni.split(out, {"validation": 0.3}))
    print(openuni.open_corpus(out).summary())


def component_facts() -> dict[str, Any]:
    """Of every operator by its defaults: what its version is made of, and that version where there are no weights."""
    found: dict[str, Any] = {}
    for kind in ("filter", "annotator"):
        for name in operator_names(kind):
            recipe = openuni.Recipe.parse({f"{kind}s": {name: {}}})
            operator = getattr(recipe, f"{kind}s")[name]
            found[f"{kind}s/{name}"] = {
                "name": operator.name(),
                "revision": operator.revision,
                "options": json.loads(json.dumps(recipe.as_tables()[f"{kind}s"][name])),
                "version": None if operator.checkpoints() else operator.version(),
            }
    return found


def tidy() -> None:
    for path in sorted(PLACE.rglob("*"), reverse=True):
        if path.name == "tensorboard":
            shutil.rmtree(path)
        elif path.name in (".driver.lock", ".workers.lock"):
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info


def load_test() -> Any:
    """What computes the facts is the test's own code: the same in both versions."""
    spec = importlib.util.spec_from_file_location(
        "compatibility_facts", HERE.parents[1] / "openuni" / "compatibility_facts.py"
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else HERE / "data")
