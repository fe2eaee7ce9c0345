"""The dataset card: what is in an exported set, where it comes from, and under which licences."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openuni.exchange.exporter import ExportClip, ExportContext
from openuni.exchange.importer import find_importer
from openuni.manifests.contracts.component import Component
from openuni.manifests.contracts.modality import find_modality
from openuni.manifests.contracts.operator import find_operator
from openuni.manifests.contracts.parsing import parse_options
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.layout import RUNS, annotation_group
from openuni.manifests.errors import OpenUniError

# upper bounds as the Hub names sizes
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


@dataclass
class Tally:
    """Counts over the exported clips."""

    clips: Counter[str] = field(default_factory=Counter)  # by split
    renamed: set[tuple[str, str]] = field(default_factory=set)  # split, what the corpus calls it
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
    """README.md of the set: a YAML header as the Hub reads it, and the same for people."""
    tally = Tally()
    for clip in clips:
        tally.add(clip, split_of(clip))
    total = sum(tally.clips.values())
    modalities = list(contents.annotators)
    hours = sum(tally.seconds.values()) / 3600
    parts = [
        _header(title, licence, total, sorted(tally.clips), modalities),
        f"# {title}\n",
        f"{total:,} clips, {hours:.2f} hours of video, with {', '.join(modalities) or 'no modalities'}. "
        "Made with OpenUni. A clip may lack any modality: its cell is then null.\n",
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
        + (" (the one who exported did not state it)" if licence == "unknown" else "")
        + ". Modalities made by a model are also bound by the licence of its weights, above.\n",
    ]
    return "\n".join(part for part in parts if part)


def _header(title: str, licence: str, total: int, splits: Sequence[str], modalities: Sequence[str]) -> str:
    size = next((name for bound, name in SIZES if total < bound), "10M<n<100M")
    lines = ["---", f"license: {licence}", f"pretty_name: {json.dumps(title, ensure_ascii=False)}"]
    lines += ["size_categories:", f"- {json.dumps(size)}", "tags:", "- video", "- openuni"]
    lines += [f"- {name}" for name in modalities]
    lines += ["configs:", "- config_name: default", "  data_files:"]
    for name in splits:
        lines += [f"  - split: {name}", f"    path: data/{name}-*"]
    return "\n".join([*lines, "---", ""])


def _renamed(tally: Tally) -> str:
    """Which splits have other names than in the corpus; empty where none has."""
    told = [f"`{name}` is {json.dumps(before, ensure_ascii=False)}" for name, before in sorted(tally.renamed)]
    return f"Names that `datasets` does not take were changed; in the corpus {', '.join(told)}.\n" if told else ""


def _coverage(tally: Tally, names: Sequence[str]) -> str:
    rows = []
    for collection, count in sorted(tally.rows.items()):
        have = [f"{tally.coverage[collection, name]:,}" for name in names]
        rows.append([collection, f"{count:,}", f"{tally.seconds[collection] / 3600:.2f}", *have])
    return _table(["collection", "clips", "hours", *names], rows)


def _makers(contents: ExportContext) -> list[list[str]]:
    made = recorded_options(contents.corpus)
    rows = []
    for modality, name in contents.annotators.items():
        kind = _kind(name)
        version = contents.corpus.group_version(annotation_group(name))
        options = ", ".join(f"{key} = {json.dumps(_public(value))}" for key, value in made.get(name, {}).items())
        method = f"{kind.origin}{f' ({options})' if options else ''}" if kind else options
        rows.append([modality, name, version, method, kind.licence if kind else "unknown"])
    return rows


def _weights(contents: ExportContext) -> str:
    """The checkpoints behind the annotators and their licences; empty where there are none."""
    made, rows = recorded_options(contents.corpus), []
    for name in sorted(set(contents.annotators.values())):
        kind = _kind(name)
        if kind is None or name not in made:
            continue
        try:
            checkpoints = parse_options(kind, made[name], name, quiet=True).checkpoints()
        except OpenUniError:  # options of another version of it
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
        ["caption, collection, origin", "as far as known"],
        ["fps, frames, height_px, width_px", "of the videos; all of a clip's are alike"],
        ["modalities", "JSON by modality: annotator, version, size of the stored map, and the constants of its scale"],
    ]
    rows += [[f"scores.{name}", ", ".join(field.name for field in kind)] for name, kind in contents.scores.items()]
    return _table(["column", "meaning"], rows)


def recorded_options(corpus: Corpus) -> dict[str, dict[str, Any]]:
    """The options that each annotator or importer of a corpus last ran with, from the ledgers of its runs."""
    found: dict[str, dict[str, Any]] = {}
    for name in corpus.store.names(RUNS, ".json"):  # in order of time
        record = json.loads(corpus.store.read(name))
        found |= record.get("recipe", {}).get("annotators", {})
        if "import" in record:
            found[record["import"]["format"]] = record.get("options", {})
    return found


def _public(value: Any) -> Any:
    """An option as a card may show it: of a path on this machine only the name."""
    is_path = isinstance(value, str) and value.startswith(("/", "~", "."))
    return Path(value).name if is_path else value


def _kind(name: str) -> type[Component] | None:
    """The annotator's or importer's class; None where this machine does not have it."""
    for find in (lambda: find_operator("annotator", name), lambda: find_importer(name)):
        try:
            return find()
        except OpenUniError:
            continue
    return None


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows), ""])
