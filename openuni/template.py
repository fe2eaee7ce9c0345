"""The recipe that `openuni init` writes and the pages that `openuni show` prints: both are read from the code."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from manifests import schema
from manifests.component import Component, annotation_text, component_names, find_component, strip_annotation
from manifests.errors import OpenUniError, unknown_name
from manifests.modality import find_modality, modality_names
from manifests.operator import Annotator, Operator, find_operator, operator_names
from manifests.producer import Producer
from openuni.exporter import exporter_names, find_exporter
from openuni.finder import PACKAGE, find_finder, finder_names
from openuni.importer import find_importer, importer_names
from openuni.listing import listing
from openuni.recipe import Encode, Ingest, Work
from openuni.shot_detector import find_shot_detector, shot_detector_names
from openuni.text_table import aligned
from train.codec import LatentCodec, TextCodec

RECIPES_DIR = Path(__file__).parent / "recipes"
HEAD = """\
# A recipe: what to measure and what to make. Run it with
#     openuni run {name} VIDEOS --out corpus/
# Every key is optional; a line that begins with "# " shows an option and its default.

# Which clips to keep: SQL over the filters' columns (openuni show NAME lists them). Empty keeps all.
keep = "motion.speed_diag_per_s > 0.01 and luminance.mean > 0.05"

# Checkpoints under a licence that limits their use, once you have found that it fits: openuni checkpoints lists them.
# accept = []
"""


def recipe_text(name: str) -> str:
    """A complete, commented recipe with all options of all parts, written from the code."""
    blocks = [HEAD.format(name=name)]
    blocks.append(
        "# ---- how sources become clips, and what operators see\n"
        + _table("ingest", Ingest)
        + _shot_tables()
        + _table("work", Work)
    )
    blocks.append(
        "# ---- filters: scores for every clip" + "\n".join(_operator_blocks("filter", {"motion", "luminance"}))
    )
    blocks.append(
        "# ---- annotators: modalities of kept clips; take out the # before a [table] to use it"
        + "\n".join(_operator_blocks("annotator", {"dis"}))
    )
    encode = _table("encode", Encode, modalities='["rgb", "flow"]', size_px="[256, 448]", frames="17")
    blocks.append("# ---- latents and text embeddings for training\n" + encode + _codec_tables())
    return "\n".join(blocks)


def ready_recipe(name: str) -> str:
    """The recipe of that name in `openuni/recipes/`, with the thresholds of a published pipeline and their source."""
    known = sorted(path.stem for path in RECIPES_DIR.glob("*.toml"))
    if name not in known:
        raise OpenUniError(unknown_name("ready recipe", name, known))
    return (RECIPES_DIR / f"{name}.toml").read_text()


def page(name: str) -> str:
    """What `openuni show NAME` prints: options with defaults, columns with types and units, source, licence."""
    for kind in ("filter", "annotator"):
        if name in operator_names(kind):
            return _producer_page(find_operator(kind, name), f"{kind}s")
    if name in finder_names():
        return _producer_page(find_finder(name), PACKAGE)
    if name in modality_names():
        return _modality_page(name)
    for package in ("train.codecs", "train.models", "openuni.shots"):
        if name in component_names(package):
            return _component_page(find_component(package, Component, name), package)
    if name.replace("-", "_") in {*importer_names(), *exporter_names()}:
        return _format_page(name)
    if "." in name:
        operator = _outside(name)
        return _producer_page(operator, f"{operator.kind}s")
    known = [known for names in listing().values() for known in names]
    raise OpenUniError(unknown_name("name", name, known))


def _format_page(name: str) -> str:
    """A format may be read, written, or both."""
    pages, file = [], name.replace("-", "_")
    if file in importer_names():
        pages.append(_producer_page(find_importer(name), "openuni.importers"))
    if file in exporter_names():
        pages.append(_component_page(find_exporter(name), "openuni.exporters"))
    return "\n\n".join(pages)


def _outside(name: str) -> type[Operator]:
    try:
        return find_operator("filter", name)
    except OpenUniError:
        return find_operator("annotator", name)


def _producer_page(producer: type[Producer], package: str) -> str:
    lines = [_component_page(producer, package)]
    if issubclass(producer, Annotator) and (wants := producer().wants()):
        lines += ["", f"starts from {', '.join(wants)}, made by another annotator of the recipe or there already"]
    lines += ["", "columns"]
    lines += _indented([(column.name, column.type, column.doc) for column in schema.columns(producer)])
    return "\n".join(lines)


def _component_page(component: type[Component], package: str) -> str:
    file = f"{package.replace('.', '/')}/{component.name()}.py" if "." not in component.name() else component.__module__
    lines = [f"{component.name()}: {_first_line(component)}", f"  {file}, licence {component.licence}"]
    if component.origin:
        lines.append(f"  from {component.origin}")
    if component.gpus:
        lines.append(f"  wants {component.gpus:g} of a GPU per worker")
    options = [
        (option.name, toml(option.default), _type_text(option.type), option.doc) for option in component.options()
    ]
    return "\n".join([*lines, "", "options", *(_indented(options) or ["  none"])])


def _modality_page(name: str) -> str:
    modality = find_modality(name)
    constants = get_type_hints(modality.constants_type)
    rows = [(key, getattr(kind, "__name__", str(kind))) for key, kind in constants.items()]
    text = (modality.__doc__ or "").strip()
    return "\n".join(
        [f"{name}: {text}", f"  manifests/modalities/{name}.py", f'  prompt "{modality.prompt}"', "", "constants"]
        + (_indented(rows) or ["  none"])
    )


def _operator_blocks(kind: str, used: set[str]) -> Iterator[str]:
    for name in operator_names(kind):
        operator = find_operator(kind, name)
        mark = "" if name in used else "# "
        lines = [f"\n{mark}[{kind}s.{name}]  # {_first_line(operator)}"]
        lines += [_option_line(option.name, option.default, option.doc) for option in operator.options()]
        yield "\n".join(lines)
    yield ""


def _shot_tables() -> str:
    text = ""
    for name in shot_detector_names():
        detector = find_shot_detector(name)
        if detector.options():
            lines = [f"\n# [ingest.{name}]  # {_first_line(detector)}"]
            lines += [_option_line(option.name, option.default, option.doc) for option in detector.options()]
            text += "\n".join(lines) + "\n"
    return text + "\n"


def _codec_tables() -> str:
    text = ""
    for base in (LatentCodec, TextCodec):
        for name in component_names("train.codecs"):
            try:
                codec = find_component("train.codecs", base, name)
            except OpenUniError:
                continue  # a codec of the other kind
            lines = [f"\n# [encode.{name}]  # {_first_line(codec)}"]
            lines += [_option_line(option.name, option.default, option.doc) for option in codec.options()]
            text += "\n".join(lines) + "\n"
    return text


def _table(name: str, options: type[Any], **given: str) -> str:
    hints = get_type_hints(options, include_extras=True)
    lines = [f"[{name}]"]
    for field in dataclasses.fields(options):
        doc = annotation_text(hints[field.name])
        if field.name in given:
            lines.append(f"{field.name} = {given[field.name]}  # {doc}")
        else:
            lines.append(_option_line(field.name, field.default, doc))
    return "\n".join(lines) + "\n"


def _option_line(name: str, default: Any, doc: str) -> str:
    return f"# {name} = {toml(default)}  # {doc}"


def toml(value: Any) -> str:
    """A default as TOML spells it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    if value is dataclasses.MISSING:
        return "(required)"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)


def _type_text(kind: Any) -> str:
    kind = strip_annotation(kind)
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    return getattr(kind, "__name__", str(kind)) if get_origin(kind) is None else str(kind).replace("typing.", "")


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().split("\n")[0]


def _indented(rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [f"  {line}" for line in aligned(rows)] if rows else []
