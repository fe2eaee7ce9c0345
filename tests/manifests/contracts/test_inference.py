"""Precision: what each name sets, whatever the process has set before, and that the process gets its settings back."""

import warnings

import pytest
import torch

from openuni.manifests.contracts.inference import _SWITCHES, float32_arithmetic, inference

CUDNN = ("enabled", "benchmark", "deterministic")


def settings():
    """All settings by both of PyTorch's interfaces; those of the older are its error where the process mixed them."""
    found = {name: getattr(torch.backends.cudnn, name) for name in CUDNN}
    for place in _SWITCHES:
        found[place] = getattr(getattr(torch.backends, place[0]), place[1]).fp32_precision
    older = {
        "cudnn": lambda: torch.backends.cudnn.allow_tf32,
        "cublas": lambda: torch.backends.cuda.matmul.allow_tf32,
        "matmul": torch.get_float32_matmul_precision,
    }
    for name, read in older.items():
        try:
            found[name] = read()
        except RuntimeError:
            found[name] = "mixed"
    return found


def default():
    pass


def everything_tf32():
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True


def everything_strict():
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


def medium():
    torch.set_float32_matmul_precision("medium")


def newer_interface():
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.backends.cudnn.rnn.fp32_precision = "ieee"


def newer_interface_for_all():
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.fp32_precision = "tf32"


def half_newer_interface():
    torch.backends.cuda.matmul.fp32_precision = "tf32"


def cudnn_flags():
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.enabled = False


AMBIENT = [
    default,
    everything_tf32,
    everything_strict,
    medium,
    newer_interface,
    newer_interface_for_all,
    half_newer_interface,
    cudnn_flags,
]


@pytest.fixture(params=AMBIENT, ids=[one.__name__ for one in AMBIENT])
def ambient(request):
    """What a process may have set; afterwards PyTorch's defaults."""
    before = settings()
    request.param()
    yield settings()
    torch.backends.fp32_precision = "none"
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")
    for name in CUDNN:
        setattr(torch.backends.cudnn, name, before[name])
    for place in _SWITCHES:
        getattr(getattr(torch.backends, place[0]), place[1]).fp32_precision = before[place]
    assert settings() == before


def arithmetic():
    """By operation on GPUs."""
    return {operation: settings()[backend, operation] for backend, operation in _SWITCHES if backend != "mkldnn"}


STRICT = {"conv": "ieee", "rnn": "ieee", "matmul": "ieee"}
TF32 = dict.fromkeys(STRICT, "tf32")


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_a_precision_is_what_it_says_and_the_process_gets_its_settings_back(ambient, precision):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with inference("cpu", precision):
            assert arithmetic() == (TF32 if precision == "tf32" else STRICT)
            assert {settings()["mkldnn", name] for name in ("conv", "rnn", "matmul")} == {"ieee"}
            assert [settings()[name] for name in CUDNN] == [True, False, False]
            assert torch.is_inference_mode_enabled()
    assert settings() == ambient
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_both_interfaces_agree_within(ambient, precision):
    """Libraries use either, and PyTorch refuses to answer the older one if the two disagree."""
    if "mixed" in ambient.values():
        pytest.skip("the process has mixed them itself")
    with inference("cpu", precision):
        found = settings()
        assert (found["cudnn"], found["cublas"]) == (precision == "tf32",) * 2
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            assert not torch.backends.cudnn.allow_tf32
    assert settings() == ambient


def test_settings_come_back_after_an_error(ambient):
    with pytest.raises(ZeroDivisionError), inference("cpu", "tf32"):
        raise ZeroDivisionError
    assert settings() == ambient


def test_contexts_within_contexts(ambient):
    with inference("cpu", "bf16"):
        with inference("cpu", "tf32"):
            assert arithmetic() == TF32
            with pytest.raises(ZeroDivisionError), inference("cpu", "fp32"):
                assert arithmetic() == STRICT
                raise ZeroDivisionError
            assert arithmetic() == TF32
        assert arithmetic() == STRICT
        assert torch.is_autocast_enabled("cpu")
    assert settings() == ambient


def test_convolutions_alone_in_tf32(ambient):
    with float32_arithmetic("tf32", "ieee"):
        assert arithmetic() == TF32 | {"matmul": "ieee"}
    assert settings() == ambient


LAYERS = {
    "convolution": (torch.nn.Conv2d(3, 8, 3), (1, 3, 16, 16)),
    "convolution in time": (torch.nn.Conv3d(3, 4, 3), (1, 3, 5, 8, 8)),
    "transposed convolution": (torch.nn.ConvTranspose2d(3, 8, 2, 2), (1, 3, 16, 16)),
    "matrix product": (torch.nn.Linear(64, 64), (16, 64)),
}


@pytest.mark.parametrize("name", list(LAYERS))
def test_16_bits_on_a_cpu(name):
    layer, shape = LAYERS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    results = {}
    for precision in ("fp32", "tf32", "bf16", "fp16"):
        with inference("cpu", precision):
            results[precision] = layer(x)
    with inference("cpu", "bf16"), inference("cpu", "fp32"):
        assert torch.equal(layer(x), results["fp32"])  # autocast does not reach into it
    assert torch.equal(results["tf32"], results["fp32"])
    assert (results["bf16"].dtype, results["fp16"].dtype) == (torch.bfloat16, torch.float16)
    errors = {one: (results[one].float() - results["fp32"]).abs().max().item() for one in ("bf16", "fp16")}
    assert 0 < errors["fp16"] < errors["bf16"] < 0.1
