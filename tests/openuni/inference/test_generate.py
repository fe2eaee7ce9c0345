"""Generating to and from files: what can be read back comes as its modality, a drawing comes as a picture."""

import dataclasses
import re
import shutil
from fractions import Fraction
from io import StringIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from openuni.cli.main import app
from openuni.console.terminal import escape
from openuni.inference.generate import GenerateRequest, _output_fps, generate_files
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.errors import OpenUniError
from openuni.manifests.modalities.skeleton import Skeleton
from openuni.training.codecs.dct import Dct
from openuni.training.finite import NonFiniteError
from openuni.training.loop.trainer import train
from openuni.training.loop.training_checkpoint import list_checkpoints
from openuni.training.recipe import TrainingRecipe
from openuni.training.run import Run
from openuni.training.sampler import SamplingOptions
from tests.command_line import cli
from tests.manifests.modalities.people import standing
from tests.train.corpora import random_clips, write_corpus
from tests.train.small_runs import TINY, one_step_run

QUICK = SamplingOptions(steps=1, shift=1.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One step on clips of rgb, skeleton and normal: 5 frames of 16 x 16 pixels."""
    return one_step_run(tmp_path_factory.mktemp("generate"), ("rgb", "skeleton", "normal"))


def skeleton() -> Skeleton:
    return Skeleton(standing((8.0, 3.0), 1.8)[None, None].repeat(5, axis=0), 16, 16)


def made(run: Run, make: str, given: dict[str, Modality | np.ndarray] | None) -> Modality:
    return run.generate("a walk", [make], given, sampling=QUICK)[make]


def test_a_made_skeleton_is_a_picture_and_a_made_normal_is_a_normal(run: Run) -> None:
    video = np.full((5, 16, 16, 3), 128, np.uint8)
    drawing = made(run, "skeleton", {"rgb": video})
    assert drawing.name == "rgb"
    assert drawing.array.shape == (5, 16, 16, 3) and drawing.array.dtype == np.uint8
    assert made(run, "normal", {"rgb": video}).name == "normal"


def test_a_skeleton_is_given_as_points_or_as_its_drawing(run: Run) -> None:
    from_points = made(run, "rgb", {"skeleton": skeleton()})
    from_drawing = made(run, "rgb", {"skeleton": skeleton().to_rgb()})
    assert np.abs(from_points.to_rgb() - from_drawing.to_rgb()).max() <= 2 / 255  # the drawing is rounded to 8 bits
    nobody = made(run, "rgb", {"skeleton": np.zeros((5, 16, 16, 3), np.float32)})
    assert not np.array_equal(nobody.array, from_points.array)


def test_files_of_a_skeleton_are_written_and_read(run: Run, tmp_path: Path) -> None:
    given = tmp_path / "given"
    written = generate_files(run.folder, GenerateRequest(("rgb", "skeleton"), "a walk", steps=1), given)
    assert sorted(path.name for path in written) == ["rgb.mp4", "rgb.npy", "skeleton.mp4", "skeleton.npy"]
    assert np.load(given / "skeleton.npy").shape == (5, 16, 16, 3)
    for name, pixels in (("rgb", "yuv420p"), ("skeleton", "yuv444p")):  # colours of a map are values
        with av.open(str(given / f"{name}.mp4")) as container:
            assert container.streams.video[0].pix_fmt == pixels
    again = generate_files(
        run.folder, GenerateRequest(("rgb",), given=(f"skeleton={given / 'skeleton.mp4'}",), steps=1), tmp_path
    )
    assert [path.name for path in again] == ["rgb.mp4", "rgb.npy"]
    assert np.load(tmp_path / "rgb.npy").shape == (5, 16, 16, 3)


def rate_of(path: Path) -> Fraction:
    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
        assert rate is not None
        return Fraction(rate)


def test_the_output_has_the_rate_of_what_is_given_else_of_the_training_clips(run: Run, tmp_path: Path) -> None:
    both = GenerateRequest(("rgb", "skeleton"), "a walk", steps=1)
    assert run.record["data"]["fps"] == 25.0  # the clips of tests/train/corpora.py
    generate_files(run.folder, both, tmp_path)
    assert rate_of(tmp_path / "rgb.mp4") == rate_of(tmp_path / "skeleton.mp4") == 25
    for asked, written in ((23.98, Fraction(24000, 1001)), (29.97, Fraction(30000, 1001)), (30.0, Fraction(30))):
        generate_files(run.folder, dataclasses.replace(both, fps=asked), tmp_path / "given")
        assert rate_of(tmp_path / "given/skeleton.mp4") == written
        given = GenerateRequest(("rgb",), given=(f"skeleton={tmp_path / 'given/skeleton.mp4'}",), steps=1)
        generate_files(run.folder, given, tmp_path / "out")
        assert rate_of(tmp_path / "out/rgb.mp4") == written
    generate_files(run.folder, dataclasses.replace(given, fps=8.0), tmp_path / "out")
    assert rate_of(tmp_path / "out/rgb.mp4") == 8


def test_given_videos_of_several_rates_need_a_rate(run: Run) -> None:
    assert _output_fps(None, {"rgb": 29.97, "depth": 30000 / 1001}, run.record) == 29.97
    assert _output_fps(16.0, {"rgb": 30.0, "depth": 25.0}, run.record) == 16.0
    assert _output_fps(None, {}, {"data": {}}) == 16.0  # a run of version 0.1
    with pytest.raises(OpenUniError, match=r"differ in their frames per second: rgb has 30, depth has 25\. State one"):
        _output_fps(None, {"rgb": 30.0, "depth": 25.0}, run.record)


def test_a_modality_is_given_once(run: Run, tmp_path: Path) -> None:
    request = GenerateRequest(("rgb",), given=("skeleton=a.mp4", "rgb=b.mp4", "skeleton=c.mp4"))
    with pytest.raises(OpenUniError, match=r"--given skeleton twice: a\.mp4 and c\.mp4\. Give one video per modality"):
        generate_files(run.folder, request, tmp_path)


def test_guidance_of_given_streams_reaches_the_run(run: Run, tmp_path: Path) -> None:
    generate_files(run.folder, GenerateRequest(("rgb", "skeleton"), "a walk", steps=1), tmp_path)
    given = (f"skeleton={tmp_path / 'skeleton.mp4'}",)
    with pytest.raises(
        OpenUniError,
        match=r"condition_guidance_scale 2 requires a run trained on \"skeleton->rgb\" with condition dropout",
    ):
        generate_files(
            run.folder, GenerateRequest(("rgb",), given=given, steps=1, condition_guidance_scale=2.0), tmp_path
        )


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_progress_counts_solver_steps(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    """Also with guidance, which calls the model more than once per step."""
    monkeypatch.setattr("openuni.inference.sampling_progress.LOG_EVERY_S", -1.0)
    lines = Console(file=StringIO())
    request = GenerateRequest(("rgb", "skeleton"), "a walk", steps=3, guidance_scale=scale)
    generate_files(run.folder, request, tmp_path, lines)
    shown = list(dict.fromkeys(lines.file.getvalue().splitlines()))
    assert shown == [f"sample: step {step}/3" for step in (1, 2, 3)]
    terminal = Console(file=StringIO(), force_terminal=True)
    generate_files(run.folder, request, tmp_path, terminal)
    assert "3/3" in terminal.file.getvalue()


# ---------------------------------------------------------------- wrong input

GREY = np.full((5, 16, 16, 3), 0.5, np.float32)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (GREY[..., 0], r"array \[T, H, W, 3\], uint8 or float in 0..1, got float32 \[5, 16, 16\]"),
        (np.zeros((5, 16, 16, 4), np.uint8), r"got uint8 \[5, 16, 16, 4\]"),
        (np.zeros((5, 0, 16, 3), np.uint8), r"got uint8 \[5, 0, 16, 3\]"),
        (np.zeros((5, 16, 16, 3), np.int16), r"got int16"),
        (GREY * 255, r"got values from 127\.5 to 127\.5\. Rescale them"),
        (GREY - 0.502, r"got values from -0\.001"),
        (np.where(GREY > 0, np.float32(np.nan), 0), r"got values from nan"),
        (GREY.tolist(), r"got list"),
    ],
)
def test_given_arrays_that_are_no_rendering_are_refused(run: Run, value: Any, message: str) -> None:
    with pytest.raises(OpenUniError, match=rf"condition normal must be a Modality, or an .*{message}"):
        made(run, "rgb", {"normal": value})


def test_a_rendering_may_overshoot_by_a_thousandth_and_have_any_precision(run: Run) -> None:
    at = [made(run, "normal", {"rgb": (GREY * 0 + value).astype("f8")}).array for value in (1.0, 1.0009, 0.9)]
    assert np.array_equal(at[0], at[1]) and not np.array_equal(at[0], at[2])


@pytest.mark.parametrize("size", [(-3, 16, 16), (1, 0, 0), (5, -16, 16), (5, 16, 16.0), (5, 16)])
def test_sizes_that_cannot_be_are_refused(run: Run, size: Any) -> None:
    with pytest.raises(OpenUniError, match=r"frames must be 4k \+ 1, .*positive integers"):
        run.generate("a walk", ["rgb", "skeleton"], None, size, QUICK)


@pytest.mark.parametrize("captions", [[], "abc", [None], ["a\udcff"]])
def test_captions_that_cannot_be_are_refused(run: Run, captions: Any) -> None:
    with pytest.raises(
        OpenUniError, match=r"captions must be a non-empty list of strings|not valid Unicode from character 1"
    ):
        run.sample("text->rgb+skeleton", {}, captions, sampling=QUICK)


def test_positions_end_where_the_models_tables_end(run: Run) -> None:
    channels = run.record["latent_shape"][0]
    frames, rows, columns = run.architecture.max_latent_shape(2)
    table = run.model.rope.freqs_cos.shape[0]
    assert (frames, rows, columns) == (table, table * 2, table)  # patches are 1 x 2 x 2, two streams share the width
    assert run.architecture.max_latent_shape(1)[2] == table * 2
    assert dataclasses.replace(run.architecture, rope="per_segment").max_latent_shape(2)[2] == table * 2
    task = "text->rgb+skeleton"
    widest = run.sample(task, {}, ["a walk"], (channels, 1, 2, columns), QUICK)
    assert widest["rgb"].shape == (1, channels, 1, 2, columns)
    for shape in ((1, 2, columns + 2), (1, rows + 2, 2), (frames + 1, 2, 2)):
        with pytest.raises(OpenUniError, match=rf"Maximum for .*: 4093x16384x{columns * 8} \(frames"):
            run.sample(task, {}, ["a walk"], (channels, *shape), QUICK)
    for shape in ((4, 2, 2), (channels, 1, 2, -2), (channels, 1, 2, 2.0)):
        with pytest.raises(OpenUniError, match=r"latents must be \[C, T, H, W\], positive integers"):
            run.sample(task, {}, ["a walk"], shape, QUICK)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "5x²x16"], "must be FRAMESxHEIGHTxWIDTH"),
        (["--size", "5x٥x16"], "must be FRAMESxHEIGHTxWIDTH"),
        (["--size", "1x0x0"], "all positive integers"),
        (["--size", "5x16x100000"], r"Maximum for .*: 4093x16384x8192 \(frames, height, width\)"),
        (["--fps", "inf"], "--fps inf: must be 1 to 1000 frames per second"),
        (["--prompt", "a\udcff"], r"'a\\udcff' is not valid Unicode from character 1 on"),
    ],
)
def test_wrong_flags_are_named(run: Run, tmp_path: Path, flags: list[str], message: str) -> None:
    command = ["generate", str(run.folder), "--make", "rgb", "--make", "skeleton", "--out", str(tmp_path), *flags]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, OpenUniError)  # exit code 2, by `main`
    assert re.search(message, str(done.exception))


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99"])
def test_devices_that_are_not_there_are_named(run: Run, device: str) -> None:
    with pytest.raises(OpenUniError, match=rf'device "{device}" is not available\. Available: auto, cpu'):
        Run.open(run.folder, device)


# ---------------------------------------------------------------- results that are not finite


def run_with_nan(run: Run, folder: Path, name: str = "ema") -> Path:
    """A copy of a run as versions without checks could save it: one weight is NaN."""
    copy = shutil.copytree(run.folder, folder / "nan")
    latest = list_checkpoints(copy)[-1].path
    (latest / "checksums.json").unlink()
    tensors = {key: tensor.clone() for key, tensor in load_file(latest / f"{name}.safetensors").items()}
    tensors["proj_out.weight"].view(-1)[0] = torch.nan
    save_file(tensors, latest / f"{name}.safetensors")
    return copy


def test_a_run_whose_weights_are_nan_makes_nothing(run: Run, tmp_path: Path) -> None:
    command = ["generate", run_with_nan(run, tmp_path), "--make", "rgb", "--make", "skeleton", "--steps", "1"]
    done = cli(*command, "--out", tmp_path / "out")
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert re.search(
        r"ema\.safetensors has NaN or infinite values \(1 of .* tensors, first proj_out.weight", done.stderr
    )


@pytest.mark.parametrize("scale", ["1e30", "-1e38"])
def test_guidance_that_overflows_makes_nothing(run: Run, tmp_path: Path, scale: str) -> None:
    command = ["generate", run.folder, "--make", "rgb", "--make", "skeleton", "--prompt", "a walk", "--steps", "3"]
    done = cli(*command, "--guidance-scale", scale, "--out", tmp_path / "out")
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert "NaN or infinite values. Use guidance scales nearer to 1" in done.stderr


def test_a_codec_that_decodes_to_nan_makes_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = Dct.decode
    monkeypatch.setattr(Dct, "decode", lambda self, *given: decode(self, *given) * np.float32(np.nan))
    with pytest.raises(NonFiniteError, match="dct decoded rgb to NaN or infinite values"):
        generate_files(run.folder, GenerateRequest(("rgb", "skeleton"), "a walk", steps=1), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_conditions_that_are_not_finite_are_refused(run: Run) -> None:
    given = {"rgb": torch.full((1, *run.record["latent_shape"]), torch.inf)}
    with pytest.raises(NonFiniteError, match='task "rgb->normal": condition rgb has NaN or infinite values'):
        run.sample("rgb->normal", given, ["a walk"], sampling=QUICK)


@pytest.mark.parametrize("text_flow", ["tokens", "embeddings"])
def test_text_is_not_drawn_from_logits_that_are_nan(tmp_path: Path, text_flow: str) -> None:
    corpus = write_corpus(tmp_path / "corpus", random_clips(4, ("rgb",)))
    settings = {
        "model": TINY | {"name": "univigu", "text_flow": text_flow},
        "tasks": {"v2t": 1.0},
        "text": {"length": 12},
        "optimizer": {"steps": 1, "batch_size": 2},
    }
    run = train(TrainingRecipe.from_dict(settings), corpus, tmp_path / "run")
    with torch.no_grad():
        run.model.text_head.proj_out.bias[3] = torch.nan
    given = {"rgb": np.full((5, 16, 16, 3), 128, np.uint8)}
    with pytest.raises(NonFiniteError, match="text has NaN or infinite values"):
        run.generate("", ["text"], given, sampling=QUICK)


# ---------------------------------------------------------------- text


def test_text_is_written_and_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--make text` of a video, and of a video that is made with it; what the run was not trained for is an error."""
    clips = random_clips(4, ("rgb",))
    corpus = write_corpus(tmp_path / "corpus", clips)
    settings = {
        "model": TINY | {"name": "univigu"},
        "tasks": {"v2t": 0.5, "t2vt": 0.5},
        "text": {"length": 12, "shift": 2.0},
        "optimizer": {"steps": 1, "batch_size": 2},
    }
    run = train(TrainingRecipe.from_dict(settings), corpus, tmp_path / "run")
    asked: list[SamplingOptions] = []
    generate = Run.generate

    def watched(self: Run, *arguments: Any) -> dict[str, Any]:
        asked.append(arguments[4])
        return generate(self, *arguments)

    monkeypatch.setattr(Run, "generate", watched)
    both = generate_files(run.folder, GenerateRequest(("rgb", "text"), "a walk", steps=1), tmp_path / "both")
    assert [path.name for path in both] == ["rgb.mp4", "rgb.npy", "text.txt"]
    given, out = f"rgb={tmp_path / 'both' / 'rgb.mp4'}", tmp_path / "out"
    command = ["generate", str(run.folder), "--make", "text", "--given", given, "--steps", "2", "--out", str(out)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    text = (out / "text.txt").read_text(encoding="utf-8")
    assert text.endswith("\n") and done.stdout == escape(f"{out / 'text.txt'}\n{text}")
    assert [how.shift for how in asked] == [5.0, 2.0]  # the video's, and of text alone the text's
    refused = CliRunner().invoke(app, [*command, "--prompt", "a walk"])
    assert refused.exit_code != 0 and 'task "rgb->text" does not use a prompt' in str(refused.exception)


def test_what_a_killed_process_left_of_the_same_files_is_removed(run: Run, tmp_path: Path) -> None:
    request = GenerateRequest(("rgb", "skeleton"), "a walk", steps=1)
    for name in (".rgb.mp4.0123abcd.tmp", ".skeleton.mp4.0123abcd.tmp", ".depth.mp4.0123abcd.tmp", ".rgb.notes.tmp"):
        (tmp_path / name).write_bytes(b"half a video")
    generate_files(run.folder, request, tmp_path)
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".depth.mp4.0123abcd.tmp", ".rgb.notes.tmp"]
