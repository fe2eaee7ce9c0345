"""`openuni parity`: table, JSON and exit codes."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from typer.testing import CliRunner

from openuni.cli.main import app
from openuni.manifests.errors import OpenUniError
from openuni.training.models.unityvideo import UnityVideo, UnityVideoTransformer
from openuni.training.parity.checks import PARITY_CHECKS
from tests.train.backbone.tiny_wan import BASE


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("pipeline")
    WanTransformer3DModel(**BASE).save_pretrained(place / "transformer")
    return place


def parity(*arguments: object):
    return CliRunner().invoke(app, ["parity", "--device", "cpu", *map(str, arguments)])


def test_all_models_on_wan_are_climbed(pipeline: Path) -> None:
    done = parity("--pretrained", pipeline, "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    models = list(dict.fromkeys(row["model"] for row in rows))
    assert {"unityvideo", "unividx"} <= set(models)
    assert [row["name"] for row in rows] == list(PARITY_CHECKS) * len(models)
    assert {row["verdict"] for row in rows} <= {"passed", "does not apply"}
    assert all(row["figure"] <= row["tolerance"] for row in rows if row["verdict"] == "passed")


def test_one_model_as_a_table(pipeline: Path) -> None:
    done = parity("--pretrained", pipeline, "--model", "unividx", "--modality", "rgb", "--dtype", "bfloat16")
    assert done.exit_code == 0
    header, *lines = done.stdout.splitlines()
    assert header.split()[:4] == ["model", "check", "verdict", "value"]
    assert [line.split()[:2] for line in lines] == [["unividx", name] for name in PARITY_CHECKS]
    assert "does not apply" in lines[3] and "pass more modalities" in lines[3]


def test_a_failed_rung_is_exit_code_1(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UnityVideoTransformer, "unsaved", frozenset({"blocks.0.switcher.2.weight"}))
    done = parity("--pretrained", pipeline, "--model", "unityvideo")
    assert done.exit_code == 1
    assert [line.split()[2] for line in done.stdout.splitlines()[1:]].count("failed") == 1


def test_an_infinite_figure_is_null_in_json(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unembed = UnityVideoTransformer.unembed
    monkeypatch.setattr(UnityVideoTransformer, "unembed", lambda self, *given: unembed(self, *given) * torch.nan)
    done = parity("--pretrained", pipeline, "--model", "unityvideo", "--json")
    assert done.exit_code == 1 and "Infinity" not in done.stdout
    figures = {row["name"]: row["figure"] for row in json.loads(done.stdout)}
    assert figures["bitwise"] is None and figures["keys"] == 0


def test_what_is_not_there_is_named(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, text in (
        (("--pretrained", pipeline / "none"), "none"),
        (("--pretrained", pipeline, "--model", "unityvido"), 'Did you mean "unityvideo"'),
        (("--pretrained", pipeline, "--modality", "rgb", "--modality", "dept"), 'Did you mean "depth"'),
        (("--pretrained", pipeline, "--modality", "text"), 'modality "text" is not known'),
        (("--pretrained", pipeline, "--modality", "a.b"), 'modality "a.b" is not known'),
        (("--pretrained", pipeline, "--device", "gpu"), 'device "gpu" is not available. Available: auto, cpu'),
    ):
        done = parity(*arguments)
        assert isinstance(done.exception, OpenUniError) and text in str(done.exception)  # exit code 2, by `main`
    monkeypatch.setattr("openuni.report.parity._kind", lambda name: UnityVideo if name == "unityvideo" else None)
    done = parity("--pretrained", pipeline, "--model", "other")
    assert isinstance(done.exception, OpenUniError) and "not built on Wan" in str(done.exception)
