"""The demo's results in words. Every sentence is selected by comparing measured numbers.

A sentence refers to its numbers as `{depth.estimate.abs_rel:.3f}`: a path into numbers.json and a format, so that the
report and numbers.json cannot disagree. `fill` inserts them.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from openuni.manifests.errors import OpenUniError

FALLEN_SHARE = 0.9  # a loss above this share of its first value has hardly decreased
BLURRED_SHARE = 0.5  # of the detail of real clips
NOISY_SHARE = 1.5
CLEAR_ERRORS = 2.0  # a gain is significant above this number of standard errors
BEGUN_SHARE = 0.25  # of the way from the mean map to the limit of the codec
NUMBER = re.compile(r"\{([A-Za-z0-9_.]+)(?::([^}]*))?\}")

Numbers = Mapping[str, Any]


def fill(text: str, numbers: Numbers, wrap: Callable[[str, str], str] = lambda path, printed: printed) -> str:
    """Replace every `{path:format}` in `text` by `wrap(path, formatted number)`."""

    def put(match: re.Match[str]) -> str:
        return wrap(match[1], format(look_up(numbers, match[1]), match[2] or ""))

    return NUMBER.sub(put, text)


def look_up(numbers: Numbers, path: str) -> Any:
    """The value at `path`: keys and list indices, separated by dots. Raises `OpenUniError` if it does not exist."""
    value: Any = numbers
    for key in path.split("."):
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (LookupError, TypeError, ValueError):
            raise OpenUniError(f"numbers.json has no {path}") from None
    return value


def ledger(numbers: Numbers) -> str:
    """Clip outcomes."""
    text = "Of {ledger.clips:,} clips, {ledger.ok:,} passed all rules"
    dropped = sum(drop["clips"] for drop in numbers["ledger"]["dropped"])
    failed = sum(failure["clips"] for failure in numbers["ledger"]["failed"])
    text += f", {dropped:,} were dropped by a rule and {f'{failed:,}' if failed else 'none'} failed"
    if numbers["ledger"]["pending"]:
        text += "; {ledger.pending:,} are pending"
    return f"{text}."


def flow(numbers: Numbers) -> str:
    """Whether DIS optical flow is better than zero flow."""
    dis, zero = (numbers["flow"][name]["epe_px"] for name in ("dis", "zero"))
    figures = "an end-point error of {flow.dis.epe_px:.2f} px; zero flow has {flow.zero.epe_px:.2f} px"
    if dis < zero:
        return f"DIS optical flow has {figures}. So it explains {1 - dis / zero:.0%} of the true motion."
    return f"DIS optical flow has {figures}. On these clips it is worse than assuming no motion."


def training(numbers: Numbers) -> str:
    """Whether the training loss decreased, and the validation loss."""
    record = numbers["training"]
    begin, end, held_out = (record[f"estimate_loss_{name}"] for name in ("begin", "end", "held_out"))
    text = (
        "A model with {training.parameters:,} parameters was trained for {training.steps:,} steps with batch size "
        "{training.batch_size} on {training.clips} clips. Its loss for depth estimation "
    )
    if end > FALLEN_SHARE * begin:
        text += "has hardly decreased, from {training.estimate_loss_begin:.3f} to {training.estimate_loss_end:.3f}: "
        text += "the model has learnt little."
    else:
        text += "decreased from {training.estimate_loss_begin:.3f} to {training.estimate_loss_end:.3f}."
    if held_out is not None:
        text += " On {training.held_out} held-out clips it is {training.estimate_loss_held_out:.3f}"
        text += ": the model overfits to its training clips." if held_out > 1.5 * end else "."
    return text


def tone(numbers: Numbers) -> str:
    """ "bad" if a baseline that ignores the input is at least as good, "good" for a significant gain, else ""."""
    found = numbers["depth"]
    if found["estimate"]["abs_rel"] >= min(found["constant"]["abs_rel"], found["mean_map"]["abs_rel"]):
        return "bad"
    error = found["gain"]["standard_error"]  # None for a single clip
    return "good" if error is not None and found["gain"]["abs_rel"] > CLEAR_ERRORS * error else ""


def depth(numbers: Numbers) -> str:
    """Whether the model's depth is better than baselines that ignore the input."""
    found = numbers["depth"]
    estimate, constant, mean_map, codec = (
        found[name]["abs_rel"] for name in ("estimate", "constant", "mean_map", "codec")
    )
    longer = " The full demo (without --quick) trains longer." if numbers["size"] == "quick" else ""
    score = "AbsRel {depth.estimate.abs_rel:.3f} on {depth.clips} held-out clips"
    if estimate >= constant:
        return (
            f"The model has learnt little: its depth has {score}, not better than the best constant map "
            f"({{depth.constant.abs_rel:.3f}}).{longer}"
        )
    if estimate >= mean_map:
        return (
            f"The model has learnt little beyond the average scene: its depth has {score}. That is better than the "
            "best constant map ({depth.constant.abs_rel:.3f}), but not better than the mean depth map of the training "
            f"clips ({{depth.mean_map.abs_rel:.3f}}), which ignores the input.{longer}"
        )
    better = (
        f"its depth has {score}. That is better than the best constant map ({{depth.constant.abs_rel:.3f}}) and the "
        "mean depth map of the training clips ({depth.mean_map.abs_rel:.3f}), which ignores the input. It is better "
        "than the mean map on {depth.better_than_mean_map} of the {depth.clips} clips."
    )
    if not tone(numbers):
        return f"The model may have begun to estimate depth from RGB: {better} {doubt(numbers)}"
    way = (mean_map - estimate) / (mean_map - codec) if mean_map > codec else 1.0
    begun = "has begun to estimate" if way < BEGUN_SHARE else "estimates"
    return (
        f"The model {begun} depth from RGB: {better} The gain is {way:.0%} of the way from the mean map to the limit "
        "of the codec ({depth.codec.abs_rel:.3f})."
    )


def doubt(numbers: Numbers) -> str:
    """Why the gain over the mean map is not significant."""
    if numbers["depth"]["gain"]["standard_error"] is None:
        return "One clip is too few for a conclusion."
    return (
        "The mean gain of {depth.gain.abs_rel:.3f} has a standard error of {depth.gain.standard_error:.3f}: too few "
        "clips for a conclusion."
    )


def joint(numbers: Numbers) -> str:
    """How much detail generated videos have compared with real ones."""
    share = numbers["joint"]["detail_share"]
    figure = "{joint.detail_share:.0%} of the detail of real clips after the same codec"
    if share < BLURRED_SHARE:
        return f"The generated videos have {figure}: they are blurred. Compare them with their captions by eye."
    if share > NOISY_SHARE:
        return f"The generated videos have {figure}: much of it is noise. Compare them with their captions by eye."
    return f"The generated videos have {figure}. Compare them with their captions by eye."
