"""Keep rules: SQL conditions over the columns of a corpus, evaluated by DuckDB without external access."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa

from openuni.manifests.errors import OpenUniError, did_you_mean

MEMORY_LIMIT = "1500MB"


class KeepRule(NamedTuple):
    """One of the conditions that `keep` joins with AND. A clip is dropped by the first condition that it fails."""

    text: str  # one SQL condition
    columns: frozenset[tuple[str, ...]]  # columns that it reads, such as ("motion", "speed_diag_per_s")


def connect() -> duckdb.DuckDBPyConnection:
    """A DuckDB connection without access to files or network, whatever the expression contains."""
    connection = duckdb.connect(config={"enable_external_access": "false", "memory_limit": MEMORY_LIMIT})
    connection.execute("SET lock_configuration = true")
    return connection


def parse(keep: str) -> list[KeepRule]:
    """Split a `keep` expression into its conditions; an empty expression has none.

    Raises `OpenUniError` unless it is a single SQL condition without subqueries.
    """
    if not keep.strip():
        return []
    try:
        return _parse(keep)
    except RecursionError:
        raise OpenUniError(
            f"keep = {keep[:80]!r}...: the condition is nested too deeply. Write fewer parentheses and operators."
        ) from None


def _parse(keep: str) -> list[KeepRule]:
    connection = connect()
    # with parentheses no clause can follow the condition; without them none can be closed too early
    parses = [_parse_sql(connection, f"SELECT 1 WHERE {text}") for text in (keep, f"({keep}\n)")]
    parsed = parses[1]
    invalid = [parse for parse in parses if parse["error"] or len(parse["statements"]) != 1]
    if invalid or parsed["statements"][0]["node"]["type"] != "SELECT_NODE":
        reason = invalid[0].get("error_message") if invalid else None
        raise OpenUniError(
            f"keep = {keep!r} is not a SQL condition: {reason or 'expected one expression, got several'}. "
            'Write conditions over columns, such as "motion.speed_diag_per_s > 0.02 and luminance.mean > 0.1".'
        )
    node = parsed["statements"][0]["node"]
    _reject_subqueries(node, keep)
    where = node["where_clause"]
    conditions = where["children"] if where.get("type") == "CONJUNCTION_AND" else [where]
    rules = []
    for condition in conditions:
        node["where_clause"] = condition  # DuckDB serializes each condition as canonical SQL
        text = connection.execute("SELECT json_deserialize_sql(?)", [json.dumps(parsed)]).fetchall()[0][0]
        rules.append(KeepRule(_strip_parentheses(text.removeprefix("SELECT 1 WHERE ")), frozenset(_columns(condition))))
    return rules


def check(rules: Sequence[KeepRule], schemas: Mapping[str, pa.Schema]) -> None:
    """Raise `OpenUniError` if a rule reads a column that none of the schemas has. `schemas`: group name -> schema."""
    known: dict[str, list[str]] = {}
    for schema in schemas.values():
        for field in schema:
            known[field.name] = [sub.name for sub in field.type] if pa.types.is_struct(field.type) else []
    for rule in rules:
        for column in rule.columns:
            top, *rest = column
            if top not in known:
                raise OpenUniError(
                    f'keep: column "{".".join(column)}" not found.{did_you_mean(top, known)} '
                    f"Available: {', '.join(sorted(known))}. Add the filter to the recipe, or correct the name."
                )
            if rest and rest[0] not in known[top]:
                raise OpenUniError(
                    f'keep: "{top}" has no column "{rest[0]}".{did_you_mean(rest[0], known[top])} '
                    f"Available: {', '.join(known[top]) or 'no inner columns'}."
                )


def condition_sql(rules: Sequence[KeepRule]) -> str:
    """All rules as one SQL condition in which null counts as false."""
    return " AND ".join(f"coalesce(({rule.text}\n), false)" for rule in rules) or "true"


def names_read(rules: Sequence[KeepRule]) -> set[str]:
    """The first part of every column that rules read: the filter `motion` of "motion.speed_diag_per_s"."""
    return {column[0] for rule in rules for column in rule.columns}


def _parse_sql(connection: duckdb.DuckDBPyConnection, statement: str) -> Any:
    return json.loads(connection.execute("SELECT json_serialize_sql(?)", [statement]).fetchall()[0][0])


def _strip_parentheses(text: str) -> str:
    """Remove the parentheses that DuckDB puts around the whole condition."""
    if not (text.startswith("(") and text.endswith(")")):
        return text
    depth = 0
    for position, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0 and position < len(text) - 1:
            return text  # the first parenthesis closes before the end: "(a) OR (b)"
    return text[1:-1]


def _columns(node: Any) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    if isinstance(node, dict):
        if node.get("class") == "COLUMN_REF":
            found.append(tuple(node["column_names"]))
        for child in node.values():
            found.extend(_columns(child))
    elif isinstance(node, list):
        for child in node:
            found.extend(_columns(child))
    return found


def _reject_subqueries(node: Any, keep: str) -> None:
    if isinstance(node, dict):
        if node.get("class") == "SUBQUERY":
            raise OpenUniError(f"keep = {keep!r}: a subquery is not allowed; write conditions over the clip's columns.")
        for child in node.values():
            _reject_subqueries(child, keep)
    elif isinstance(node, list):
        for child in node:
            _reject_subqueries(child, keep)
