"""Encoding that uses the footage: instants, buckets and windows of real clips, read back from their latents."""

import tomllib
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.payload_reader import PayloadReader
from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.probe import probe
from openuni.pipeline.scope import RunScope
from openuni.training.codecs.dct import Dct
from openuni.training.data import index_cache
from openuni.training.data.index import open_index
from tests.coded_clips import encode, numbers, picture
from tests.command_line import cli
from tests.raw_clips import contents, write_clips
from tests.train.small_runs import small_recipe

MODEL = {"name": "unityvideo", "modalities": ["rgb", "albedo"], "num_layers": 1, "heads": 2, "head_dim": 24}
MODEL |= {"ffn_dim": 96, "freq_dim": 32, "switcher_dim": 16}
EXACT = Dct(channels=768)  # whose latents are the frames
ANNOTATOR = "tests.operators.painted"
# frames 0, 40, 80, ... ms, then a pause of 400 ms, then 25 more frames at twice the rate
TIMES = [*range(0, 800, 40), *range(1160, 1660, 20)]


def recipe(**encode: Any) -> dict[str, Any]:
    options = {"modalities": ["rgb", "albedo"], "size_px": [48, 64], "frames": 17, "dct": {"channels": 768}}
    return {"annotators": {ANNOTATOR: {}}, "encode": options | encode}


def run(sources: Any, out: Path, tables: dict[str, Any], **scope: Any) -> Corpus:
    return openuni.run(tables, sources, out=out, scope=RunScope(**scope), reporter=Reporter(quiet=True))


def seen(corpus: Corpus) -> dict[str, list[tuple[list[int], list[int]]]]:
    """By name of the source, the numbers that the frames of each window show: of RGB, and of the map."""
    index, reader = open_index(corpus, ("rgb", "albedo"), "", "", 0.0), PayloadReader(corpus)
    names = {clip.clip_id: Path(clip.clip.source).name for clip in corpus}
    found: dict[str, list[Any]] = {}
    for number, clip_id in enumerate(index.clip_ids):
        shown = [
            numbers(EXACT.decode(None, index.read_latents(reader, name, [number])[0].float().numpy()) * 255)
            for name in ("rgb", "albedo")
        ]
        found.setdefault(names[clip_id], []).append(tuple(shown))
    return found


def rows(corpus: Corpus, modality: str) -> dict[str, dict[str, Any]]:
    (family,) = corpus.families()
    names = {clip.clip_id: Path(clip.clip.source).name for clip in corpus}
    return {names[row["clip_id"]]: row for row in corpus.table(f"latents/{family}/{modality}").to_pylist()}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    encode(folder / "even.mp4", times=range(40))
    encode(folder / "uneven.mkv", times=TIMES, unit=Fraction(1, 1000))
    encode(folder / "slow.mp4", times=range(40), unit=Fraction(1, 5))
    tall = [np.ascontiguousarray(np.rot90(picture(number))) for number in range(40)]
    encode(folder / "tall.mp4", times=range(40), pictures=tall)
    return folder


def test_every_window_has_the_frames_of_its_instants_in_all_modalities(raw: Path, tmp_path: Path) -> None:
    sources = [raw / "even.mp4", raw / "uneven.mkv"]
    corpus = run(sources, tmp_path / "corpus", recipe(fps=12.5, windows=2))
    even = [list(range(0, 34, 2)), list(range(6, 40, 2))]  # 20 instants: windows at 0 and 3
    # instants at 0, 80, ..., 1600 ms: 21. From 800 to 960 ms the last frame of the first part is nearest (760 ms; the
    # tie at 960 ms is its own), then the first of the second (1160 ms)
    nearest = [*range(0, 20, 2), 19, 19, 19, 20, 20, 22, 26, 30, 34, 38, 42]
    assert seen(corpus) == {
        "even.mp4": [(even[0], even[0]), (even[1], even[1])],
        "uneven.mkv": [(nearest[:17], nearest[:17]), (nearest[4:], nearest[4:])],
    }
    row = rows(corpus, "rgb")["even.mp4"]
    assert (row["fps"], row["frames"], row["height_px"], row["width_px"]) == (12.5, 17, 48, 64)
    assert row["shape"] == [2, 768, 5, 6, 8] and [one["first_frame"] for one in row["windows"]] == [0, 6]
    (family,) = corpus.families().values()
    assert (family["fps"], family["windows"], family["frames"]) == (12.5, {"windows": 2}, 17)


def test_a_stride_takes_whole_windows_only_and_long_clips_are_read_in_parts(raw: Path, tmp_path: Path) -> None:
    """Windows of five frames every seven: no window has the frames between, or the remainder."""
    corpus = run(raw / "even.mp4", tmp_path / "corpus", recipe(frames=5, window_stride_frames=7))
    expected = [list(range(start, start + 5)) for start in range(0, 36, 7)]
    assert seen(corpus) == {"even.mp4": [(one, one) for one in expected]}
    overlapping = run(raw / "even.mp4", tmp_path / "other", recipe(frames=17, fps=50.0, window_stride_s=0.4))
    instants = [number // 2 for number in range(80)]
    assert seen(overlapping) == {"even.mp4": [(instants[at : at + 17],) * 2 for at in range(0, 64, 20)]}


def test_clips_go_to_the_bucket_that_fits_or_are_failed_rows_with_the_reason(raw: Path, tmp_path: Path) -> None:
    tables = recipe(size_px=[[48, 64], [64, 48]], frames=[17, 33], fps=25.0, modalities=["rgb"])
    encode(tmp_path / "short.mp4", times=range(16))
    encode(tmp_path / "brief.mp4", times=range(20))
    corpus = run([raw, tmp_path / "short.mp4", tmp_path / "brief.mp4"], tmp_path / "corpus", tables)
    found = rows(corpus, "rgb")
    shapes = {name: (row["height_px"], row["width_px"], row["frames"]) for name, row in found.items() if row["shape"]}
    assert shapes == {"even.mp4": (48, 64, 33), "uneven.mkv": (48, 64, 33), "tall.mp4": (64, 48, 33)} | {
        "brief.mp4": (48, 64, 17)
    }
    assert "5 frames per second, fewer than half of [encode] fps = 25" in found["slow.mp4"]["error"]
    assert "has 16 frames at 25 frames per second; the smallest number" in found["short.mp4"]["error"]
    summary = corpus.summary()
    assert (summary.ok, sum(failure.clips for failure in summary.failed)) == (4, 2)
    record = corpus.families()[next(iter(corpus.families()))]
    assert record["buckets"] == {"sizes_px": [[48, 64], [64, 48]], "frames": [17, 33]}


@pytest.mark.slow
def test_order_stops_and_other_clips_do_not_matter(raw: Path, tmp_path: Path) -> None:
    """In another order, in three runs and one by one, all rows and payloads are equal."""
    tables = recipe(fps=12.5, windows=3, frames=[1, 5, 9], size_px=[[48, 64], [64, 48]])
    sources = [raw / "even.mp4", raw / "tall.mp4", raw / "uneven.mkv"]
    whole = contents(run(sources, tmp_path / "whole", tables))
    run(sources[::-1], tmp_path / "parts", tables, only=("ingest",))
    run(sources[::-1], tmp_path / "parts", tables, limit=1)
    run(sources[::-1], tmp_path / "parts", tables, limit=2, only=("encode",))
    assert contents(run(sources[::-1], tmp_path / "parts", tables)) == whole
    other = recipe(fps=12.5, windows=3, frames=[1, 5, 9], size_px=[[48, 64], [64, 48]], modalities=["albedo"])
    run(sources, tmp_path / "maps", other)
    assert contents(run(sources, tmp_path / "maps", tables)) == whole


def test_windows_share_the_clip_s_split_and_text_and_each_has_a_checksum(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clips(tmp_path / "raw", 6, frames=20)
    tables = recipe(windows=3, frames=5)
    corpus = run(tmp_path / "raw", tmp_path / "corpus", tables)
    index, reader = open_index(corpus, ("rgb", "albedo"), "", "", 0.4), PayloadReader(corpus)
    assert index.sample_ids == [f"{clip}#{window}" for clip in sorted({*index.clip_ids}) for window in range(3)]
    assert all(len({*index.held_out[at : at + 3].tolist()}) == 1 for at in range(0, 18, 3)) and index.held_out.any()
    texts = [index.read_text(reader, number) for number in range(18)]
    assert all((texts[at] == texts[at + 2]).all() for at in range(0, 18, 3)) and not (texts[0] == texts[3]).all()
    digest = index.digest()
    monkeypatch.setattr(index_cache, "MIN_SAMPLES", 1)
    for _ in range(2):  # written, then read
        cache = index_cache.IndexCache(tmp_path / "index", corpus, ("rgb", "albedo"), "", "", 0.4)
        cached = cache.open()
        cache.save()
        assert cached.digest() == digest and cached.sample_ids == index.sample_ids
        assert cached.latents["rgb"].payload(7) == index.latents["rgb"].payload(7)
    row = corpus.table(index.latents["rgb"].group).slice(0, 1).to_pylist()[0]
    shard = corpus.store.local(f"{index.latents['rgb'].group}/{row['shard']}")
    data = bytearray(shard.read_bytes())
    data[row["offset"] + row["nbytes"] // 3 + 5] ^= 1  # in the second window
    shard.write_bytes(data)
    first = 3 * sorted({*index.clip_ids}).index(row["clip_id"])
    for window in (0, 2):
        index.read_latents(reader, "rgb", [first + window])
    with pytest.raises(OpenUniError, match=f"clip {row['clip_id']}#1: .*checksum mismatch"):
        index.read_latents(reader, "rgb", [first + 1])
    assert openuni.verify(tmp_path / "corpus").damage and open_index(corpus, ("rgb",), "", "", 0.4).digest() != digest


def test_existing_readers_count_clips_not_windows(raw: Path, tmp_path: Path) -> None:
    """summary, explain, verify, select and deletion of failed rows have one row per clip."""
    corpus = run([raw / "even.mp4", raw / "slow.mp4"], tmp_path / "corpus", recipe(fps=25.0, windows=2, frames=[17]))
    assert cli("verify", tmp_path / "corpus").returncode == 0
    explained = cli("explain", tmp_path / "corpus", "even.mp4").stdout
    assert "ok 2 windows of 768 x 5 x 6 x 8, 17 frames of 48x64 px at 25 fps, from frames 0, 23" in explained
    assert "fewer than half of [encode] fps" in cli("explain", tmp_path / "corpus", "slow.mp4").stdout
    chosen = corpus.select("clip_id is not null", str(tmp_path / "selected"))
    assert contents(chosen) == contents(corpus) and cli("verify", tmp_path / "selected").returncode == 0
    tables = recipe(fps=25.0, windows=2, frames=[17])
    again = run([raw / "even.mp4", raw / "slow.mp4"], tmp_path / "corpus", tables, retry_failed=True)
    assert contents(again) == contents(chosen)


def test_pictures_are_clips_of_one_frame(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(picture(137)).save(folder / "a.png")
    Image.fromarray(picture(138)).save(folder / "b%03d.jpg", quality=95)  # a name that FFmpeg takes for a pattern
    Image.fromarray(picture(139)).save(folder / "c.webp", lossless=True)
    (folder / "two.jpg").write_bytes((folder / "b%03d.jpg").read_bytes() * 2)  # with a preview behind it
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:-30])
    turned = Image.Exif()
    turned[0x112] = 6  # as a phone that is held upright
    Image.fromarray(picture(140)).save(folder / "turned.jpg", exif=turned, quality=95)
    (folder / "a.txt").write_text("a pattern of bars")
    tables = recipe(frames=[1, 17], size_px=[[48, 64], [64, 48]], fps=24.0, windows=3)
    tables["filters"] = {"motion": {}, "luminance": {}}
    corpus = run(str(folder / "*.*g"), tmp_path / "corpus", tables)
    corpus = run(folder / "c.webp", tmp_path / "corpus", tables, add=True)
    clips = {Path(clip.clip.source).name: clip.clip for clip in corpus}
    assert {(clip.frame_count, clip.fps, clip.duration_s) for clip in clips.values()} == {(1, 25.0, 0.04)}
    assert {name: clip.codec for name, clip in clips.items()} == dict.fromkeys(
        ["b%03d.jpg", "two.jpg", "turned.jpg"], "mjpeg"
    ) | {"a.png": "png", "c.webp": "webp"}
    assert clips["a.png"].caption == "a pattern of bars"
    shown = {name: windows[0][0] for name, windows in seen(corpus).items() if name != "turned.jpg"}
    assert shown == {"a.png": [137], "b%03d.jpg": [138], "two.jpg": [138], "c.webp": [139]}
    assert rows(corpus, "rgb")["turned.jpg"]["shape"] == [1, 768, 1, 8, 6]  # displayed upright
    assert {(row["fps"], len(row["windows"])) for row in rows(corpus, "rgb").values()} == {(24.0, 1)}
    (failed,) = corpus.summary().failed
    assert (failed.operator, failed.clips) == ("ingest", 1) and "cut.png" in failed.error
    folder_only = cli("run", write_recipe(tmp_path), folder, "--out", tmp_path / "none", "--workers", "0")
    assert folder_only.returncode == 2 and "contains no video" in folder_only.stderr


def write_recipe(folder: Path, text: str = "[encode]\nsize_px = [32, 48]\nframes = 5\n") -> Path:
    (folder / "corpus.toml").write_text(text)
    return folder / "corpus.toml"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("fps = 0", "above 0"),
        ("fps = -3", "above 0"),
        ("fps = nan", "fps = nan"),
        ("window_stride_frames = 0", "at least 1"),
        ("window_stride_s = 0", "above 0"),
        ("windows = 0", "at least 1"),
        ("size_px = [[30, 48]]", "multiples of 16"),
        ("size_px = [[32, 48], [32]]", "lists of 2 integers"),
        ("frames = [1, 16]", "must be 4k + 1"),
        ("frames = []", "at least one entry"),
        ("windows = 2\nwindow_stride_s = 1.0", "Give one of them"),
        ("sizes = [[32, 48]]", 'has no option "sizes".* Did you mean "size_px"'),
    ],
)
def test_impossible_options_are_bad_input(tmp_path: Path, line: str, message: str) -> None:
    write_clips(tmp_path / "raw", 1)
    done = cli("run", write_recipe(tmp_path, f"[encode]\n{line}\n"), tmp_path / "raw", "--out", tmp_path / "corpus")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    import re

    assert re.search(message.replace("[", r"\[").replace("+", r"\+"), done.stderr.replace("\n", " ")), done.stderr
    assert not (tmp_path / "corpus").exists()


def test_rates_and_buckets_of_existing_recipes_are_what_they_were() -> None:
    """Families, and so all latents, keep their names; new options have their own."""
    from openuni.config.recipe import CorpusRecipe
    from openuni.pipeline.encode_phase import family_name

    def family(text: str) -> str:
        found = CorpusRecipe.parse(tomllib.loads(f"[encode]\n{text}"))
        assert found.encode is not None and found.latent_codec is not None
        return family_name(found.encode, found.latent_codec)

    assert family("size_px = [16, 16]\nframes = 5") == "dct-138d1aea"
    others = ["fps = 25", "fps = 24", "windows = 2", "window_stride_frames = 4", "window_stride_s = 4"]
    others += ["frames = [5]", "size_px = [[16, 16]]"]
    base = "size_px = [16, 16]\nframes = 5\n"
    names = [family("\n".join([line for line in base.splitlines() if line[:4] != one[:4]] + [one])) for one in others]
    assert len({*names, "dct-138d1aea"}) == len(others) + 1
    assert family(f"{base}psnr = false") == "dct-138d1aea"
    assert family(f"{base}fps = 23.98") == family(f"{base}fps = 23.976")


def test_the_psnr_of_decoded_latents_is_known_by_codec(tmp_path: Path) -> None:
    """Four clips of a run are decoded; the exact codec shows it: only the rounding of float16 is left."""
    write_clips(tmp_path / "raw", 7)
    coarse = recipe(frames=5, modalities=["rgb"], dct={"channels": 48})
    corpus = run(tmp_path / "raw", tmp_path / "corpus", coarse)
    run(tmp_path / "raw", tmp_path / "corpus", recipe(frames=5, modalities=["rgb"]))
    run(tmp_path / "raw", tmp_path / "corpus", recipe(frames=1, modalities=["rgb"], psnr=False))
    from openuni.pipeline.encoding.quality import decoded_quality

    found = decoded_quality(corpus)
    assert [(one.codec, one.clips) for one in found] == [("dct", 4)] * 2
    exact, rough = sorted(found, key=lambda one: -one.median_psnr_db)
    assert exact.min_psnr_db > 60 > 40 > rough.median_psnr_db >= rough.min_psnr_db > 15
    shown = cli("summary", tmp_path / "corpus").stdout
    assert "PSNR of decoded RGB latents" in shown and f"{exact.median_psnr_db:.2f} dB median" in shown
    ledgers = [ledger.get("psnr_db") for ledger in corpus.runs()]
    assert [len(next(iter(one.values()))) if one else 0 for one in ledgers] == [4, 4, 0]


def test_training_needs_no_text_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The empty caption and the prompts of all modalities are in the corpus, and are what the codec gives."""
    from openuni.manifests.contracts.modality import find_modality
    from openuni.training.codecs.bytes import Bytes
    from openuni.training.data.fixed_texts import EMPTY, fixed_rows, stored_prompts

    write_clips(tmp_path / "raw", 1)
    corpus = run(tmp_path / "raw", tmp_path / "corpus", recipe(frames=5))
    ((family, record),) = corpus.text_families().items()
    known = stored_prompts(corpus, family)
    monkeypatch.setattr(Bytes, "load", lambda self, device: pytest.fail("the text codec was loaded"))
    found = fixed_rows(record, ("rgb", "depth", "albedo"), tmp_path / "texts.safetensors", known)
    assert {*found} == {EMPTY, "depth", "albedo"}
    np.testing.assert_array_equal(found["depth"].numpy(), Bytes().encode(None, find_modality("depth").prompt))
    path = corpus.store.local(f"text/{family}/prompts.json")
    path.write_bytes(path.read_bytes().replace(b"A", b"B", 1))
    assert stored_prompts(corpus, family) == {}
    assert cli("verify", tmp_path / "corpus").returncode == 1
    repaired = cli("verify", tmp_path / "corpus", "--repair")
    assert repaired.returncode == 0 and "prompts.json" in repaired.stdout and not path.exists()
    assert cli("verify", tmp_path / "corpus").returncode == 0


@pytest.mark.slow
def test_two_sizes_two_windows_and_a_rate_from_footage_to_generated_video(tmp_path: Path) -> None:
    write_clips(tmp_path / "raw", 3, frames=30)
    write_clips(tmp_path / "tall", 3, frames=30, height_px=64, width_px=48)
    tables = recipe(size_px=[[32, 48], [48, 32]], frames=[1, 5, 9], fps=12.0, windows=2, dct={"channels": 4})
    corpus = run([tmp_path / "raw", tmp_path / "tall"], tmp_path / "corpus", tables)
    run_of = openuni.train(small_recipe({"model": MODEL, "optimizer": {"steps": 4}}), corpus, out=tmp_path / "run")
    data, latents = run_of.record["data"], run_of.record["latents"]
    assert (data["clips"], data["windows"], data["fps"]) == (6, 12, 12.0)
    assert latents["size_px"] in ([32, 48], [48, 32]) and latents["frames"] == 9
    shapes = {tuple(shape) for shape in open_index(corpus, ("rgb",), "", "", 0.2).shapes.tolist()}
    assert shapes == {(4, 3, 4, 6), (4, 3, 6, 4)}
    flags = ("--make", "rgb", "--make", "albedo", "--steps", "2", "--out", tmp_path / "made")
    done = cli("generate", tmp_path / "run", *flags)
    assert done.returncode == 0, done.stderr
    made = probe(str(tmp_path / "made" / "rgb.mp4"))
    assert made.fps == pytest.approx(12.0) and len(made.pts) == 9
    assert [made.height_px, made.width_px] == latents["size_px"]
