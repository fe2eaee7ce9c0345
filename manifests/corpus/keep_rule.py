"""Keep rules: SQL conditions over the columns of a corpus, evaluated by DuckDB without external access."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa

from openuni.manifests.errors import OpenUniError, did_you_mean

MEMORY_LIMIT = "1500MB"
OPERAND = "openuni operand"  # placeholder column
NULL_IF_NONFINITE = (
    f"""CASE WHEN typeof("{OPERAND}") IN ('DOUBLE', 'FLOAT') """
    f"""AND CAST("{OPERAND}" AS VARCHAR) IN ('nan', '-nan', 'inf', '-inf') THEN NULL ELSE "{OPERAND}" END"""
)
OPERANDS = {"COMPARISON": ("left", "right"), "BETWEEN": ("input", "lower", "upper")}  # class of a node -> its operands


class KeepRule(NamedTuple):
    """One of the conditions that `keep` joins with AND. A clip is dropped by the first condition that it fails."""

    text: str  # one SQL condition, as shown to the user
    columns: frozenset[tuple[str, ...]]  # columns that it reads, such as ("motion", "speed_diag_per_s")
    sql: str  # the condition as evaluated: computed operands that are NaN or infinite count as null


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
    template = _parse_sql(connection, f"SELECT 1 WHERE {NULL_IF_NONFINITE}")["statements"][0]["node"]["where_clause"]

    def to_sql(condition: Any) -> str:
        node["where_clause"] = condition  # DuckDB serializes each condition as canonical SQL
        text = connection.execute("SELECT json_deserialize_sql(?)", [json.dumps(parsed)]).fetchall()[0][0]
        return _strip_parentheses(str(text).removeprefix("SELECT 1 WHERE "))

    return [
        KeepRule(to_sql(condition), frozenset(_columns(condition)), to_sql(_null_nonfinite(condition, template)))
        for condition in conditions
    ]


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
    return " AND ".join(f"coalesce(({rule.sql}\n), false)" for rule in rules) or "true"


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


def _null_nonfinite(node: Any, template: Any) -> Any:
    """The condition with `template` around every computed operand of a comparison.

    Stored scores are finite or null, but `std / mean` may not be: DuckDB orders NaN above every number, so that
    `0 / 0 > 1` would be true.
    """
    if isinstance(node, list):
        return [_null_nonfinite(child, template) for child in node]
    if not isinstance(node, dict):
        return node
    changed = {key: _null_nonfinite(child, template) for key, child in node.items()}
    for key in OPERANDS.get(node.get("class", ""), ()):
        if node[key]["class"] not in ("COLUMN_REF", "CONSTANT"):
            changed[key] = _substitute(template, changed[key])
    return changed


def _substitute(template: Any, operand: Any) -> Any:
    """A copy of the template with the operand in place of its placeholder."""
    if isinstance(template, list):
        return [_substitute(child, operand) for child in template]
    if not isinstance(template, dict):
        return template
    if template.get("class") == "COLUMN_REF" and template["column_names"] == [OPERAND]:
        return operand
    return {key: _substitute(child, operand) for key, child in template.items()}


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
