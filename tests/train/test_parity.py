"""The ladder: every rung holds for the three models on a tiny backbone, and fails on a model that breaks it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file

from openuni.manifests.errors import OpenUniError
from openuni.training.models._unividx_blocks import UniVidXBlock
from openuni.training.models.unityvideo import UnityVideo, UnityVideoTransformer
from openuni.training.models.unividx import UniVidX, UniVidXTransformer
from openuni.training.parity.checks import PARITY_CHECKS, ParityResult, run_parity_checks
from openuni.training.parity.subject import Measurement, Subject
from tests.train.backbone.test_wan import components
from tests.train.backbone.tiny_wan import BASE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("wan")
    WanTransformer3DModel(**BASE).save_pretrained(place)
    return place


def climbed(folder: Path, name: str, **options: Any) -> dict[str, ParityResult]:
    rungs = {rung.name: rung for rung in run_parity_checks(components(pretrained=str(folder))[name], **options)}
    assert list(rungs) == list(PARITY_CHECKS)
    return rungs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", components())
def test_all_rungs_hold(folder: Path, name: str, dtype: torch.dtype) -> None:
    before = torch.random.get_rng_state()
    rungs = climbed(folder, name, dtype=dtype)
    verdicts = {rung.name: rung.verdict for rung in rungs.values()}
    assert verdicts.pop("layouts") == ("does not apply" if name == "univigu" else "passed")
    assert set(verdicts.values()) == {"passed"}
    assert rungs["bitwise"].figure == rungs["keys"].figure == rungs["round_trip"].figure == 0.0
    assert torch.equal(torch.random.get_rng_state(), before)


def test_checks_compute_in_32_bits_whatever_the_process_allows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an H200, PyTorch's default (TF32 for convolutions) gave 3e-4 for `layouts`, whose tolerance is 1e-5."""
    seen, sums = [], []

    def arithmetic(subject: Subject) -> Measurement:
        matmul = torch.backends.cuda.matmul
        seen.append((torch.backends.cudnn.conv.fp32_precision, matmul.fp32_precision))
        sums.append((matmul.allow_bf16_reduced_precision_reduction, matmul.allow_fp16_reduced_precision_reduction))
        return Measurement(0.0, 0.0, "arithmetic")

    monkeypatch.setitem(PARITY_CHECKS, "bitwise", arithmetic)
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"  # the default
    climbed(folder, "unityvideo")
    assert seen == [("ieee", "ieee")] and sums == [(False, False)]
    assert torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction  # the default
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"


def failed(rungs: dict[str, ParityResult]) -> set[str]:
    return {rung.name for rung in rungs.values() if rung.verdict != "passed" and rung.verdict != "does not apply"}


def test_keys_fail_on_a_changed_base_and_on_other_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {"blocks.0.foreign": torch.zeros(1)}, weights)
    rungs = climbed(tmp_path, "unividx")
    assert rungs["keys"].verdict == "failed" and "blocks.0.foreign" in rungs["keys"].what
    assert {rung.verdict for name, rung in rungs.items() if name != "keys"} == {"not run"}
    save_file({name: tensor for name, tensor in tensors.items() if name != "proj_out.bias"}, weights)
    assert "proj_out.bias" in climbed(tmp_path, "unityvideo")["keys"].what
    monkeypatch.setattr(UniVidXTransformer, "after_base", lambda self: self.proj_out.bias.add_(1e-3))
    rungs = climbed(folder, "unividx")
    assert "keys" in failed(rungs) and rungs["keys"].figure == 1


def test_bitwise_fails_where_an_addition_is_not_zero(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    after_base = UnityVideoTransformer.after_base

    def broken(self: Any) -> None:
        after_base(self)
        self.blocks[1].switcher[2].bias.fill_(1e-3)

    monkeypatch.setattr(UnityVideoTransformer, "after_base", torch.no_grad()(broken))
    rungs = climbed(folder, "unityvideo")
    assert "bitwise" in failed(rungs) and rungs["bitwise"].figure > 0
    assert rungs["keys"].verdict == "passed"


def test_perturbed_fails_behind_a_second_zero(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any) -> None:
        self.blocks[0].ffn.net[2].lora_A["normal"].zero_()

    monkeypatch.setattr(UniVidXTransformer, "after_base", torch.no_grad()(broken))
    rungs = climbed(folder, "unividx")
    assert failed(rungs) == {"perturbed"}
    assert "lora_B.normal" in rungs["perturbed"].what


def test_perturbed_fails_where_a_gradient_is_nan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any) -> None:
        self.blocks[0].ffn.net[2].lora_B["normal"].register_hook(lambda gradient: gradient * torch.nan)

    monkeypatch.setattr(UniVidXTransformer, "after_base", broken)
    rungs = climbed(folder, "unividx")
    assert failed(rungs) == {"perturbed"} and rungs["perturbed"].figure == 1
    assert "without a finite gradient" in rungs["perturbed"].what and "lora_B.normal" in rungs["perturbed"].what


def test_layouts_fail_where_positions_differ(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rotary = UnityVideoTransformer.rotary
    monkeypatch.setattr(UnityVideoTransformer, "rotary", lambda self, grid, count, _: rotary(self, grid, count, True))
    rungs = climbed(folder, "unityvideo")
    assert failed(rungs) == {"layouts"} and rungs["layouts"].figure > rungs["layouts"].tolerance
    assert failed(climbed(folder, "unividx")) == {"layouts"}


def test_gradients_fail_where_one_is_cut_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed_forward = UniVidXBlock.feed_forward
    monkeypatch.setattr(
        UniVidXBlock, "feed_forward", lambda self, tokens, rows: feed_forward(self, tokens.detach(), rows)
    )
    rungs = climbed(folder, "unividx")
    assert failed(rungs) == {"gradients"} and rungs["gradients"].figure > 1e-3


def test_round_trip_fails_where_a_tensor_is_not_saved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UnityVideoTransformer, "unsaved", frozenset({"blocks.0.switcher.2.weight"}))
    assert failed(climbed(folder, "unityvideo")) == {"round_trip"}


def test_nothing_holds_where_our_output_is_nan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unembed = UniVidXTransformer.unembed
    monkeypatch.setattr(UniVidXTransformer, "unembed", lambda self, *given: unembed(self, *given) * torch.nan)
    rungs = climbed(folder, "unividx")
    assert failed(rungs) == set(PARITY_CHECKS) - {"keys"}
    assert rungs["bitwise"].figure == rungs["layouts"].figure == rungs["gradients"].figure == torch.inf
    assert "outputs are not finite" in rungs["perturbed"].what


@pytest.mark.parametrize("fault", [torch.nan, 1e30])
def test_nothing_holds_on_a_base_that_gives_no_numbers(tmp_path: Path, fault: float) -> None:
    """One NaN among the weights; and weights that are numbers, but too large to compute with."""
    torch.manual_seed(0)
    plain = WanTransformer3DModel(**BASE)
    with torch.no_grad():
        for parameter in [plain.proj_out.weight[:1]] if fault != fault else plain.parameters():
            parameter.mul_(fault)
    plain.save_pretrained(tmp_path)
    rungs = climbed(tmp_path, "unividx")
    assert failed(rungs) == set(PARITY_CHECKS) - ({"keys"} if fault == fault else set())
    assert all(rung.figure == torch.inf for name, rung in rungs.items() if name not in ("keys", "perturbed"))
    assert rungs["keys"].figure == (fault != fault)


def test_gradients_of_a_model_without_rgb_are_those_of_the_base_where_it_is_used(folder: Path) -> None:
    """UniVidX sends any stream through the base's own layers, UnityVideo only rgb."""
    for kind, verdict in ((UniVidX, "passed"), (UnityVideo, "does not apply")):
        rungs = {
            rung.name: rung for rung in run_parity_checks(kind(modalities=("depth", "normal"), pretrained=str(folder)))
        }
        assert rungs.pop("gradients").verdict == verdict
        assert {rung.verdict for rung in rungs.values()} == {"passed"}


def test_one_stream_has_no_layouts(folder: Path) -> None:
    rungs = {
        rung.name: rung for rung in run_parity_checks(UniVidX(modalities=("rgb",), pretrained=str(folder), rank=2))
    }
    assert rungs["layouts"].verdict == "does not apply" and "one stream" in rungs["layouts"].what


def test_no_backbone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OpenUniError, match="requires a pretrained model"):
        list(run_parity_checks(UniVidX()))
    WanTransformer3DModel(**BASE, image_dim=8, added_kv_proj_dim=24).save_pretrained(tmp_path)
    with pytest.raises(OpenUniError, match="image-to-video"):
        list(run_parity_checks(UniVidX(pretrained=str(tmp_path))))
