"""Exported models: they give what the run gives, in every format; cards run; licences and paths; hostile folders."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file

import openuni
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import OpenUniError
from openuni.manifests.storage.checksums import parse_record, record_bytes
from openuni.training.export import formats
from openuni.training.loop.trainer import train
from openuni.training.run import Run
from openuni.training.sampler import SamplingOptions
from openuni.unified import Unified
from tests.command_line import cli
from tests.docs import blocks
from tests.train.backbone.tiny_wan import inputs
from tests.train.corpora import random_clips, write_corpus
from tests.train.export.conftest import BASE, SIZE, STEPS
from tests.train.models.test_unividx import LAYERS
from tests.train.small_runs import small_recipe

SIZES: dict[str, Any] = {"modalities": ["rgb", "depth"], "switcher_dim": 8, "text_dim": 8, "channels": 4, **SIZE}
QUICK = SamplingOptions(steps=2, shift=1.0)
LICENCE = "mit"


def made(model: Run) -> dict[str, torch.Tensor]:
    return model.sample("->rgb+depth", {}, ["a cube"], sampling=QUICK)


def assert_equal_samples(ours: Run, theirs: Run) -> None:
    for name, tensor in made(theirs).items():
        assert torch.equal(made(ours)[name], tensor), name


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def changed(folder: Path, **facts: Any) -> None:
    """Another record with a right checksum, as someone hostile writes it."""
    path = folder / "openuni.json"
    record = parse_record(path.read_bytes(), "record")
    for name, value in facts.items():
        if isinstance(value, dict) and isinstance(record.get(name), dict):
            record[name] |= value
        else:
            record[name] = value
    path.write_bytes(record_bytes(record))


# ---------------------------------------------------------------- formats


def test_an_exported_model_gives_what_the_run_gives(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = run.save_pretrained(tmp_path / "a" / "out", licence=LICENCE)
    assert files(place) == {"README.md", "model.safetensors", "openuni.json", "texts.safetensors"}
    model = openuni.from_pretrained(place)
    assert_equal_samples(model, run)
    assert model.tasks == run.tasks
    weights = load_file(place / "model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in run.checkpoint.tensors("ema").items())
    monkeypatch.setattr(formats, "SHARD_BYTES", 20_000)
    several = run.save_pretrained(tmp_path / "several", licence=LICENCE, weights="model")
    assert "model.safetensors.index.json" in files(several) and len(list(several.glob("model-*.safetensors"))) > 2
    trained = openuni.from_pretrained(several).model.state_dict()
    assert all(torch.equal(trained[name], tensor) for name, tensor in run.checkpoint.tensors("model").items())
    with pytest.raises(OpenUniError, match="no training checkpoint"):
        _ = model.checkpoint


def test_diffusers_loads_the_backbone(run: Run, tmp_path: Path) -> None:
    place = run.save_pretrained(tmp_path / "out", format="diffusers", licence=LICENCE)
    backbone = WanTransformer3DModel.from_pretrained(place)
    ours = run.checkpoint.tensors("ema")
    theirs = backbone.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    additions = load_file(place / "openuni_additions.safetensors")
    assert set(additions) == set(ours) - set(theirs) == set(run.model.added_parameters())
    assert_equal_samples(openuni.from_pretrained(place), run)


@pytest.mark.usefixtures("use_mirror")
def test_peft_and_diffusers_load_the_loras(lora_run: Run, mirror: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    place = lora_run.save_pretrained(tmp_path / "out", format="peft")
    assert files(place) == {
        "README.md",
        *(f"{name}/adapter_{rest}" for name in ("rgb", "depth") for rest in ("config.json", "model.safetensors")),
    }
    streams, sigmas, text = inputs(("rgb",))
    wanted = lora_run.model(streams, sigmas, text)["rgb"]
    without = WanTransformer3DModel.from_pretrained(mirror / BASE / "transformer")

    def velocity(transformer: Any) -> torch.Tensor:
        with torch.no_grad():
            return transformer(streams["rgb"], sigmas["rgb"] * 1000, text["rgb"], return_dict=False)[0]

    plain = velocity(without)
    by_peft = peft.PeftModel.from_pretrained(without, place / "rgb").eval()
    config = json.loads((place / "rgb" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(LAYERS) and config["base_model_name_or_path"] == BASE
    by_diffusers = WanTransformer3DModel.from_pretrained(mirror / BASE / "transformer")
    by_diffusers.load_lora_adapter(
        place, subfolder="rgb", weight_name="adapter_model.safetensors", prefix="base_model.model"
    )
    assert not torch.allclose(plain, wanted, atol=1e-3)
    for transformer in (by_peft, by_diffusers):
        torch.testing.assert_close(velocity(transformer), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("use_mirror")
def test_a_frozen_base_is_named_or_stored(lora_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = lora_run.save_pretrained(tmp_path / "named")
    stored = lora_run.save_pretrained(tmp_path / "stored", include_base=True)
    assert all(".lora_" in name for name in load_file(named / "model.safetensors"))
    assert_equal_samples(openuni.from_pretrained(named), lora_run)
    expected = made(lora_run)
    monkeypatch.delenv("OPENUNI_CHECKPOINTS")
    alone = made(openuni.from_pretrained(stored))
    assert all(torch.equal(alone[name], expected[name]) for name in expected)
    with pytest.raises(OpenUniError, match=f"openuni checkpoints get {BASE}"):
        _ = openuni.from_pretrained(named).model


def test_formats_that_do_not_fit_are_refused(run: Run, lora_run: Run, tmp_path: Path, mirror: Path) -> None:
    for model, options, message in (
        (run, {"format": "peft"}, "unityvideo has no LoRA"),
        (lora_run, {"format": "diffusers"}, "only LoRAs were trained"),
        (run, {"format": "onnx"}, "Allowed: openuni, diffusers, peft"),
        (lora_run, {"format": "peft", "include_base": True}, "does not store a frozen base"),
    ):
        with pytest.raises(OpenUniError, match=message):
            model.save_pretrained(tmp_path / "out", licence=LICENCE, **options)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine")
    with pytest.raises(OpenUniError, match="is not empty"):
        run.save_pretrained(tmp_path / "used", licence=LICENCE)


def test_a_model_that_captions_goes_out_and_back(tmp_path: Path) -> None:
    """Text as a target, its tokenizer, conditions in the code of the card."""
    clips = [clip | {"caption": f"{number} cubes"} for number, clip in enumerate(random_clips(4, ("rgb",)))]
    settings = {"model": SIZE | {"name": "univigu"}, "tasks": {"v2t": 1.0}, "text": {"length": 16}}
    corpus = write_corpus(tmp_path / "corpus", clips)
    run = train(small_recipe(settings, STEPS), corpus, tmp_path / "run", device="cpu")
    for format in ("openuni", "diffusers"):
        place = run.save_pretrained(tmp_path / format, format=format, licence=LICENCE)
        model = openuni.from_pretrained(place)
        assert [str(task) for task in model.tasks] == ["rgb->text"]
        video = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), dtype=np.uint8)
        texts = [one.generate("", ["text"], {"rgb": video}, sampling=QUICK)["text"] for one in (run, model)]
        assert texts[0] == texts[1]
        (block,) = blocks(place / "README.md", "python")
        with contextlib.chdir(place):
            exec(compile(block.text, "card", "exec"), {})


def test_an_exported_model_is_an_annotator(run: Run, tmp_path: Path) -> None:
    place = run.save_pretrained(tmp_path / "out", licence=LICENCE)
    ours, theirs = (Unified(run_dir=str(folder), steps=2) for folder in (place, run.folder))
    clip = DecodedClip.from_frames(np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3), np.uint8))
    maps = [operator.run(operator.load("cpu"), clip).depth for operator in (ours, theirs)]
    assert maps[0] is not None and maps[1] is not None and np.array_equal(maps[0].array, maps[1].array)
    before = [checkpoint.digest() for checkpoint in ours.checkpoints()]
    other = run.save_pretrained(tmp_path / "other", licence=LICENCE, weights="model")
    assert [one.digest() for one in Unified(run_dir=str(other), steps=2).checkpoints()] != before


# ---------------------------------------------------------------- card, licence, paths


@pytest.mark.usefixtures("use_mirror")
@pytest.mark.parametrize("format", ["openuni", "diffusers", "peft"])
def test_the_code_of_the_card_runs(run: Run, lora_run: Run, mirror: Path, tmp_path: Path, format: str) -> None:
    pytest.importorskip("peft")
    model = lora_run if format == "peft" else run
    place = model.save_pretrained(tmp_path / "out", format=format, licence=LICENCE)
    if format == "peft":  # the Hub's file, where diffusers looks first
        (place / BASE).parent.mkdir()
        (place / BASE).symlink_to(mirror / BASE)
    (block,) = blocks(place / "README.md", "python")
    with contextlib.chdir(place):
        exec(compile(block.text, "card", "exec"), {})


def test_the_card_states_what_is_known(run: Run, lora_run: Run, tmp_path: Path, mirror: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(run.save_pretrained(tmp_path / "a", licence=LICENCE) / "README.md")
    assert card.data.license == LICENCE and card.data.base_model is None and card.data.library_name == "openuni"
    assert "| `text->rgb+depth` |" in card.text and "| clips | 4 |" in card.text
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENUNI_CHECKPOINTS", str(mirror))
        card = ModelCard.load(lora_run.save_pretrained(tmp_path / "b") / "README.md")
    assert card.data.license == "apache-2.0" and card.data.base_model == BASE


def test_a_licence_is_never_assumed(run: Run, lora_run: Run, mirror: Path, tmp_path: Path) -> None:
    with pytest.raises(OpenUniError, match=r"licence .* unknown: the run has no base model.*--licence"):
        run.save_pretrained(tmp_path / "out")
    with pytest.raises(OpenUniError, match="must be a licence name"):
        run.save_pretrained(tmp_path / "out", licence="my own\nlicense: mit")
    other = shutil.copytree(mirror, tmp_path / "mirror")
    for card in ("no header", "---\nlicense: other\n---\n", "---\nlicense: [a, b]\n---\n", "---\n\x00: [\n---\n", None):
        (other / BASE / "README.md").write_text(card) if card else (other / BASE / "README.md").unlink()
        with pytest.MonkeyPatch.context() as patch, pytest.raises(OpenUniError, match=f"the card of {BASE}"):
            patch.setenv("OPENUNI_CHECKPOINTS", str(other))
            lora_run.save_pretrained(tmp_path / "out")


def test_paths_of_this_machine_are_not_disclosed(corpus: Any, mirror: Path, tmp_path: Path, lora_run: Run) -> None:
    path = str(mirror / BASE)
    recipe = small_recipe(
        {"model": {"name": "unityvideo", "switcher_dim": 8, "pretrained": path}, "tasks": {"joint": 1.0}}, STEPS
    )
    run = train(recipe, corpus, tmp_path / "run", device="cpu")
    with pytest.raises(OpenUniError, match=f'"{path}" is a path of this machine.*--hub-name {path}=OWNER/NAME'):
        run.save_pretrained(tmp_path / "out")
    with pytest.raises(OpenUniError, match="must be a hub name"):
        run.save_pretrained(tmp_path / "out", hub_names={path: "/etc"})
    with pytest.raises(OpenUniError, match="does not refer to this path"):
        run.save_pretrained(tmp_path / "out", hub_names={path: BASE, "/other": BASE})
    place = run.save_pretrained(tmp_path / "out", hub_names={path: BASE})  # the licence is that of the base
    for file in ("openuni.json", "README.md"):
        text = (place / file).read_text()
        assert str(mirror) not in text and str(tmp_path) not in text
        assert BASE in text
    assert_equal_samples(openuni.from_pretrained(place), run)


def test_checkpoints_of_codecs_go_by_their_names(run: Run, tmp_path: Path) -> None:
    record = run.record | {
        "latents": run.record["latents"] | {"codec": "wan_vae", "options": {"checkpoint": "/data/vae"}},
        "text": run.record["text"] | {"codec": "umt5", "options": {"checkpoint": "./umt5"}},
    }
    other = Run(run.folder, record, "cpu")
    other.__dict__["texts"] = run.texts  # as embedded by that codec
    with pytest.raises(OpenUniError, match=r'latents\.checkpoint = "/data/vae" is a path of this machine'):
        other.save_pretrained(tmp_path / "out", licence=LICENCE)
    names = {"/data/vae": "someone/vae", "./umt5": "someone/umt5"}
    place = other.save_pretrained(tmp_path / "out", licence=LICENCE, hub_names=names)
    model = openuni.from_pretrained(place, "cpu")
    assert model.record["latents"]["options"]["checkpoint"] == "someone/vae"
    for name, row in model.texts.rows.items():  # found under their new names, without the codec
        assert torch.equal(row, run.texts.rows[name])
    assert "someone/vae" in (place / "README.md").read_text() and "/data" not in (place / "openuni.json").read_text()


# ---------------------------------------------------------------- untrusted folders


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"model": {"name": "os.system"}}, "not a reason to import code"),
        ({"model": {"options": {"modalities": ["rgb"], "pretrained": "/etc"}}}, "must be a hub name"),
        ({"latents": {"codec": "../dct"}}, "not known"),
        ({"latents": {"options": {"checkpoint": "../../etc"}}}, "must be a hub name"),
        ({"latents": {"size_px": [16, -16]}}, "size_px"),
        ({"latent_shape": [4, 2, 2, 0]}, "latent_shape"),
        ({"text_length": "8"}, "text_length"),
        ({"tasks": []}, "tasks"),
        ({"tasks": ["rgb->"]}, "rgb->"),
        ({"format": 9}, "format 9"),
        ({"recipe": 3}, "recipe must be tables"),
        ({"recipe": {"optimizer": {"steps": -1}}}, "steps"),
        ({"data": {"fps": "fast"}}, "fps"),
        ({"model": {"options": SIZES | {"num_layers": 10**9}}}, "too few for num_layers = 1000000000"),
        ({"model": {"options": SIZES | {"ffn_dim": 10**12}}}, "of another size"),
        ({"model": {"options": SIZES | {"heads": 10**30}}}, "cannot be used"),
        ({"model": {"options": SIZES | {"channels": 0}}}, "channels"),
    ],
)
def test_hostile_records_are_refused(run: Run, tmp_path: Path, facts: dict[str, Any], message: str) -> None:
    place = run.save_pretrained(tmp_path / "out", licence=LICENCE)
    changed(place, **facts)
    with pytest.raises(OpenUniError, match=message):
        openuni.from_pretrained(place).generate("", make=["rgb", "depth"])
    done = cli("generate", place, "--make", "rgb", "--make", "depth", "--out", tmp_path / "made")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("kind", ["nan", "missing", "size", "cut", "index", "pickle"])
def test_hostile_weights_are_refused(run: Run, tmp_path: Path, kind: str) -> None:
    place = run.save_pretrained(tmp_path / "out", licence=LICENCE)
    path = place / "model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    if kind == "index":
        index = {"weight_map": {name: "../run/step-000002/ema.safetensors"}}
        (place / "model.safetensors.index.json").write_text(json.dumps(index))
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif kind == "pickle":
        path.unlink()
        torch.save(tensors, place / "model.bin")
    else:
        value = {"nan": tensors[name] * np.nan, "size": torch.zeros(1)}.get(kind)
        rest = {key: tensor for key, tensor in tensors.items() if key != name}
        save_file(rest | ({name: value} if value is not None else {}), path)
    with pytest.raises(OpenUniError):
        _ = openuni.from_pretrained(place).model


def test_what_is_no_exported_model(run: Run, tmp_path: Path) -> None:
    with pytest.raises(OpenUniError, match=r"openuni\.json not found.*openuni export-model"):
        openuni.from_pretrained(run.folder)
    with pytest.raises(OpenUniError, match='no folder "/nowhere"'):
        openuni.from_pretrained("/nowhere")


# ---------------------------------------------------------------- command line


def test_the_command_exports_and_the_result_generates(run: Run, tmp_path: Path) -> None:
    done = cli("export-model", run.folder, "--out", tmp_path / "out", "--licence", LICENCE, "--format", "diffusers")
    assert done.returncode == 0 and f"exported: {tmp_path / 'out'}" in done.stdout, done.stderr
    generated = cli(
        *("generate", tmp_path / "out", "--make", "rgb", "--make", "depth", "--steps", 1, "--out", tmp_path / "made")
    )
    assert generated.returncode == 0, generated.stderr
    assert {path.name for path in (tmp_path / "made").iterdir()} == {"rgb.mp4", "rgb.npy", "depth.mp4", "depth.npy"}
    for arguments, message in (
        (("--licence", LICENCE), "pass --out FOLDER, or --push-to"),
        (("--out", tmp_path / "out", "--licence", LICENCE), "is not empty"),
        (("--out", tmp_path / "b"), "the licence of the exported weights is unknown"),
        (("--out", tmp_path / "b", "--licence", LICENCE, "--hub-name", "x"), "must be PATH=OWNER/NAME"),
    ):
        refused = cli("export-model", run.folder, *arguments)
        assert refused.returncode == 2 and message in refused.stderr, refused.stderr
