"""The model card of an exported model: README.md with a YAML header in the Hub's format."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openuni.training.tasks import TEXT, Task

MARKDOWN = re.compile(r"[\\`*\[\]|]")  # with these, text becomes something else


@dataclass(frozen=True)
class CardFacts:
    """What the card states beside the record of the model."""

    where: str  # argument of `from_pretrained`: a hub name, or "." for the folder itself
    step: int
    weights: str  # "ema" or "model"
    licence: str
    base: str  # hub name of the base model; empty: trained from random weights
    base_licence: str  # empty: not known
    base_folder: str  # of the transformer inside the base model's repository; empty: none
    format: str
    adapters: Sequence[str] = ()  # names of PEFT adapters


def model_card(record: Mapping[str, Any], facts: CardFacts) -> str:
    """The text of README.md."""
    name = record["model"]["name"]
    modalities = record["model"]["options"]["modalities"]
    tasks = [Task.parse(task) for task in record["tasks"]]
    parts = [
        _header(facts, modalities, tasks),
        f"# {_plain(name)}: {_plain(', '.join(modalities))}\n",
        f"A `{_plain(name)}` model, trained with OpenUni for {facts.step:,} steps. These are the "
        f"{'EMA weights' if facts.weights == 'ema' else 'weights'} of that step.\n",
        "## Use\n",
        _usage(record, facts, tasks),
        "## Tasks\n",
        _table(["task", "training clips"], _task_rows(record, tasks)),
        "## Modalities\n",
        "Streams: " + ", ".join(f"`{_plain(one)}`" for one in modalities) + ".\n",
        "## Training data\n",
        _table(["fact", "value"], _data_rows(record)),
        "The training data is not part of this repository, and its licence is not recorded.\n",
        "## Base model and licence\n",
        _licence(facts),
    ]
    return "\n".join(parts)


def _header(facts: CardFacts, modalities: Sequence[str], tasks: Sequence[Task]) -> str:
    lines = ["---", f"license: {json.dumps(facts.licence)}"]
    library = {"openuni": "openuni", "diffusers": "diffusers", "peft": "peft"}[facts.format]
    lines += [f"library_name: {library}"]
    if facts.base:
        lines += [f"base_model: {json.dumps(facts.base)}"]
        lines += ["base_model_relation: adapter" if facts.adapters else "base_model_relation: finetune"]
    if any("rgb" in task.targets for task in tasks):
        lines += ["pipeline_tag: text-to-video"]
    lines += ["tags:", "- openuni", "- video", *(f"- {json.dumps(name)}" for name in modalities)]
    return "\n".join([*lines, "---", ""])


def _usage(record: Mapping[str, Any], facts: CardFacts, tasks: Sequence[Task]) -> str:
    """How to load the weights, as code that runs in the exported folder, or anywhere with a hub name."""
    where = json.dumps(facts.where)
    if facts.format == "peft":
        folder = f", subfolder={json.dumps(facts.base_folder)}" if facts.base_folder else ""
        lines = [
            "from diffusers import WanTransformer3DModel",
            "",
            f"transformer = WanTransformer3DModel.from_pretrained({json.dumps(facts.base)}{folder})",
            "transformer.load_lora_adapter(",
            f'    {where}, subfolder={json.dumps(facts.adapters[0])}, weight_name="adapter_model.safetensors", '
            'prefix="base_model.model"',
            ")",
        ]
        note = (
            "One LoRA per modality, in a folder of its name: " + ", ".join(f"`{one}`" for one in facts.adapters) + ". "
            "A LoRA is active for its own modality's stream only; the base model generates one stream at a time with "
            "it. Joint generation of several streams needs OpenUni.\n"
        )
        return _code(lines) + note
    task = min(tasks, key=lambda one: len(one.conditions))
    targets = [*task.targets, *([TEXT] if task.generates_text else [])]
    lines = ["import openuni", "", f"model = openuni.from_pretrained({where})"]
    given = ""
    if task.conditions:
        frames, (height_px, width_px) = record["latents"]["frames"], record["latents"]["size_px"]
        lines = ["import numpy as np", *lines]
        lines += [f"video = np.zeros(({frames}, {height_px}, {width_px}, 3), np.uint8)  # yours: RGB renderings"]
        given = ", given={" + ", ".join(f"{json.dumps(name)}: video" for name in task.conditions) + "}"
    lines += [f'made = model.generate("", make={json.dumps(targets)}{given})', f"print(made[{json.dumps(targets[0])}])"]
    if facts.format == "diffusers":
        lines += ["", "from diffusers import WanTransformer3DModel", ""]
        lines += [f"backbone = WanTransformer3DModel.from_pretrained({where})"]
        note = "`openuni_additions.safetensors` has the weights that diffusers' class does not have and ignores.\n"
        return _code(lines) + note
    return _code(lines)


def _code(lines: Sequence[str]) -> str:
    return "\n".join(["```python", *lines, "```", ""]) + "\n"


def _task_rows(record: Mapping[str, Any], tasks: Sequence[Task]) -> list[list[str]]:
    counts = record["data"].get("clips_by_task", {})
    return [[f"`{task}`", f"{counts.get(str(task), 0):,}"] for task in tasks]


def _data_rows(record: Mapping[str, Any]) -> list[list[str]]:
    data, latents = record["data"], record["latents"]
    frames, (height_px, width_px) = latents["frames"], latents["size_px"]
    rows = [
        ["clips", f"{data.get('clips', 0):,}"],
        ["held-out clips", f"{data.get('held_out', 0):,}"],
        ["size", f"{frames} frames of {height_px} x {width_px} px"],
    ]
    if data.get("fps"):
        rows += [["frame rate", f"{data['fps']:g} per second"]]
    return [*rows, ["latent codec", _codec(latents)], ["text codec", _codec(record["text"])]]


def _codec(family: Mapping[str, Any]) -> str:
    checkpoint = family["options"].get("checkpoint")
    return f"`{_plain(family['codec'])}`" + (f" ({_plain(str(checkpoint))})" if checkpoint else "")


def _licence(facts: CardFacts) -> str:
    if not facts.base:
        return f"Trained from random weights. Licence of these weights: `{facts.licence}`.\n"
    stated = f"`{facts.base_licence}`" if facts.base_licence else "not stated; see its card"
    same = facts.base_licence == facts.licence
    own = "the same" if same else f"`{facts.licence}`; the terms of the base model also apply"
    return f"Base model: `{_plain(facts.base)}`, licence: {stated}. Licence of these weights: {own}.\n"


def _plain(text: str) -> str:
    """Text as Markdown on one line: no HTML, links, code, emphasis or cell ends come of it."""
    return MARKDOWN.sub(r"\\\g<0>", html.escape(" ".join(text.split()), quote=False))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join([*lines, ""])
