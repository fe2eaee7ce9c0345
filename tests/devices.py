"""Every network on another device gives what it gives on the CPU: the cases, the tolerances, the comparison.

Cases are the `contract_case` of each annotator's and filter's test file (tiny random checkpoints), and the codecs with
weights. Nothing here needs Ray, video files or DuckDB.
"""

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openuni.manifests.contracts.modality import Modality
from openuni.manifests.contracts.operator import find_operator, operator_names
from tests.moving_pictures import panned


class Tolerance(NamedTuple):
    """How far a result may be from that of the CPU, both in float32."""

    values: float = 0.0  # of maps, vectors and latents: largest difference, over the largest magnitude
    scores: float = 0.0  # of numbers: difference over the larger of 1 and the magnitude
    pixels: float = 0.0  # of maps of labels: share that differs; with it, counts and table rows are not compared


# About ten times what an H200 showed (2.4e-6 for maps, 2e-5 for scores of CLIP, 3.9e-5 for latents).
#
# sam2 showed 2.4 % of other pixels there, with weights of standard deviation 0.3, which `tests/annotators/test_sam2.py`
# uses. Ties at the mask's threshold are not the cause: those weights make the scores of memory attention as large as
# 26,000, so that its softmax picks one key, and rounding decides which. Weights changed by a millionth there change
# logits by up to 28 % within three frames (`tests/annotators/test_sam2_rounding.py`). Here its weights are scaled by
# fan-in, as in trained networks: the same change is then 0.05 % of the logits, and at most 1 pixel in 4,000.
TOLERANCES: dict[str, Tolerance] = {
    "filters/aesthetic": Tolerance(scores=2e-4),
    "filters/clip_text": Tolerance(scores=2e-4),
    "filters/consistency": Tolerance(scores=2e-4),
    "filters/embedding": Tolerance(values=2e-4, scores=2e-4),
    "annotators/caption": Tolerance(),  # texts, by greedy decoding
    "annotators/densepose": Tolerance(values=1e-5, scores=1e-5, pixels=1e-3),
    "annotators/depth_anything": Tolerance(values=3e-5, scores=1e-4),
    "annotators/depth_pro": Tolerance(values=1e-4, scores=1e-4),
    "annotators/dwpose": Tolerance(values=1e-4, scores=1e-4),
    "annotators/marigold_intrinsics": Tolerance(values=1e-4, scores=1e-4),
    "annotators/marigold_normals": Tolerance(values=1e-4, scores=1e-4),
    "annotators/matting": Tolerance(values=3e-5, scores=1e-4, pixels=1e-3),
    "annotators/raft": Tolerance(values=3e-5, scores=1e-4),
    "annotators/sam": Tolerance(scores=1e-3, pixels=1e-3),
    "annotators/sam2": Tolerance(scores=1e-2, pixels=2e-3),
    "annotators/sam3": Tolerance(scores=1e-2, pixels=2e-3),
    "annotators/sapiens2_normals": Tolerance(values=1e-4, scores=1e-4),
    "annotators/sapiens2_parts": Tolerance(values=1e-4, scores=1e-3, pixels=1e-3),
    "annotators/sapiens2_pose": Tolerance(values=1e-3, scores=1e-3),
    "annotators/video_depth": Tolerance(values=3e-5, scores=1e-4),
    "codecs/umt5": Tolerance(values=1e-5),
    "codecs/wan_vae": Tolerance(values=2e-4),  # latents, and the decoded video
}
# run in environments of their own, with packages that the tests stand in for
ELSEWHERE = {"annotators/depth_anything_3", "annotators/matanyone2"}
MOVING = panned([(0, 0), (2, 1), (4, 2), (6, 3)], 48, 64)


class DeviceCase(NamedTuple):
    """Something with a network: how it is loaded, and what it gives."""

    load: Callable[[str], Any]  # device -> model
    run: Callable[[Any], Any]  # model -> result


def case_names() -> list[str]:
    """All operators with a network and the codecs with weights: "annotators/raft", "codecs/wan_vae"."""
    operators = [
        f"{kind}s/{name}"
        for kind in ("filter", "annotator")
        for name in operator_names(kind)
        if find_operator(kind, name).gpus and f"{kind}s/{name}" not in ELSEWHERE
    ]
    return [*operators, "codecs/umt5", "codecs/wan_vae"]


def make_case(name: str, folder: Path) -> DeviceCase:
    """The case of that name; its checkpoint is written to `folder`."""
    place, _, component = name.partition("/")
    if place == "codecs":
        return {"umt5": _umt5, "wan_vae": _wan_vae}[component](folder)
    operator, clip = importlib.import_module(f"tests.{place}.test_{component}").contract_case(folder, MOVING)
    if component == "sam2":
        from tests.annotators.test_sam2_rounding import well_conditioned

        well_conditioned(Path(operator.checkpoint))
    return DeviceCase(operator.load, lambda model: operator.run(model, clip))


def differences(name: str, expected: Any, found: Any) -> list[str]:
    """What of a result is further from the expected one than the tolerance of that case; empty: nothing."""
    return list(_differences(expected, found, TOLERANCES[name], ""))


def _differences(expected: Any, found: Any, allowed: Tolerance, where: str) -> Iterator[str]:
    if type(expected) is not type(found):
        yield f"{where}: {type(found).__name__} instead of {type(expected).__name__}"
    elif isinstance(expected, np.ndarray):
        yield from _of_arrays(expected, found, allowed, where)
    elif isinstance(expected, Modality | list | tuple):
        yield from _of_parts(_parts(expected), _parts(found), allowed, where)
    elif isinstance(expected, float):
        if not abs(expected - found) <= allowed.scores * max(1.0, abs(expected)):
            yield f"{where}: {found} instead of {expected}"
    elif expected != found and not (allowed.pixels and isinstance(expected, int)):
        yield f"{where}: {found!r} instead of {expected!r}"


def _parts(result: Any) -> dict[Any, Any]:
    """The fields of a map or named tuple, the entries of a list."""
    if isinstance(result, Modality):
        return vars(result)
    return result._asdict() if hasattr(result, "_asdict") else dict(enumerate(result))


def _of_parts(expected: dict[Any, Any], found: dict[Any, Any], allowed: Tolerance, where: str) -> Iterator[str]:
    is_table = any(isinstance(key, int) and hasattr(one, "_asdict") for key, one in (expected | found).items())
    if is_table and allowed.pixels:
        return  # rows of instances, whose pixels are compared
    if len(expected) != len(found):
        yield f"{where}: {len(found)} entries instead of {len(expected)}"
    for key in expected.keys() & found.keys():
        yield from _differences(expected[key], found[key], allowed, f"{where}.{key}")


def _of_arrays(expected: np.ndarray, found: np.ndarray, allowed: Tolerance, where: str) -> Iterator[str]:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        yield f"{where}: {found.dtype} {found.shape} instead of {expected.dtype} {expected.shape}"
    elif expected.dtype.kind in "ub":
        share = float(np.mean(expected != found))
        if share > allowed.pixels:
            yield f"{where}: {share:.2%} of the pixels differ, allowed {allowed.pixels:.2%}"
    elif not np.array_equal(np.isnan(expected), np.isnan(found)):
        yield f"{where}: NaN in other places"
    else:
        scale = float(np.nanmax(np.abs(expected), initial=0.0)) or 1.0
        distance = float(np.nanmax(np.abs(expected - found), initial=0.0)) / scale
        if not distance <= allowed.values:
            yield f"{where}: {distance:.1e} of the largest magnitude, allowed {allowed.values:.1e}"


def numbers(result: Any) -> Iterator[np.ndarray]:
    """The arrays of a result, to change them in place."""
    if isinstance(result, Modality):
        yield result.array
    elif isinstance(result, np.ndarray):
        yield result
    elif isinstance(result, list | tuple):
        for one in result:
            yield from numbers(one)


def same(one: Any, other: Any) -> bool:
    """Whether two results are equal to the bit."""
    return not list(_differences(one, other, Tolerance(), ""))


def _umt5(folder: Path) -> DeviceCase:
    from openuni.training.codecs.umt5 import Umt5
    from tests.train.tiny_codecs import tiny_umt5

    codec = Umt5(checkpoint=tiny_umt5(folder), dtype="float32")
    return DeviceCase(codec.load, lambda model: [codec.encode(model, text) for text in ("a red ball rolls", "")])


def _wan_vae(folder: Path) -> DeviceCase:
    from openuni.training.codecs.wan_vae import WanVae
    from tests.train.tiny_codecs import tiny_vae

    codec = WanVae(checkpoint=tiny_vae(folder), tf32=False, batch_videos=2)
    frames = panned([(2 * step, step) for step in range(9)], 32, 48).astype(np.float32) / 255

    def run(model: Any) -> list[np.ndarray]:
        latents = codec.encode_batch(model, [frames, frames[::-1]])
        return [*latents, codec.decode(model, latents[0])]

    return DeviceCase(codec.load, run)
