"""Checkpoints: listed, downloaded, resumed, verified against digests, with licences, and found in a mirror."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from openuni.config.recipe import CorpusRecipe
from openuni.manifests.contracts.checkpoint import Checkpoint, terms_of
from openuni.manifests.errors import MissingRequirement, OpenUniError
from openuni.report.checkpoints import published, select_checkpoints, table
from openuni.report.doctor import require_all, run_checks
from openuni.report.download import CHUNK_BYTES, download
from tests.command_line import Done
from tests.file_server import Served, file_server, hub_files

WEIGHTS = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
LARGE = "depth-anything/Depth-Anything-V2-Large-hf"


@pytest.fixture
def served() -> Iterator[Served]:
    with file_server({"/weights.pth": WEIGHTS}) as server:
        yield server


def cli(*commands: tuple[str, ...], **environment: str) -> list[Done]:
    """`openuni checkpoints` with each of these arguments, in one process of its own: the hub reads variables once."""
    script = (
        "import json, sys; from tests.command_line import cli; "
        f"print(json.dumps([cli('checkpoints', *command) for command in {commands!r}])); "
        "assert 'torch' not in sys.modules"  # seconds that no listing needs
    )
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [Done(*parts) for parts in json.loads(done.stdout)]


def test_a_download_goes_on_where_it_stopped(served: Served, tmp_path: Path) -> None:
    served.cut_at = 300_000
    target = tmp_path / "deep" / "weights.pth"
    with pytest.raises(OpenUniError, match="Rerun the command to resume"):
        download(f"{served.url}/weights.pth", target, SHA256)
    assert not target.exists()
    download(f"{served.url}/weights.pth", target, SHA256[:8])
    assert target.read_bytes() == WEIGHTS
    assert [wanted for _, _, wanted in served.asked] == ["", f"bytes={300_000 // CHUNK_BYTES * CHUNK_BYTES}-"]
    assert list(target.parent.iterdir()) == [target]


def test_a_server_without_ranges_is_asked_for_all(served: Served, tmp_path: Path) -> None:
    served.ranges = False
    (tmp_path / "weights.pth.part").write_bytes(b"something else")
    download(f"{served.url}/weights.pth", tmp_path / "weights.pth", SHA256)
    assert (tmp_path / "weights.pth").read_bytes() == WEIGHTS


def test_a_part_that_is_whole_needs_nothing_more(served: Served, tmp_path: Path) -> None:
    (tmp_path / "weights.pth.part").write_bytes(WEIGHTS)
    download(f"{served.url}/weights.pth", tmp_path / "weights.pth", SHA256)
    assert (tmp_path / "weights.pth").read_bytes() == WEIGHTS


def test_another_file_is_refused_and_removed(served: Served, tmp_path: Path) -> None:
    with pytest.raises(OpenUniError, match="not the published file"):
        download(f"{served.url}/weights.pth", tmp_path / "weights.pth", "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_fetched_is_said(served: Served, tmp_path: Path) -> None:
    with pytest.raises(OpenUniError, match="404"):
        download(f"{served.url}/nothing.pth", tmp_path / "x")
    with pytest.raises(OpenUniError, match="Allowed: https"):
        download("file:///etc/passwd", tmp_path / "x")


def test_every_listed_checkpoint_has_a_licence_and_a_known_place() -> None:
    listed = table()
    assert len(published()) > 15
    for name, checkpoint in published():
        told = checkpoint.terms != "unclear" or "LicenseRef-" in checkpoint.licence  # what is unclear is named
        assert checkpoint.licence and told, f"{name}: {checkpoint.ref}"
        assert checkpoint.store == "hub" or checkpoint.url.startswith("https://")
        assert checkpoint.ref in listed


def test_only_the_files_named_count(tmp_path: Path) -> None:
    for name in ("weights.onnx", "other.onnx", "readme.md"):
        (tmp_path / name).write_bytes(WEIGHTS)
    one = Checkpoint(str(tmp_path), "path", only=("weights.onnx",))
    before, both = one.digest(), Checkpoint(str(tmp_path), "path", only=("*.onnx",)).digest()
    assert (one.nbytes, before == both) == (len(WEIGHTS), False)
    (tmp_path / "other.onnx").write_bytes(b"changed")
    assert one.digest() == before


def test_names_parts_and_recipes_choose(tmp_path: Path) -> None:
    assert [one.ref for one in select_checkpoints(["depth_anything"], None)] == [
        "depth-anything/Depth-Anything-V2-Small-hf"
    ]
    assert select_checkpoints([LARGE], None)[0].licence == "CC-BY-NC-4.0"
    assert select_checkpoints(["someone/model"], None)[0].store == "hub"
    recipe = tmp_path / "corpus.toml"
    recipe.write_text(f'accept = ["{LARGE}"]\n[annotators.raft]\n[annotators.depth_anything]\ncheckpoint = "{LARGE}"\n')
    assert {one.store for one in select_checkpoints([], recipe)} == {"hub", "torchvision"}
    with pytest.raises(OpenUniError, match="Did you mean"):
        select_checkpoints(["depth_anythin"], None)
    with pytest.raises(OpenUniError, match="--recipe"):
        select_checkpoints([], None)


def test_the_hub_is_asked_only_by_get_and_its_files_are_verified(tmp_path: Path) -> None:
    name = "depth-anything/Depth-Anything-V2-Base-hf"
    files = {"config.json": b"{}", "model.safetensors": WEIGHTS, "notes.bin": b"not needed"}
    with file_server(hub_files(name, files)) as served:
        environment = {"HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        (listed,) = cli((), **environment)
        assert listed.returncode == 0 and not served.asked
        done, listed, verified = cli(("get", name), (), ("verify",), **environment)
        assert done.returncode == 0, done.stderr
        assert "digest verified" in done.stdout
        assert not any("notes.bin" in path for _, path, _ in served.asked)
    assert "1.3 MB" in listed.stdout
    (blob,) = (path for path in tmp_path.rglob("blobs/*") if path.stat().st_size == len(WEIGHTS))
    assert verified.returncode == 0
    blob.write_bytes(WEIGHTS[:-1] + b"x")
    (refused,) = cli(("verify",), **environment)
    assert refused.returncode == 2 and "its publisher states" in refused.stderr


def test_a_wrong_digest_never_becomes_a_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENUNI_CHECKPOINTS", str(tmp_path))
    good = Checkpoint("weights.pth", "url", "MIT", sha256=SHA256)
    (tmp_path / "weights.pth").write_bytes(WEIGHTS)
    assert good.verify() and good.digest()
    (tmp_path / "weights.pth").write_bytes(b"other")
    with pytest.raises(OpenUniError, match="its publisher states"):
        good.digest()
    named = Checkpoint(f"raft-{SHA256[:8]}.pth", "torchvision")
    (tmp_path / named.ref).write_bytes(WEIGHTS)
    assert named.verify()
    (tmp_path / named.ref).write_bytes(b"other")
    with pytest.raises(OpenUniError, match=r"openuni checkpoints get raft-"):
        named.verify()


def test_a_mirror_serves_names_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "owner" / "model"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    wanted = Checkpoint("owner/model", "hub", "MIT")
    with pytest.raises(MissingRequirement, match="openuni checkpoints get owner/model"):
        wanted.resolve()
    monkeypatch.setenv("OPENUNI_CHECKPOINTS", str(tmp_path))
    assert wanted.resolve() == folder
    assert not wanted.verify()  # nothing to hold it against
    with pytest.raises(OpenUniError, match="its publisher states"):
        Checkpoint("owner/model", "hub", "MIT", sha256="0" * 64).digest()


def test_preflight_names_what_is_unavailable_and_asks_for_consent() -> None:
    tables = {"annotators": {"depth_anything": {"checkpoint": LARGE}}}
    found = {finding.level: finding.text for finding in run_checks(CorpusRecipe.parse(tables))}
    assert f"openuni checkpoints get {LARGE}" in found["unavailable"]
    assert f'accept = ["{LARGE}"]' in found["missing"] and "non-commercial" in found["missing"]
    agreed = CorpusRecipe.parse(tables | {"accept": [LARGE]})
    assert "missing" not in {finding.level for finding in run_checks(agreed)}
    with pytest.raises(MissingRequirement, match="not found locally"):
        require_all(agreed, None, 0)
    with pytest.raises(OpenUniError, match="accept must be a list"):
        CorpusRecipe.parse({"accept": LARGE})


@pytest.mark.parametrize(
    ("licence", "terms"),
    [
        ("Apache-2.0", "permissive"),
        ("MIT AND BSD-3-Clause", "permissive"),
        ("CC-BY-NC-4.0", "non-commercial"),
        ("MIT AND CC-BY-NC-SA-4.0", "non-commercial"),
        ("OpenRAIL++-M", "use-restricted"),
        ("Apache-2.0 AND CreativeML-OpenRAIL-M", "use-restricted"),
        ("LicenseRef-SAM-License", "use-restricted"),
        ("Apache-2.0 AND LicenseRef-Sapiens2-License", "use-restricted"),
        ("LicenseRef-Apple-Machine-Learning-Research-Model", "non-commercial"),
        ("LicenseRef-S-Lab-License-1.0", "non-commercial"),
        ("LicenseRef-SAM", "unclear"),
        ("AGPL-3.0", "copyleft"),
        ("CC-BY-SA-3.0", "copyleft"),
        ("Lab-Licence-1.0", "unclear"),
        ("", "unclear"),
    ],
)
def test_terms_of_licences(licence: str, terms: str) -> None:
    assert terms_of(licence) == terms
