"""The recipe that `openuni init` writes and the pages that `openuni show` prints: both are read from the code."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from openuni.config.recipe import EncodeOptions, IngestOptions, WorkOptions
from openuni.console.text_table import format_columns
from openuni.manifests.contracts import schema
from openuni.manifests.contracts.component import Component
from openuni.manifests.contracts.discovery import all_component_names, component_names, find_component
from openuni.manifests.contracts.modality import find_modality
from openuni.manifests.contracts.operator import Annotator, Operator, find_operator, operator_names
from openuni.manifests.contracts.options import option_text, strip_annotation
from openuni.manifests.contracts.producer import Producer
from openuni.manifests.contracts.window_filter import supports_windows
from openuni.manifests.errors import OpenUniError, unknown_name
from openuni.shots.shot_detector import find_shot_detector, shot_detector_names
from openuni.training.codec import LatentCodec, TextCodec
from openuni.training.metric import Metric

RECIPES_DIR = Path(__file__).parent / "recipes"
LONG_CLIPS = {  # kind, whether windows are supported -> what happens
    ("filter", True): "processed in windows",
    ("filter", False): "fail if the sampled frames exceed it",
    ("annotator", True): "processed in windows",
    ("annotator", False): "fail, since all frames are needed at once",
}
HEAD = """\
# Corpus recipe. Run it with
#     openuni run {name} VIDEOS --out corpus/
# Every key is optional; a commented line shows an option and its default.

# Keep rule: SQL over the columns of filters (openuni show NAME lists them). Empty: keep all clips.
keep = "motion.speed_diag_per_s > 0.01 and luminance.mean > 0.05"

# Accepted checkpoints with restrictive licences (see: openuni checkpoints).
# accept = []
"""


def recipe_template(name: str) -> str:
    """A complete, commented recipe with all options of all parts, written from the code."""
    blocks = [HEAD.format(name=name)]
    blocks.append(
        "# ---- ingest and preprocessing\n"
        + _table("ingest", IngestOptions)
        + _shot_tables()
        + _table("work", WorkOptions)
    )
    blocks.append(
        "# ---- filters: scores for every clip" + "\n".join(_operator_blocks("filter", {"motion", "luminance"}))
    )
    blocks.append(
        "# ---- annotators: modality maps of kept clips; uncomment a [table] to use it"
        + "\n".join(_operator_blocks("annotator", {"dis"}))
    )
    encode = _table("encode", EncodeOptions, modalities='["rgb", "flow"]', size_px="[256, 448]", frames="17")
    blocks.append("# ---- latents and text embeddings for training\n" + encode + _codec_tables())
    return "\n".join(blocks)


def preset_recipe(name: str) -> str:
    """The recipe of that name in `config/recipes/`, with the thresholds of a published pipeline and their source."""
    known = sorted(path.stem for path in RECIPES_DIR.glob("*.toml"))
    if name not in known:
        raise OpenUniError(unknown_name("preset", name, known))
    return (RECIPES_DIR / f"{name}.toml").read_text()


def component_page(name: str) -> str:
    """What `openuni show NAME` prints: options with defaults, columns with types and units, source, licence."""
    names = all_component_names()
    found = [kind for kind, known in names.items() if name.replace("-", "_") in known or name in known]
    if found:  # a format may be read, written, or both
        return "\n\n".join(_page_of_kind(kind, name) for kind in found)
    if "." in name:
        return _component_page(_outside(name))
    raise OpenUniError(unknown_name("name", name, {known for listed in names.values() for known in listed}))


def _page_of_kind(kind: str, name: str) -> str:
    if kind == "modalities":
        return _modality_page(name)
    known = component_names(kind)
    return _component_page(find_component(kind, Component, name if name in known else name.replace("-", "_")))


def _outside(name: str) -> type[Operator]:
    try:
        return find_operator("filter", name, imports=True)
    except OpenUniError:
        return find_operator("annotator", name, imports=True)


def _component_page(component: type[Component]) -> str:
    if issubclass(component, Producer):
        return _producer_page(component)
    return _metric_page(component) if issubclass(component, Metric) else _facts_and_options(component)


def _metric_page(metric: type[Metric]) -> str:
    figures = [(figure.name, f"{figure.better} is better", figure.doc) for figure in metric.figures()]
    head = f"compares {', '.join(metric.modalities)}"
    return "\n".join([_facts_and_options(metric), "", head, "", "figures", *_indented(figures)])


def _producer_page(producer: type[Producer]) -> str:
    lines = [_facts_and_options(producer)]
    if issubclass(producer, Annotator) and (wants := producer().requires()):
        lines += ["", f"requires {', '.join(wants)}: from another annotator of the recipe, or already in the corpus"]
    lines += ["", "columns"]
    lines += _indented([(column.name, column.type, column.doc) for column in schema.columns(producer)])
    return "\n".join(lines)


def _facts_and_options(component: type[Component]) -> str:
    lines = [f"{component.name()}: {_first_line(component)}", f"  {component.__module__}, licence {component.licence}"]
    if component.origin:
        lines.append(f"  from {component.origin}")
    if component.gpus:
        lines.append(f"  uses {component.gpus:g} GPU per worker")
    if issubclass(component, Operator):
        lines.append(f"  clips over [work] max_decoded_gb: {LONG_CLIPS[component.kind, supports_windows(component)]}")
    options = [
        (option.name, toml_literal(option.default), _type_text(option.type), option.doc)
        for option in component.options()
    ]
    return "\n".join([*lines, "", "options", *(_indented(options) or ["  none"])])


def _modality_page(name: str) -> str:
    modality = find_modality(name)
    constants = get_type_hints(modality.constants_type)
    rows = [(key, getattr(kind, "__name__", str(kind))) for key, kind in constants.items()]
    text = (modality.__doc__ or "").strip()
    return "\n".join(
        [f"{name}: {text}", f"  {modality.__module__}", f'  prompt "{modality.prompt}"', "", "constants"]
        + (_indented(rows) or ["  none"])
    )


def _operator_blocks(kind: str, used: set[str]) -> Iterator[str]:
    for name in operator_names(kind):
        operator = find_operator(kind, name)
        mark = "" if name in used else "# "
        yield _component_table(f"{kind}s.{name}", operator, mark)
    yield ""


def _shot_tables() -> str:
    text = ""
    for name in shot_detector_names():
        detector = find_shot_detector(name)
        if detector.options():
            text += _component_table(f"ingest.{name}", detector) + "\n"
    return text + "\n"


def _codec_tables() -> str:
    text = ""
    for base in (LatentCodec, TextCodec):
        for name in component_names("codecs"):
            try:
                codec = find_component("codecs", base, name)
            except OpenUniError:
                continue  # a codec of the other kind
            text += _component_table(f"encode.{name}", codec) + "\n"
    return text


def _component_table(table: str, component: type[Component], mark: str = "# ") -> str:
    """The header of a table, commented out by `mark`, and a line per option."""
    lines = [f"\n{mark}[{table}]  # {_first_line(component)}"]
    lines += [_option_line(option.name, option.default, option.doc) for option in component.options()]
    return "\n".join(lines)


def _table(name: str, options: type[Any], **given: str) -> str:
    hints = get_type_hints(options, include_extras=True)
    lines = [f"[{name}]"]
    for field in dataclasses.fields(options):
        doc = option_text(hints[field.name])
        if field.name in given:
            lines.append(f"{field.name} = {given[field.name]}  # {doc}")
        else:
            lines.append(_option_line(field.name, field.default, doc))
    return "\n".join(lines) + "\n"


def _option_line(name: str, default: Any, doc: str) -> str:
    if default is None:  # TOML has no word for it
        return f"# {name}: not set  # {doc}"
    return f"# {name} = {toml_literal(default)}  # {doc}"


def toml_literal(value: Any) -> str:
    """A default as TOML spells it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_literal(item) for item in value) + "]"
    if value is dataclasses.MISSING:
        return "(required)"
    if value is None:
        return "(not set)"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)


def _type_text(kind: Any) -> str:
    kind = strip_annotation(kind)
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    return getattr(kind, "__name__", str(kind)) if get_origin(kind) is None else str(kind).replace("typing.", "")


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().split("\n")[0]


def _indented(rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [f"  {line}" for line in format_columns(rows)] if rows else []
