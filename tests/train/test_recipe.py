"""Recipes: strict, by name or path, and those that ship are sound."""

import re
from pathlib import Path

import pytest

from openuni.manifests.contracts.discovery import find_component
from openuni.manifests.errors import OpenUniError
from openuni.training.data.curriculum import curriculum_stages
from openuni.training.model import Model
from openuni.training.options import build
from openuni.training.recipe import TrainingRecipe, recipe_names
from openuni.training.tasks import expand


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_defaults_are_the_released_settings(tmp_path: Path) -> None:
    recipe = TrainingRecipe.load(write(tmp_path, '[model]\nname = "unityvideo"\n'))
    assert recipe.tasks == {"joint": 0.5, "estimate": 0.25, "control": 0.25}
    assert (recipe.flow.shift, recipe.optimizer.clip_norm, recipe.optimizer.warmup_steps) == (5.0, 1.5, 200)
    assert TrainingRecipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed = 1", 'key "sed" is not known. Did you mean "seed"'),
        ("[optimizer]\nlearning_rat = 1", 'optimizer: key "learning_rat" is not known. Did you mean "learning_rate"'),
        ("[optimizer]\nsteps = 1.5", "optimizer: steps must be int, got 1.5"),
        ("[optimizer]\nsteps = true", "must be int, got True"),
        ("[optimizer]\nsteps = 0", "recipe: optimizer: steps = 0. Allowed: 1 and more"),
        ("[optimizer]\nclip_norm = 0", "optimizer: clip_norm = 0.0. Allowed: above 0"),
        ("[optimizer]\nlearning_rate = nan", "optimizer: learning_rate = nan. Allowed: 0 and more"),
        ("[flow]\nshift = -1", "flow: shift = -1.0. Allowed: above 0"),
        ("[ema]\ndecay = 1", "ema: decay = 1.0. Allowed: from 0, below 1"),
        ("[validation]\nclips = 0", "validation: clips = 0. Allowed: 1 and more"),
        ("[checkpoints]\nkeep = 0", "checkpoints: keep = 0. Allowed: 1 and more"),
        ("[text]\nlength = 1", "text: length = 1. Allowed: 2 and more"),
        ("[text]\nbrief_tokens = [-1, 4]", "text: brief_tokens = [-1, 4]. Allowed: 0 and more"),
        ("[optimizer]\nbatch_size = 4\naccumulate = 3", "multiple"),
        ('[flow]\ndensity = "normal"', "'logit_normal' or 'uniform', got 'normal'"),
        ("[model]\nlayers = 1", "needs a name"),
        ("[optimizer]\nclip_norm = 1" + 400 * "0", "optimizer: clip_norm has more digits than a number can have"),
        ("flow = 1", "must be a table"),
        ("a = ", "not valid TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(OpenUniError, match=re.escape(message)):
        TrainingRecipe.load(write(tmp_path, text))


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(OpenUniError, match='Did you mean "unityvideo_demo"'):
        TrainingRecipe.load("unityvideo_demos")
    (tmp_path / "latin.toml").write_bytes(b'start_from = "\xfc"')
    with pytest.raises(OpenUniError, match=r"latin\.toml is not valid TOML: 'utf-8' codec"):
        TrainingRecipe.load(tmp_path / "latin.toml")
    with pytest.raises(OpenUniError, match="no recipe at"):
        TrainingRecipe.load("nowhere.toml")


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_sound(name: str) -> None:
    recipe = TrainingRecipe.load(name)
    kind = find_component("models", Model, recipe.model["name"])
    build(kind, {key: value for key, value in recipe.model.items() if key != "name"})


def test_the_papers_curriculum() -> None:
    """Order of difficulty, and what each stage trains, for the six modalities."""
    recipe = TrainingRecipe.load("unityvideo_curriculum_wan_1_3b")
    first, second = (stage.mix for stage in curriculum_stages(recipe, recipe.model["modalities"]))
    for mix, others in ((first, 3), (second, 5)):
        assert len(mix.tasks) == 3 * others
        shares = {
            word: sum(weight for task, weight in mix.weights if task in expand(word, recipe.model["modalities"]))
            for word in ("control", "estimate", "joint")
        }
        assert shares["control"] < shares["estimate"] < shares["joint"]
        assert list(shares.values()) == pytest.approx([2 / 11, 3 / 11, 6 / 11])
    assert {name for task in first.tasks for name in task.streams} == {"rgb", "depth", "flow", "densepose"}
    assert recipe.curriculum[0].from_step == 16000 and recipe.optimizer.steps == 16000 + 40000


def test_unknown_model_option_is_an_error() -> None:
    kind = find_component("models", Model, "unityvideo")
    with pytest.raises(OpenUniError, match='unityvideo: key "layers" is not known'):
        build(kind, {"layers": 2})
