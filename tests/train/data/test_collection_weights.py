"""Sampling weights of collections, through recipes and the command line."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.training.data.curriculum import Curriculum, curriculum_stages
from openuni.training.data.index import Index, open_index
from openuni.training.recipe import TrainingRecipe
from tests.command_line import cli
from tests.train.corpora import random_clips, write_corpus

MODALITIES = ("rgb", "depth")
FIXED = {"text_length": 0, "validation_share": 0.0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Ten clips of kinetics, three of synthetic, two without a collection; one of "rgb only" cannot be used."""
    clips = random_clips(16)
    for number, clip in enumerate(clips):
        clip["collection"] = "kinetics" if number < 10 else "synthetic" if number < 13 else None
    clips[15]["collection"] = "rgb only"
    del clips[15]["latents"]["depth"]
    return write_corpus(tmp_path_factory.mktemp("corpus"), clips)


@pytest.fixture(scope="module")
def index(corpus: Corpus) -> Index:
    return open_index(corpus, MODALITIES, "", "", 0.0)


def drawn(index: Index, curriculum: list[dict[str, Any]] | None = None, **data: Any) -> list[Counter[str]]:
    """Samples by collection of 16 steps of eight samples."""
    recipe = TrainingRecipe.from_dict({"data": FIXED | data, "curriculum": curriculum or []})
    plan = Curriculum.build(index, curriculum_stages(recipe, MODALITIES), 0, 8)
    return [Counter(index.collections[index.collection[one.clip]] for one in plan.step(step)) for step in range(16)]


def test_each_step_has_the_shares_of_the_weights(index: Index) -> None:
    steps = drawn(index, collection_weights={"kinetics": 1, "synthetic": 2, "rgb only": 0})  # 1 without a collection
    assert all(step == {"kinetics": 2, "synthetic": 4, "": 2} for step in steps)
    steps = drawn(index, collections=["kinetics", "synthetic"], collection_weights={"synthetic": 3, "kinetics": 1})
    assert sum(steps, Counter())["rgb only"] == 0


def test_balanced_is_equal_weights_and_none_is_in_proportion(index: Index) -> None:
    assert drawn(index, balanced_collections=True)[3] == drawn(index, collection_weights={"kinetics": 1})[3]
    total = sum(drawn(index, balanced_collections=True), Counter())
    assert max(total.values()) - min(total.values()) <= 1 and len(total) == 3
    total = sum(drawn(index), Counter())
    assert total["kinetics"] == pytest.approx(128 * 10 / 15, abs=10)
    total = sum(drawn(index, collection_weights={"kinetics": 0.0}), Counter())
    assert total["kinetics"] == 0 and total["synthetic"] == total[""] == 64


def test_a_stage_has_weights_of_its_own(index: Index) -> None:
    stage = {"from_step": 8, "tasks": {"joint": 1.0}, "collection_weights": {"kinetics": 0, "synthetic": 3}}
    steps = drawn(index, [stage], balanced_collections=True)
    assert all({*step} == {"kinetics", "synthetic", ""} for step in steps[:8])
    assert all(step == {"synthetic": 6, "": 2} for step in steps[8:])
    steps = drawn(index, [{"from_step": 8, "tasks": {"joint": 1.0}}], collection_weights={"kinetics": 0})
    assert any(step["kinetics"] for step in steps[8:])  # nothing is inherited


def test_the_order_of_a_table_and_of_equal_decimals_has_no_effect(index: Index) -> None:
    assert drawn(index, collection_weights={"kinetics": 0.1, "synthetic": 0.2, "rgb only": 0}) == drawn(
        index, collection_weights={"rgb only": 0, "synthetic": 2e-1, "kinetics": 1e-1}
    )


def test_weights_that_are_absent_leave_records_as_they_were() -> None:
    tables = TrainingRecipe.from_dict({}).to_dict()["data"]
    assert "collection_weights" not in tables and "balanced_collections" not in tables
    given = TrainingRecipe.from_dict({"data": {"collection_weights": {"kinetics": 2}}}).to_dict()
    assert given["data"]["collection_weights"] == {"kinetics": 2}
    assert TrainingRecipe.from_dict(given).to_dict() == given


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"collection_weights": {"kinetic": 1}}, r'"kinetic" is not among.*Did you mean "kinetics"\?'),
        ({"collection_weights": {"kinetic": 1}}, r"Allowed: kinetics, rgb only, synthetic"),
        ({"collections": ["kinetics"], "collection_weights": {"synthetic": 1}}, r'"synthetic" is not.*Allowed: kinet'),
        ({"collections": ["kinetics"], "collection_weights": {"kinetics": 0}}, r"every collection has weight 0"),
        ({"collection_weights": {"rgb only": 2}}, r"no training clip of collection rgb only has the modalities"),
        ({"collection_weights": {"kinetics": -1}}, r"collection_weights = \{'kinetics': -1.*Allowed.*at least 0"),
        ({"collection_weights": {"kinetics": float("nan")}}, r"collection_weights.*nan.*Allowed: at least 0"),
        ({"collection_weights": {"kinetics": "2"}}, r"collection_weights.*table of numbers"),
    ],
)
def test_mistakes_in_weights_are_named(index: Index, data: dict[str, Any], message: str) -> None:
    with pytest.raises(OpenUniError, match=message):
        drawn(index, **data)


def test_unknown_collections_are_errors_of_the_command_line(corpus: Corpus, tmp_path: Path) -> None:
    base = ("train", "unityvideo_debug", "--corpus", corpus.store.local(""), "--out", tmp_path / "run")
    for setting, words in [
        ("data.collection_weights={kinetcs=1}", 'collection "kinetcs" is not among those trained on. Did you mean'),
        ("data.collection_weights={kinetics=-1}", "at least 0"),
        ("data.balanced_collections=3", "true or false"),
    ]:
        done = cli(*base, "--set", setting)
        assert done.returncode == 2 and words in done.stderr, done
    assert not (tmp_path / "run").exists()
