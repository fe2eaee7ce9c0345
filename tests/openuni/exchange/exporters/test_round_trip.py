"""Out of one corpus and into another: exactly by WebDataset, within the colours' accuracy by the CSV."""

import numpy as np

import openuni
from tests.openuni.exchange.exporters.rooms import MODALITIES, QUIET


def test_webdataset_brings_back_every_map_exactly(corpus, ids, tmp_path):
    openuni.export(corpus, "webdataset", out=tmp_path / "set", reporter=QUIET)
    again = openuni.import_set("webdataset", tmp_path / "set", out=tmp_path / "corpus", reporter=QUIET)
    assert again.summary().failed == [] and len(again) == 4
    by_frames = {(clip.clip.frame_count, clip.clip.width_px): clip for clip in again}
    for name in ("all", "depth", "mkv", "odd"):
        before = corpus[ids[name]]
        after = by_frames[before.clip.frame_count, before.clip.width_px]
        assert after.caption == before.caption
        for modality in MODALITIES:
            stored, restored = before.row("supplied")[modality], after.row("webdataset")[modality]
            assert (stored is None) == (restored is None), modality
            if stored is not None:
                np.testing.assert_array_equal(after.modality(modality).array, before.modality(modality).array)
    whole = by_frames[9, 64]
    np.testing.assert_array_equal(whole.rgb, corpus[ids["all"]].rgb)  # the mp4 was copied


def test_the_csv_brings_back_what_colours_hold(corpus, ids, tmp_path):
    openuni.export(corpus, "openuni-csv", out=tmp_path / "set", reporter=QUIET, crf=4)
    again = openuni.import_set("openuni-csv", tmp_path / "set", out=tmp_path / "corpus", reporter=QUIET)
    assert again.summary().failed == [] and len(again) == 4
    after = next(clip for clip in again if clip.clip.frame_count == 9)
    before = corpus[ids["all"]]
    assert after.caption == before.caption
    np.testing.assert_array_equal(after.segmentation, before.segmentation)
    depth = before.modality("depth").resize(48, 64).array
    assert np.abs(1 / after.depth - 1 / depth).max() < 0.05
    assert np.abs(after.flow - before.flow)[:, :, 2:].max() < 0.25
