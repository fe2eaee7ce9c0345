"""Long footage into clips: exact to the frame, every source accounted for, all clips of a source or none."""

from fractions import Fraction
from itertools import chain, pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest

import openuni
from openuni.config.recipe import CorpusRecipe
from openuni.console.progress import Reporter
from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.video.probe import probe
from openuni.pipeline.ingest_phase import IngestSpec, SourceItem
from openuni.pipeline.scope import RunScope
from tests.coded_clips import BITS, HEIGHT_PX, WIDTH_PX, encode, numbers

CUTS = (20, 50)
COUNT = 75
GROUNDS = ((200, 60, 40), (40, 90, 200), (60, 180, 90))  # of the three shots
UNEVEN = np.cumsum([1 + (number * 7) % 5 for number in range(COUNT)]).tolist()  # a frame lasts 1 to 5 units
UNIT = Fraction(1, 60)


def coded_shots() -> list[np.ndarray]:
    """Frames of three plain shots; a narrow strip in the middle says which frame it is."""
    frames = []
    for number in range(COUNT):
        frame = np.empty((HEIGHT_PX, WIDTH_PX, 3), np.uint8)
        frame[:] = GROUNDS[np.searchsorted(CUTS, number, side="right")]
        bars = np.array([230 if number >> bit & 1 else 20 for bit in range(BITS)], np.uint8)
        frame[HEIGHT_PX // 2 - 2 : HEIGHT_PX // 2 + 2] = np.repeat(bars, WIDTH_PX // BITS)[None, :, None]
        frames.append(frame)
    return frames


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("films") / "film.mp4"
    encode(path, pictures=coded_shots(), times=UNEVEN, unit=UNIT, options={"crf": "12", "bf": "2", "g": "30"})
    path.with_suffix(".txt").write_text("three colours")
    return path


def run(raw, out, *, said=None, scope=None, **ingest):
    reporter = Reporter(quiet=True)
    if said is not None:
        reporter.print_line = said.append
    return openuni.run({"ingest": ingest}, raw, out=out, scope=scope or RunScope(), reporter=reporter)


def shown(corpus):
    return [numbers(decode(clip.clip).frames) for clip in corpus]


def test_shots_of_a_film_at_an_uneven_rate_are_exact(film, tmp_path):
    corpus = run(film, tmp_path / "corpus", shots="content")
    assert shown(corpus) == [list(range(20)), list(range(20, 50)), list(range(50, COUNT))]
    info = probe(str(film))
    clips = [clip.clip for clip in corpus]
    assert [clip.start_pts for clip in clips] == info.pts[[0, *CUTS]].tolist()
    assert [clip.end_pts for clip in clips] == [*info.pts[list(CUTS)].tolist(), info.end_pts]
    assert [(clip.start_cut, clip.end_cut) for clip in clips] == [("file", "hard"), ("hard", "hard"), ("hard", "file")]
    assert clips[0].start_cut_confidence is None and clips[0].end_cut_confidence == clips[1].start_cut_confidence > 0.5
    assert len({clip.clip_id for clip in clips}) == 3 and {clip.caption for clip in clips} == {None}
    assert str(corpus.summary()).startswith("3 clips = 3 ok")


def test_windows_trimming_and_captions(film, tmp_path):
    fixed = run(film, tmp_path / "fixed", shots="fixed", fixed={"window_s": 1.5}, share_captions=True)
    # windows begin with the first frame shown at or after 1.5 s and 3 s; times are seconds since the first frame
    times_s = (np.array(UNEVEN) - UNEVEN[0]) / 60
    starts = [0, *np.searchsorted(times_s, [1.5, 3.0]).tolist(), COUNT]
    assert shown(fixed) == [list(range(a, b)) for a, b in pairwise(starts)]
    assert {clip.caption for clip in fixed} == {"three colours"}
    whole = run(film, tmp_path / "whole", trim_frames=2)
    assert shown(whole) == [list(range(2, COUNT - 2))] and whole[0].caption == "three colours"
    all_of_it_s = int(probe(str(film)).duration_s * 1000) / 1000  # the last frame's time counts
    assert run(film, tmp_path / "long", min_s=all_of_it_s).summary().ok == 1
    assert run(film, tmp_path / "longer", min_s=all_of_it_s + 0.002).summary().ok == 0
    cut = run(film, tmp_path / "cut", shots="content", trim_frames=4, max_s=0.6, min_s=0.3)
    assert all(0.3 <= clip.clip.duration_s <= 0.6 for clip in cut)
    assert list(chain.from_iterable(shown(cut))) == [*range(4, 16), *range(24, 46), *range(54, COUNT - 4)]


def test_a_rule_may_ask_for_the_confidence_of_cuts(film, tmp_path):
    corpus = openuni.run(
        {"keep": "start_cut <> 'file' and start_cut_confidence > 0.5", "ingest": {"shots": "adaptive"}},
        film,
        out=tmp_path / "corpus",
        reporter=Reporter(quiet=True),
    )
    assert len(corpus) == 3 and len(corpus.kept_clip_ids()) == 2
    assert corpus.summary().dropped[0].clips == 1


def test_a_film_without_a_usable_shot_is_a_failed_row_that_can_be_done_again(film, tmp_path):
    corpus = run(film, tmp_path / "corpus", shots="content", min_s=60.0)
    summary = corpus.summary()
    assert (summary.clips, summary.ok) == (1, 0)
    assert [(failure.operator, failure.reason) for failure in summary.failed] == [("ingest", "NoUsableShot")]
    again = run(film, tmp_path / "corpus", shots="content", scope=RunScope(retry_failed=True))
    assert again.summary().ok == 3 and again.summary().failed == []


def test_a_second_run_cuts_nothing_again_and_says_so_when_asked_for_other_cuts(film, tmp_path):
    first, said = run(film, tmp_path / "corpus", shots="content"), []
    assert run(film, tmp_path / "corpus", said=said, shots="content").clips.equals(first.clips) and not said
    assert run(film, tmp_path / "corpus", said=said, shots="fixed").clips.equals(first.clips)
    assert len(said) == 1 and "are not changed" in said[0]


def test_a_kill_between_two_films_loses_neither_and_doubles_none(film, tmp_path):
    """The first film's rows lie in the journal of a worker that died; the second was in its hands."""
    other = film.with_name("other.mp4")
    other.write_bytes(film.read_bytes())
    corpus = Corpus.create(tmp_path / "corpus")
    recipe = CorpusRecipe.parse({"ingest": {"shots": "content"}})
    worker = IngestSpec(corpus.store.url, recipe.ingest, recipe.shot_detector, "1").start("cpu")
    item = SourceItem(str(film))
    worker.store(item, worker.compute(item, worker.prepare(item)))
    journal = worker.writers["clips"].part.journal_path
    worker.writers["clips"].part.journal.close()
    worker.lock.close()
    assert not corpus.parts("clips")
    lines = journal.read_bytes()
    assert lines.count(b"\n") == 2  # the schema, and all rows of the film as one
    done = run([film, other], tmp_path / "corpus", shots="content")
    assert [clip.clip.source for clip in done] == [str(film)] * 3 + [str(other)] * 3
    # the same with a journal that ends amid the line: the film is as if nobody had begun it
    half = Corpus.create(tmp_path / "half")
    folder = half.store.local("clips/.open")
    folder.mkdir(parents=True)
    (folder / journal.name).write_bytes(lines[:-40])
    assert len(run([film], tmp_path / "half", shots="content")) == 3


def test_corpora_from_before_shots_are_read(film, tmp_path):
    corpus = run(film, tmp_path / "corpus")
    (part,) = corpus.parts("clips")
    path = corpus.store.path(part)
    table = pq.read_table(path)
    new = [name for name in table.column_names if "_cut" in name]
    assert len(new) == 4
    pq.write_table(table.drop_columns(new), path)
    (clip,) = Corpus.open(tmp_path / "corpus")
    assert clip.clip.start_cut is None and clip.clip.end_cut_confidence is None
    other = film.with_name("later.mp4")
    other.write_bytes(film.read_bytes())
    both = run([film, other], tmp_path / "corpus", shots="content")
    assert [clip.clip.start_cut for clip in both] == [None, "file", "hard", "hard"]
    assert both.summary().ok == 4


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"shots": "contnet"}, r'"contnet".*Did you mean "content"'),
        ({"content": {"threshold": 20.0}}, r'\[ingest.content\] applies only to shots = "content", but shots = "none"'),
        ({"shots": "content", "content": {"treshold": 20.0}}, r'no option "treshold".*Did you mean "threshold"'),
        ({"shots": "fixed", "fixed": {"window_s": 0.0}}, "window_s = 0"),
        ({"min_s": 3.0, "max_s": 2.0}, "max_s = 2 is less than min_s = 3"),
        ({"trim_frames": -1}, "trim_frames = -1. Allowed: at least 0"),
        ({"split": "halves"}, r'split = "halves"'),
    ],
)
def test_mistakes_in_the_recipe_are_named(table, says):
    with pytest.raises(openuni.OpenUniError, match=says):
        CorpusRecipe.parse({"ingest": table})
