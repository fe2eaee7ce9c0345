"""Corpora that a recipe cannot be trained on: errors with exit code 2, before a run folder is made."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openuni.manifests.corpus.corpus import Corpus
from openuni.training.codecs.bytes import Bytes
from openuni.training.loop.trainer import train
from tests.command_line import cli
from tests.train.corpora import FAMILY, TEXT_FAMILY, random_clips, write_corpus
from tests.train.loop.test_trainer import MODEL, recipe
from tests.train.small_runs import write_recipe


def ordinary(folder: Path, count: int = 6) -> Corpus:
    return write_corpus(folder, random_clips(count))


def without_rows(folder: Path) -> None:
    write_corpus(folder, [])


def all_dropped(folder: Path) -> None:
    ordinary(folder).save_record(keep="width_px >= 10000")


def without_families(folder: Path) -> None:
    Corpus.create(str(folder))


def without_text_family(folder: Path) -> None:
    ordinary(folder)
    shutil.rmtree(folder / "text")


def without_captions(folder: Path) -> None:
    write_corpus(folder, [clip | {"caption": None} for clip in random_clips(6)])


def without_text_rows(folder: Path) -> None:
    ordinary(folder)
    for path in (folder / "text" / TEXT_FAMILY).glob("part*"):
        path.unlink()


def with_two(kind: str, family: str, codec: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        ordinary(folder)
        shutil.copytree(folder / kind / family, folder / kind / f"{codec}-0123456789abcdef")

    return make


def mixed(folder: Path, clips: list[dict[str, Any]], **options: Any) -> None:
    """Parts of another corpus copied into the same families."""
    ordinary(folder)
    other = folder.with_name("other")
    named = [clip | {"source": f"other-{number}.mp4"} for number, clip in enumerate(clips)]
    write_corpus(other, named, **options)
    for path in [*other.glob("clips/part*"), *other.glob("latents/*/*/part*"), *other.glob("text/*/part*")]:
        shutil.copy(path, folder / path.relative_to(other))


def mixed_channels(folder: Path) -> None:
    mixed(folder, random_clips(3, channels=8))


def mixed_texts(folder: Path) -> None:
    mixed(folder, random_clips(3), text=Bytes(dim=12, max_bytes=31))


def rgb_only(folder: Path) -> None:
    write_corpus(folder, random_clips(6, ("rgb",)))


CORPORA: list[tuple[Callable[[Path], Any], str]] = [
    (without_families, "the corpus has no latent family. Run the pipeline with an [encode] section first"),
    (without_rows, f"latent family {FAMILY} has no modalities: nothing was encoded"),
    (all_dropped, "no training clips: the corpus has none that were ingested, pass its keep rule"),
    (rgb_only, 'task "joint" needs rgb and another modality; the model has rgb'),
    (without_text_family, "the corpus has no text family"),
    (without_captions, f"none of 6 training clips has a text embedding in {TEXT_FAMILY}, which is the prompt of tasks"),
    (without_text_rows, "or set data.caption_dropout = 1 to train on the empty caption alone"),
    (with_two("latents", FAMILY, "wan_vae"), f"2 latent families. Choose data.latents from {FAMILY}, wan_vae-0123"),
    (with_two("text", TEXT_FAMILY, "umt5"), f"2 text families. Choose data.text from {TEXT_FAMILY}, umt5-0123"),
    (mixed_channels, f"latents of {FAMILY} are of several codecs: 6 have 4 channels (first "),
    (mixed_texts, f"text embeddings of {TEXT_FAMILY} are of several codecs: 6 have 8 dimensions (first "),
]


@pytest.mark.parametrize(("make", "message"), CORPORA, ids=[make.__name__ for make, _ in CORPORA])
def test_a_corpus_that_cannot_be_trained_on(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    make(tmp_path / "corpus")
    path = write_recipe(tmp_path, MODEL, data={"validation_share": 0.0})
    done = cli("train", path, "--corpus", tmp_path / "corpus", "--out", tmp_path / "run")
    assert done.returncode == 2 and message in done.stderr, done
    assert "Traceback" not in done.stderr and not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('model.modalities=["rgb", "flow"]', "with latents by modality: rgb: 6, flow: 0"),
        ('model.modalities=["rgb", "flwo"]', 'Did you mean "flow"'),
        ('tasks={"rgb->normal"=1}', "needs normal; the model has rgb, depth"),
        ('data.latents="wan_vae"', f'latent family "wan_vae" is not in the corpus. Available: {FAMILY}'),
        ('data.text="umt5"', f'text family "umt5" is not in the corpus. Available: {TEXT_FAMILY}'),
        ('data.collections=["kinetics"]', 'collection "kinetics" not found in the corpus'),
        ("data.text_length=3", "data.text_length is 3, but the longest text has"),
        ("model.channels=16", "the model has channels = 16, but the corpus's latents have 4"),
        ("optimizer.batch_size=3", "must be a multiple of optimizer.gradient_accumulation_steps"),
    ],
)
def test_a_recipe_that_does_not_fit_the_corpus(setting: str, message: str, tmp_path: Path) -> None:
    ordinary(tmp_path / "corpus")
    path = write_recipe(tmp_path, MODEL, data={"validation_share": 0.0}, optimizer={"gradient_accumulation_steps": 2})
    done = cli("train", path, "--corpus", tmp_path / "corpus", "--out", tmp_path / "run", "--set", setting)
    assert done.returncode == 2 and message in done.stderr, done
    assert not (tmp_path / "run" / "run.json").exists()


def test_more_ranks_than_samples_in_a_step(tmp_path: Path) -> None:
    """Before anything is started; tests/train/loop/test_ranks.py starts two ranks for one sample."""
    ordinary(tmp_path / "corpus")
    path = write_recipe(tmp_path, MODEL)
    done = cli("train", path, "--corpus", tmp_path / "corpus", "--dry-run", "--gpus", 5)
    assert done.returncode == 2 and "optimizer.batch_size = 4 cannot be divided among 5 GPUs" in done.stderr, done


def test_mixed_dtypes(tmp_path: Path) -> None:
    corpus = ordinary(tmp_path / "corpus")
    group = f"latents/{FAMILY}/depth"
    rows = corpus.table(group)
    names = np.array(["float16"] * 5 + ["bfloat16"], object)
    corpus.replace(group, rows.set_column(rows.schema.get_field_index("dtype"), "dtype", [names.tolist()]), "1")
    path = write_recipe(tmp_path, MODEL)
    done = cli("train", path, "--corpus", tmp_path / "corpus", "--out", tmp_path / "run")
    assert done.returncode == 2 and "5 have dtype float16 (first" in done.stderr, done


def test_training_without_captions_may_be_asked_for_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without_captions(tmp_path / "corpus")
    settings = recipe(data={"caption_dropout": 1.0}, optimizer={"steps": 1})
    assert train(settings, tmp_path / "corpus", tmp_path / "run").checkpoint.step == 1
    assert "no training clip has" not in caplog.text


def test_tasks_without_clips_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ordinary(tmp_path / "corpus")
    settings = recipe(model=MODEL | {"modalities": ["rgb", "depth", "flow"]}, optimizer={"steps": 1})
    with caplog.at_level(logging.WARNING):
        train(settings, tmp_path / "corpus", tmp_path / "run")
    assert "streams of tasks text->rgb+flow, rgb->flow, flow->rgb: they are not trained" in caplog.text
