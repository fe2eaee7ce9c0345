"""Generating to and from files: what can be read back comes as its modality, a drawing comes as a picture."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from manifests.errors import OpenUniError
from manifests.modalities.skeleton import Skeleton
from manifests.modality import Modality
from openuni.cli import app
from openuni.generate import Request, make_files
from tests.manifests.people import standing
from tests.train.corpora import random_clips, write_corpus
from train.recipe import Recipe
from train.run import Run
from train.sampler import Sampling
from train.trainer import train

TINY = {"name": "unityvideo", "num_layers": 1, "heads": 2, "head_dim": 12, "ffn_dim": 48, "freq_dim": 16}
QUICK = Sampling(steps=1, shift=1.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One step on clips of rgb, skeleton and normal: 5 frames of 16 x 16 pixels."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("generate")
    corpus = write_corpus(folder / "corpus", random_clips(4, ("rgb", "skeleton", "normal")))
    settings = {"model": TINY | {"switcher_dim": 8}, "optimizer": {"steps": 1, "batch_size": 2}}
    return train(Recipe.from_dict(settings), corpus, folder / "run")


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
    written = make_files(run.folder, Request(("rgb", "skeleton"), "a walk", steps=1), given)
    assert sorted(path.name for path in written) == ["rgb.mp4", "rgb.npy", "skeleton.mp4", "skeleton.npy"]
    assert np.load(given / "skeleton.npy").shape == (5, 16, 16, 3)
    for name, pixels in (("rgb", "yuv420p"), ("skeleton", "yuv444p")):  # colours of a map are values
        with av.open(str(given / f"{name}.mp4")) as container:
            assert container.streams.video[0].pix_fmt == pixels
    again = make_files(run.folder, Request(("rgb",), given=(f"skeleton={given / 'skeleton.mp4'}",), steps=1), tmp_path)
    assert [path.name for path in again] == ["rgb.mp4", "rgb.npy"]
    assert np.load(tmp_path / "rgb.npy").shape == (5, 16, 16, 3)


def test_guidance_of_given_streams_reaches_the_run(run: Run, tmp_path: Path) -> None:
    make_files(run.folder, Request(("rgb", "skeleton"), "a walk", steps=1), tmp_path)
    given = (f"skeleton={tmp_path / 'skeleton.mp4'}",)
    with pytest.raises(OpenUniError, match=r"given_guidance 2 needs a run that has learnt \"skeleton->rgb\""):
        make_files(run.folder, Request(("rgb",), given=given, steps=1, given_guidance=2.0), tmp_path)


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
    run = train(Recipe.from_dict(settings), corpus, tmp_path / "run")
    asked: list[Sampling] = []
    generate = Run.generate

    def watched(self: Run, *arguments: Any) -> dict[str, Any]:
        asked.append(arguments[-1])
        return generate(self, *arguments)

    monkeypatch.setattr(Run, "generate", watched)
    both = make_files(run.folder, Request(("rgb", "text"), "a walk", steps=1), tmp_path / "both")
    assert [path.name for path in both] == ["rgb.mp4", "rgb.npy", "text.txt"]
    given, out = f"rgb={tmp_path / 'both' / 'rgb.mp4'}", tmp_path / "out"
    command = ["generate", str(run.folder), "--make", "text", "--given", given, "--steps", "2", "--out", str(out)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    text = (out / "text.txt").read_text(encoding="utf-8")
    assert text.endswith("\n") and done.stdout == f"{out / 'text.txt'}\n{text}"
    assert [how.shift for how in asked] == [5.0, 2.0]  # the video's, and of text alone the text's
    refused = CliRunner().invoke(app, [*command, "--prompt", "a walk"])
    assert refused.exit_code != 0 and 'task "rgb->text" reads no prompt' in str(refused.exception)
