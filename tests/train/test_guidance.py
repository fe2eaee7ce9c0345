"""Guidance of a run: prompts and negative prompts of tasks with and without captions, and what training must cover."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from openuni.manifests.errors import OpenUniError
from openuni.training.guidance import guided_streams
from openuni.training.loop.trainer import train
from openuni.training.models.unityvideo import UnityVideo
from openuni.training.models.unividx import UniVidX
from openuni.training.recipe import TrainingRecipe
from openuni.training.run import Run
from openuni.training.sampler import SamplingOptions
from openuni.training.tasks import Task
from tests.train.backbone.tiny_wan import SIZES, tiny_base
from tests.train.corpora import random_clips, write_corpus
from tests.train.models.tiny_unividx import INTRINSIC

SHAPE = (4, 2, 2, 2)
PLAIN = SamplingOptions(2, 1.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_corpus(tmp_path_factory.mktemp("corpus"), random_clips(4, INTRINSIC))


def trained_run(
    corpus: Any, folder: Path, tasks: tuple[str, ...], data: dict[str, float] | None = None, **model: Any
) -> Run:
    """One step with random LoRAs, so that texts and conditions matter."""
    settings = {
        "model": {"name": "unividx", "modalities": list(INTRINSIC), "rank": 2, "train_base": True} | SIZES | model,
        "tasks": dict.fromkeys(tasks, 1.0),
        "data": {"text_length": 0, "validation_share": 0.0, "caption_dropout": 0.0} | (data or {}),
        "optimizer": {"steps": 1, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 0},
    }
    if "pretrained" in model:
        del settings["model"]["train_base"]
    return train(TrainingRecipe.from_dict(settings), corpus, folder)


def sampled(run: Run, task: str, prompt: str = "", **sampling: Any) -> torch.Tensor:
    parsed = Task.parse(task)
    given = {name: torch.full((1, *SHAPE), 0.5) for name in parsed.conditions}
    found = run.sample(parsed, given, [prompt], SHAPE, SamplingOptions(2, 1.0, **sampling))
    return torch.stack([found[name] for name in parsed.targets])


@pytest.fixture(scope="module")
def published(corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """R2AIN, trained without captions as published, and AI2RN, with captions, on a pretrained base."""
    folder = tmp_path_factory.mktemp("published")
    tiny_base().save_pretrained(folder / "wan" / "transformer")
    return trained_run(corpus, folder / "run", ("R2AIN", "AI2RN"), pretrained=str(folder / "wan"))


def test_a_negative_prompt_guides_a_task_without_captions(published: Run) -> None:
    """The released inference: guidance 5 between the empty prompt and a negative one, on every row."""
    plain = sampled(published, "R2AIN")
    guided = sampled(published, "R2AIN", guidance_scale=5.0, negative_prompt="blurred")
    other = sampled(published, "R2AIN", guidance_scale=5.0, negative_prompt="overexposed")
    assert not torch.equal(guided, plain) and not torch.equal(guided, other)
    with pytest.raises(
        OpenUniError, match=r"empty one\. Pass a negative prompt.*captions = \"all\" and .*dropout = 0\.1"
    ):
        sampled(published, "R2AIN", guidance_scale=5.0)


def test_a_guided_step_is_the_published_formula(published: Run) -> None:
    """v = v_neg + s (v_pos - v_neg) at sigma 1, in one step of length 1: noise - v."""

    def velocity(text: str) -> torch.Tensor:
        """Guidance 0: the prediction with the negative prompt alone."""
        return sampled_once("R2AIN", guidance_scale=0.0, negative_prompt=text)

    def sampled_once(task: str, **sampling: Any) -> torch.Tensor:
        given = {"rgb": torch.full((1, *SHAPE), 0.5)}
        found = published.sample(task, given, [""], SHAPE, SamplingOptions(1, 1.0, **sampling))
        return torch.stack(list(found.values()))

    full, negative = sampled_once("R2AIN"), velocity("blurred")
    guided = sampled_once("R2AIN", guidance_scale=3.0, negative_prompt="blurred")
    torch.testing.assert_close(guided, negative + 3.0 * (full - negative), atol=1e-5, rtol=1e-5)


def test_a_negative_prompt_replaces_the_empty_caption(published: Run) -> None:
    empty = sampled(published, "AI2RN", "a cube", guidance_scale=2.0)  # the pretrained base knows it
    negative = sampled(published, "AI2RN", "a cube", guidance_scale=2.0, negative_prompt="blurred")
    assert not torch.equal(empty, negative)
    same = sampled(published, "AI2RN", "a cube", guidance_scale=2.0, negative_prompt="a cube")
    torch.testing.assert_close(same, sampled(published, "AI2RN", "a cube"), atol=1e-5, rtol=1e-5)


def test_runs_with_captions_in_all_tasks_take_prompts(corpus: Any, tmp_path: Path) -> None:
    run = trained_run(corpus, tmp_path / "run", ("R2AIN",), {"caption_dropout": 0.2}, captions="all")
    assert run.record["model"]["options"]["captions"] == "all"
    assert Run.open(tmp_path / "run").caption_streams(Task.parse("R2AIN")) == ("rgb", "albedo", "irradiance", "normal")
    plain, other = sampled(run, "R2AIN", "a cube"), sampled(run, "R2AIN", "a red ball")
    guided = sampled(run, "R2AIN", "a cube", guidance_scale=3.0)
    assert not torch.equal(plain, other) and not torch.equal(plain, guided)
    with pytest.raises(OpenUniError, match=r"requires a run trained on .* with condition dropout"):
        sampled(run, "R2AIN", "a cube", condition_guidance_scale=2.0)


def test_conditions_guide_tasks_without_captions(corpus: Any, tmp_path: Path) -> None:
    run = trained_run(corpus, tmp_path / "run", ("R2AIN",), {"condition_dropout": 0.2})
    assert not torch.equal(sampled(run, "R2AIN"), sampled(run, "R2AIN", condition_guidance_scale=2.0))


@pytest.mark.parametrize(
    ("tasks", "data", "task", "sampling", "message"),
    [
        (("R2AIN",), {}, "R2AIN", {"guidance_scale": 2.0}, 'train with model.captions = "all" and data.caption_drop'),
        (("R2AIN",), {}, "R2AIN", {"guidance_scale": 2.0, "negative_prompt": "dark"}, "has learnt from captions, and"),
        (("R2AIN",), {}, "R2AIN", {"negative_prompt": "dark"}, "no effect without guidance. Set guidance_scale"),
        (("AI2RN",), {}, "AI2RN", {"guidance_scale": 2.0}, "Train with data.caption_dropout = 0.1; or pass a negative"),
        (
            ("AI2RN",),
            {"condition_dropout": 0.2},
            "AI2RN",
            {"condition_guidance_scale": 2.0},
            "or leave guidance_scale at 2.",
        ),
    ],
)
def test_what_training_did_not_cover_is_an_error(
    corpus: Any,
    tmp_path: Path,
    tasks: tuple[str, ...],
    data: dict[str, float],
    task: str,
    sampling: dict[str, Any],
    message: str,
) -> None:
    run = trained_run(corpus, tmp_path / "run", tasks, data)
    with pytest.raises(OpenUniError, match=re.escape(message)):
        sampled(run, task, **sampling)
    sampled(run, task)


def test_a_prompt_that_is_not_used_is_an_error_that_says_what_to_train(published: Run) -> None:
    frames = torch.zeros(5, 16, 16, 3).numpy()
    with pytest.raises(OpenUniError, match=r'does not use a prompt, got "a cube".*model\.captions = "all"'):
        published.generate("a cube", ["albedo", "irradiance", "normal"], {"rgb": frames}, sampling=PLAIN)


def test_guided_streams() -> None:
    unividx, task = UniVidX(modalities=INTRINSIC), Task.parse("R2AIN")
    assert guided_streams(unividx, task, "") == () and guided_streams(unividx, task, "dark") == INTRINSIC
    unityvideo = UnityVideo(modalities=("rgb", "depth", "flow"))
    assert guided_streams(unityvideo, Task.parse("rgb->depth"), "dark") == ("rgb",)
    assert guided_streams(unityvideo, Task.parse("depth->flow"), "dark") == ()  # modality-type prompts alone
