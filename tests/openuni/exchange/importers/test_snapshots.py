"""Datasets in the Hugging Face cache: all files are links to blobs of the same repository. Other links stay refused."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from openuni.exchange.importers._dataset_layout import resolve_inside
from openuni.manifests.errors import ClipError
from tests.openuni.exchange.importers.made_sets import bring_in, reasons
from tests.openuni.exchange.importers.test_folder import FLOW, METRES, Depth, Flow, write_stored
from tests.raw_clips import contents, write_clips

REPOSITORY = "datasets--lab--set"


def snapshot_of(folder: Path, hub: Path) -> Path:
    """The files of a folder as `huggingface_hub` stores them."""
    snapshot = hub / REPOSITORY / "snapshots" / ("0" * 40)
    (hub / REPOSITORY / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = hub / REPOSITORY / "blobs" / f"{number:064x}"
        blob.write_bytes(path.read_bytes())
        link.symlink_to(Path(*[".."] * (len(link.relative_to(snapshot).parts) + 1), "blobs", blob.name))
    return snapshot


def write_set(importer: str, folder: Path) -> None:
    if importer == "folder":
        write_stored(folder / "train/a", {"depth": Depth(METRES, "metres"), "flow": Flow(FLOW)}, caption="a room")
        return
    clips = write_clips(folder, 2)
    if importer == "openuni_csv":
        rows = [f"{path.name},pans" for path in clips]
        (folder / "metadata.csv").write_text("\n".join(["video,prompt", *rows]))
        return
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for path in clips:
            for name, data in ((path.name, path.read_bytes()), (f"{path.stem}.json", json.dumps({}).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            path.unlink()


@pytest.mark.parametrize("importer", ["folder", "openuni_csv", "webdataset"])
def test_a_snapshot_is_imported_as_the_dataset_itself(importer, tmp_path):
    write_set(importer, tmp_path / "plain")
    snapshot = snapshot_of(tmp_path / "plain", tmp_path / "hub")
    plain, linked = (
        bring_in(importer, folder, tmp_path / f"of-{folder.name}") for folder in (tmp_path / "plain", snapshot)
    )
    assert reasons(linked) == {} and len(linked) == len(plain) > 0

    def without_folder(corpus, folder):
        found = contents(corpus)
        return {
            group: [row | {"source": str(row.get("source")).replace(str(folder), "")} for row in rows]
            for group, rows in found.items()
        }

    assert without_folder(linked, snapshot) == without_folder(plain, tmp_path / "plain")


def test_a_part_of_a_snapshot_is_a_dataset_too(tmp_path):
    write_set("folder", tmp_path / "plain")
    snapshot = snapshot_of(tmp_path / "plain", tmp_path / "hub")
    assert len(bring_in("folder", snapshot / "train", tmp_path / "corpus")) == 1


def test_links_elsewhere_are_refused_in_a_snapshot_too(tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/a.txt").write_text("a")
    snapshot = snapshot_of(tmp_path / "plain", tmp_path / "hub")
    (tmp_path / "secret").write_text("secret")
    other = snapshot_of(tmp_path / "plain", tmp_path / "other")
    blobs = tmp_path / "hub" / REPOSITORY / "blobs"
    (blobs / "away").symlink_to(tmp_path / "secret")
    (blobs / "in").mkdir()
    (blobs / "in/b").write_text("b")
    targets = {
        "secret": tmp_path / "secret",
        "other": other / "a.txt",
        "away": blobs / "away",
        "deeper": blobs / "in/b",
    }
    for name, target in targets.items():
        (snapshot / name).symlink_to(target)
        with pytest.raises(ClipError, match="outside the dataset folder"):
            resolve_inside(snapshot / name, snapshot)
    with pytest.raises(ClipError, match="outside the dataset folder"):
        resolve_inside(snapshot / "../../blobs" / f"{0:064x}", snapshot)
    assert resolve_inside(snapshot / "a.txt", snapshot) == snapshot / "a.txt"
    # the same layout under another name is any folder with links out of it
    (tmp_path / "hub" / REPOSITORY).rename(tmp_path / "hub/set")
    moved = tmp_path / "hub/set/snapshots" / ("0" * 40)
    with pytest.raises(ClipError, match="outside the dataset folder"):
        resolve_inside(moved / "a.txt", moved)
