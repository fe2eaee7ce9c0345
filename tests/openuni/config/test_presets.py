"""What the presets take over from published pipelines."""

import pytest

from openuni.config.recipe import CorpusRecipe
from openuni.config.template import RECIPES_DIR
from openuni.manifests.corpus.outcomes import kept_clip_ids
from openuni.report.doctor import run_checks
from openuni.training.recipe import TrainingRecipe
from tests.bare_corpora import bare_corpus


def preset(name: str) -> CorpusRecipe:
    return CorpusRecipe.load(RECIPES_DIR / f"{name}.toml")


@pytest.mark.parametrize(
    ("name", "max_s", "split", "min_s"), [("videox_fun", 10.0, "windows", 3.0), ("open_sora", 15.0, "first", 2.0)]
)
def test_what_becomes_of_long_shots(name, max_s, split, min_s):
    ingest = preset(name).ingest
    assert (ingest.max_s, ingest.split, ingest.min_s) == (max_s, split, min_s)


def test_the_size_that_videox_fun_asks_for_is_an_area(tmp_path):
    sizes = {"wide": (1024, 256), "square": (512, 512), "small": (511, 512), "thin": (4096, 60)}
    clips = [{"clip_id": name, "width_px": width, "height_px": height} for name, (width, height) in sizes.items()]
    rule = preset("videox_fun").keep.partition(" and ")[0]
    assert kept_clip_ids(bare_corpus(tmp_path / "corpus", clips), rule).to_pylist() == ["wide", "square"]


def test_the_preset_openuni_makes_all_that_its_model_trains_on():
    recipe = preset("openuni")
    assert set(recipe.encode.modalities) == set(TrainingRecipe.load("unityvideo_wan_1_3b").model["modalities"])
    results = run_checks(recipe)
    assert not [result for result in results if "not needed if the corpus already contains it" in result.text]
    looked_for = {result.what for result in results if result.level in ("ok", "unavailable")}
    assert looked_for >= {*recipe.annotators, "aesthetic", "wan_vae", "umt5"}
    assert all("openuni checkpoints get " in result.text for result in results if result.level == "unavailable")
    (licence,) = [result for result in results if result.level == "missing"]
    assert licence.what == "densepose" and "accept = [" in licence.text
