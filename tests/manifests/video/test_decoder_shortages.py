"""Decoder processes on a machine that is short of something: an error of the machine, not of a clip."""

import contextlib
import gc
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.clip import Clip
from openuni.manifests.video.decoder import process
from openuni.manifests.video.encode import decode_lossless, encode_lossless
from openuni.manifests.video.probe import probe_clip
from openuni.manifests.video.reader import decode_frames
from tests.coded_clips import encode
from tests.full_disk import files_of_at_most


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return probe_clip(str(encode(tmp_path_factory.mktemp("videos") / "a.mp4", times=range(3))))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@contextlib.contextmanager
def no_more_open_files() -> Iterator[None]:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files(), most[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)


SHORTAGES = {
    "size of files": (lambda: files_of_at_most(2000), "did not start: .*File too large"),
    "open files": (no_more_open_files, "did not start: .*Too many open files"),
}


@pytest.mark.parametrize("shortage", SHORTAGES)
def test_a_decoder_that_the_machine_cannot_start_is_no_fault_of_the_clip(clip: Clip, shortage: str) -> None:
    """An error of the clip would become a failed row, which a rerun does not retry."""
    context, text = SHORTAGES[shortage]
    process.close_decoders()
    gc.collect()  # files of tests before would be closed meanwhile
    before = open_files()
    with context(), pytest.raises(OpenUniError, match=text):
        decode_frames(clip, np.array([0]))
    assert open_files() <= before
    assert len(decode_frames(clip, np.array([0])).frames) == 1


def test_a_decoder_whose_input_does_not_fit_into_memory_is_no_fault_of_the_clip() -> None:
    data = encode_lossless(np.random.default_rng(0).integers(0, 2**16, (2, 64, 64, 1), np.uint16), 25.0)
    maps = decode_lossless(data)
    with files_of_at_most(2000), pytest.raises(OpenUniError, match=r"could not be given its input: .*File too large"):
        decode_lossless(data)
    assert np.array_equal(decode_lossless(data), maps)
