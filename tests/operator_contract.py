"""What every operator must do, one function per promise. Each raises `AssertionError` when it is broken."""

import dataclasses
import hashlib
import inspect
import os
import pickle
import subprocess
import sys
import types
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np

from openuni.manifests.contracts.component import annotation_text, strip_annotation
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.contracts.operator import Filter, Operator
from openuni.manifests.contracts.schema import producer_schema, result_hints
from openuni.manifests.errors import OpenUniError

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "torchvision", "transformers", "diffusers", "cv2", "av", "decord", "ray", "PIL", "scipy", "pandas")
HEAVY += ("open_clip", "easyocr", "rapidocr", "onnxruntime", "segment_anything")


def importing_is_light(module: str, folder: Path = ROOT) -> None:
    """`openuni list` imports every operator: none may pull in a heavy library. Seen from a fresh process."""
    code = f"import sys, {module}; print(*[name for name in {HEAVY} if name in sys.modules])"
    loaded = _python(code, folder).decode().split()
    assert not loaded, f"{module} imports {', '.join(loaded)} at the top: move that inside the function that needs it"


def input_is_untouched(operator: Operator, clip: DecodedClip) -> None:
    """All operators of a phase see the same arrays."""
    before = _digest(clip)
    operator.run(operator.load("cpu"), clip)
    assert _digest(clip) == before, "run() changed the clip it was given"
    assert not clip.frames.flags.writeable, "run() made the frames writeable"


def result_is_as_declared(operator: Operator, clip: DecodedClip) -> None:
    """The declared NamedTuple with values of the declared types; one map per frame; storable."""
    producer_schema(type(operator))  # raises for types that no column can hold
    result = operator.run(operator.load("cpu"), clip)
    assert type(result) is operator.result_type(), f"declared {operator.result_type()}, returned {type(result)}"
    for name, hint in result_hints(type(operator)).items():
        value = getattr(result, name)
        kinds = _kinds(strip_annotation(hint))
        assert any(_is(value, kind) for kind in kinds), f"{name}: declared {hint}, returned {type(value)} {value!r:.80}"
        if isinstance(value, Modality):
            assert not isinstance(operator, Filter), f"{name}: a filter gives numbers only"
            frames, height_px, width_px = clip.frames.shape[:3]
            assert len(value.array) == frames, f"{name}: {len(value.array)} maps for {frames} frames"
            assert value.size_px[0] <= height_px and value.size_px[1] <= width_px, f"{name}: larger than frames"
            value.encode(clip.fps)  # can be stored
        if isinstance(value, float):
            assert np.isfinite(value), f"{name} is {value}: what cannot be measured is None"


def result_is_deterministic(operator: Operator, clip: DecodedClip) -> None:
    """Equal inputs give equal outputs: with the same model, and with a model loaded anew."""
    model = operator.load("cpu")
    first, again, anew = operator.run(model, clip), operator.run(model, clip), operator.run(operator.load("cpu"), clip)
    assert _equal(first, again), "two runs with one model differ"
    assert _equal(first, anew), "two runs with two loads differ"


def samples_are_indices(operator: Operator, times_s: np.ndarray) -> None:
    """A filter's sample: increasing indices of existing frames, at least one."""
    indices = operator.sample(times_s) if isinstance(operator, Filter) else np.array([0])
    assert indices.dtype == np.int64 and indices.ndim == 1 and len(indices), f"sample() gave {indices!r}"
    assert (np.diff(indices) > 0).all(), "sample() is not strictly increasing"
    assert indices[0] >= 0 and indices[-1] < len(times_s), "sample() names frames that do not exist"


def docstring_is_written(operator: type[Operator]) -> None:
    """A docstring by a person: `@dataclass` writes one of its own where there is none."""
    text = inspect.cleandoc(operator.__dict__.get("__doc__") or "")
    assert text and not text.startswith(f"{operator.__name__}("), f"{operator.__name__} has no docstring"
    assert len(text.split()) >= 8, f"the docstring of {operator.__name__} says too little: {text!r}"
    assert operator.run.__doc__, f"{operator.__name__}.run has no docstring"


def everything_is_documented(operator: type[Operator]) -> None:
    """Every option and every score has its `Annotated` text; source and licence are named."""
    silent = [option.name for option in operator.options() if not option.doc]
    assert not silent, f"options without Annotated text: {silent}"
    for name, hint in result_hints(operator).items():
        is_map = any(isinstance(kind, type) and issubclass(kind, Modality) for kind in _kinds(strip_annotation(hint)))
        assert is_map or annotation_text(hint), f"score {name} has no Annotated text with meaning and unit"
    assert operator.origin, "origin is empty: name the paper or project that defines the method"
    assert operator.licence, "licence is empty"
    assert 0 <= operator.gpus <= 1, f"gpus is a share of one GPU, got {operator.gpus}"


def operator_travels(operator: Operator) -> None:
    """Frozen, hashable, and equal after pickling: it is sent to workers."""
    assert ForkingPickler.loads(ForkingPickler.dumps(operator)) == operator
    assert hash(operator) == hash(dataclasses.replace(operator))
    for option in operator.options():
        try:
            setattr(operator, option.name, option.default)
        except dataclasses.FrozenInstanceError:
            continue
        raise AssertionError(f"{option.name} can be assigned: decorate the class with @dataclass(frozen=True)")


def version_is_the_same_everywhere(operator: Operator, folder: Path = ROOT) -> None:
    """Processes with other hash seeds agree on the version, else every run would recompute everything."""
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).version())"
    versions = {_python(code, folder, pickle.dumps(operator), seed) for seed in ("1", "2")}
    assert versions == {f"{operator.version()}\n".encode()}, f"the version differs between processes: {versions}"


def version_follows_the_options(operator: Operator) -> None:
    """Every option that can take another value without other files changes the version."""
    for name, value in vars(operator).items():
        for other in _others(next(option.type for option in operator.options() if option.name == name), value):
            try:
                version = dataclasses.replace(operator, **{name: other}).version()
            except OpenUniError:
                continue  # not allowed for this option, or needs other files; try the next
            assert version != operator.version(), f"{name} = {other!r} has the version of {name} = {value!r}"
            break


def _others(hint: Any, value: Any) -> Iterator[Any]:
    """Candidates for another value of an option."""
    if get_origin(hint) is Literal:
        yield from (choice for choice in get_args(hint) if choice != value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value + 1, value * 2, value / 2 if isinstance(value, float) else value // 2)
    elif isinstance(value, tuple) and value:
        yield value[:-1]


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _is(value: Any, kind: Any) -> bool:
    """Exactly of that type: a NumPy scalar is no float. Containers are looked at from outside."""
    bare = get_origin(kind) or strip_annotation(kind)
    return isinstance(value, bare) if isinstance(bare, type) and issubclass(bare, Modality) else type(value) is bare


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and np.array_equal(one, other)
    if isinstance(one, Modality):
        return all(_equal(value, getattr(other, name)) for name, value in vars(one).items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def _digest(clip: DecodedClip) -> str:
    maps = b"".join(clip.maps[name].array.tobytes() for name in sorted(clip.maps))
    return hashlib.sha256(clip.frames.tobytes() + clip.times_s.tobytes() + repr(clip.clip).encode() + maps).hexdigest()


def _python(code: str, folder: Path, stdin: bytes = b"", seed: str = "0") -> bytes:
    """Standard output of a fresh interpreter that sees `folder` and the project."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    env = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": seed}
    done = subprocess.run([sys.executable, "-c", code], input=stdin, capture_output=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout
