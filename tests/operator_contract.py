"""The operator contract, one function per requirement. Each raises `AssertionError` if it is violated."""

import atexit
import dataclasses
import hashlib
import inspect
import io
import json
import os
import pickle
import subprocess
import sys
import types
from collections.abc import Iterable, Iterator
from functools import cache
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.contracts.operator import Filter, Operator
from openuni.manifests.contracts.options import Execution, annotation_extras, annotation_text, strip_annotation
from openuni.manifests.contracts.schema import producer_schema, result_hints
from openuni.manifests.contracts.window_filter import supports_windows
from openuni.manifests.errors import OpenUniError

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "torchvision", "transformers", "diffusers", "cv2", "av", "decord", "ray", "PIL", "scipy", "pandas")
HEAVY += ("open_clip", "easyocr", "rapidocr", "onnxruntime", "segment_anything")


def importing_is_light(module: str, folder: Path = ROOT) -> None:
    """`openuni list` imports every operator: none may import a heavy library. Checked in a new process."""
    code = f"import sys, {module}; print(*[name for name in {HEAVY} if name in sys.modules])"
    loaded = _python(code, folder).split()
    assert not loaded, f"{module} imports {', '.join(loaded)} at the top: move that inside the function that needs it"


def input_is_untouched(operator: Operator, clip: DecodedClip) -> None:
    """All operators of a phase share the same arrays."""
    before = _digest(clip)
    operator.run(operator.load("cpu"), clip)
    assert _digest(clip) == before, "run() changed the clip passed to it"
    assert not clip.frames.flags.writeable, "run() made the frames writeable"


def result_is_as_declared(operator: Operator, clip: DecodedClip) -> None:
    """The declared NamedTuple with values of the declared types; one map per frame; storable."""
    producer_schema(type(operator))  # raises for types that a column cannot hold
    result = operator.run(operator.load("cpu"), clip)
    assert type(result) is operator.result_type(), f"declared {operator.result_type()}, returned {type(result)}"
    for name, hint in result_hints(type(operator)).items():
        value = getattr(result, name)
        kinds = _kinds(strip_annotation(hint))
        assert any(_is(value, kind) for kind in kinds), f"{name}: declared {hint}, returned {type(value)} {value!r:.80}"
        if isinstance(value, Modality):
            assert not isinstance(operator, Filter), f"{name}: a filter must not return maps"
            frames, height_px, width_px = clip.frames.shape[:3]
            assert len(value.array) == frames, f"{name}: {len(value.array)} maps for {frames} frames"
            assert value.size_px[0] <= height_px and value.size_px[1] <= width_px, f"{name}: larger than frames"
            value.encode(clip.fps)  # can be stored
        if isinstance(value, float):
            assert np.isfinite(value), f"{name} is {value}: must be None if it cannot be measured"


def result_is_deterministic(operator: Operator, clip: DecodedClip) -> None:
    """Equal inputs give equal outputs, with the same model and with a reloaded model."""
    model = operator.load("cpu")
    first, again, anew = operator.run(model, clip), operator.run(model, clip), operator.run(operator.load("cpu"), clip)
    assert _equal(first, again), "two runs with one model differ"
    assert _equal(first, anew), "two runs with two loads differ"


def windows_give_the_same(operator: Operator, clip: DecodedClip, sizes: Iterable[int] = (1, 2, 3)) -> None:
    """An operator that declares windows gives the result of the whole clip, to the bit, for windows of every size.

    `sizes`: in multiples of the operator's step. Required maps are as a corpus stores them.
    """
    model = operator.load("cpu")
    if not supports_windows(operator):
        assert operator.start_windows(model) is None, "start_windows() is defined, but gives nothing"
        return
    clip = dataclasses.replace(clip, maps={name: _as_stored(maps, clip.fps) for name, maps in clip.maps.items()})
    whole = operator.run(model, clip)
    for size in sizes:
        started = operator.start_windows(model)
        assert started is not None, "supports windows, but start_windows() is None"
        found: dict[str, list[Modality]] = {}
        for window in windows_of(clip, size * operator.window_step()):
            before = _digest(window)
            for name, maps in started.add(window).items():
                found.setdefault(name, []).append(maps)
            assert _digest(window) == before, "add() changed the window passed to it"
        rest = started.result()
        assert type(rest) is operator.result_type(), f"declared {operator.result_type()}, returned {type(rest)}"
        for name, value in whole._asdict().items():
            last = getattr(rest, name)
            blocks = [*found.get(name, []), *([last] if isinstance(last, Modality) else [])]
            same = _equal(type(value).joined(blocks), value) if blocks else _equal(last, value)
            assert same, f"{name} of windows of {size * operator.window_step()} frames is not that of the whole clip"
            if blocks and type(value).is_streamable():
                file, stored = io.BytesIO(), value.encode(clip.fps)
                payload = type(value).encode_blocks(blocks, clip.fps, file)
                assert file.getvalue() == stored.data, f"{name}: stored windows are not the stored map of the clip"
                assert payload.constants == stored.constants, f"{name}: constants of windows are not those of the clip"


def windows_of(clip: DecodedClip, count: int) -> Iterator[DecodedClip]:
    """A clip in windows of `count` new frames, each but the first behind the last frame of the one before."""
    for start in range(0, len(clip.frames), count):
        first, stop = max(0, start - 1), min(start + count, len(clip.frames))
        yield DecodedClip(
            clip.clip,
            clip.frames[first:stop].copy(),
            clip.times_s[first:stop].copy(),
            clip.vectors[first:stop] if clip.vectors is not None else None,
            {name: maps.take(first, stop) for name, maps in clip.maps.items()},
            first_frame=first,
            overlap_frames=start - first,
        )


def _as_stored(maps: Modality, fps: float) -> Modality:
    payload = maps.encode(fps)
    return type(maps).decode(payload.data, payload.constants)


def samples_are_indices(operator: Operator, times_s: np.ndarray) -> None:
    """`sample` returns increasing indices of existing frames, at least one."""
    indices = operator.sample(times_s) if isinstance(operator, Filter) else np.array([0])
    assert indices.dtype == np.int64 and indices.ndim == 1 and len(indices), f"sample() returned {indices!r}"
    assert (np.diff(indices) > 0).all(), "sample() is not strictly increasing"
    assert indices[0] >= 0 and indices[-1] < len(times_s), "sample() returned indices of frames that do not exist"


def docstring_is_written(operator: type[Operator]) -> None:
    """The docstring is written by hand: `@dataclass` generates one if it is missing."""
    text = inspect.cleandoc(operator.__dict__.get("__doc__") or "")
    assert text and not text.startswith(f"{operator.__name__}("), f"{operator.__name__} has no docstring"
    assert len(text.split()) >= 8, f"the docstring of {operator.__name__} is too short: {text!r}"
    assert operator.run.__doc__, f"{operator.__name__}.run has no docstring"


def everything_is_documented(operator: type[Operator]) -> None:
    """Every option and every score has an `Annotated` text; origin and licence are set."""
    silent = [option.name for option in operator.options() if not option.doc]
    assert not silent, f"options without Annotated text: {silent}"
    for name, hint in result_hints(operator).items():
        is_map = any(isinstance(kind, type) and issubclass(kind, Modality) for kind in _kinds(strip_annotation(hint)))
        assert is_map or annotation_text(hint), f"score {name} has no Annotated text with meaning and unit"
    assert operator.origin, "origin is empty: name the paper or project that defines the method"
    assert operator.licence, "licence is empty"
    assert 0 <= operator.gpus <= 1, f"gpus must be a fraction of one GPU, got {operator.gpus}"


def operator_travels(operator: Operator) -> None:
    """Frozen, hashable, and equal after pickling, because operators are sent to workers."""
    assert ForkingPickler.loads(ForkingPickler.dumps(operator)) == operator
    assert hash(operator) == hash(dataclasses.replace(operator))
    for option in operator.options():
        try:
            setattr(operator, option.name, option.default)
        except dataclasses.FrozenInstanceError:
            continue
        raise AssertionError(f"{option.name} can be assigned: decorate the class with @dataclass(frozen=True)")


def version_is_the_same_everywhere(operator: Operator, folder: Path = ROOT) -> None:
    """The version is equal in processes with other hash seeds; otherwise every run would recompute everything."""
    code = "import pickle; print(pickle.loads(given).version())"
    versions = {_python(code, folder, pickle.dumps(operator), seed) for seed in ("1", "2")}
    assert versions == {f"{operator.version()}\n"}, f"the version differs between processes: {versions}"


def version_follows_the_options(operator: Operator) -> None:
    """Every option changes the version, if it can take another value without other files; `Execution` options never."""
    hints = get_type_hints(type(operator), include_extras=True)
    for name, value in vars(operator).items():
        is_execution = any(isinstance(extra, Execution) for extra in annotation_extras(hints[name]))
        for other in _others(next(option.type for option in operator.options() if option.name == name), value):
            try:
                version = dataclasses.replace(operator, **{name: other}).version()
            except OpenUniError:
                continue  # not allowed for this option, or needs other files; try the next
            is_same = version == operator.version()
            assert is_same == is_execution, f"{name} = {other!r}, {value!r}: the same version is {is_same}"
            break


def _others(hint: Any, value: Any) -> Iterator[Any]:
    """Candidates for another value of an option, by its type."""
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
    """Whether a value has exactly that type: a NumPy scalar is not a float. Container entries are not checked."""
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


# Runs code in forks of one interpreter with a given hash seed that has imported the base class of operators, whose
# import is most of what a new interpreter takes. It answers each line with a line: [standard output, error].
TEMPLATE = """
import contextlib, io, json, os, sys, traceback
import openuni.manifests.contracts.operator
for line in sys.stdin:
    if not os.fork():
        path, code, given = json.loads(line)
        sys.path[:0], output, error = [path], io.StringIO(), ""
        try:
            with contextlib.redirect_stdout(output):
                exec(code, {"given": bytes.fromhex(given)})
        except BaseException:
            error = traceback.format_exc()
        print(json.dumps([output.getvalue(), error]), flush=True)
        os._exit(0)
    if os.wait()[1]:
        print(json.dumps(["", "the process died"]), flush=True)
"""


@cache
def _template(seed: str) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", TEMPLATE], cwd=ROOT, env=env, **pipes)
    atexit.register(process.communicate)  # the end of its input ends it
    return process


def _python(code: str, folder: Path, given: bytes = b"", seed: str = "0") -> str:
    """Standard output of code (which finds `given`) in a new process with `folder` and the project on its path."""
    process = _template(seed)
    assert process.stdin and process.stdout
    print(json.dumps([str(folder), code, given.hex()]), file=process.stdin, flush=True)
    output, error = json.loads(process.stdout.readline())
    assert not error, error
    return str(output)
