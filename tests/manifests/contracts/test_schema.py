"""The return type is the schema."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from openuni.manifests.contracts import schema
from openuni.manifests.contracts.component import Component
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.discovery import find_component
from openuni.manifests.contracts.operator import Annotator, find_operator, sample_evenly
from openuni.manifests.errors import OpenUniError
from openuni.manifests.modalities.depth import Depth
from openuni.shots.shot_detector import ShotDetector

ROOT = Path(__file__).parents[3]
FOLDERS = {
    "filters": "filters",
    "modalities": "manifests/modalities",
    "codecs": "train/codecs",
    "shots": "openuni/shots/detectors",
}


class Inner(NamedTuple):
    """Nested scores."""

    low: float
    high: float


class Made(NamedTuple):
    """All that a result may hold."""

    depth: Depth | None
    share: Annotated[float, "a share, 0 to 1"]
    count: Annotated[int | None, "how many"]
    name: str
    flag: bool
    series: list[float]
    inner: Inner


@dataclass(frozen=True)
class Maker(Annotator):
    """Makes one of each."""

    def run(self, model: Any, clip: DecodedClip) -> Made:
        """Not called here."""
        raise NotImplementedError


class Wrong(NamedTuple):
    """A result that cannot be stored."""

    things: dict


@dataclass(frozen=True)
class WrongMaker(Annotator):
    """Returns what no column holds."""

    def run(self, model: Any, clip: DecodedClip) -> Wrong:
        """Not called here."""
        raise NotImplementedError


class Taken(NamedTuple):
    """A result with a reserved name."""

    status: str


@dataclass(frozen=True)
class TakenMaker(Annotator):
    """Returns a field that every row has already."""

    def run(self, model: Any, clip: DecodedClip) -> Taken:
        """Not called here."""
        raise NotImplementedError


def test_columns_follow_the_result_type():
    made = schema.producer_schema(Maker).field(Maker.name()).type
    assert [field.name for field in made] == [
        *("status", "error", "version", "ms"),
        *("depth", "share", "count", "name", "flag", "series", "inner"),
    ]
    assert made.field("series").type == pa.list_(pa.float64())
    assert made.field("inner").type == pa.struct([("low", pa.float64()), ("high", pa.float64())])
    depth = made.field("depth").type
    assert {"shard", "offset", "nbytes", "xxh3", "pts_hash", "unit", "lo", "hi"} <= {field.name for field in depth}
    assert list(schema.modality_fields(Maker)) == ["depth"]
    assert [column.doc for column in schema.columns(Maker)][1] == "a share, 0 to 1"


def test_what_no_column_holds_is_refused():
    with pytest.raises(OpenUniError, match=r"things: results of type <class 'dict'> cannot be stored. Allowed: float"):
        schema.producer_schema(WrongMaker)
    with pytest.raises(OpenUniError, match='result field "status" is a reserved name'):
        schema.producer_schema(TakenMaker)


def test_values_become_plain():
    given = Inner(np.float32(0.5), np.int64(3))
    assert schema.plain({"x": 1}) == {"x": 1}
    assert schema.plain(given) == {"low": 0.5, "high": 3}
    assert schema.plain([np.array([1, 2]), (np.bool_(True),)]) == [[1, 2], [True]]


def test_versions_follow_name_options_and_revision():
    @dataclass(frozen=True)
    class Part(Component):
        """A part."""

        size: int = 1

    base = Part().version()
    assert Part().version() == base and Part(2).version() != base

    class Newer(Part):
        """The same, revised."""

        revision = 2

    assert Newer().version() != base


def test_unknown_components_are_explained():
    with pytest.raises(
        OpenUniError, match=r'"motoin" is not known. Did you mean "motion"\? .* create filters/motoin.py'
    ):
        find_operator("filter", "motoin")
    for kind, folder in FOLDERS.items():
        with pytest.raises(OpenUniError, match=f"create {folder}/no_such.py"):
            find_component(kind, Component, "no_such")
        assert (ROOT / folder).is_dir()
    with pytest.raises(OpenUniError, match=r'^shot detector "no_such" is not known'):
        find_component("shots", ShotDetector, "no_such")
    with pytest.raises(OpenUniError, match=r"no module named no_such\. Install its package"):
        find_operator("annotator", "no_such.lab", imports=True)
    with pytest.raises(OpenUniError, match=r"not a reason to import code"):
        find_operator("annotator", "no_such.lab")
    with pytest.raises(OpenUniError, match="defines no Annotator"):
        find_operator("annotator", "json.decoder")
    assert find_component("filters", Component, "motion").name() == "motion"


def test_even_samples_follow_time_not_index():
    times = np.array([0.0, 0.1, 0.2, 1.0, 1.05, 2.0])  # variable frame rate
    assert sample_evenly(times, per_s=1.0).tolist() == [0, 3, 5]
    assert sample_evenly(np.array([0.0]), per_s=2.0).tolist() == [0]
