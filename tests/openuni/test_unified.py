"""A trained run as an annotator."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.training.loop.trainer import train
from openuni.training.recipe import TrainingRecipe
from openuni.training.run import Run
from openuni.training.sampler import SamplingOptions
from openuni.unified import Unified
from tests import operator_contract as contract
from tests.raw_clips import write_clips
from tests.train.small_runs import TINY, one_step_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One step on clips of rgb, depth and segmentation: 5 frames of 16 x 16 pixels."""
    return one_step_run(tmp_path_factory.mktemp("unified"), ("rgb", "depth", "segmentation"))


@pytest.fixture(scope="module")
def operator(run: Run) -> Unified:
    return Unified(run_dir=str(run.folder), modalities=("depth", "segmentation"), steps=2, overlap_frames=2)


def frames(count: int, height_px: int = 16, width_px: int = 16) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, height_px, width_px, 3), np.uint8)


def test_a_clip_of_the_trainings_size_gets_what_generate_makes(run: Run, operator: Unified) -> None:
    clip = DecodedClip.from_frames(frames(5), caption="a cube")
    found = operator.run(operator.load("cpu"), clip)
    sampling = SamplingOptions(2, run.recipe.flow_matching.shift, 1.0, 0)
    for name in operator.modalities:
        expected = run.generate("a cube", [name], {"rgb": clip.frames}, sampling=sampling)[name]
        assert np.array_equal(getattr(found, name).array, expected.array)
    assert found.flow is None and found.seam_error is None
    assert found.depth.unit == "disparity"


@pytest.mark.parametrize("count", [1, 3, 4, 6, 11])
def test_clips_of_any_length_get_a_map_per_frame(operator: Unified, count: int) -> None:
    found = operator.run(operator.load("cpu"), DecodedClip.from_frames(frames(count)))
    assert len(found.depth.array) == len(found.segmentation.array) == count
    assert (found.seam_error is None) == (count <= 5)


def test_the_whole_frame_is_seen_in_its_own_shape(operator: Unified) -> None:
    model = operator.load("cpu")
    assert model.size_px(16, 16) == (16, 16) and model.size_px(720, 720) == (16, 16)
    height_px, width_px = model.size_px(90, 360)
    step = model.size_px(1, 10**4)[0]
    assert height_px < width_px and height_px % step == width_px % step == 0
    wide = operator.run(model, DecodedClip.from_frames(frames(5, 90, 360)))
    assert wide.depth.size_px == wide.segmentation.size_px
    assert wide.depth.size_px[1] / wide.depth.size_px[0] == pytest.approx(4, rel=0.1)
    small = operator.run(model, DecodedClip.from_frames(frames(5, 8, 10)))
    assert small.depth.size_px == (8, 10), "never larger than the frames"


def test_it_keeps_the_operator_contract(operator: Unified) -> None:
    clip = DecodedClip.from_frames(frames(6))
    contract.importing_is_light("openuni.unified")
    contract.input_is_untouched(operator, clip)
    contract.result_is_as_declared(operator, clip)
    contract.result_is_deterministic(operator, clip)
    contract.docstring_is_written(Unified)
    contract.everything_is_documented(Unified)
    contract.operator_travels(operator)
    contract.version_is_the_same_everywhere(operator)
    contract.version_follows_the_options(operator)


def test_more_training_is_another_version(run: Run, operator: Unified, tmp_path: Path) -> None:
    copy = shutil.copytree(run.folder, tmp_path / "run")
    same = dataclasses.replace(operator, run_dir=str(copy))
    before = [checkpoint.digest() for checkpoint in same.checkpoints()]
    settings = {"model": TINY | {"switcher_dim": 8}, "optimizer": {"steps": 2, "batch_size": 2}}
    corpus = openuni.open_corpus(str(run.folder.parent / "corpus"))
    train(TrainingRecipe.from_dict(settings), corpus, copy)
    assert [checkpoint.digest() for checkpoint in same.checkpoints()] != before


def test_wrong_wishes_are_errors(run: Run, tmp_path: Path) -> None:
    with pytest.raises(OpenUniError, match=r'was not trained for "rgb->normal"; it was trained for: .*rgb->depth'):
        Unified(run_dir=str(run.folder), modalities=("normal",)).load("cpu")
    with pytest.raises(OpenUniError, match="skeleton"):
        Unified(modalities=("skeleton",))
    with pytest.raises(OpenUniError, match="run_dir is empty"):
        Unified().checkpoints()
    with pytest.raises(OpenUniError, match="no run at"):
        Unified(run_dir=str(tmp_path)).checkpoints()


def test_a_trained_model_extends_a_corpus(operator: Unified, tmp_path: Path) -> None:
    write_clips(tmp_path / "raw", 2)
    options = {"run_dir": operator.run_dir, "modalities": ["depth"], "steps": 1}
    recipe = {"work": {"short_side_px": 32}, "annotators": {"openuni.unified": options}}
    corpus = openuni.run(recipe, tmp_path / "raw", out=tmp_path / "corpus", reporter=Reporter(quiet=True))
    assert corpus.summary().ok == 2
    clip = corpus[0]
    assert clip.modality("depth").array.shape[0] == clip.clip.frame_count


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_estimates_that_are_not_finite_fail_their_clip(operator: Unified, value: float) -> None:
    model = operator.load("cpu")
    with torch.no_grad():
        for weight in model.run.model.parameters():
            weight.view(-1)[0] = value
    with pytest.raises(ClipError, match=r"openuni.unified: .*output for .* has NaN or infinite values"):
        operator.run(model, DecodedClip.from_frames(frames(5), caption="a cube"))


def test_a_run_whose_weights_are_nan_is_refused_before_any_clip(run: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(run.folder, tmp_path / "run")
    ema = next(copy.glob("step-*/ema.safetensors"))
    (ema.parent / "checksums.json").unlink()  # as versions without checks saved it
    tensors = {name: tensor.clone() for name, tensor in load_file(ema).items()}
    tensors["proj_out.bias"][0] = float("inf")
    save_file(tensors, ema)
    with pytest.raises(OpenUniError, match=r"ema\.safetensors has NaN or infinite values"):
        Unified(run_dir=str(copy), modalities=("depth",)).load("cpu")
