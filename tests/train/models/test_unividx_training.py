"""UniVidX through the real trainer and sampler: what runs save and take up, given streams, both families."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file

from openuni.manifests.errors import OpenUniError
from openuni.training.backbone.lora import gated_layers
from openuni.training.data.batches import Loader
from openuni.training.data.plan import Plan
from openuni.training.loop.setup import prepare
from openuni.training.loop.trainer import train
from openuni.training.loop.training_checkpoint import list_checkpoints
from openuni.training.loop.validation import Validator
from openuni.training.models.unividx import UniVidX
from openuni.training.recipe import TrainingRecipe
from openuni.training.run import Run
from openuni.training.sampler import SamplerInputs, SamplingOptions, sample
from openuni.training.tasks import Task, TaskMix, partitions
from tests.train.backbone.tiny_wan import SIZES, inputs, tiny_base
from tests.train.corpora import random_clips, write_corpus
from tests.train.models.tiny_unividx import INTRINSIC, trained


@pytest.fixture(scope="module")
def base() -> WanTransformer3DModel:
    return tiny_base()


def recipe(**model: Any) -> TrainingRecipe:
    return TrainingRecipe.from_dict(
        {
            "model": {"name": "unividx", "modalities": ["rgb", "albedo", "normal"], "rank": 4} | model,
            "tasks": {"partitions": 1.0},
            "data": {"text_length": 0, "validation_share": 0.0, "caption_dropout": 0.0},
            "flow": {"shift": 1.0, "density": "uniform"},
            "optimizer": {
                "steps": 2,
                "batch_size": 4,
                "learning_rate": 1e-2,
                "added_rate_factor": 1.0,
                "warmup_steps": 0,
            },
            "ema": {"decay": 0.9},
            "checkpoints": {"every_steps": 1},
        }
    )


SMALL = {"heads": 2, "head_dim": 12, "ffn_dim": 32, "freq_dim": 16, "num_layers": 1}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_corpus(tmp_path_factory.mktemp("corpus"), random_clips(6, ("rgb", "albedo", "normal")))


def test_a_run_saves_the_loras_alone_and_resumes_bitwise(base: Any, corpus: Any, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path / "wan" / "transformer")
    settings = recipe(pretrained=str(tmp_path / "wan"))
    run = train(settings, corpus, tmp_path / "run")

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == 2:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        train(settings, corpus, tmp_path / "stopped", stop)
    again = train(settings, corpus, tmp_path / "stopped")
    for part in ("model", "ema", "optimizer"):
        ours, theirs = again.checkpoint.tensors(part), run.checkpoint.tensors(part)
        assert ours.keys() == theirs.keys() and all(".lora_" in name for name in ours)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    opened = Run.open(tmp_path / "run", "cpu").model
    assert all(torch.equal(opened.state_dict()[name], tensor) for name, tensor in base.state_dict().items())
    assert torch.equal(
        opened.blocks[0].ffn.net[2].lora_B["albedo"], theirs_ema(run)["blocks.0.ffn.net.2.lora_B.albedo"]
    )
    made = run.sample("rgb->albedo+normal", {"rgb": torch.randn(1, 4, 2, 2, 2)}, [""], sampling=SamplingOptions(2, 1.0))
    assert set(made) == {"albedo", "normal"}


def theirs_ema(run: Run) -> dict[str, torch.Tensor]:
    return list_checkpoints(run.folder)[-1].tensors("ema")


def test_second_stage_starts_from_the_loras_of_the_first(base: Any, corpus: Any, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path / "wan")
    first = train(recipe(pretrained=str(tmp_path / "wan")), corpus, tmp_path / "first")
    settings = recipe(pretrained=str(tmp_path / "wan")).to_dict() | {"start_from": str(first.folder)}
    settings["optimizer"] |= {"steps": 1, "learning_rate": 0.0}
    second = train(TrainingRecipe.from_dict(settings), corpus, tmp_path / "second")
    ours, theirs = second.checkpoint.tensors("model"), first.checkpoint.tensors("ema")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_trained_base_is_not_lost_in_a_run_that_keeps_its_own(base: Any, corpus: Any, tmp_path: Path) -> None:
    """Its checkpoints would not hold it."""
    base.save_pretrained(tmp_path / "wan")
    first = train(recipe(pretrained=str(tmp_path / "wan"), train_base=True), corpus, tmp_path / "first")
    settings = recipe(pretrained=str(tmp_path / "wan")).to_dict() | {"start_from": str(first.folder)}
    with pytest.raises(
        OpenUniError, match=r"first has a trained base, but this run uses the frozen base .*train_base = true"
    ):
        train(TrainingRecipe.from_dict(settings), corpus, tmp_path / "second")


@pytest.mark.slow
def test_it_learns_all_partitions_of_random_clips(corpus: Any, tmp_path: Path) -> None:
    settings = recipe(**SMALL | {"heads": 4, "train_base": True}).to_dict()
    settings["optimizer"] |= {"steps": 150, "batch_size": 8, "learning_rate": 5e-3}
    settings["checkpoints"] |= {"every_steps": 150}
    losses = [row["loss"] for row in train(TrainingRecipe.from_dict(settings), corpus, tmp_path).log if "loss" in row]
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:10])


def test_the_debug_recipe_runs(corpus: Any, tmp_path: Path) -> None:
    run = train("unividx_debug", corpus, tmp_path)
    assert run.checkpoint.step == 10 and len(run.tasks) == 7
    assert {name.rpartition(".")[2] for name in run.model.added_parameters()} == {"rgb", "albedo", "normal"}


EVERY = (*INTRINSIC, "alpha", "foreground", "background")


def test_both_families_in_one_model() -> None:
    mix = TaskMix.build({"intrinsic": 0.5, "alpha": 0.5}, EVERY)
    assert len(mix.tasks) == 30
    model = UniVidX(modalities=EVERY, rank=2, **SIZES).load("cpu")
    for task in mix.tasks:
        made = model(*inputs(task.streams, batch=1, given=task.conditions))
        assert set(made) == set(task.streams)


@pytest.mark.parametrize("layout", ["rows", "channels"])
def test_both_families_are_trained_on_clips_of_both_kinds(tmp_path: Path, layout: str) -> None:
    """Interiors have no alpha, layers no albedo: each clip has its family's tasks, one model learns all of them."""
    clips = random_clips(8, EVERY)
    for number, clip in enumerate(clips):
        for name in INTRINSIC[1:] if number % 2 else EVERY[4:]:
            del clip["latents"][name]
    corpus = write_corpus(tmp_path / "corpus", clips)
    settings = recipe(**SMALL, layout=layout, train_base=True, modalities=list(EVERY)).to_dict()
    settings |= {"tasks": {"intrinsic": 0.5, "alpha": 0.5}, "checkpoints": {"every_steps": 60}}
    settings["optimizer"] |= {"steps": 60, "batch_size": 8}
    begun = train(
        TrainingRecipe.from_dict(settings | {"optimizer": settings["optimizer"] | {"steps": 1}}), corpus, tmp_path / "1"
    )
    run = train(TrainingRecipe.from_dict(settings), corpus, tmp_path / "run")
    assert len(run.tasks) == 30 and run.record["data"]["clips_by_task"] == dict.fromkeys(map(str, run.tasks), 4)
    rows = [row for row in run.log if "task_loss" in row]
    for family in (INTRINSIC, ("rgb", *EVERY[4:])):
        tasks = {str(task) for task in partitions(family)}
        losses = [np.mean([loss for task, loss in row["task_loss"].items() if task in tasks]) for row in rows]
        seen = {task for row in rows for task in row["task_loss"]}
        assert len(seen & tasks) > 12
        assert np.nanmean(losses[-20:]) < 0.9 * np.nanmean(losses[:10])
    first, last = begun.checkpoint.tensors("model"), run.checkpoint.tensors("model")
    added = run.model.added_parameters()
    assert all(not torch.equal(first[name], last[name]) for name in added) and any(".shared" in n for n in added) == (
        layout == "channels"
    )
    for task in ("R2AIN", "R2PFB", "t2RAIN", "PF2RB"):
        parsed = Task.parse(task)
        given = {name: torch.randn(2, 4, 2, 2, 2) for name in parsed.conditions}
        assert set(run.sample(task, given, ["a", "b"], sampling=SamplingOptions(2, 1.0))) == set(parsed.targets)


def test_given_latents_go_in_clean_at_every_step(corpus: Any, tmp_path: Path) -> None:
    run = train(recipe(**SMALL), corpus, tmp_path)
    given = torch.randn(2, 4, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    kept, seen = given.clone(), []
    run.model.register_forward_pre_hook(lambda module, arguments: seen.append(arguments))
    made = run.sample("rgb->albedo+normal", {"rgb": given}, ["", ""], sampling=SamplingOptions(4, 3.0, solver="heun"))
    assert len(seen) == 7 and set(made) == {"albedo", "normal"} and torch.equal(given, kept)
    for streams, sigmas, _ in seen:
        assert torch.equal(streams["rgb"], kept) and not sigmas["rgb"].any()  # bit for bit, at sigma 0 exactly
        assert sigmas["normal"].min() > 0


def test_sampling_knows_neither_order_nor_company(corpus: Any, tmp_path: Path) -> None:
    run = train(recipe(**SMALL), corpus, tmp_path)
    drawn = torch.randn(2, 3, 4, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    given = {"albedo": drawn[0], "normal": drawn[1]}
    captions = ["a cube", "two balls", ""]
    whole = run.sample("albedo+normal->rgb", given, captions, sampling=SamplingOptions(3, 3.0))["rgb"]
    turned = dict(reversed(list(given.items())))
    assert torch.equal(
        run.sample("normal+albedo->rgb", turned, captions, sampling=SamplingOptions(3, 3.0))["rgb"], whole
    )
    first = {name: latents[:1] for name, latents in given.items()}
    alone = run.sample("albedo+normal->rgb", first, captions[:1], sampling=SamplingOptions(3, 3.0))["rgb"]
    torch.testing.assert_close(alone, whole[:1], atol=1e-5, rtol=1e-5)


def test_wrong_use_of_a_run_is_named(base: Any, corpus: Any, tmp_path: Path) -> None:
    settings = recipe(**SMALL).to_dict() | {"tasks": {"rgb->albedo": 1.0}}
    run = train(TrainingRecipe.from_dict(settings), corpus, tmp_path / "run")
    given = torch.randn(1, 4, 2, 2, 2)
    with pytest.raises(OpenUniError, match=r'not trained for "rgb->normal"; it was trained for: rgb->albedo'):
        run.sample("rgb->normal", {"rgb": given}, [""])
    with pytest.raises(OpenUniError, match="needs depth; the model has rgb, albedo, normal"):
        train(TrainingRecipe.from_dict(settings | {"tasks": {"rgb->depth": 1.0}}), corpus, tmp_path / "no")
    with pytest.raises(OpenUniError, match=r"frames must be 4k \+ 1"):
        run.generate("", ["albedo"], {"rgb": np.zeros((6, 16, 16, 3), np.uint8)}, (6, 16, 16))
    with pytest.raises(OpenUniError, match=r"condition latents must be \[1, 4, 2, 2, 2\] for 1 captions, got"):
        run.sample("rgb->albedo", {"rgb": given[:, :, :1]}, [""], shape=(4, 2, 2, 2))
    with pytest.raises(OpenUniError, match=r'task "rgb->albedo" does not use a prompt, got "a cube"'):
        run.generate("a cube", ["albedo"], {"rgb": np.zeros((5, 16, 16, 3), np.uint8)})
    with pytest.raises(
        OpenUniError, match=r'guidance_scale 7 requires a caption, and task "rgb->albedo" was trained with'
    ):
        run.sample("rgb->albedo", {"rgb": given}, [""], sampling=SamplingOptions(2, guidance_scale=7.0))
    other = recipe(**SMALL | {"ffn_dim": 48}).to_dict() | {"start_from": str(run.folder)}
    with pytest.raises(OpenUniError, match=r"of another size: blocks\.0\.ffn.*32.*48"):
        train(TrainingRecipe.from_dict(other), corpus, tmp_path / "other")
    shared = recipe(**SMALL, lora="shared").to_dict() | {"start_from": str(run.folder)}
    with pytest.raises(OpenUniError, match=r"is a checkpoint of a different model; differing keys: .*lora_A\.albedo"):
        train(TrainingRecipe.from_dict(shared), corpus, tmp_path / "shared")


@pytest.mark.parametrize("change", ["missing", "unknown", "size"])
def test_checkpoints_with_other_keys_are_refused(corpus: Any, tmp_path: Path, change: str) -> None:
    run = train(recipe(**SMALL), corpus, tmp_path)
    path = run.checkpoint.path / "ema.safetensors"
    tensors, key = load_file(path), "blocks.0.ffn.net.2.lora_B.normal"
    moved = tensors.pop(key)
    if change == "unknown":
        tensors |= {key: moved, "blocks.0.ffn.net.2.lora_B.depth": moved.clone()}
    if change == "size":
        tensors |= {key: moved[:, :2].contiguous()}
    save_file(tensors, path)
    (path.parent / "checksums.json").unlink()  # as a run of before; else the changed file is named
    with pytest.raises(OpenUniError, match=r"lora_B\.(normal|depth)"):
        _ = Run.open(tmp_path, "cpu").model


def test_noise_on_given_streams(base: Any, corpus: Any, tmp_path: Path) -> None:
    """The published option: given streams at a small sigma, in training and in sampling, and still known as given."""
    model = trained(base, condition_noise=0.005)
    assert model.condition_sigma == 0.005
    streams, sigmas, text = inputs(("rgb", "normal"))
    sigmas["rgb"] = torch.full((2,), 0.005)
    before = model(streams, sigmas, text)
    with torch.no_grad():
        for layer in gated_layers(model).values():
            layer.lora_B["rgb"].add_(1.0)
    assert torch.equal(model(streams, sigmas, text)["normal"], before["normal"])
    seen = []
    model.register_forward_pre_hook(lambda module, arguments: seen.append(arguments))
    clean = {"rgb": streams["rgb"]}
    conditions = SamplerInputs(clean, text, None)
    sample(model, Task.parse("rgb->normal"), conditions, streams["rgb"].shape, SamplingOptions(2, 1.0))
    assert all(torch.equal(told["rgb"], torch.full((2,), 0.005)) for _, told, _ in seen)
    assert all(torch.equal(noisy["rgb"], seen[0][0]["rgb"]) for noisy, _, _ in seen)
    assert 0 < (seen[0][0]["rgb"] - clean["rgb"]).std() < 0.02
    with pytest.raises(OpenUniError, match="must be above that of condition streams"):
        sample(model, Task.parse("rgb->normal"), conditions, streams["rgb"].shape, SamplingOptions(400, 1.0))


def test_loader_gives_given_streams_their_sigma_and_made_ones_more(corpus: Any, tmp_path: Path) -> None:
    settings = recipe(condition_noise=0.4, **SMALL)
    run = train(settings, corpus, tmp_path)
    setup = prepare(settings, corpus, run.folder)
    loader = Loader(setup.corpus, setup.index, setup.texts, settings, setup.model)
    plan = Plan.build(setup.index, setup.mix, settings.seed, settings.optimizer.batch_size)
    levels = []
    for batch in (batch for step in range(8) for part in loader.step(plan, step) for batch in part):
        for name, made in batch.targets.items():
            assert torch.equal(batch.sigmas[name][~made], torch.full_like(batch.sigmas[name], 0.4)[~made])
            levels += batch.sigmas[name][made].tolist()
    assert min(levels) > torch.tensor(0.4).item()  # as drawn, four in ten would lie below
    assert setup.model.condition_sigma == 0.4 and run.model.condition_sigma == 0.4
    validator = Validator(loader, setup.mix)
    assert (
        min(validator.sigmas) == loader.min_target_sigma > torch.tensor(0.4).item()
    )  # as spread, one would lie at 0.125
    assert max(validator.sigmas) == 0.875


def test_guidance_takes_the_caption_from_all_streams(base: Any) -> None:
    model = trained(base)
    streams, _, text = inputs(("rgb", "normal"), batch=1)
    seen = []
    model.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[2]))
    conditions = SamplerInputs({}, text, torch.zeros(5, 8), caption_streams=("rgb", "normal"))
    sample(
        model,
        Task.parse("text->rgb+normal"),
        conditions,
        streams["rgb"].shape,
        SamplingOptions(1, 1.0, guidance_scale=2.0),
    )
    assert [bool(told[name].any()) for told in seen for name in ("rgb", "normal")] == [True, True, False, False]
