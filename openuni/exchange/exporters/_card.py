"""The dataset card: contents, origin and licences of an exported dataset."""

import html
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openuni.exchange.exporter import ExportClip, ExportContext, json_text
from openuni.exchange.importer import find_importer
from openuni.manifests.contracts.component import Component
from openuni.manifests.contracts.modality import find_modality
from openuni.manifests.contracts.operator import find_operator
from openuni.manifests.contracts.options import former_names
from openuni.manifests.contracts.parsing import parse_options
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.layout import annotation_group
from openuni.manifests.errors import OpenUniError

# upper bounds and names of the Hub's size categories
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))

MARKDOWN = re.compile(r"[\\`*\[\]|]")  # with these, text becomes something else


@dataclass
class Tally:
    """Counts over the exported clips."""

    clips: Counter[str] = field(default_factory=Counter)  # by split
    renamed: set[tuple[str, str]] = field(default_factory=set)  # (exported split, its name in the corpus)
    seconds: Counter[str] = field(default_factory=Counter)  # by collection
    rows: Counter[str] = field(default_factory=Counter)  # clips by collection
    coverage: Counter[tuple[str, str]] = field(default_factory=Counter)  # (collection, modality or "caption") -> clips

    def add(self, clip: ExportClip, split: str) -> None:
        """Count one clip."""
        collection = clip.clip.collection or "(none)"
        self.clips[split] += 1
        if clip.clip.split not in (split, None):
            self.renamed.add((split, clip.clip.split))
        self.rows[collection] += 1
        self.seconds[collection] += clip.clip.frame_count / clip.clip.fps  # type: ignore[assignment]
        for name in [*clip.maps, *(["caption"] if clip.clip.caption is not None else [])]:
            self.coverage[collection, name] += 1


def card(
    clips: Iterable[ExportClip],
    contents: ExportContext,
    *,
    title: str,
    licence: str,
    split_of: Callable[[ExportClip], str],
) -> str:
    """README.md of the dataset: a YAML header in the Hub's format, and the same facts as text."""
    tally = Tally()
    for clip in clips:
        tally.add(clip, split_of(clip))
    total = sum(tally.clips.values())
    modalities = list(contents.annotators)
    hours = sum(tally.seconds.values()) / 3600
    parts = [
        _header(title, licence, total, sorted(tally.clips), modalities),
        f"# {markdown(title)}\n",
        f"{total:,} clips, {hours:.2f} hours of video, with {', '.join(modalities) or 'no modalities'}. "
        "Created with OpenUni. A clip may lack a modality; its cell is then null.\n",
        '```python\nimport datasets\n\nrows = datasets.load_dataset("this folder or repository")\n```\n',
        "## Clips\n",
        _table(["split", "clips"], [[name, f"{count:,}"] for name, count in sorted(tally.clips.items())]),
        _renamed(tally),
        "## Collections and coverage\n",
        _coverage(tally, ["caption", *modalities]),
        "## Modalities\n",
        _table(["modality", "annotator", "version", "method", "licence of the method"], _makers(contents)),
        _weights(contents),
        "## Columns\n",
        _columns(contents),
        "## Licence\n",
        f"The clips: `{licence}`"
        + (" (not stated at export)" if licence == "unknown" else "")
        + ". Modalities predicted by a model are also subject to the licence of its weights, see above.\n",
    ]
    return "\n".join(part for part in parts if part)


def _header(title: str, licence: str, total: int, splits: Sequence[str], modalities: Sequence[str]) -> str:
    size = next((name for bound, name in SIZES if total < bound), "10M<n<100M")
    lines = ["---", f"license: {licence}", f"pretty_name: {json_text(title)}"]
    lines += ["size_categories:", f"- {json.dumps(size)}", "tags:", "- video", "- openuni"]
    lines += [f"- {name}" for name in modalities]
    lines += ["configs:", "- config_name: default", "  data_files:"]
    for name in splits:
        lines += [f"  - split: {json_text(name)}", f"    path: {json_text(f'data/{name}-*')}"]
    return "\n".join([*lines, "---", ""])


def _renamed(tally: Tally) -> str:
    """A sentence that lists the renamed splits; empty if there are none."""
    renamed = [f'`{name}` is "{markdown(before)}"' for name, before in sorted(tally.renamed)]
    return (
        f"Splits whose names `datasets` rejects were renamed; in the corpus {', '.join(renamed)}.\n" if renamed else ""
    )


def _coverage(tally: Tally, names: Sequence[str]) -> str:
    rows = []
    for collection, count in sorted(tally.rows.items()):
        have = [f"{tally.coverage[collection, name]:,}" for name in names]
        rows.append([collection, f"{count:,}", f"{tally.seconds[collection] / 3600:.2f}", *have])
    return _table(["collection", "clips", "hours", *names], rows)


def _makers(contents: ExportContext) -> list[list[str]]:
    options_of = recorded_options(contents.corpus)
    rows = []
    for modality, name in contents.annotators.items():
        kind = _kind(name)
        version = contents.corpus.group_version(annotation_group(name))
        current = {former: field for field, former in former_names(kind).items()} if kind else {}
        recorded = options_of.get(name, {}).items()
        options = ", ".join(f"{current.get(key, key)} = {json.dumps(_public(value))}" for key, value in recorded)
        method = f"{kind.origin}{f' ({options})' if options else ''}" if kind else options
        rows.append([modality, name, version, method, kind.licence if kind else "unknown"])
    return rows


def _weights(contents: ExportContext) -> str:
    """A table of the annotators' checkpoints and their licences; empty if there are none."""
    options_of, rows = recorded_options(contents.corpus), []
    for name in sorted(set(contents.annotators.values())):
        kind = _kind(name)
        if kind is None or name not in options_of:
            continue
        try:
            checkpoints = parse_options(kind, options_of[name], name, quiet=True).checkpoints()
        except OpenUniError:  # options of another version of the annotator
            rows.append([name, "unknown", "unknown"])
            continue
        rows += [[name, _public(checkpoint.ref), checkpoint.licence or "unknown"] for checkpoint in checkpoints]
    return _table(["annotator", "weights", "licence of the weights"], rows) if rows else ""


def _columns(contents: ExportContext) -> str:
    rows = [["clip_id", "the clip's id"], ["video", "the clip, H.264"]]
    for name in contents.annotators:
        meaning = (find_modality(name).__doc__ or "").strip().split("\n")[0]
        rows.append([name, f"rendered as RGB video. {meaning}"])
    rows += [
        ["caption, collection, origin", "null if unknown"],
        ["fps, frames, height_px, width_px", "of the videos; the same for all videos of a clip"],
        ["modalities", "JSON by modality: annotator, version, size of the stored map, and its constants"],
    ]
    rows += [[f"scores.{name}", ", ".join(field.name for field in kind)] for name, kind in contents.scores.items()]
    return _table(["column", "meaning"], rows)


def recorded_options(corpus: Corpus) -> dict[str, dict[str, Any]]:
    """The options of the last run of each annotator or importer of a corpus, from the run ledgers."""
    found: dict[str, dict[str, Any]] = {}
    for record in corpus.runs():  # in chronological order; a damaged ledger is history that is lost
        recipe, imported, options = (record.get(key) for key in ("recipe", "import", "options"))
        annotators = recipe.get("annotators") if isinstance(recipe, dict) else None
        if isinstance(annotators, dict):
            found |= {name: chosen for name, chosen in annotators.items() if isinstance(chosen, dict)}
        if isinstance(imported, dict) and isinstance(imported.get("format"), str):
            found[imported["format"]] = options if isinstance(options, dict) else {}
    return found


def _public(value: Any) -> Any:
    """An option's value as shown on the card: paths are reduced to their last component."""
    is_path = isinstance(value, str) and value.startswith(("/", "~", "."))
    return Path(value).name if is_path else value


def _kind(name: str) -> type[Component] | None:
    """The annotator's or importer's class; None if it is not installed."""
    for find in (lambda: find_operator("annotator", name), lambda: find_importer(name)):
        try:
            return find()
        except OpenUniError:
            continue
    return None


def markdown(text: str) -> str:
    """Plain text as Markdown on one line: no HTML, links, code, emphasis by `*` or cell ends come of it."""
    return MARKDOWN.sub(r"\\\g<0>", html.escape(" ".join(text.split()), quote=False))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(map(markdown, cells)) + " |"

    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows), ""])
