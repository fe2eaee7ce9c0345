"""Reference pages written from the code when the documentation is built: components, recipes, command line.

Everything is found as `openuni list`, `openuni show` and `openuni --help` find it: a new component, option or command
is in the reference without a change here. Docstrings are shown as they stand, whatever markup they happen to contain.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import typer
from sphinx.application import Sphinx

import openuni
from openuni.cli.main import app as command_line
from openuni.config.recipe import CorpusRecipe, EncodeOptions, IngestOptions, WorkOptions
from openuni.config.template import RECIPES_DIR, toml_literal
from openuni.exchange.exporter import Exporter
from openuni.exchange.importer import Importer
from openuni.manifests.contracts import schema
from openuni.manifests.contracts.checkpoint import Checkpoint
from openuni.manifests.contracts.component import Component
from openuni.manifests.contracts.discovery import KINDS, component_names, find_component
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.contracts.operator import Annotator, Filter, Operator
from openuni.manifests.contracts.options import annotation_text, option_text, strip_annotation
from openuni.manifests.contracts.producer import Producer
from openuni.training import recipe as training

FOLDER = Path("reference") / "generated"
HAS_CODE = re.compile(r"(`[^`]+`)")
CODE = re.compile(r"``?([^`]+)``?")
MARKDOWN = re.compile(r"([\\*_<>\[\]|#{}$~])")
RST = re.compile(r"([\\*|`]|_\b|_$)")


class Table(NamedTuple):
    """One table of a recipe: its name in TOML, and the dataclass that parses it."""

    name: str
    options: type[Any]


CONTRACTS = (Component, Producer, Operator, Filter, Annotator, Modality, Importer, Exporter)
TITLES = {"shots": "Shot detectors"}
DOTTED = {"annotators": ["openuni.unified"]}  # components that recipes name by their module
CORPUS_TABLES = (Table("[ingest]", IngestOptions), Table("[work]", WorkOptions), Table("[encode]", EncodeOptions))


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx's entry: pages are written before the sources are listed."""
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-docstring", plain_docstring)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write_pages(app: Sphinx) -> None:
    """Write every page below `reference/generated/`; files that are not written now are removed."""
    folder = Path(app.srcdir) / FOLDER
    pages = {f"components/{kind}.md": kind_page(kind) for kind in KINDS}
    pages |= {
        "corpus_recipe.md": corpus_recipe_page(),
        "training_recipe.md": training_recipe_page(),
        "command_line.md": command_line_page(),
        "python.md": python_page(),
    }
    for path in folder.rglob("*.md"):
        if path.relative_to(folder).as_posix() not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:  # unchanged pages are not read again
            path.write_text(text, encoding="utf-8")


def kind_page(kind: str) -> str:
    """All components of a kind, one section each."""
    names = [*component_names(kind), *DOTTED.get(kind, ())]
    found = [(name, find_component(kind, base_of(kind), name)) for name in names]
    rows = [(f"[`{name}`](#{anchor(kind, name)})", markdown(first_line(component))) for name, component in found]
    lines = [
        f"({kind}-reference)=",
        f"# {TITLES.get(kind, kind.capitalize())}",
        "",
        *table(("name", "summary"), rows),
        "",
    ]
    for name, component in found:
        lines += [f"({anchor(kind, name)})=", f"## {name}", "", *docstring(component)]
        lines += modality_facts(component) if issubclass(component, Modality) else component_facts(kind, component)
    return "\n".join(lines) + "\n"


def base_of(kind: str) -> Any:
    """The class that components of a kind derive from."""
    return {"filters": Filter, "annotators": Annotator, "modalities": Modality}.get(kind, Component)


def component_facts(kind: str, component: type[Component]) -> Iterator[str]:
    """Source, licence, options, columns and checkpoints of a component."""
    yield f"- Module: `{component.__module__}`"
    yield f"- Licence of the method and its default weights: {markdown(component.licence)}"
    if component.origin:
        yield f"- Source: {markdown(component.origin)}"
    if component.gpus:
        yield f"- GPUs per worker: {component.gpus:g}"
    if issubclass(component, Annotator):
        default = default_instance(component)
        if default is not None and default.requires():
            yield f"- Requires: {', '.join(f'`{name}`' for name in default.requires())}"
        produced = [modality.name for modality in schema.modality_fields(component).values()]
        if produced:
            links = ", ".join(f"[`{name}`](#{anchor('modalities', name)})" for name in produced)
            yield f"- Produces: {links}"
    yield ""
    rows = [
        (code(option.name), type_text(option.type), code(toml_literal(option.default)), markdown(option.doc))
        for option in component.options()
    ]
    yield from ["**Options**", "", *(table(("option", "type", "default", "meaning"), rows) or ["None."]), ""]
    if issubclass(component, Producer):
        columns = [(code(item.name), code(item.type), markdown(item.doc)) for item in schema.columns(component)]
        yield from ["**Columns**", "", *table(("column", "type", "meaning"), columns), ""]
    if component.published():
        yield from ["**Checkpoints**", "", *checkpoints(component.published()), ""]


def modality_facts(modality: type[Modality]) -> Iterator[str]:
    """Module, prompt, and the constants that a row keeps."""
    yield f"- Module: `{modality.__module__}`"
    yield f"- Modality-type prompt: {code(modality.prompt)}"
    yield f"- Read back from a rendering: {'yes' if modality.invertible else 'no'}"
    yield ""
    hints = get_type_hints(modality.constants_type, include_extras=True)
    rows = [(code(name), type_text(hint), markdown(annotation_text(hint))) for name, hint in hints.items()]
    if rows:
        described = any(row[2] for row in rows)
        head = ("constant", "type", "meaning") if described else ("constant", "type")
        yield from ["**Constants**", "", *table(head, [row[: len(head)] for row in rows]), ""]


def checkpoints(published: Iterable[Checkpoint]) -> list[str]:
    """A table of weights; which need `accept` in the recipe."""
    rows = [
        (
            code(item.ref),
            markdown(item.licence or "not known"),
            f"{item.size_mb:,.0f} MB" if item.size_mb else "",
            "yes" if item.requires_acceptance else "no",
        )
        for item in published
    ]
    return table(("checkpoint", "licence", "size", "needs `accept`"), rows)


def corpus_recipe_page() -> str:
    """Every key of a corpus recipe, with links to the tables that components bring."""
    own = {"keep", "accept"}
    rows = [
        (code(item.name), type_text(get_type_hints(CorpusRecipe)[item.name]), code(toml_literal(item.default)))
        for item in dataclasses.fields(CorpusRecipe)
        if item.name in own
    ]
    lines = ["(corpus-recipe-reference)=", "# Corpus recipe", ""]
    lines += ["A TOML file. Unknown keys are errors. `openuni init corpus.toml` writes a commented one.", ""]
    lines += ["## Top level", "", *table(("key", "type", "default"), rows), ""]
    lines += [
        "`keep` is the keep rule: SQL over the columns of the corpus; an empty rule keeps every clip. `accept` lists"
    ]
    lines += ["checkpoints whose restricted licence you accept.", ""]
    for name, options in CORPUS_TABLES:
        lines += [f"## {name}", "", *docstring(options), *options_table(options), ""]
    lines += ["## Tables of components", ""]
    for written, kind in (
        ("[filters.NAME]", "filters"),
        ("[annotators.NAME]", "annotators"),
        ("[ingest.NAME]", "shots"),
        ("[encode.NAME]", "codecs"),
    ):
        lines.append(f"- `{written}`: options of one of the [{kind}](#{kind}-reference)")
    lines += ["", "## Presets", "", "`openuni init --preset NAME` writes one of these:", ""]
    for path in sorted(RECIPES_DIR.glob("*.toml")):
        lines.append(f"- `{path.stem}`: {markdown(first_comment(path))}")
    return "\n".join(lines) + "\n"


def training_recipe_page() -> str:
    """Every key of a training recipe, and the recipes that ship."""
    recipe = training.TrainingRecipe
    lines = ["(training-recipe-reference)=", "# Training recipe", "", *docstring(recipe), "## Top level", ""]
    lines += [*options_table(recipe), ""]
    lines += ["`[model]` takes the options of one of the [models](#models-reference) beside its `name`.", ""]
    for name, options in nested_tables(recipe):
        lines += [f"## {name}", "", *docstring(options), *options_table(options), ""]
    lines += ["## Shipped recipes", ""]
    for name in training.recipe_names():
        lines.append(f"- `{name}`: {markdown(first_comment(training.RECIPES_DIR / f'{name}.toml'))}")
    return "\n".join(lines) + "\n"


def nested_tables(kind: Any) -> Iterator[Table]:
    """The dataclasses among the fields of a dataclass, as TOML writes them."""
    for name, hint in get_type_hints(kind).items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield Table(f"[{name}]", hint)
        elif get_origin(hint) is tuple and dataclasses.is_dataclass(get_args(hint)[0]):
            yield Table(f"[[{name}]]", get_args(hint)[0])


def options_table(options: Any) -> list[str]:
    """Key, type, default and meaning of the fields of a dataclass, without those that are tables of their own."""
    hints = get_type_hints(options, include_extras=True)
    nested = {name.strip("[]") for name, _ in nested_tables(options)}
    rows = []
    for item in dataclasses.fields(options):
        if item.name in nested:
            continue
        default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        hint = hints[item.name]
        rows.append((code(item.name), type_text(hint), code(inline_toml(default)), markdown(option_text(hint))))
    return table(("key", "type", "default", "meaning"), rows)


def inline_toml(value: Any) -> str:
    """A default as TOML writes it, inline tables included."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {inline_toml(item)}" for key, item in value.items()) + " }" if value else "{}"
    return toml_literal(value)


def command_line_page() -> str:
    """Every command with its arguments and options, from the Typer application."""
    group: Any = typer.main.get_command(command_line)
    lines = ["(command-line-reference)=", "# Command line", "", markdown(one_line(group.help)), ""]
    commands = list(commands_of(group, "openuni"))
    rows = [(f"[`{name}`](#{command_anchor(name)})", markdown(first_line_of(item.help))) for name, item in commands]
    lines += table(("command", "summary"), rows)
    lines += ["", "Options before the command:", "", *parameters(group)]
    for name, command in commands:
        lines += ["", f"({command_anchor(name)})=", f"## {name}", "", *paragraphs(command.help or "")]
        lines += ["```text", f"{name} {usage(command)}".rstrip(), "```", ""]
        lines += parameters(command)
    return "\n".join(lines) + "\n"


def python_page() -> str:
    """The public names of `openuni` and the base classes of components, by autodoc."""
    public = [(name, getattr(openuni, name)) for name in openuni.__all__]
    lines = ["(python-reference)=", "# Python API", ""]
    lines += ["`import openuni` provides the jobs of the command line as functions. Names load on first use.", ""]
    lines += ["## Functions", ""]
    for name, thing in public:
        if not isinstance(thing, type):
            lines += section(name, f".. autofunction:: {thing.__module__}.{thing.__qualname__}")
    lines += ["## Classes", ""]
    for _, thing in public:
        if isinstance(thing, type):
            lines += class_section(thing)
    lines += ["## Contracts", "", "The base classes of components.", ""]
    for thing in CONTRACTS:
        lines += class_section(thing)
    return "\n".join(lines) + "\n"


def class_section(thing: type[Any]) -> list[str]:
    """A class with its documented members."""
    directive = f".. autoclass:: {thing.__module__}.{thing.__qualname__}\n   :members:\n   :show-inheritance:"
    if issubclass(thing, BaseException) or dataclasses.is_dataclass(thing):
        directive += "\n   :exclude-members: __new__, __init__"
    return section(thing.__qualname__, directive)


def section(title: str, directive: str) -> list[str]:
    """A heading and what autodoc makes of a directive."""
    return [f"### {title}", "", "```{eval-rst}", directive, "```", ""]


def parameters(command: Any) -> list[str]:
    """A table of arguments and options."""
    rows = [
        (code(parameter_name(item)), code(metavar(item)), default_text(item), markdown(one_line(item.help or "")))
        for item in command.params
        if "--help" not in item.opts
    ]
    return table(("argument or option", "value", "default", "meaning"), rows)


def commands_of(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Full name and click command of every command, those of nested groups after their group."""
    for name, command in group.commands.items():
        yield f"{prefix} {name}", command
        if hasattr(command, "commands"):
            yield from commands_of(command, f"{prefix} {name}")


def usage(command: Any) -> str:
    """Arguments and required options, as a usage line has them."""
    parts = []
    for item in command.params:
        if item.param_type_name == "argument":
            name = item.name.upper() + ("..." if item.nargs == -1 else "")
            parts.append(name if item.required else f"[{name}]")
        elif item.required:
            parts.append(f"{item.opts[0]} {item.metavar or item.name.upper()}")
    return " ".join([*parts, "[OPTIONS]" if any(item.param_type_name == "option" for item in command.params) else ""])


def parameter_name(item: Any) -> str:
    """`SOURCES`, or `--out`."""
    return item.name.upper() if item.param_type_name == "argument" else ", ".join([*item.opts, *item.secondary_opts])


def metavar(item: Any) -> str:
    """What kind of value a parameter takes; empty for a flag."""
    kind = item.type_descriptor.annotation
    many = get_origin(kind) is list
    kind = get_args(kind)[0] if many else kind
    if kind is bool or getattr(item, "count", False):
        return ""
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    name = item.metavar or " | ".join(map(str, choices)) or getattr(kind, "__name__", str(kind)).lower()
    bounds = {(True, True): "{0.min} to {0.max}", (True, False): "{0.min} or more", (False, True): "{0.max} or less"}
    bound = bounds.get((getattr(item, "min", None) is not None, getattr(item, "max", None) is not None), "")
    return ", ".join(filter(None, [name, bound.format(item), "repeatable" if many else ""]))


def default_text(item: Any) -> str:
    """A parameter's default; "required" without one."""
    if item.required:
        return "required"
    if item.default is None or not metavar(item) or str(item.default) == "":
        return ""
    return code(str(getattr(item.default, "value", item.default)))


def command_anchor(name: str) -> str:
    """Target of a command's section."""
    return "command-" + name.replace(" ", "-")


def anchor(kind: str, name: str) -> str:
    """Target of a component's section."""
    return f"{kind}-{name.replace('_', '-').replace('.', '-')}"


def default_instance(component: type[Component]) -> Any:
    """The component with its defaults; None where an option has none."""
    required = any(item.default is dataclasses.MISSING for item in component.options())
    return None if required else component()


def first_comment(path: Path) -> str:
    """The comment that a recipe begins with, as one line."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)


def type_text(kind: Any) -> str:
    """An option's type: choices for literals, else the name."""
    kind = strip_annotation(kind)
    if get_origin(kind) is Literal:
        return " \\| ".join(code(toml_literal(choice)) for choice in get_args(kind))
    plain = getattr(kind, "__name__", str(kind)) if get_origin(kind) is None else str(kind)
    return code(re.sub(r"\b(?:typing|collections\.abc)\.", "", plain))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; empty without rows."""
    if not rows:
        return []
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def code(text: str) -> str:
    """Inline code that is safe within a table; empty for an empty text."""
    text = one_line(text).replace("|", "\\|")
    return f"`{text}`" if text else ""


def markdown(text: str) -> str:
    """A plain text as Markdown: what stands in backticks is code, all else is shown as it is."""
    parts = HAS_CODE.split(one_line(text))
    return "".join(code(part[1:-1]) if HAS_CODE.fullmatch(part) else MARKDOWN.sub(r"\\\1", part) for part in parts)


def docstring(thing: Any) -> list[str]:
    """A class's docstring as Markdown paragraphs."""
    return paragraphs(thing.__doc__ or "")


def paragraphs(text: str) -> list[str]:
    """Paragraphs of a plain text as Markdown; those that are indented throughout are code."""
    lines: list[str] = []
    for block in blocks(text):
        if is_code(block):
            lines += ["```text", *block, "```", ""]
        else:
            lines += [*(mark + markdown(item) for mark, item in items(block)), ""]
    return lines


def blocks(text: str) -> list[list[str]]:
    """Runs of lines between empty ones, with the docstring's own indentation taken off."""
    first, _, rest = text.strip("\n").partition("\n")
    lines = [first.strip(), *_dedented(rest)] if first.strip() else _dedented(rest)
    found: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            found[-1].append(line.rstrip())
        elif found[-1]:
            found.append([])
    return [block for block in found if block]


def items(block: Sequence[str]) -> list[tuple[str, str]]:
    """A paragraph as one text, or a list as its items, each with its mark ("- ", or none)."""
    found: list[tuple[str, str]] = []
    for line in block:
        if line.startswith("- "):
            found.append(("- ", line[2:]))
        elif found:
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
        else:
            found.append(("", line.strip()))
    return found


def is_code(block: Sequence[str]) -> bool:
    """Whether a paragraph is indented throughout."""
    return all(line.startswith("    ") for line in block)


def plain_docstring(_app: Sphinx, _what: str, _name: str, _thing: Any, _options: Any, lines: list[str]) -> None:
    """Turn a docstring, which is plain text with code in backticks, into reStructuredText that says the same."""
    found: list[str] = []
    for block in blocks("\n".join(["", *lines])):
        if is_code(block):
            found += ["::", "", *block, ""]
        else:
            found += ["", *(mark + rst(item) for mark, item in items(block)), ""]
    lines[:] = found


def rst(text: str) -> str:
    """A plain text as reStructuredText."""
    parts = re.split(r"(``?[^`]+``?)", text)
    return "".join(
        f"``{part.strip('`').strip()}``" if CODE.fullmatch(part) else RST.sub(r"\\\1", part) for part in parts
    )


def one_line(text: str) -> str:
    """Without line breaks."""
    return " ".join(text.split())


def first_line_of(text: str | None) -> str:
    """The first paragraph of a help text."""
    return one_line((text or "").strip().split("\n\n")[0])


def first_line(thing: Any) -> str:
    """The first paragraph of a docstring."""
    return first_line_of(thing.__doc__)


def _dedented(text: str) -> list[str]:
    lines = text.expandtabs().splitlines()
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return [line[margin:] for line in lines]
