"""Clip outcomes, with the invariant "clips = ok + dropped (by rule) + failed (by error) + pending".

`unavailable` of an operator is not a failure: the clip's scores are null, so that keep rules which read them drop the
clip (null is not true), or the clip lacks those modalities.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from openuni.manifests.contracts.schema import clip_schema, null_nonfinite
from openuni.manifests.corpus import coverage, keep_rule
from openuni.manifests.corpus.column_groups import ColumnGroups
from openuni.manifests.corpus.layout import annotation_group, filter_group, operator_of
from openuni.manifests.errors import OpenUniError


class FailureCount(NamedTuple):
    """Number of clips that failed in one operator with one type of error."""

    operator: str  # "ingest", "encode STREAM" or an operator's name
    reason: str  # type of the error
    clips: int
    clip_id: str  # one of these clips
    error: str  # its error message, truncated to 300 characters


class UnavailableCount(NamedTuple):
    """Number of clips without input for an operator of the last run. Each has one of the outcomes nevertheless."""

    operator: str
    clips: int


class NotDoneCount(NamedTuple):
    """Number of pending clips that an operator of the last run has not processed yet."""

    operator: str
    clips: int


class DropCount(NamedTuple):
    """Number of clips that one rule dropped, among those that passed all rules before it."""

    rule: str
    clips: int


class Summary(NamedTuple):
    """The clip outcomes of a corpus. `clips` always equals ok + dropped + failed + pending."""

    clips: int
    ok: int  # passed by every rule and processed by every annotator
    dropped: list[DropCount]
    failed: list[FailureCount]
    pending: int  # not processed yet: the run was stopped or limited
    keep: str
    unavailable: list[UnavailableCount]  # not part of the sum
    not_done: list[NotDoneCount]  # the pending clips by operator; a clip may be counted by several operators

    @property
    def is_consistent(self) -> bool:
        """Whether every clip has exactly one outcome."""
        parts = self.ok + sum(drop.clips for drop in self.dropped) + sum(fail.clips for fail in self.failed)
        return self.clips == parts + self.pending

    def __str__(self) -> str:
        dropped, failed = sum(d.clips for d in self.dropped), sum(f.clips for f in self.failed)
        lines = [f"{self.clips:,} clips = {self.ok:,} ok + {dropped:,} dropped + {failed:,} failed"]
        lines[0] += f" + {self.pending:,} pending" if self.pending else ""
        lines += [f"  dropped  {drop.clips:>8,}  by {drop.rule}" for drop in self.dropped]
        for fail in self.failed:
            lines += [
                f"  failed   {fail.clips:>8,}  in {fail.operator}: {fail.reason}",
                f"           {'example' if fail.clips > 1 else '':>8}  {fail.clip_id}: {fail.error}",
            ]
        lines += [
            f"  {count.operator} is not done yet for {count.clips:,} of {self.clips:,} clips" for count in self.not_done
        ]
        for count in self.unavailable:
            lines.append(f"  {count.operator} is unavailable for {count.clips:,} of {self.clips:,} clips")
        return "\n".join(lines)


def kept_clip_ids(corpus: ColumnGroups, keep: str) -> pa.Array:
    """clip_ids (string array) that ingest accepted and that pass every rule of `keep`, in order of ingest."""
    rules = keep_rule.parse(keep)
    _require_results(corpus, rules)
    groups = _filters_read_by(corpus, rules)
    keep_rule.check(rules, _schemas(corpus, groups))
    joined = _join_columns(corpus, rules, {name: filter_group(name) for name in groups}, with_outcome=False)
    connection = _connect(joined)
    query = f"SELECT clip_id FROM joined WHERE clip_status = 'ok' AND {keep_rule.condition_sql(rules)}"
    with keep_rule.evaluation(connection, keep_rule.evaluation_limit_s(len(joined))):
        return connection.sql(query).to_arrow_table().column("clip_id").combine_chunks()  # DuckDB preserves the order


def summary(corpus: ColumnGroups) -> Summary:
    """Clip outcomes under the keep rule of the last run."""
    rules = keep_rule.parse(corpus.record["keep"])
    required = [*corpus.record["filters"], *_names_read_by(rules)]
    with_rows = {kind: corpus.operators(kind) for kind in ("filter", "annotator")}
    missing = [name for name in dict.fromkeys(required) if name not in with_rows["filter"]]
    missing_annotators = [name for name in corpus.record["annotators"] if name not in with_rows["annotator"]]
    if missing:
        rules = []  # a filter that never ran leaves all clips pending
    # deduplicators are not filters of the recipe: a clip without their row is pending only if `keep` reads them
    filters = list(dict.fromkeys([*_operators_of_last_run(corpus, "filter"), *_filters_read_by(corpus, rules)]))
    annotators = _operators_of_last_run(corpus, "annotator")
    keep_rule.check(rules, _schemas(corpus, filters))
    encoded = {f"encode {stream}": group for stream, group in corpus.record["encoded"].items() if corpus.parts(group)}
    groups = {name: filter_group(name) for name in filters} | {name: annotation_group(name) for name in annotators}
    groups |= encoded
    joined = _join_columns(corpus, rules, groups, with_outcome=True)
    connection = _connect(joined)
    cases = ["WHEN clip_status <> 'ok' THEN 'failed'"]
    site_cases = ["WHEN clip_status <> 'ok' THEN 'ingest' || chr(0) || coalesce(clip_error, '')"]
    unfinished = "pending" if missing or missing_annotators else "ok"
    for name in filters:
        cases.append(f"WHEN {_quote(name)} IS NULL THEN 'pending' WHEN {_has_failed(name)} THEN 'failed'")
        site_cases.append(_failure_site(name))
    for number, rule in enumerate(rules):
        fails = f"NOT {keep_rule.condition_sql([rule])}"
        cases.append(f"WHEN {fails} THEN 'dropped'")
        site_cases.append(f"WHEN {fails} THEN '{number}'")
    for name in annotators:
        cases.append(f"WHEN {_quote(name)} IS NULL THEN 'pending' WHEN {_has_failed(name)} THEN 'failed'")
        site_cases.append(_failure_site(name))
    for name in encoded:  # without a row the clip is not pending: it may lack the modality
        cases.append(f"WHEN {_has_failed(name)} THEN 'failed'")
        site_cases.append(_failure_site(name))
    outcome = f"CASE {' '.join(cases)} ELSE '{unfinished}' END"
    site = f"CASE {' '.join(site_cases)} ELSE '' END"
    reason = f"regexp_extract({site}, '^([^:]*)', 1)"  # the error's type precedes the colon
    example = f"min({site} || chr(0) || clip_id)"  # the minimum is independent of the thread order
    query = f"SELECT {outcome}, {reason}, count(*), {example} FROM joined GROUP BY ALL ORDER BY ALL"
    with keep_rule.evaluation(connection, keep_rule.evaluation_limit_s(len(joined))):
        rows = connection.execute(query).fetchall()
    result = _to_summary(rows, rules, corpus.record["keep"])
    done_by = (*filters, *annotators)
    absent = [f"{_quote(name)}.status = 'unavailable'" for name in done_by]
    waiting = [f"{outcome} = 'pending' AND {_quote(name)} IS NULL" for name in done_by] if result.pending else []
    counts = _counts(connection, [*absent, *waiting])
    unavailable = list(zip(done_by, counts, strict=False))
    not_done = list(zip(done_by, counts[len(done_by) :], strict=False))
    not_done += [(name, result.pending) for name in (*missing, *missing_annotators)]
    order = [*required, *filters, *corpus.record["annotators"]]  # filters first, as they run
    return result._replace(
        unavailable=[UnavailableCount(name, clips) for name, clips in unavailable if clips],
        not_done=[
            NotDoneCount(name, clips) for name, clips in sorted(not_done, key=lambda row: order.index(row[0])) if clips
        ],
    )


def _counts(connection: duckdb.DuckDBPyConnection, conditions: Sequence[str]) -> list[int]:
    """Number of clips for which each condition holds."""
    selection = ", ".join(f"count(*) FILTER (WHERE {condition})" for condition in conditions)
    return list(connection.execute(f"SELECT {selection} FROM joined").fetchall()[0]) if conditions else []


def _to_summary(rows: list[Any], rules: Sequence[keep_rule.KeepRule], keep: str) -> Summary:
    dropped = {number: 0 for number in range(len(rules))}
    failed, totals = [], {"ok": 0, "pending": 0}
    for outcome, site, count, example in rows:
        if outcome == "dropped":
            dropped[int(site)] += count
        elif outcome == "failed":
            operator, _, reason = site.partition("\0")
            text, _, clip_id = example.partition("\0")[2].rpartition("\0")
            error = text.removeprefix(f"{reason}: ")
            failed.append(FailureCount(operator, reason or "unknown", count, clip_id, " ".join(error.split())[:300]))
        else:
            totals[outcome] += count
    drops = [DropCount(rules[number].text, count) for number, count in dropped.items()]
    clips = sum(row[2] for row in rows)
    result = Summary(clips, totals["ok"], drops, failed, totals["pending"], keep, [], [])
    if not result.is_consistent:
        raise OpenUniError(
            f"internal error: clip outcomes do not add up: {result!r}. Please report it with this message and the "
            "run's log (runs/*.log)."
        )
    return result


def _failure_site(name: str) -> str:
    column = _quote(name)
    text = name.replace("'", "''")
    return f"WHEN {_has_failed(name)} THEN '{text}' || chr(0) || coalesce({column}.error, '')"


def _has_failed(name: str) -> str:
    """SQL condition: the operator failed on the clip. Null, thus false in a CASE, if the clip has no row."""
    return f"{_quote(name)}.status NOT IN ('ok', 'unavailable')"


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _operators_of_last_run(corpus: ColumnGroups, kind: str) -> list[str]:
    """The operators of the last run's recipe. Results of earlier recipes do not affect outcomes."""
    return [name for name in corpus.operators(kind) if name in corpus.record[f"{kind}s"]]


def _require_results(corpus: ColumnGroups, rules: Sequence[keep_rule.KeepRule]) -> None:
    """Raise `OpenUniError` if a rule reads a filter that has no rows yet: no clip could pass."""
    named = _names_read_by(rules)
    unfinished = [name for name in corpus.unfinished_operators("filter") if name in named]
    if unfinished:
        raise OpenUniError(
            f"keep reads {', '.join(unfinished)}, which has no results in {corpus.store.url} yet: its first run is in "
            "progress, was stopped, or was left out with --only. Wait for it, or rerun it to resume."
        )


def _filters_read_by(corpus: ColumnGroups, rules: Sequence[keep_rule.KeepRule]) -> list[str]:
    named = _names_read_by(rules)
    return [name for name in corpus.operators("filter") if name in named]


def _names_read_by(rules: Sequence[keep_rule.KeepRule]) -> set[str]:
    """Names of the struct columns that rules read, without the columns of `clips` and `has`."""
    return keep_rule.names_read(rules) - {*clip_schema().names, coverage.COLUMN}


def _schemas(corpus: ColumnGroups, filters: Sequence[str]) -> dict[str, pa.Schema]:
    # one part per group is enough: all parts of a group share a schema
    has = pa.struct([pa.field(name, pa.bool_()) for name in coverage.annotators_by_modality(corpus)])
    found = {"clips": clip_schema(), coverage.COLUMN: pa.schema([pa.field(coverage.COLUMN, has)])}
    for name in filters:
        found[filter_group(name)] = corpus.dataset(filter_group(name)).schema
    return found


def _connect(joined: pa.Table) -> duckdb.DuckDBPyConnection:
    connection = keep_rule.connect()
    connection.register("joined", joined)
    return connection


def _join_columns(
    corpus: ColumnGroups, rules: Sequence[keep_rule.KeepRule], groups: Mapping[str, str], *, with_outcome: bool
) -> pa.Table:
    """One row per clip in order of ingest, with a struct column per operator (name -> group), null without a row.

    Reads only the fields that the rules use and, `with_outcome`, status and error: with millions of clips, captions and
    extents of maps would not fit into memory twice.
    """
    wanted_fields: dict[str, set[str]] = {name: {"status", "error"} if with_outcome else set() for name in groups}
    full_columns = set()
    for rule in rules:
        for top, *rest in rule.columns:
            if top in wanted_fields and rest:
                wanted_fields[top].add(rest[0])
            else:
                full_columns.add(top)
    names = [name for name in clip_schema().names if name in full_columns | {"clip_id"}]
    columns = {name: (name,) for name in names} | {"clip_status": ("status",), "clip_error": ("error",)}
    joined = _null_nonfinite(corpus.columns("clips", columns, schema=clip_schema()))
    if any(column[0] == coverage.COLUMN for rule in rules for column in rule.columns):
        masks = coverage.modality_availability(corpus, joined.column("clip_id"))
        joined = joined.append_column(coverage.COLUMN, pa.StructArray.from_arrays(masks.values(), list(masks)))
    clips = _to_array(joined.column("clip_id"))
    for name, group in groups.items():
        struct = (
            _full_struct(corpus, group, name)
            if name in full_columns
            else _struct_fields(corpus, group, name, sorted(wanted_fields[name]))
        )
        joined = joined.append_column(name, _align(clips, *struct))
    return joined


def _struct_fields(corpus: ColumnGroups, group: str, name: str, fields: Sequence[str]) -> tuple[pa.Array, pa.Array]:
    """clip_ids of a group, and its struct column with only these fields; no other columns are read."""
    prefix = (name,) if operator_of(group) else ()  # other groups have top-level columns
    columns = {"clip_id": ("clip_id",)} | {f"{name}.{field}": (*prefix, field) for field in fields}
    table = corpus.columns(group, columns)
    ids, *parts = (_to_array(column) for column in table.columns)
    return ids, pa.StructArray.from_arrays(parts, fields)


def _full_struct(corpus: ColumnGroups, group: str, name: str) -> tuple[pa.Array, pa.Array]:
    table = corpus.table(group, ["clip_id", name])
    return table.column("clip_id").combine_chunks(), table.column(name).combine_chunks()


def _null_nonfinite(table: pa.Table) -> pa.Table:
    for number, field in enumerate(table.schema):
        if pa.types.is_floating(field.type):
            chunks = [null_nonfinite(chunk) for chunk in table.column(number).chunks]
            table = table.set_column(number, field, pa.chunked_array(chunks, field.type))
    return table


def _to_array(column: pa.ChunkedArray) -> pa.Array:
    # the text of millions of rows may exceed the 2 GB limit of 32-bit offsets
    return (column.cast(pa.large_string()) if pa.types.is_string(column.type) else column).combine_chunks()


def _align(clips: pa.Array, ids: pa.Array, struct: pa.Array) -> pa.Array:
    """The struct of each clip, null without a row. `clips`, `ids`: large strings."""
    if ids.type != clips.type:
        ids = ids.cast(clips.type)
    if clips.equals(ids):
        return null_nonfinite(struct)  # in the same order, as a single worker writes them
    return null_nonfinite(struct).take(pc.index_in(clips, value_set=ids))
