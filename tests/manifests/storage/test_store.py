"""Files of a corpus are on the disk before they become visible: what is there after a power cut is whole."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from openuni.manifests.storage.store import Store


def put_data(store: Store, outside: Path) -> None:
    store.put("runs/a.json", b"{}")


def put_file(store: Store, outside: Path) -> None:
    outside.write_bytes(b"tensors")
    store.put_file(outside, "latents/part")


@pytest.mark.parametrize("write", [put_data, put_file])
def test_a_file_is_synced_before_it_is_renamed_into_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Store, Path], None]
) -> None:
    events: list[tuple[str, int]] = []  # what happened to which inode
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        events.append(("renamed", self.stat().st_ino))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(("synced", os.fstat(descriptor).st_ino)))
    monkeypatch.setattr(Path, "replace", watched)
    write(Store(str(tmp_path / "corpus")), tmp_path / "outside")
    (synced, file), (renamed, same) = events
    assert (synced, renamed) == ("synced", "renamed") and file == same
