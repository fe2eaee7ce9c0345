"""Keep rules: SQL conditions over the columns of a corpus, evaluated by DuckDB without external access."""

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa

from openuni.manifests.errors import OpenUniError, did_you_mean

MEMORY_LIMIT = "1500MB"
CHECK_S = 5.0  # for a rule on a single row
CACHED = 64  # rules whose parses and checks are kept: each takes a DuckDB of its own, which takes 20 ms
# what DuckDB does not declare as dependent on time, or has as keywords
CLOCKS = {
    *("current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"),
    *("current_localtime", "current_localtimestamp", "age"),
}
# their results are not subject to the memory limit: range(3000000000) takes 24 GB
UNBOUNDED = {
    *("range", "generate_series", "repeat", "lpad", "rpad", "list_resize", "array_resize", "bitstring", "bar"),
    *("format", "printf", "list_reduce", "array_reduce", "reduce"),
}
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
    functions: frozenset[str]  # names of the functions that it calls, lower case


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
        return list(_parse(keep))
    except RecursionError:
        raise OpenUniError(
            f"keep = {keep[:80]!r}...: the condition is nested too deeply. Write fewer parentheses and operators."
        ) from None


@lru_cache(maxsize=CACHED)
def _parse(keep: str) -> tuple[KeepRule, ...]:
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

    return tuple(
        KeepRule(
            text=to_sql(condition),
            columns=frozenset(_columns(condition)),
            sql=to_sql(_null_nonfinite(condition, template)),
            functions=frozenset(_functions(condition)),
        )
        for condition in conditions
    )


def check(rules: Sequence[KeepRule], schemas: Mapping[str, pa.Schema]) -> None:
    """Raise `OpenUniError` for a rule that cannot be evaluated over these columns. `schemas`: group name -> schema.

    Refused are unknown columns and functions, wrong types, functions whose result is not determined by the row, and
    functions whose results can have any size. Each rule is bound to an empty table, and evaluated on a row of nulls and
    on one of values, within `CHECK_S`.
    """
    columns = {field.name: field for schema in schemas.values() for field in schema}
    known = {
        name: [sub.name for sub in field.type] if pa.types.is_struct(field.type) else []
        for name, field in columns.items()
    }
    for rule in rules:
        for name in sorted(rule.functions):
            _check_function(rule, name)
        for column in sorted(rule.columns):
            top, *rest = column
            if top not in known:
                if not rest and top in CLOCKS:
                    _check_function(rule, top)
                raise OpenUniError(
                    f'keep: column "{".".join(column)}" not found.{did_you_mean(top, known)} '
                    f"Available: {', '.join(sorted(known))}. Add the filter to the recipe, or correct the name."
                )
            if rest and rest[0] not in known[top]:
                raise OpenUniError(
                    f'keep: "{top}" has no column "{rest[0]}".{did_you_mean(rest[0], known[top])} '
                    f"Available: {', '.join(known[top]) or 'no inner columns'}."
                )
    if rules:
        _bind(tuple(rules), pa.schema([field for field in columns.values() if field.type != pa.struct([])]))


@contextmanager
def evaluation(connection: duckdb.DuckDBPyConnection, limit_s: float) -> Iterator[None]:
    """Interrupt queries inside the context after `limit_s`, and raise DuckDB's errors as `OpenUniError`."""
    timer = threading.Timer(limit_s, connection.interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    except duckdb.InterruptException as error:
        raise OpenUniError(f"keep: not evaluated within {limit_s:g} s. Simplify the rule.") from error
    except (duckdb.OutOfMemoryException, MemoryError) as error:
        raise OpenUniError(f"keep: requires more than {MEMORY_LIMIT} of memory. Simplify the rule.") from error
    except duckdb.Error as error:
        raise OpenUniError(
            f"keep: {_first_line(error)}. Correct the rule; TRY(...) and TRY_CAST(... AS TYPE) give null where a value "
            "does not fit."
        ) from error
    finally:
        timer.cancel()
        timer.join()  # a thread that still ends while the interpreter exits would abort the process


def evaluation_limit_s(rows: int) -> float:
    """Time limit of a query over a corpus, seconds: far above what comparisons of scores take."""
    return 60 + rows / 1000


def condition_sql(rules: Sequence[KeepRule]) -> str:
    """All rules as one SQL condition in which null counts as false."""
    return " AND ".join(f"coalesce(({rule.sql}\n), false)" for rule in rules) or "true"


def names_read(rules: Sequence[KeepRule]) -> set[str]:
    """The first part of every column that rules read: the filter `motion` of "motion.speed_diag_per_s"."""
    return {column[0] for rule in rules for column in rule.columns}


def is_row_wise(rules: Sequence[KeepRule]) -> bool:
    """Whether all rules call only functions of one row: no aggregates, no window functions."""
    return all(name in _stabilities() and name not in _aggregates() for rule in rules for name in rule.functions)


@cache
def _aggregates() -> frozenset[str]:
    query = "SELECT DISTINCT function_name FROM duckdb_functions() WHERE function_type NOT IN ('scalar', 'macro')"
    return frozenset(name for (name,) in connect().execute(query).fetchall())


def _check_function(rule: KeepRule, name: str) -> None:
    stability = _stabilities().get(name, "CONSISTENT")
    if name in CLOCKS or stability != "CONSISTENT":
        raise OpenUniError(
            f'keep: "{rule.text}" uses {name}, whose result is not determined by the clip\'s columns: every run would '
            "keep other clips. Write conditions over the clip's columns only."
        )
    if name in UNBOUNDED:
        raise OpenUniError(
            f'keep: "{rule.text}" uses {name}, whose results can have any size. Write conditions over the clip\'s '
            "columns without it."
        )


@cache
def _stabilities() -> dict[str, str]:
    """DuckDB's scalar functions -> CONSISTENT, or VOLATILE and CONSISTENT_WITHIN_QUERY for the others."""
    query = "SELECT DISTINCT function_name, stability FROM duckdb_functions() WHERE function_type = 'scalar'"
    rows = connect().execute(query).fetchall()
    return {name: stability for name, stability in sorted(rows) if stability is not None}


@lru_cache(maxsize=CACHED)
def _bind(rules: tuple[KeepRule, ...], schema: pa.Schema) -> None:
    connection = connect()
    values = {field.name: _example(field.type) for field in schema}
    for name, rows in (("empty", []), ("nulls", [dict.fromkeys(values)]), ("example", [values])):
        connection.register(name, pa.Table.from_pylist(rows, schema=schema))
    for rule in rules:
        try:
            with evaluation(connection, CHECK_S):
                kind = str(connection.execute(f"SELECT ({rule.text}\n) FROM empty").description[0][1])
                if kind.strip('"') not in ("BOOLEAN", "NULL"):
                    raise OpenUniError(f"keep: it is {kind}, not a condition. Compare it, such as `... > 0.5`.")
                for table in ("empty", "nulls"):
                    connection.execute(f"SELECT 1 FROM {table} WHERE {condition_sql([rule])}").fetchall()
                with suppress(duckdb.DataError, duckdb.InvalidInputException):
                    # a conversion that fails for this value need not fail for those of the corpus
                    connection.execute(f"SELECT 1 FROM example WHERE {condition_sql([rule])}").fetchall()
        except OpenUniError as error:
            raise OpenUniError(f'keep: "{rule.text}": {str(error).removeprefix("keep: ")}') from error.__cause__


def _example(kind: pa.DataType) -> Any:
    """An ordinary value of an Arrow type."""
    if pa.types.is_struct(kind):
        return {field.name: _example(field.type) for field in kind}
    if pa.types.is_list(kind):
        return [_example(kind.value_type)] * 2
    if pa.types.is_boolean(kind):
        return True
    if pa.types.is_floating(kind):
        return 0.5
    return 1 if pa.types.is_integer(kind) else "a"


def _first_line(error: Exception) -> str:
    line, _, rest = str(error).partition("\n")
    suggestion = re.search(r"Did you mean .*\?", rest)
    return re.sub(r"^[A-Z][A-Za-z ]* Error: ", "", line).rstrip("!. ") + (f" ({suggestion[0]})" if suggestion else "")


def _functions(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if node.get("class") in ("FUNCTION", "WINDOW"):
            yield str(node["function_name"]).lower()
        for child in node.values():
            yield from _functions(child)
    elif isinstance(node, list):
        for child in node:
            yield from _functions(child)


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
