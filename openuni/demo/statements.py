"""What the demo's numbers say, in words. Every sentence is chosen by comparing numbers; none is a promise.

A sentence names its numbers as `{depth.estimate.abs_rel:.3f}`: a path into the numbers and how to print it, so that
the page and numbers.json cannot disagree. `fill` puts them in.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from openuni.manifests.errors import OpenUniError

FALLEN_SHARE = 0.9  # a loss that is still above this share of its first value has hardly fallen
BLURRED_SHARE = 0.5  # of the detail of real pictures
NOISY_SHARE = 1.5
CLEAR_ERRORS = 2.0  # standard errors that a gain must exceed to be called one
BEGUN_SHARE = 0.25  # of the way to what the codec allows
NUMBER = re.compile(r"\{([A-Za-z0-9_.]+)(?::([^}]*))?\}")

Numbers = Mapping[str, Any]


def fill(text: str, numbers: Numbers, wrap: Callable[[str, str], str] = lambda path, printed: printed) -> str:
    """`text` with every `{path:format}` replaced by `wrap(path, printed number)`."""

    def put(match: re.Match[str]) -> str:
        return wrap(match[1], format(look_up(numbers, match[1]), match[2] or ""))

    return NUMBER.sub(put, text)


def look_up(numbers: Numbers, path: str) -> Any:
    """The value at `path`: keys, and places in lists, with dots between; raises `OpenUniError` when there is none."""
    value: Any = numbers
    for key in path.split("."):
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (LookupError, TypeError, ValueError):
            raise OpenUniError(f"the demo's numbers have no {path}") from None
    return value


def ledger(numbers: Numbers) -> str:
    """What became of the clips."""
    text = "Of {ledger.clips:,} clips the pipeline kept {ledger.ok:,}"
    dropped = sum(drop["clips"] for drop in numbers["ledger"]["dropped"])
    failed = sum(failure["clips"] for failure in numbers["ledger"]["failed"])
    text += f", dropped {dropped:,} by rule"
    text += f" and lost {failed:,} to errors" if failed else ", and lost none to errors"
    if numbers["ledger"]["pending"]:
        text += "; {ledger.pending:,} are not done yet"
    return f"{text}."


def flow(numbers: Numbers) -> str:
    """Whether DIS flow is better than no flow."""
    dis, zero = (numbers["flow"][name]["epe_px"] for name in ("dis", "zero"))
    figures = "{flow.dis.epe_px:.2f} px, against {flow.zero.epe_px:.2f} px for a flow that is zero everywhere"
    if dis < zero:
        return f"DIS flow is off by {figures}: it explains {1 - dis / zero:.0%} of the true motion."
    return f"DIS flow is off by {figures}: on these clips it is worse than saying that nothing moves."


def training(numbers: Numbers) -> str:
    """Whether the loss fell, and what it is on clips the model never saw."""
    record = numbers["training"]
    begin, end, held_out = (record[f"estimate_loss_{name}"] for name in ("begin", "end", "held_out"))
    text = (
        "A model of {training.parameters:,} parameters was trained for {training.steps:,} steps of "
        "{training.batch_size} samples on {training.clips} clips. Its loss for depth "
    )
    if end > FALLEN_SHARE * begin:
        text += "has hardly fallen, from {training.estimate_loss_begin:.3f} to {training.estimate_loss_end:.3f}: "
        text += "it has learnt little."
    else:
        text += "fell from {training.estimate_loss_begin:.3f} to {training.estimate_loss_end:.3f}."
    if held_out is not None:
        text += " On clips that it never saw ({training.held_out}) it is {training.estimate_loss_held_out:.3f}"
        text += ", so much of what it learnt holds for its own clips only." if held_out > 1.5 * end else "."
    return text


def tone(numbers: Numbers) -> str:
    """ "bad" when the estimate loses to a map that never looks at the picture, "good" when it clearly wins, else ""."""
    found = numbers["depth"]
    if found["estimate"]["abs_rel"] >= min(found["constant"]["abs_rel"], found["mean_map"]["abs_rel"]):
        return "bad"
    error = found["gain"]["standard_error"]  # none with one clip
    return "good" if error is not None and found["gain"]["abs_rel"] > CLEAR_ERRORS * error else ""


def depth(numbers: Numbers) -> str:
    """Whether the model's depth beats maps that never look at the picture."""
    found = numbers["depth"]
    estimate, constant, mean_map, codec = (
        found[name]["abs_rel"] for name in ("estimate", "constant", "mean_map", "codec")
    )
    score = "AbsRel {depth.estimate.abs_rel:.3f} on held-out clips ({depth.clips} of them)"
    if estimate >= constant:
        return (
            f"The model has learnt little: its depth has {score}, worse than the best constant map "
            "({depth.constant.abs_rel:.3f}), which has no shape at all."
        )
    if estimate >= mean_map:
        return (
            f"The model has learnt little beyond the average room: its depth has {score}. That is better than the best "
            "constant map ({depth.constant.abs_rel:.3f}), but not better than the mean map of the training clips "
            "({depth.mean_map.abs_rel:.3f}), which never looks at the picture."
        )
    better = (
        f"its depth has {score}, better than the best constant map ({{depth.constant.abs_rel:.3f}}) and than the mean "
        "map of the training clips ({depth.mean_map.abs_rel:.3f}), which never looks at the picture; it beats that map "
        "on {depth.better_than_mean_map} of the {depth.clips} clips."
    )
    if not tone(numbers):
        return f"The model may have begun to read depth from the picture: {better} {doubt(numbers)}"
    way = (mean_map - estimate) / (mean_map - codec) if mean_map > codec else 1.0
    begun = "has begun to read" if way < BEGUN_SHARE else "reads"
    return (
        f"The model {begun} depth from the picture: {better} That is {way:.0%} of the way from the mean map to what "
        "the codec allows ({depth.codec.abs_rel:.3f})."
    )


def doubt(numbers: Numbers) -> str:
    """Why the gain over the mean map is not certain."""
    if numbers["depth"]["gain"]["standard_error"] is None:
        return "One clip is too few to be sure."
    return (
        "The mean gain of {depth.gain.abs_rel:.3f} has a standard error of {depth.gain.standard_error:.3f}: the clips "
        "are too few to be sure."
    )


def joint(numbers: Numbers) -> str:
    """How the generated pictures compare with real ones in sharpness."""
    share = numbers["joint"]["detail_share"]
    figure = "{joint.detail_share:.0%} of the detail of real clips seen through the same codec"
    if share < BLURRED_SHARE:
        return f"The generated pictures have {figure}: they are blurred. Judge by eye what they show of their captions."
    if share > NOISY_SHARE:
        return f"The generated pictures have {figure}: much of it is noise. Judge by eye what they show."
    return f"The generated pictures have {figure}. Judge by eye what they show of their captions."
