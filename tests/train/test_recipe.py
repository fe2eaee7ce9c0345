"""Recipes: strict, by name or path, and those that ship are sound."""

import re
from pathlib import Path
from typing import Any

import pytest

from openuni.manifests.contracts.discovery import find_component
from openuni.manifests.contracts.parsing import parse_options
from openuni.manifests.errors import OpenUniError
from openuni.training.data.curriculum import curriculum_stages
from openuni.training.model import Model
from openuni.training.recipe import TrainingRecipe, recipe_names
from openuni.training.tasks import expand


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_defaults_are_the_released_settings(tmp_path: Path) -> None:
    recipe = TrainingRecipe.load(write(tmp_path, '[model]\nname = "unityvideo"\n'))
    assert recipe.tasks == {"joint": 0.5, "estimate": 0.25, "control": 0.25}
    assert (recipe.flow_matching.shift, recipe.optimizer.max_grad_norm, recipe.optimizer.warmup_steps) == (
        5.0,
        1.5,
        200,
    )
    assert TrainingRecipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed = 1", 'has no option "sed". Did you mean "seed"'),
        ("[optimizer]\nlearning_rat = 1", 'optimizer has no option "learning_rat". Did you mean "learning_rate"'),
        ("[optimizer]\nsteps = 1.5", "optimizer: steps = 1.5. Allowed: integer, at least 1 (number of optimizer"),
        ("[optimizer]\nsteps = true", "steps = True. Allowed: integer, at least 1"),
        ("[optimizer]\nsteps = 0", "optimizer: steps = 0. Allowed: at least 1"),
        ("[optimizer]\nclip_norm = 0", "optimizer: max_grad_norm = 0. Allowed: above 0"),
        ("[optimizer]\nlearning_rate = nan", "optimizer: learning_rate = nan. Allowed: at least 0"),
        ("[flow_matching]\nshift = -1", "flow_matching: shift = -1. Allowed: above 0"),
        ("[ema]\ndecay = 1", "ema: decay = 1. Allowed: at least 0, below 1"),
        ("[validation]\nclips = 0", "validation: clips = 0. Allowed: at least 1"),
        ("[checkpoints]\nkeep = 0", "checkpoints: keep = 0. Allowed: at least 1"),
        ("[text]\nlength = 1", "text: length = 1. Allowed: at least 2"),
        ("[text]\nbrief_tokens = [-1, 4]", "text: brief_tokens = [-1, 4]. Allowed: at least 0"),
        ("[optimizer]\nbatch_size = 4\naccumulate = 3", "multiple"),
        (
            '[flow_matching]\ndensity = "normal"',
            'density = "normal". Did you mean "logit_normal"? Allowed: logit',
        ),
        ("[model]\nlayers = 1", "needs a name"),
        ("[optimizer]\nmax_grad_norm = 1" + 400 * "0", "optimizer: max_grad_norm = "),
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
    with pytest.raises(OpenUniError, match=r"latin\.toml, line \d+: byte 0x\w\w is not UTF-8"):
        TrainingRecipe.load(tmp_path / "latin.toml")
    with pytest.raises(OpenUniError, match="no recipe at"):
        TrainingRecipe.load("nowhere.toml")


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_sound(name: str) -> None:
    recipe = TrainingRecipe.load(name)
    kind = find_component("models", Model, recipe.model["name"])
    parse_options(kind, {key: value for key, value in recipe.model.items() if key != "name"}, kind.name())


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
    with pytest.raises(OpenUniError, match='unityvideo has no option "layers"'):
        parse_options(kind, {"layers": 2}, kind.name())


def test_former_names_are_accepted_with_a_note_and_records_keep_them(tmp_path: Path, caplog: Any) -> None:
    former = "[optimizer]\naccumulate = 2\n[data]\ngiven_dropout = 0.5\n[flow]\nshift = 3.0\n"
    current = (
        "[optimizer]\ngradient_accumulation_steps = 2\n[data]\ncondition_dropout = 0.5\n[flow_matching]\nshift = 3.0\n"
    )
    head = '[model]\nname = "unityvideo"\n'
    with caplog.at_level("WARNING", "openuni"):
        old = TrainingRecipe.load(write(tmp_path, former + head))
    assert {record.args[1:] for record in caplog.records} == {
        ("accumulate", "gradient_accumulation_steps"),
        ("given_dropout", "condition_dropout"),
        ("flow", "flow_matching"),
    }
    assert old == TrainingRecipe.load(write(tmp_path, current + head))
    record = old.to_dict()
    assert (record["optimizer"]["accumulate"], record["data"]["given_dropout"], record["flow"]["shift"]) == (
        2,
        0.5,
        3.0,
    )
    caplog.clear()
    assert TrainingRecipe.from_dict(record, quiet=True) == old and not caplog.records
    with pytest.raises(OpenUniError, match="give only one of them"):
        TrainingRecipe.load(write(tmp_path, "[optimizer]\naccumulate = 2\ngradient_accumulation_steps = 2\n" + head))
