"""Bounds of options: said once, checked whenever a component is made, and told to users."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Interval, Le, Lt, MinLen, MultipleOf

from openuni.manifests.contracts.component import Component
from openuni.manifests.contracts.options import UNIT_INTERVAL, bounds_of, bounds_text
from openuni.manifests.contracts.parsing import parse_options
from openuni.manifests.errors import OpenUniError


@dataclass(frozen=True)
class Inner:
    """Options of their own."""


@dataclass(frozen=True)
class Everything(Component):
    """One option of each kind."""

    count: Annotated[int, "things", Ge(1)] = 1
    rate_per_s: Annotated[float, "how often", Gt(0)] = 1.0
    share: Annotated[float, "part", UNIT_INTERVAL] = 0.0
    angle_deg: Annotated[float, "corner", Interval(gt=0, lt=180)] = 90.0
    side_px: Annotated[int, "side", Ge(14), MultipleOf(14)] = 14
    most: Annotated[int | None, "or no limit", Le(3)] = None
    scales: Annotated[tuple[float, ...], "sizes", MinLen(1), Interval(gt=0, le=4)] = (1.0,)
    free: Annotated[float, "any"] = 0.0
    how: Annotated[Literal["fast", "good"], "way"] = "fast"
    text: Annotated[str, "any"] = ""
    weights: Annotated[dict[str, float], "of each", Ge(0)] = field(default_factory=dict)
    flag: Annotated[bool, "whether"] = False
    inner: Inner = Inner()


GOOD = [
    *({"count": 10**400}, {"rate_per_s": 1e-9}, {"share": 0}, {"share": 1.0}, {"angle_deg": 179.9}, {"side_px": 28}),
    *({"weights": {"a": 0, "b": 1.5}}, {"flag": True}),
    *({"most": 3}, {"scales": (4.0, 0.1)}, {"free": -1e30}, {"how": "good"}, {"text": "-1"}),
]
BAD = [
    ({"count": 0}, "count = 0. Allowed: at least 1."),
    ({"rate_per_s": 0.0}, "rate_per_s = 0.0. Allowed: above 0."),
    ({"rate_per_s": math.nan}, "rate_per_s = nan. Allowed: above 0."),
    ({"rate_per_s": math.inf}, "rate_per_s = inf. Allowed: above 0."),
    ({"share": -0.01}, "share = -0.01. Allowed: 0 to 1."),
    ({"share": 1.01}, "share = 1.01. Allowed: 0 to 1."),
    ({"angle_deg": 180.0}, "angle_deg = 180.0. Allowed: above 0, below 180."),
    ({"side_px": 0}, "side_px = 0. Allowed: at least 14, multiples of 14."),
    ({"side_px": 20}, "side_px = 20. Allowed: at least 14, multiples of 14."),
    ({"most": 4}, "most = 4. Allowed: at most 3."),
    ({"scales": ()}, "scales = []. Allowed: above 0, at most 4, at least 1 entry."),
    ({"scales": (1.0, 5.0)}, "scales = [1.0, 5.0]. Allowed: above 0, at most 4, at least 1 entry."),
    ({"free": math.nan}, "free = nan. Allowed: finite numbers."),
    ({"count": "1"}, 'count = "1". Allowed: integer, at least 1 (things).'),
    ({"count": True}, "count = True. Allowed: integer, at least 1 (things)."),
    ({"count": 1.5}, "count = 1.5. Allowed: integer, at least 1 (things)."),
    ({"rate_per_s": None}, "rate_per_s = None. Allowed: number, above 0 (how often)."),
    ({"most": "3"}, 'most = "3". Allowed: integer or none, at most 3 (or no limit).'),
    (
        {"scales": (1.0, "2")},
        "scales = [1.0, '2']. Allowed: list of numbers, above 0, at most 4, at least 1 entry (sizes).",
    ),
    ({"text": 1}, "text = 1. Allowed: string (any)."),
    ({"flag": 1}, "flag = 1. Allowed: true or false (whether)."),
    ({"weights": {"a": math.nan}}, "weights = {'a': nan}. Allowed: at least 0."),
    ({"weights": {"a": -1.0}}, "weights = {'a': -1.0}. Allowed: at least 0."),
    ({"weights": {"a": "1"}}, "weights = {'a': '1'}. Allowed: table of numbers, at least 0 (of each)."),
    ({"how": "best"}, 'how = "best". Allowed: fast, good.'),
    ({"how": "goood"}, 'how = "goood". Did you mean "good"? Allowed: fast, good.'),
]


@pytest.mark.parametrize("options", GOOD)
def test_what_is_allowed_passes(options: dict[str, Any]) -> None:
    assert Everything(**options) != Everything() or options in ({"share": 0},)


@pytest.mark.parametrize("options", [options for options in GOOD if "count" not in options])
def test_a_table_gives_what_python_gives(options: dict[str, Any]) -> None:
    table = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    assert parse_options(Everything, table, "table") == Everything(**options)


@pytest.mark.parametrize(("options", "said"), BAD)
def test_a_table_is_refused_in_the_same_words(options: dict[str, Any], said: str) -> None:
    table = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    with pytest.raises(OpenUniError) as refused:
        parse_options(Everything, table, "table")
    assert str(refused.value) == f"table: {said}"


@pytest.mark.parametrize(("options", "said"), BAD)
def test_what_is_not_is_refused_by_name(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OpenUniError) as refused:
        Everything(**options)
    assert str(refused.value) == f"{Everything.name()}: {said}"


def test_bounds_are_part_of_what_users_read() -> None:
    docs = {option.name: option.doc for option in Everything.options()}
    assert docs["count"] == "things (at least 1)"
    assert docs["share"] == "part (0 to 1)"
    assert docs["text"] == "any"


def test_a_bound_that_nobody_checks_is_an_error() -> None:
    @dataclass(frozen=True)
    class Odd(Component):
        count: Annotated[int, "things", MinLen(1)] = 1

    with pytest.raises(TypeError, match="min_length"):
        Odd()


def test_lower_and_upper_bounds_may_stand_apart() -> None:
    assert bounds_text(bounds_of(Annotated[int, "x", Ge(2), Lt(5)])) == "at least 2, below 5"
    assert bounds_text(bounds_of(Annotated[int, "x", Ge(2), Le(5)])) == "2 to 5"
    assert bounds_text(bounds_of(Annotated[int, "x"])) == bounds_text(bounds_of(int)) == ""
