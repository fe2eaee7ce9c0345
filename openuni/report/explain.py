"""`openuni explain`: all results of one clip, and why it was kept, dropped or failed."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from openuni.console.terminal import one_line
from openuni.manifests.contracts.schema import OUTCOME, clip_schema, null_nonfinite
from openuni.manifests.corpus import keep_rule
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.coverage import COLUMN, annotators_by_modality
from openuni.manifests.corpus.layout import LATENTS, TEXT, annotation_group, filter_group
from openuni.manifests.errors import OpenUniError, did_you_mean
from openuni.pipeline.run_log import failures_of

MAX_LISTED = 10
NOT_DONE = "not done yet"
MAX_COMPARED = 50_000  # sources that are searched for the nearest name; comparing more takes too long


def explain(corpus: Corpus, wanted: str) -> str:
    """Return the report of one clip: facts, scores, rule results, annotations, latents and errors.

    `wanted`: a clip id, a prefix of one, a source, or the end of a source path. Raises `OpenUniError` if no clip
    matches, or more than one.
    """
    clip = _clip(corpus, wanted)
    lines = [f"clip {clip['clip_id']}", *_facts(clip)]
    rows = {name: _row(corpus, filter_group(name), name, clip["clip_id"]) for name in corpus.operators("filter")}
    waiting = {kind: corpus.unfinished_operators(kind) for kind in ("filter", "annotator")}
    for name, row in rows.items():
        lines += ["", f"filter {name}: {_outcome(row)}", *_values(row)]
    lines += [line for name in waiting["filter"] for line in ("", f"filter {name}: {NOT_DONE}")]
    annotations = {
        name: _row(corpus, annotation_group(name), name, clip["clip_id"]) for name in corpus.operators("annotator")
    }
    rules = keep_rule.parse(corpus.record["keep"])
    if rules:
        lines += ["", "keep", *_rule_results(corpus, rules, clip, rows, annotations)]
    for name, row in annotations.items():
        lines += ["", f"annotator {name}: {_outcome(row)}", *_values(row)]
    lines += [line for name in waiting["annotator"] for line in ("", f"annotator {name}: {NOT_DONE}")]
    lines += ["", *_encoded(corpus, clip["clip_id"])]
    shown = "\n".join(lines)
    for failure in failures_of(corpus, {clip["clip_id"], clip["source"]}):
        if one_line(failure["error"]) not in shown:
            continue  # a later run succeeded: no row has this error any more
        lines += [
            "",
            f"traceback of {failure['operator']}: {one_line(failure['error'])}",
            *failure["traceback"].splitlines(),
        ]
    return "\n".join(lines).rstrip()


def _clip(corpus: Corpus, wanted: str) -> dict[str, Any]:
    table = corpus.dataset("clips", clip_schema()).to_table(columns=["clip_id", "source"])
    ids, sources = table["clip_id"], table["source"]
    for mask in (
        pc.equal(ids, wanted),
        pc.equal(sources, wanted),
        pc.starts_with(ids, wanted),
        pc.ends_with(sources, f"/{wanted}"),
    ):
        found = table.filter(mask)
        if len(found) == 1:
            row = corpus.find("clips", found["clip_id"][0].as_py())
            assert row is not None
            return dict.fromkeys(clip_schema().names) | row  # a corpus of an older version may lack columns
        if len(found):
            listed = [f"  {row['clip_id']}  {row['source']}" for row in found.slice(0, MAX_LISTED).to_pylist()]
            more = [f"  ... and {len(found) - MAX_LISTED:,} more"] if len(found) > MAX_LISTED else []
            text = f'"{wanted}" matches {len(found):,} clips. Pass one clip id:'
            raise OpenUniError("\n".join([text, *listed, *more]))
    names = {source.rpartition("/")[2] for source in sources.slice(0, MAX_COMPARED).to_pylist()}
    near = did_you_mean(wanted.rpartition("/")[2], sorted(names))
    raise OpenUniError(f'no clip with id or source "{wanted}" in {corpus.store.url}.{near}')


def _facts(clip: Mapping[str, Any]) -> Iterator[str]:
    yield f"  source      {one_line(str(clip['source']))}"
    if clip["status"] != "ok":
        yield f"  failed      {one_line(str(clip['error']))}"
        return
    unit_s = clip["time_base_num"] / clip["time_base_den"]
    start_s, end_s = clip["start_pts"] * unit_s, clip["end_pts"] * unit_s
    yield f"  span        {start_s:.3f} s to {end_s:.3f} s, {clip['frame_count']} frames, {clip['fps']:.6g} fps"
    yield f"  frame size  {clip['width_px']} x {clip['height_px']}, {clip['codec']}"
    rest = [name for name in clip if name not in (*KNOWN, "clip_id") and clip[name] is not None]
    for name in rest:
        yield f"  {name:<11} {one_line(str(clip[name]))}"


KNOWN = (
    *("source", "status", "error", "time_base_num", "time_base_den", "start_pts", "end_pts", "frame_count", "fps"),
    *("width_px", "height_px", "codec", "pts_hash", "stream_index"),
)


def _row(corpus: Corpus, group: str, name: str, clip_id: str) -> dict[str, Any] | None:
    found = corpus.find(group, clip_id)
    return None if found is None else found[name]


def _outcome(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "no result for this clip"
    took = f", {row['ms']:,.0f} ms" if row["ms"] is not None else ""
    return one_line(row["status"] + took + (f", {row['error']}" if row["error"] else ""))


def _values(row: Mapping[str, Any] | None) -> Iterator[str]:
    for name, value in (row or {}).items():
        if name in OUTCOME or value is None:
            continue
        if isinstance(value, dict) and "shard" in value:
            text = f"{value['frames']} frames of {value['width_px']} x {value['height_px']}, {value['nbytes']:,} bytes"
        else:
            text = f"{value:.6g}" if isinstance(value, float) else str(value)
        yield f"  {name:<24} {one_line(text)}"


def _rule_results(
    corpus: Corpus,
    rules: list[keep_rule.KeepRule],
    clip: Mapping[str, Any],
    rows: Mapping[str, Mapping[str, Any] | None],
    annotations: Mapping[str, Mapping[str, Any] | None],
) -> Iterator[str]:
    """Yield one line per rule: whether the clip passes it."""
    has = {
        modality: any((annotations.get(name) or {}).get(modality) is not None for name in names)
        for modality, names in annotators_by_modality(corpus).items()
    }
    joined = {name: pa.array([clip[name]], clip_schema().field(name).type) for name in clip_schema().names}
    for name, row in rows.items():
        joined[name] = null_nonfinite(pa.array([row], corpus.dataset(filter_group(name)).schema.field(name).type))
    joined[COLUMN] = pa.array([has], pa.struct([pa.field(name, pa.bool_()) for name in has]))
    connection = keep_rule.connect()
    table = pa.table(joined)
    connection.register("joined", table)
    for rule in rules:
        named = keep_rule.names_read([rule])
        waiting = sorted(named - joined.keys() | {name for name in named & rows.keys() if rows[name] is None})
        if waiting:
            yield f"  {NOT_DONE} {rule.text}: no results of {', '.join(waiting)}"
            continue
        try:
            keep_rule.check([rule], {"joined": table.schema})
            with keep_rule.evaluation(connection, keep_rule.evaluation_limit_s(1)):
                passed = connection.execute(f"SELECT {rule.sql}\nFROM joined").fetchall()[0][0]
        except OpenUniError as error:
            yield f"  error        {rule.text}: {error}"
            continue
        yield f"  {'passes' if passed else 'null: fails' if passed is None else 'fails':<12} {rule.text}"


def _encoded(corpus: Corpus, clip_id: str) -> Iterator[str]:
    for group in corpus.groups():
        if group.startswith((f"{LATENTS}/", f"{TEXT}/")):
            row = corpus.find(group, clip_id)
            if row is not None:
                yield f"{group}: {row['status']} {one_line(row['error'] or _tensor(row))}"


def _tensor(row: Mapping[str, Any]) -> str:
    """The tensor of a clip, and which video is behind it where a family chooses rate, size or windows per clip."""
    shape, windows = row["shape"] or [], row.get("windows")
    text = " x ".join(map(str, shape if windows is None else shape[1:]))
    if windows is not None:
        text = f"{len(windows)} window{'s' if len(windows) > 1 else ''} of {text}"
    if row.get("fps") is not None:
        text += f", {row['frames']} frames of {row['height_px']}x{row['width_px']} px at {row['fps']:.6g} fps"
    if windows is not None:
        starts = [str(window["first_frame"]) for window in windows[:MAX_LISTED]]
        text += f", from frame{'s' if len(windows) > 1 else ''} {', '.join(starts)}"
        text += ", ..." if len(windows) > MAX_LISTED else ""
    return text
