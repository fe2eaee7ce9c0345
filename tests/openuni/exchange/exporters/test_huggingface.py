"""The data set opened by `datasets`, its videos by PyAV, its card by a YAML reader."""

import io
import json
import shutil

import av
import numpy as np
import pytest
import yaml

import openuni
from openuni.config.recipe import CorpusRecipe
from openuni.exchange.exporter import ExportContext
from openuni.exchange.exporters._card import card
from openuni.manifests.corpus.corpus_clip import EXTENT
from tests.bare_corpora import bare_corpus
from tests.openuni.exchange.exporters.rooms import CAPTION, MODALITIES, QUIET, ids_by_name, make_corpus

datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def parted(tmp_path_factory):
    """A corpus with splits."""
    corpus = make_corpus(tmp_path_factory.mktemp("parted"))
    openuni.split(corpus, {"held-out": 0.4})
    corpus.refresh()
    return corpus


@pytest.fixture(scope="module")
def out(parted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "set"
    options = {"shard_mb": 1e-6, "include_raw_maps": True, "title": 'Rooms: "all"', "clips_licence": "cc-by-4.0"}
    openuni.export(parted, "huggingface", out=folder, reporter=QUIET, **options)
    return folder


@pytest.fixture(scope="module")
def loaded(out, tmp_path_factory):
    return datasets.load_dataset(str(out), cache_dir=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def rows(loaded):
    """By clip_id: rows with the bytes of videos as they are."""
    found = {}
    for split, part in loaded.items():
        for name, feature in part.features.items():
            if isinstance(feature, datasets.Video):
                part = part.cast_column(name, datasets.Video(decode=False))
        found |= {row["clip_id"]: row | {"split": split} for row in part}
    return found


def test_the_card_has_the_current_names_of_renamed_options(tmp_path):
    corpus = bare_corpus(tmp_path / "corpus", [{"clip_id": "a"}])
    tables = CorpusRecipe.parse({"annotators": {"dwpose": {"min_score": 0.25}}}).as_tables()
    assert "least_score" in tables["annotators"]["dwpose"]  # ledgers keep former names
    corpus.write_json("runs/a.json", {"recipe": tables})
    contents = ExportContext(corpus, {"skeleton": "dwpose"}, {}, tmp_path)
    text = card([], contents, title="set", licence="unknown", split_of=lambda clip: "train")
    assert "min_score = 0.25" in text and "least_score" not in text


def frames_of(cell: dict) -> np.ndarray:
    with av.open(io.BytesIO(cell["bytes"])) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_it_opens_with_video_columns_and_the_corpus_s_splits(loaded, parted, rows):
    kept = set(parted.kept_clip_ids())
    splits = {clip.clip_id: clip.clip.split for clip in parted if clip.clip_id in kept}
    assert {clip: row["split"] for clip, row in rows.items()} == {
        clip: name.replace("-", "_") for clip, name in splits.items()
    }
    assert set(splits.values()) == {"train", "held-out"}
    for part in loaded.values():
        videos = [name for name, feature in part.features.items() if isinstance(feature, datasets.Video)]
        assert videos == ["video", *MODALITIES]


def test_files_are_numbered_within_their_split(out, loaded):
    names = sorted(path.name for path in (out / "data").iterdir())
    expected = [
        f"{split}-{number:05}-of-{len(part):05}.parquet"  # the bound is below any clip: one each
        for split, part in loaded.items()
        for number in range(len(part))
    ]
    assert names == sorted(expected)


def test_embedded_videos_decode_and_gaps_are_null(rows, parted):
    ids = ids_by_name(parted)
    row = rows[ids["all"]]
    for name in ("video", *MODALITIES):
        assert frames_of(row[name]).shape == (9, 48, 64, 3)
    truth = parted[ids["all"]].modality("normal").to_rgb() * 255
    assert np.abs(frames_of(row["normal"]) - truth).mean() < 2
    assert np.abs(frames_of(row["video"]) - parted[ids["all"]].rgb.astype(float)).mean() < 4
    assert [name for name in MODALITIES if rows[ids["odd"]][name] is not None] == ["flow", "normal"]
    assert frames_of(rows[ids["odd"]]["flow"]).shape == (5, 32, 46, 3)


def test_captions_scores_and_facts_are_columns(rows, parted):
    ids = ids_by_name(parted)
    row = rows[ids["all"]]
    assert (row["caption"], row["fps"], row["frames"], row["height_px"], row["width_px"]) == (CAPTION, 12, 9, 48, 64)
    assert rows[ids["depth"]]["caption"] is None
    motion = parted[ids["all"]].row("motion")
    assert row["scores"]["motion"] == {key: motion[key] for key in row["scores"]["motion"]}
    assert set(row["scores"]["motion"]) == set(motion) - {"status", "error", "version", "ms"}
    depth = parted[ids["all"]].row("supplied")["depth"]
    constants = {key: depth[key] for key in ("unit", "lo", "hi", "levels")}
    assert json.loads(row["modalities"])["depth"]["constants"] == constants


def test_stored_maps_are_the_corpus_s_bytes(rows, parted):
    for clip_id, row in rows.items():
        supplied = parted[clip_id].row("supplied")
        for name in MODALITIES:
            extent = supplied[name]
            expected = parted.read("annotations/supplied", *(extent[key] for key in EXTENT)) if extent else None
            assert row[f"{name}_stored"] == expected


def test_the_card_says_what_is_there(out, parted):
    text = (out / "README.md").read_text(encoding="utf-8")
    _, header, body = text.split("---\n", 2)
    facts = yaml.safe_load(header)
    assert (facts["license"], facts["pretty_name"], facts["size_categories"]) == ("cc-by-4.0", 'Rooms: "all"', ["n<1K"])
    assert [part["path"] for part in facts["configs"][0]["data_files"]] == ["data/held_out-*", "data/train-*"]
    assert "\n4 clips, 0.00 hours" in body
    line = next(line for line in body.splitlines() if line.startswith("| (none)"))
    # collection, clips, hours, captions, then each modality: two clips have depth, two flow, ...
    assert line == "| (none) | 4 | 0.00 | 3 | 1 | 2 | 1 | 1 | 2 | 2 | 1 | 1 | 2 | 2 | 1 |"
    version = parted.group_version("annotations/supplied")
    assert f"| depth | supplied | {version} |" in body
    assert str(out.parent) not in text and "/tmp" not in text


def test_the_card_names_weights_and_their_licence(parted, tmp_path):
    shutil.copytree(parted.store.root, tmp_path / "corpus")
    corpus = openuni.open_corpus(tmp_path / "corpus")
    made = {"raft": {"checkpoint": "/x/mine.pth"}, "depth_anything": {}, "dis": {"no_longer": 1}}
    corpus.write_json("runs/99999999T000000-aaaaaa.json", {"recipe": {"annotators": made}})
    contents = ExportContext(corpus, {"flow": "raft", "depth": "depth_anything", "alpha": "dis"}, {}, tmp_path)
    text = card([], contents, title="t", licence="other", split_of=lambda clip: "train")
    assert text[text.index("| annotator | weights") :].splitlines()[2:5] == [
        "| depth_anything | depth-anything/Depth-Anything-V2-Small-hf | Apache-2.0 |",
        "| dis | unknown | unknown |",
        "| raft | mine.pth | BSD-3-Clause |",
    ]
    assert "/x" not in text


@pytest.mark.parametrize(("option", "value"), [("clips_licence", "my own\nlicence: x"), ("shard_mb", 0)])
def test_options_out_of_range_are_refused(parted, tmp_path, option, value):
    with pytest.raises(openuni.OpenUniError, match=f"{option} = "):
        openuni.export(parted, "huggingface", out=tmp_path / "a", **{option: value})


def test_a_split_called_all_can_be_loaded(tmp_path):
    corpus = make_corpus(tmp_path / "made")
    openuni.split(corpus, {"all": 0.5})
    corpus.refresh()
    openuni.export(corpus, "huggingface", out=tmp_path / "set", reporter=QUIET)
    loaded = datasets.load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"all_", "train"}
    assert 'in the corpus `all_` is "all".' in (tmp_path / "set/README.md").read_text(encoding="utf-8")
