"""Exported models on a hub: uploaded as one commit by the real client, downloaded again, refused and lost."""

from pathlib import Path

import pytest
import torch

import openuni
from openuni.manifests.errors import OpenUniError
from openuni.training.run import Run
from tests.hub_server import hub_server
from tests.train.export.test_exported_models import LICENCE, assert_equal_samples, cli


def test_a_model_goes_to_the_hub_and_back(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_server(monkeypatch, tmp_path / "cache") as hub:
        url = run.push_to_hub("me/model", private=True, token="hf_secret", licence=LICENCE)
        assert url == f"{hub.served.url}/me/model/commit/{'0' * 40}" and hub.private == {"me/model"}
        assert hub.tokens == {"Bearer hf_secret"}
        names = {"README.md", "model.safetensors", "openuni.json", "texts.safetensors"}
        assert set(hub.repositories["me/model"]) == names
        assert b'from_pretrained("me/model")' in hub.repositories["me/model"]["README.md"]
        model = openuni.from_pretrained("me/model", "cpu", token="hf_secret")
        assert_equal_samples(model, run)
        done = cli("export-model", run.folder, "--push-to", "me/other", "--licence", LICENCE)
        assert done.returncode == 0 and "/me/other/commit/" in done.stdout, done.stderr
    cached = openuni.from_pretrained("me/model", "cpu")  # the hub cannot be reached
    assert torch.equal(cached.texts.empty, run.texts.empty)


def test_what_the_hub_refuses_is_said(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OpenUniError, match='must be "owner/name"'):
        run.push_to_hub("model", licence=LICENCE)
    with hub_server(monkeypatch, tmp_path / "cache") as hub:
        hub.denied = True
        with pytest.raises(OpenUniError, match=r'upload to "me/model" failed.*hf auth login'):
            run.push_to_hub("me/model", token="hf_secret", licence=LICENCE)
        with pytest.raises(OpenUniError, match='download of "me/nothing" failed'):
            openuni.from_pretrained("me/nothing")
    done = cli("export-model", run.folder, "--push-to", "me/model", "--licence", LICENCE)  # the hub is gone
    assert done.returncode == 2 and 'upload to "me/model" failed' in done.stderr and "Traceback" not in done.stderr
