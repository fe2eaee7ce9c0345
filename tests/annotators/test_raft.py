import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import optical_flow

from openuni.annotators._raft_pairs import split_padding
from openuni.annotators.raft import Raft, torchvision_names
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import MissingRequirement, OpenUniError
from tests.moving_pictures import panned

BUILD = {"large": optical_flow.raft_large, "small": optical_flow.raft_small}
KEYS = {"large": 169, "small": 106}


def random_network(size):
    """torchvision's RAFT with random weights and random statistics of its batch norms."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = BUILD[size](weights=None)
        for name, value in network.state_dict().items():
            if name.endswith("running_mean"):
                value.normal_(0, 0.1)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
    return network.eval()


def saved(folder, size="small"):
    path = folder / f"{size}.pth"
    if not path.exists():
        torch.save(random_network(size).state_dict(), path)
    return str(path)


def contract_case(folder, frames):
    """What tests/test_every_operator.py runs: random weights in torchvision's own format."""
    return Raft(size="small", checkpoint=saved(folder), iterations=2), DecodedClip.from_frames(frames)


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def annotate(operator, frames):
    return operator.run(operator.load("cpu"), DecodedClip.from_frames(frames))


@pytest.mark.parametrize("size", ["large", "small"])
def test_flow_at_an_odd_size_equals_pad_network_unpad_by_hand(tmp_path, size):
    frames = noise(2, 130, 203)
    operator = Raft(size=size, checkpoint=saved(tmp_path, size), iterations=3, check=False)
    flow = annotate(operator, frames).flow.array

    weights = {"large": optical_flow.Raft_Large_Weights, "small": optical_flow.Raft_Small_Weights}[size]
    images = torch.from_numpy(frames).permute(0, 3, 1, 2)
    before, after = weights.DEFAULT.transforms()(images[:1], images[1:])
    pad = torch.nn.ReplicationPad2d((2, 3, 3, 3))  # 203 -> 208, 130 -> 136; the odd pixel to the right
    with torch.no_grad():
        padded = random_network(size)(pad(before), pad(after), num_flow_updates=3)[-1]
    by_hand = padded[0, :, 3:133, 2:205].permute(1, 2, 0).numpy()
    assert np.abs(by_hand).mean() > 0.01
    # the context encoder gets two frames here, one there, which the small network rounds differently
    assert np.abs(flow[0] - by_hand).max() <= {"large": 0, "small": 1e-4}[size]
    assert np.array_equal(flow[1], flow[0])


def test_padding_is_to_a_multiple_of_8_and_at_least_128():
    assert [split_padding(side) for side in (128, 136, 203, 130, 129, 100, 1)] == [
        (0, 0), (0, 0), (2, 3), (3, 3), (3, 4), (14, 14), (63, 64),
    ]  # fmt: skip


def test_small_frames_are_padded_and_stay_finite(tmp_path):
    found = annotate(Raft(size="small", checkpoint=saved(tmp_path), iterations=1), noise(2, 20, 33))
    assert found.flow.array.shape == (2, 20, 33, 2)
    assert np.isfinite(found.flow.array).all()


def test_batches_do_not_change_the_flow(tmp_path):
    frames = panned([(0, 0), (2, 1), (3, 3), (6, 3)], 64, 96)
    flows = [
        annotate(Raft(size="small", checkpoint=saved(tmp_path), iterations=2, frames_per_batch=n), frames).flow.array
        for n in (1, 2, 8)
    ]
    assert flows[0].shape == (4, 64, 96, 2)
    assert not np.array_equal(flows[0][0], flows[0][1])
    for flow in flows[1:]:
        assert np.abs(flow - flows[0]).max() < 1e-3


def test_bf16_stays_near_fp32_and_keeps_the_correlation_in_fp32(tmp_path):
    frames = panned([(0, 0), (2, 1)], 128, 128)
    operator = Raft(size="small", checkpoint=saved(tmp_path), iterations=2, check=False)
    exact = annotate(operator, frames).flow.array
    half = Raft(size="small", checkpoint=operator.checkpoint, iterations=2, check=False, precision="bf16")
    network = half.load("cpu")
    rounded = half.run(network, DecodedClip.from_frames(frames)).flow.array
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() < 0.1 * np.abs(exact).max()
    assert {level.dtype for level in network.corr_block.corr_pyramid} == {torch.float32}


def test_more_iterations_change_the_flow(tmp_path):
    frames = noise(2, 128, 128)
    flows = [
        annotate(Raft(size="small", checkpoint=saved(tmp_path), iterations=n, check=False), frames).flow.array
        for n in (1, 2)
    ]
    assert np.abs(flows[0] - flows[1]).max() > 1e-3


def authors_names(weights):
    """The inverse of the key map, written independently of it: torchvision's names -> the authors'."""
    renamed = {}
    for name, value in weights.items():
        parts = name.split(".")
        if parts[0] in ("feature_encoder", "context_encoder"):
            head = {"feature_encoder": "fnet", "context_encoder": "cnet"}[parts[0]]
            rest = parts[1:]
            if rest[0] == "convnormrelu":
                rest = [{"0": "conv1", "1": "norm1"}[rest[1]], *rest[2:]]
            elif rest[0] == "conv":
                rest = ["conv2", *rest[1:]]
            elif rest[2].startswith("convnormrelu"):
                number = rest[2].removeprefix("convnormrelu")
                rest = [*rest[:2], {"0": "conv", "1": "norm"}[rest[3]] + number, *rest[4:]]
            elif rest[2] == "downsample" and rest[3] == "1":
                renamed[".".join(["module", head, *rest[:2], "norm3", *rest[4:]])] = (
                    value  # listed twice by the authors
                )
            parts = [head, *rest]
        elif parts[0] == "mask_predictor":
            parts = ["update_block", "mask", *(["0", *parts[3:]] if parts[1] == "convrelu" else ["2", *parts[2:]])]
        elif parts[1] == "motion_encoder":
            layer = parts[2].replace("convcorr", "convc").replace("convflow", "convf")
            parts = ["update_block", "encoder", layer, *parts[4:]]
        elif parts[1] == "recurrent_block":
            gate = parts[3] + (parts[2].removeprefix("convgru") if "mask_predictor.conv.bias" in weights else "")
            parts = ["update_block", "gru", gate, *parts[4:]]
        renamed[".".join(["module", *parts])] = value
    return renamed


@pytest.mark.parametrize("size", ["large", "small"])
def test_checkpoints_of_the_authors_load(tmp_path, size):
    own = random_network(size).state_dict()
    theirs = authors_names(own)
    assert len(own) == KEYS[size]
    assert len(theirs) == {"large": 179, "small": 106}[size]  # the authors' own counts
    back = torchvision_names(theirs)
    assert back.keys() == own.keys()
    assert all(torch.equal(back[name], own[name]) for name in own)
    path = tmp_path / "theirs.pth"
    torch.save(theirs, path)
    loaded = Raft(size=size, checkpoint=str(path)).load("cpu").state_dict()
    assert all(torch.equal(loaded[name], own[name]) for name in own)


def test_a_few_names_of_the_authors_as_they_stand_in_their_files():
    for theirs, own in {
        "module.fnet.layer2.0.conv1.weight": "feature_encoder.layer2.0.convnormrelu1.0.weight",
        "module.cnet.layer2.0.downsample.1.running_mean": "context_encoder.layer2.0.downsample.1.running_mean",
        "module.cnet.norm1.weight": "context_encoder.convnormrelu.1.weight",
        "module.update_block.encoder.convf2.bias": "update_block.motion_encoder.convflow2.0.bias",
        "module.update_block.gru.convq2.weight": "update_block.recurrent_block.convgru2.convq.weight",
        "module.update_block.gru.convz.weight": "update_block.recurrent_block.convgru1.convz.weight",
        "module.update_block.mask.2.bias": "mask_predictor.conv.bias",
    }.items():
        assert list(torchvision_names({"module.fnet.conv1.bias": 0, theirs: 1}))[1] == own


def test_safetensors_load_too(tmp_path):
    network = random_network("small")
    path = tmp_path / "weights.safetensors"
    save_file(network.state_dict(), path)
    frames = noise(2, 128, 128)
    from_pth = annotate(Raft(size="small", checkpoint=saved(tmp_path), iterations=1, check=False), frames)
    from_file = annotate(Raft(size="small", checkpoint=str(path), iterations=1, check=False), frames)
    assert np.array_equal(from_pth.flow.array, from_file.flow.array)


def test_torchvisions_weights_are_listed_as_torchvision_names_them():
    kinds = {"large": optical_flow.Raft_Large_Weights, "small": optical_flow.Raft_Small_Weights}
    theirs = [(size, member) for size, kind in kinds.items() for member in kind]
    assert [checkpoint.url for checkpoint in Raft.published()] == [member.url for _, member in theirs]
    for (size, member), checkpoint in zip(theirs, Raft.published(), strict=True):
        assert Raft(size=size, checkpoint=member.name).checkpoints() == (checkpoint,)
        assert abs(checkpoint.size_mb - member.meta["_file_size"] * 2**20 / 1e6) < 0.05
    for size, kind in kinds.items():
        assert Raft(size=size).checkpoints()[0].url == kind.DEFAULT.url


@pytest.mark.parametrize("variables", [{}, {"XDG_CACHE_HOME": "/caches"}, {"TORCH_HOME": "~/weights"}])
def test_the_cache_is_torchs_own_without_torch(monkeypatch, variables):
    for name in ("XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    asked = Raft().checkpoints()[0].download_path()
    assert asked.parent == Path(torch.hub.get_dir()) / "checkpoints"
    monkeypatch.delitem(sys.modules, "torch")
    assert Raft().checkpoints()[0].download_path() == asked


def test_weights_named_as_in_torchvision_are_looked_for_in_its_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    operator = Raft(size="small", checkpoint="C_T_V2")
    with pytest.raises(MissingRequirement, match=r"openuni checkpoints get raft_small_C_T_V2-01064c6d\.pth"):
        operator.load("cpu")
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(random_network("small").state_dict(), cache / "raft_small_C_T_V2-01064c6d.pth")
    assert sum(value.numel() for value in operator.load("cpu").parameters()) == 990_162
    assert Raft(size="small").checkpoints()[0].ref == "raft_small_C_T_V2-01064c6d.pth"
    assert Raft(size="large").checkpoints()[0].ref == "raft_large_C_T_SKHT_V2-ff5fadd5.pth"


def test_other_weights_are_another_version(tmp_path):
    path = saved(tmp_path)
    before = Raft(size="small", checkpoint=path).version()
    other = copy.deepcopy(torch.load(path, weights_only=True))
    other["update_block.flow_head.conv2.bias"] += 1
    torch.save(other, path)
    assert Raft(size="small", checkpoint=path).version() != before


def test_wrong_weights_are_explained(tmp_path):
    with pytest.raises(OpenUniError, match=r'"C_T_V9" is not known\..*Known: C_T_SKHT_K_V1'):
        Raft(checkpoint="C_T_V9").checkpoints()
    with pytest.raises(OpenUniError, match="Try the other size"):
        Raft(size="large", checkpoint=saved(tmp_path, "small")).load("cpu")
    torch.save({"model": {"weight": torch.zeros(1)}, "epoch": 3}, tmp_path / "training.pth")
    with pytest.raises(OpenUniError, match="must be a mapping of names to tensors"):
        Raft(checkpoint=str(tmp_path / "training.pth")).load("cpu")
    with pytest.raises(MissingRequirement, match="existing file"):
        Raft(checkpoint=str(tmp_path / "nowhere.pth")).load("cpu")


class Payload:
    """What a malicious checkpoint holds: code that runs when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    path, marker = tmp_path / "evil.pth", tmp_path / "code was run"
    torch.save({"weight": Payload(marker)}, path)
    with pytest.raises(OpenUniError, match=r"cannot be read as weights"):
        Raft(checkpoint=str(path)).load("cpu")
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the payload works: without the guard it would have run
    assert marker.exists()


@pytest.mark.parametrize("name", ["damaged.pth", "damaged.safetensors"])
def test_damaged_files_are_explained(tmp_path, name):
    for data in (b"", b"not weights", Path(saved(tmp_path)).read_bytes()[:5000]):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(OpenUniError, match="cannot be read as weights"):
            Raft(checkpoint=str(tmp_path / name)).load("cpu")


@pytest.mark.parametrize("wrong", [{"size": "huge"}, {"precision": "fp8"}, {"iterations": 0}, {"frames_per_batch": 0}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(OpenUniError, match="Allowed"):
        Raft(**wrong)
