"""What became of every clip: the conservation law "clips = ok + dropped (by rule) + failed (for a reason)".

A clip for which an operator is `unavailable` has not failed: it lacks those scores, which are null, so a rule about
them drops it (null never passes); or it lacks those modalities, as clips may.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from openuni.manifests.contracts.schema import clip_schema
from openuni.manifests.corpus import coverage, keep_rule
from openuni.manifests.corpus.column_groups import ColumnGroups
from openuni.manifests.corpus.layout import annotation_group, filter_group, operator_of
from openuni.manifests.errors import OpenUniError


class FailureCount(NamedTuple):
    """How many clips failed in one place for one reason."""

    operator: str  # "ingest" or an operator's name
    reason: str  # the type of the error
    clips: int
    clip_id: str  # of one of them
    error: str  # of that one, cut to 300 characters


class UnavailableCount(NamedTuple):
    """For how many clips an operator of the last run had nothing to compute from. Each has a fate all the same."""

    operator: str
    clips: int


class DropCount(NamedTuple):
    """How many clips one rule dropped: those that passed all rules before it."""

    rule: str
    clips: int


class Summary(NamedTuple):
    """The ledger of a corpus. `clips` always equals ok + dropped + failed + pending."""

    clips: int
    ok: int  # kept by every rule, and done by every annotator
    dropped: list[DropCount]
    failed: list[FailureCount]
    pending: int  # not reached yet: the run was stopped or limited
    keep: str
    unavailable: list[UnavailableCount]  # no part of the balance

    @property
    def is_consistent(self) -> bool:
        """Whether every clip is accounted for exactly once."""
        parts = self.ok + sum(drop.clips for drop in self.dropped) + sum(fail.clips for fail in self.failed)
        return self.clips == parts + self.pending

    def __str__(self) -> str:
        dropped, failed = sum(d.clips for d in self.dropped), sum(f.clips for f in self.failed)
        lines = [f"{self.clips:,} clips = {self.ok:,} ok + {dropped:,} dropped + {failed:,} failed"]
        lines[0] += f" + {self.pending:,} not done yet" if self.pending else ""
        lines += [f"  dropped  {drop.clips:>8,}  by {drop.rule}" for drop in self.dropped]
        for fail in self.failed:
            lines += [
                f"  failed   {fail.clips:>8,}  in {fail.operator}: {fail.reason}",
                f"           {'such as' if fail.clips > 1 else '':>8}  {fail.clip_id}: {fail.error}",
            ]
        lines += [f"  {lack.operator} is unavailable for {lack.clips:,} of all" for lack in self.unavailable]
        return "\n".join(lines)


def kept_clip_ids(corpus: ColumnGroups, keep: str) -> pa.Array:
    """clip_ids (string array) that ingest accepted and that pass every rule of `keep`, in order of ingest."""
    rules = keep_rule.parse(keep)
    groups = _filters_of(corpus, rules)
    keep_rule.check(rules, _schemas(corpus, groups))
    connection = _connect(_joined(corpus, rules, {name: filter_group(name) for name in groups}, with_outcome=False))
    query = f"SELECT clip_id FROM joined WHERE clip_status = 'ok' AND {keep_rule.condition_sql(rules)}"
    return connection.sql(query).to_arrow_table().column("clip_id").combine_chunks()  # DuckDB keeps the order


def summary(corpus: ColumnGroups) -> Summary:
    """The ledger by the rule of the last run."""
    wanted = [*corpus.record["filters"], *_filters_named(keep_rule.parse(corpus.record["keep"]))]
    missing = [name for name in wanted if name not in corpus.operators("filter")]
    rules = (
        [] if missing else keep_rule.parse(corpus.record["keep"])
    )  # a filter that never ran leaves all clips pending
    # what compares all clips is no filter of a recipe; a clip that it has not seen is pending where `keep` reads it
    filters = list(dict.fromkeys([*_last_run(corpus, "filter"), *_filters_of(corpus, rules)]))
    annotators = _last_run(corpus, "annotator")
    keep_rule.check(rules, _schemas(corpus, filters))
    encoded = {f"encode {stream}": group for stream, group in corpus.record["encoded"].items() if corpus.parts(group)}
    groups = {name: filter_group(name) for name in filters} | {name: annotation_group(name) for name in annotators}
    groups |= encoded
    connection = _connect(_joined(corpus, rules, groups, with_outcome=True))
    cases = ["WHEN clip_status <> 'ok' THEN 'failed'"]
    places = ["WHEN clip_status <> 'ok' THEN 'ingest' || chr(0) || coalesce(clip_error, '')"]
    if missing or any(name not in corpus.operators("annotator") for name in corpus.record["annotators"]):
        unfinished = "pending"
    else:
        unfinished = "ok"
    for name in filters:
        cases.append(f"WHEN {_quoted(name)} IS NULL THEN 'pending' WHEN {_failed(name)} THEN 'failed'")
        places.append(_failure_site(name))
    for number, rule in enumerate(rules):
        cases.append(f"WHEN NOT coalesce(({rule.text}\n), false) THEN 'dropped'")
        places.append(f"WHEN NOT coalesce(({rule.text}\n), false) THEN '{number}'")
    for name in annotators:
        cases.append(f"WHEN {_quoted(name)} IS NULL THEN 'pending' WHEN {_failed(name)} THEN 'failed'")
        places.append(_failure_site(name))
    for name in encoded:  # no row is no debt: a clip may lack the modality
        cases.append(f"WHEN {_failed(name)} THEN 'failed'")
        places.append(_failure_site(name))
    outcome = f"CASE {' '.join(cases)} ELSE '{unfinished}' END"
    place = f"CASE {' '.join(places)} ELSE '' END"
    reason = f"regexp_extract({place}, '^([^:]*)', 1)"  # the type of the error stands before the colon
    example = f"min({place} || chr(0) || clip_id)"  # the first of equal ones: not whichever a thread met
    query = f"SELECT {outcome}, {reason}, count(*), {example} FROM joined GROUP BY ALL ORDER BY ALL"
    rows = connection.execute(query).fetchall()
    absences = []
    for name in (*filters, *annotators):
        query = f"SELECT count(*) FROM joined WHERE {_quoted(name)}.status = 'unavailable'"
        absences.append(UnavailableCount(name, connection.execute(query).fetchall()[0][0]))
    return _ledger(rows, rules, corpus.record["keep"], [absence for absence in absences if absence.clips])


def _ledger(
    rows: list[Any], rules: Sequence[keep_rule.KeepRule], keep: str, unavailable: list[UnavailableCount]
) -> Summary:
    dropped = {number: 0 for number in range(len(rules))}
    failed, totals = [], {"ok": 0, "pending": 0}
    for outcome, where, count, example in rows:
        if outcome == "dropped":
            dropped[int(where)] += count
        elif outcome == "failed":
            operator, _, reason = where.partition("\0")
            text, _, clip_id = example.partition("\0")[2].rpartition("\0")
            error = text.removeprefix(f"{reason}: ")
            failed.append(FailureCount(operator, reason or "unknown", count, clip_id, error[:300]))
        else:
            totals[outcome] += count
    drops = [DropCount(rules[number].text, count) for number, count in dropped.items()]
    clips = sum(row[2] for row in rows)
    ledger = Summary(clips, totals["ok"], drops, failed, totals["pending"], keep, unavailable)
    if not ledger.is_consistent:
        raise OpenUniError(f"the ledger does not balance: {ledger!r}. Please report this.")
    return ledger


def _failure_site(name: str) -> str:
    column = _quoted(name)
    text = name.replace("'", "''")
    return f"WHEN {_failed(name)} THEN '{text}' || chr(0) || coalesce({column}.error, '')"


def _failed(name: str) -> str:
    """Whether the operator failed at a clip: neither done nor unavailable, and not pending either."""
    return f"{_quoted(name)}.status NOT IN ('ok', 'unavailable')"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _last_run(corpus: ColumnGroups, kind: str) -> list[str]:
    """The operators that the last run's recipe names: what an older recipe made is there, but owes no clip anything."""
    return [name for name in corpus.operators(kind) if name in corpus.record[f"{kind}s"]]


def _filters_of(corpus: ColumnGroups, rules: Sequence[keep_rule.KeepRule]) -> list[str]:
    named = _filters_named(rules)
    return [name for name in corpus.operators("filter") if name in named]


def _filters_named(rules: Sequence[keep_rule.KeepRule]) -> set[str]:
    """What rules read besides the clips' own columns and what they have."""
    return {column[0] for rule in rules for column in rule.columns} - {*clip_schema().names, coverage.COLUMN}


def _schemas(corpus: ColumnGroups, filters: Sequence[str]) -> dict[str, pa.Schema]:
    # one sampled file per group is enough: all parts of a group share a schema
    has = pa.struct([pa.field(name, pa.bool_()) for name in coverage.annotators_by_modality(corpus)])
    found = {"clips": clip_schema(), coverage.COLUMN: pa.schema([pa.field(coverage.COLUMN, has)])}
    for name in filters:
        found[filter_group(name)] = corpus.dataset(filter_group(name)).schema
    return found


def _connect(joined: pa.Table) -> duckdb.DuckDBPyConnection:
    connection = keep_rule.connect()
    connection.register("joined", joined)
    return connection


def _joined(
    corpus: ColumnGroups, rules: Sequence[keep_rule.KeepRule], groups: Mapping[str, str], *, with_outcome: bool
) -> pa.Table:
    """One row per clip in order of ingest; a struct column per operator (name -> group), null where it has no row.

    Of every column only those fields are read that the rules name (and those that tell a fate): a corpus of millions
    has more text in its captions and more places of maps than fit into memory twice.
    """
    wanted: dict[str, set[str]] = {name: {"status", "error"} if with_outcome else set() for name in groups}
    whole = set()
    for rule in rules:
        for top, *rest in rule.columns:
            if top in wanted and rest:
                wanted[top].add(rest[0])
            else:
                whole.add(top)
    names = [name for name in clip_schema().names if name in whole | {"clip_id"}]
    columns = {name: pads.field(name) for name in names}
    columns |= {"clip_status": pads.field("status"), "clip_error": pads.field("error")}
    joined = corpus.dataset("clips", clip_schema()).to_table(columns=columns)
    if any(column[0] == coverage.COLUMN for rule in rules for column in rule.columns):
        masks = coverage.modality_availability(corpus, joined.column("clip_id"))
        joined = joined.append_column(coverage.COLUMN, pa.StructArray.from_arrays(masks.values(), list(masks)))
    for name, group in groups.items():
        struct = (
            _full_struct(corpus, group, name) if name in whole else _fields(corpus, group, name, sorted(wanted[name]))
        )
        joined = joined.append_column(name, _aligned(joined.column("clip_id"), *struct))
    return joined


def _fields(corpus: ColumnGroups, group: str, name: str, fields: Sequence[str]) -> tuple[pa.Array, pa.Array]:
    """clip_ids of a group, and its struct column with some of its fields; nothing else is read from the files."""
    place = (name,) if operator_of(group) else ()  # other groups' columns are flat
    columns = {"clip_id": pads.field("clip_id")} | {f"{name}.{field}": pads.field(*place, field) for field in fields}
    table = corpus.dataset(group).to_table(columns=columns)
    ids, *parts = (_one_array(column) for column in table.columns)
    return ids, pa.StructArray.from_arrays(parts, fields)


def _full_struct(corpus: ColumnGroups, group: str, name: str) -> tuple[pa.Array, pa.Array]:
    table = corpus.table(group)
    return table.column("clip_id").combine_chunks(), table.column(name).combine_chunks()


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    # texts of millions of rows may outgrow the 2 GB that 32-bit offsets reach
    return (column.cast(pa.large_string()) if pa.types.is_string(column.type) else column).combine_chunks()


def _aligned(clips: pa.ChunkedArray, ids: pa.Array, struct: pa.Array) -> pa.Array:
    """The struct of each clip, null where there is no row for it."""
    return struct.take(pc.index_in(clips.cast(ids.type), value_set=ids).combine_chunks())
