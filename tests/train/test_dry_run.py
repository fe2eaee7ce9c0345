"""What a training would need, for every recipe that ships, without weights, downloads or a GPU."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openuni.manifests.corpus.corpus import Corpus
from openuni.training.codecs.bytes import Bytes
from openuni.training.codecs.dct import Dct
from openuni.training.estimate.dry_run import USABLE_SHARE, estimate, fitting_changes
from openuni.training.loop.trainer import Trainer
from openuni.training.models.unityvideo import UnityVideo
from openuni.training.recipe import RECIPES_DIR, TrainingRecipe, recipe_names
from openuni.training.tasks import UNIVIDX_FAMILIES
from tests.command_line import cli
from tests.train.corpora import write_corpus

ALL = (
    *("rgb", "depth", "flow", "segmentation", "skeleton", "densepose", "normal"),
    *("albedo", "irradiance", "alpha", "foreground", "background"),
)
CHANNELS = {"unityvideo_wan2_2_5b": 48}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Corpus]:
    """Corpora with latents of 16 and 48 channels, 37 frames of 64 x 64 px, in all modalities."""

    def made(channels: int) -> Corpus:
        latents = {name: np.zeros((channels, 10, 8, 8)) for name in ALL}
        clips = [{"latents": latents, "caption": "a cube"} for _ in range(6)]
        text = Bytes(dim=4096, max_bytes=31)
        folder = tmp_path_factory.mktemp("corpus")
        return write_corpus(folder, clips, codec=Dct(channels=channels), text=text, size=(37, 64, 64))

    return {channels: made(channels) for channels in (16, 48)}


def adapted(name: str) -> TrainingRecipe:
    """A recipe that ships, on the collections of any corpus."""
    record, where = TrainingRecipe.read(name)
    record.get("data", {}).pop("collections", None)
    for stage in record.get("curriculum", []):
        stage.pop("collections", None)
    return TrainingRecipe.from_dict(record, where)


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_estimated(name: str, corpora: dict[int, Corpus]) -> None:
    recipe = adapted(name)
    found = estimate(recipe, corpora[CHANNELS.get(name, 16)], gpus=1)
    memory = found.memory()
    lora = recipe.model["name"] == "unividx" and not recipe.model.get("train_base")
    base = {"1_3b": 1_418_996_800, "2_5b": 4_999_787_712, "14b": 14_288_491_584}
    size = next((count for key, count in base.items() if name.endswith(key)), 0)
    assert (found.weights.frozen if lora else found.weights.trained) >= size
    assert found.weights.frozen == (size if lora else 0)
    assert memory.ema == memory.gradients == 4 * found.weights.trained
    assert memory.optimizer == (0 if recipe.optimizer.offload_state else 2 * memory.ema)
    assert memory.gathered == 0 and memory.activations > 0 and found.flops_per_step > 0
    if recipe.optimizer.batch_size > 1:
        several = found.memory(gpus=2)
        assert several.weights == memory.weights / 2 and several.gathered > 0
    assert "passes" in found.text and "latents" in found.text


UNITYVIDEO = ("rgb", "depth", "flow", "segmentation", "skeleton", "densepose")
# Of each recipe: latents [C, T, H, W] and modalities of the corpus that it asks for, and memory in GB by number of GPUs
SIZES_OF_RECIPES: dict[str, tuple[tuple[int, ...], tuple[str, ...], dict[int, float]]] = {
    "unityvideo_wan_1_3b": ((16, 9, 32, 32), UNITYVIDEO, {1: 31, 8: 6}),
    "unityvideo_curriculum_wan_1_3b": ((16, 9, 32, 32), UNITYVIDEO, {1: 31, 8: 12}),
    "unityvideo_wan2_2_5b": ((48, 9, 16, 16), UNITYVIDEO, {1: 63, 8: 11}),
    "unityvideo_wan_14b": ((16, 9, 32, 32), UNITYVIDEO, {8: 47}),
    "unividx_intrinsic_wan_14b": ((16, 6, 60, 80), UNIVIDX_FAMILIES["intrinsic"], {1: 57, 4: 32}),
    "unividx_alpha_wan_14b": ((16, 6, 54, 96), UNIVIDX_FAMILIES["alpha"], {1: 59, 4: 34}),
    "univigu_recall_wan_1_3b": ((16, 21, 60, 104), ("rgb",), {1: 70, 8: 33}),
    "univigu_refinement_wan_1_3b": ((16, 21, 60, 104), ("rgb",), {1: 70, 8: 33}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in recipe_names() if "_wan" in name])
def test_every_wan_recipe_fits_gpus_of_80_gb_as_it_says(name: str, tmp_path: Path) -> None:
    """The corpus is the one that the recipe asks for, in length and size."""
    shape, modalities, memory_gb = SIZES_OF_RECIPES[name]
    clips = [{"latents": {stream: np.zeros(shape) for stream in modalities}} for _ in range(2)]
    size = ((shape[1] - 1) * 4 + 1, shape[2] * 8, shape[3] * 8)
    text = Bytes(dim=4096, max_bytes=31)
    corpus = write_corpus(tmp_path, clips, codec=Dct(channels=shape[0]), text=text, size=size)
    found = estimate(TrainingRecipe.load(name), corpus, gpus=max(memory_gb))
    said = " ".join((RECIPES_DIR / f"{name}.toml").read_text().replace("\n#", "").split())
    for gpus, expected in memory_gb.items():
        total = found.memory(gpus).total / 1e9
        assert total == pytest.approx(expected, abs=0.6) and total <= 80 * USABLE_SHARE
        assert re.search(rf"\b{expected} GB on {'one GPU' if gpus == 1 else 'each of'}", said)
    flops = re.search(r"([0-9,]+) TFLOP per step", said)
    assert flops and float(flops[1].replace(",", "")) == pytest.approx(found.flops_per_step / 1e12, rel=0.02)


def test_tokens_weights_and_flops_are_those_of_the_model(corpora: dict[int, Corpus], tmp_path: Path) -> None:
    """Of one stream of 10x8x8 latents in patches of 1x2x2: 160 tokens."""
    sizes: dict[str, Any] = {"num_layers": 5, "heads": 2, "head_dim": 24, "ffn_dim": 96, "freq_dim": 32}
    record = {
        "model": {"name": "unityvideo", "modalities": ["rgb"], **sizes},
        "tasks": {"text->rgb": 1.0},
        "optimizer": {"batch_size": 4},
        "precision": "float32",
        "data": {"text_length": 8},
    }
    found = estimate(TrainingRecipe.from_dict(record), corpora[16], gpus=1)
    model = UnityVideo(modalities=("rgb",), text_dim=4096, **sizes).load("cpu")
    assert found.weights.trained == sum(parameter.numel() for parameter in model.parameters())
    assert found.tokens_per_step == 4 * 160
    width, hidden, tokens = 48, 96, 160
    linear = 2 * (6 * width**2 + 2 * width * hidden)  # attention and feed-forward layers, per token of the video
    attention = 4 * tokens * width
    least = 4 * 3 * 5 * tokens * (linear + attention)  # samples; forward and backward; blocks
    assert least < found.flops_per_step < 1.3 * least  # the rest: text, modulation, input and output layers


def test_a_training_that_does_not_fit_is_refused_with_what_would(corpora: dict[int, Corpus]) -> None:
    corpus = corpora[16].store.local("")
    line = ["train", "unityvideo_wan_1_3b", "--corpus", corpus, "--dry-run"]
    done = cli(*line, "--gpu-memory-gb", 16)
    assert done.returncode == 2 and "does not fit: it needs about" in done.stderr
    assert "It would fit with: " in done.stderr and "GPUs" in done.stderr
    done = cli(*line, "--gpu-memory-gb", 80)
    assert done.returncode == 0, done.stderr
    assert "fit         yes" in done.stdout and "1,5" in done.stdout and "task " in done.stdout


SMALL: dict[str, Any] = {
    "model": {"name": "unityvideo", "num_layers": 4, "heads": 12, "head_dim": 24, "ffn_dim": 96, "freq_dim": 32},
    "optimizer": {"batch_size": 4, "gradient_accumulation_steps": 4},
    "precision": "float32",
    "data": {"text_length": 1},  # text is not divided
}


def test_ranks_that_share_samples_keep_less(corpora: dict[int, Corpus]) -> None:
    """Weights are divided among all ranks, activations among those that share a sample. The same steps and samples."""
    shared = estimate(TrainingRecipe.from_dict(SMALL | {"context_parallel": 2}), corpora[16], gpus=4)
    alone = estimate(TrainingRecipe.from_dict(SMALL), corpora[16], gpus=4)
    assert shared.memory().weights == alone.memory().weights == shared.memory(gpus=1, context=1).weights / 4
    for recompute in (False, True):
        whole, half = (found.memory(checkpointing=recompute).activations for found in (alone, shared))
        assert 0.5 * whole < half < 0.6 * whole, (recompute, half / whole)
    assert shared.flops_per_step == alone.flops_per_step and shared.tokens_per_step == alone.tokens_per_step
    assert "context_parallel=2 on 4 GPUs" in fitting_changes(alone, shared.memory().total)
    assert "context_parallel" not in "".join(fitting_changes(shared, shared.memory(context=4).total - 1))


@pytest.mark.parametrize(
    ("gpus", "size", "message"),
    [
        (3, 2, "must divide the number of GPUs, which is 3. Set it to 1 or 3"),
        (5, 5, "must divide the number of attention heads, which is 12. Set it to 1 or 2 or 3 or 4 or 6 or 12"),
    ],
)
def test_samples_that_cannot_be_shared_are_refused(
    corpora: dict[int, Corpus], gpus: int, size: int, message: str
) -> None:
    line = ["train", "unityvideo_wan_1_3b", "--corpus", corpora[16].store.local(""), "--dry-run", "--gpus", gpus]
    done = cli(*line, "--set", f"context_parallel={size}")
    assert done.returncode == 2 and message in done.stderr


def test_unknown_sizes_are_said(corpora: dict[int, Corpus]) -> None:
    corpus = corpora[16].store.local("")
    done = cli("train", "unityvideo_wan_1_3b", "--corpus", corpus, "--dry-run", "--set", "model.pretrained=some/where")
    assert done.returncode == 2 and 'sizes of "some/where" are not known here' in done.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("optimizer.step=3", 'no option "optimizer.step". Did you mean "optimizer.steps"?'),
        ("learning_rate=1", 'no option "learning_rate". Did you mean "optimizer.learning_rate"?'),
        ("optimiser.steps=3", 'no option "optimiser.steps". Did you mean "optimizer.steps"?'),
        ("optimizer.steps=three", 'optimizer: steps = "three". Allowed: integer, at least 1'),
        ("optimizer.steps=0", "steps = 0. Allowed: at least 1"),
        ("optimizer=3", "must be a table of options"),
        ("model.num_layer=2", 'no option "num_layer". Did you mean "num_layers"?'),
        ("ema.decay", "must be written name=value"),
        ("optimizer.accumulate=1", ""),
    ],
)
def test_options_are_set_by_dotted_names(
    corpora: dict[int, Corpus], tmp_path: Path, given: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "run", lambda self: None)
    corpus = corpora[16].store.local("")
    line = ["train", "unityvideo_debug", "--corpus", corpus, "--dry-run", "--set", given]
    done = cli(*line)
    assert (done.returncode == 0) == (not message), done.stderr
    assert message in done.stderr


def test_set_options_are_those_of_the_run(corpora: dict[int, Corpus], tmp_path: Path) -> None:
    record, where = TrainingRecipe.read("unityvideo_debug")
    from openuni.training.recipe_changes import changed

    changes = {"optimizer.steps": 7, "clip": 1} | {"optimizer.clip_norm": 2.0, "tasks.joint": 1.0, "model.heads": 4}
    del changes["clip"]
    found = TrainingRecipe.from_dict(changed(record, changes, "--set"), where)
    assert (found.optimizer.steps, found.optimizer.max_grad_norm, found.model["heads"]) == (7, 2.0, 4)
    assert found.tasks == {"joint": 1.0}
    former = {"optimizer": {"accumulate": 2}}
    assert changed(former, {"optimizer.gradient_accumulation_steps": 4}, "--set") == {"optimizer": {"accumulate": 4}}
