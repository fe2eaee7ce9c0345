"""`openuni verify` on a training run: each damaged file is named; a damaged checkpoint can be set aside."""

import json
import shutil
from pathlib import Path

import pytest
import xxhash
from safetensors.numpy import load_file

import openuni
from openuni.console.progress import Reporter
from openuni.report.verify_report import VerifyReport
from openuni.training.loop.training_checkpoint import list_checkpoints
from tests.command_line import cli

RUN = Path(__file__).parents[2] / "data" / "version_0_1" / "runs" / "unityvideo"
STEP = "step-000002"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return shutil.copytree(RUN, tmp_path / "run")


def verify(run: Path, *, repair: bool = False) -> VerifyReport:
    return openuni.verify(run, repair=repair, reporter=Reporter(quiet=True))


def add_checksums(folder: Path) -> None:
    """As a checkpoint with checksums has them."""
    digests = {path.name: xxhash.xxh3_64_hexdigest(path.read_bytes()) for path in folder.iterdir()}
    (folder / "checksums.json").write_text(json.dumps(digests))


def test_a_sound_run(run: Path) -> None:
    report = verify(run)
    assert report.damage == () and report.payloads == 4 and report.records > 1
    assert "no checksums" in report.notes[0]
    add_checksums(run / STEP)
    assert verify(run).notes == ()
    done = cli("verify", run)
    assert done.returncode == 0 and done.stdout.endswith("sound\n")


@pytest.mark.parametrize("name", ["model", "ema", "optimizer"])
def test_a_flipped_weight_is_found_by_its_checksum(run: Path, name: str) -> None:
    add_checksums(run / STEP)
    file = run / STEP / f"{name}.safetensors"
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    assert load_file(file)  # valid as a file
    (found,) = verify(run).damage
    assert found.file == f"{STEP}/{name}.safetensors" and "checksum mismatch" in found.reason
    assert cli("verify", run).returncode == 1


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("run.json", lambda data: data[:-30], "not valid JSON"),
        ("run.json", lambda data: b"[]", "a JSON object is required"),
        ("log.jsonl", lambda data: data.replace(b"{", b"[", 1), "line 1 of"),
        ("texts.safetensors", lambda data: data[:-1], "not readable"),
        (f"{STEP}/model.safetensors", lambda data: data[:-1], "not readable"),
        (f"{STEP}/ema.safetensors", lambda data: data[:3] + b"\xff" + data[4:], "not readable"),
        (f"{STEP}/optimizer.safetensors", None, "the file is missing"),
        (f"{STEP}/state.json", lambda data: data.replace(b'"step": 2', b'"step": 3'), "in the folder of step 2"),
        (f"{STEP}/state.json", lambda data: b"", "not valid JSON"),
    ],
)
def test_damage_is_named(run: Path, file: str, change, reason: str) -> None:
    path = run / file
    path.write_bytes(change(path.read_bytes())) if change else path.unlink()
    (found,) = verify(run).damage
    assert found.file == file and reason in found.reason and found.depends
    assert reason in cli("verify", run).stdout


def test_a_damaged_checkpoint_is_set_aside_and_the_previous_one_is_next(run: Path) -> None:
    shutil.copytree(run / STEP, run / "step-000009")
    for step in ("step-000009",):
        state = json.loads((run / step / "state.json").read_text())
        (run / step / "state.json").write_text(json.dumps(state | {"step": 9}))
    assert verify(run).is_sound
    file = run / "step-000009" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    report = verify(run, repair=True)
    assert report.is_sound and "resumes from the previous one" in report.damage[0].repaired
    assert [checkpoint.step for checkpoint in list_checkpoints(run)] == [2]
    assert len(list(run.glob("damaged/*/step-000009/model.safetensors"))) == 1
    assert verify(run).damage == ()


def test_leftovers_of_a_kill_are_a_note_and_a_sample_is_refused(run: Path) -> None:
    (run / ".step-000004.tmp").mkdir()
    assert any(".step-000004.tmp" in note for note in verify(run).notes) and verify(run).is_sound
    with pytest.raises(openuni.OpenUniError, match="--sample is for a corpus"):
        openuni.verify(run, 0.5, reporter=Reporter(quiet=True))
