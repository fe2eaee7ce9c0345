"""`keep`: what is a rule, what passes, what is refused."""

import threading

import pyarrow as pa
import pytest

from openuni.manifests.corpus import keep_rule
from openuni.manifests.errors import OpenUniError

SCHEMAS = {
    "clips": pa.schema([("clip_id", pa.string()), ("width_px", pa.int64())]),
    "filters/motion": pa.schema(
        [("clip_id", pa.string()), ("motion", pa.struct([("status", pa.string()), ("speed", pa.float64())]))]
    ),
}
ROWS = pa.table(
    {
        "clip_id": ["fast", "slow", "failed"],
        "width_px": [640, 1280, 320],
        "motion": [
            {"status": "ok", "speed": 0.5},
            {"status": "ok", "speed": 0.01},
            {"status": "failed", "speed": None},
        ],
    }
)


def passing(keep: str) -> list[str]:
    rules = keep_rule.parse(keep)
    keep_rule.check(rules, SCHEMAS)
    connection = keep_rule.connect()
    connection.register("rows", ROWS)
    query = f"SELECT clip_id FROM rows WHERE {keep_rule.condition_sql(rules)}"
    return sorted(row[0] for row in connection.execute(query).fetchall())


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("", ["failed", "fast", "slow"]),
        ("motion.speed > 0.1", ["fast"]),
        ("motion.speed <= 0.1", ["slow"]),
        ("not motion.speed > 0.1", ["slow"]),  # null is neither: it never passes
        ("motion.speed > 0.1 or width_px > 1000", ["fast", "slow"]),
        ("motion.speed > 0.001 and width_px between 600 and 700 -- a comment", ["fast"]),
        ("motion.speed is null", ["failed"]),  # unless asked for by name
        ("clip_id like 'f%'", ["failed", "fast"]),
    ],
)
def test_what_passes(keep, expected):
    assert passing(keep) == expected


def test_and_joins_rules_or_does_not():
    assert [rule.text for rule in keep_rule.parse("a > 1 and (b < 2 or c = 3) and d")] == [
        "a > 1",
        "(b < 2) OR (c = 3)",
        "d",
    ]
    assert [rule.text for rule in keep_rule.parse("(a > 1) or (b > 2)")] == ["(a > 1) OR (b > 2)"]


@pytest.mark.parametrize(
    "keep",
    ["motion.speed >", "motion.speed > 1; drop table rows", "1) or (1", "select 1", "true) union select ('x'"],
)
def test_what_is_no_condition_is_refused(keep):
    with pytest.raises(OpenUniError, match=r"is not a SQL condition|subquery|not found"):
        passing(keep)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("moton.speed > 1", r'column "moton.speed" not found. Did you mean "motion"\?'),
        ("motion.sped > 1", r'"motion" has no column "sped". Did you mean "speed"\?'),
        ("clip_id in (select clip_id from rows)", "subquery is not allowed"),
    ],
)
def test_mistakes_are_explained(keep, message):
    with pytest.raises(OpenUniError, match=message):
        passing(keep)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (
            "sqrtt(motion.speed) > 0",
            r'"sqrtt\(motion.speed\) > 0": Scalar Function with name sqrtt does not exist \(Did',
        ),
        ("motion.speed > 'abc'", "Could not convert string 'abc' to DOUBLE"),
        ("abs(clip_id) > 1", "No function matches"),
        ("clip_id > 1", "Cannot compare values of type VARCHAR"),
        ("motion > 1", "Cannot compare"),
        ("motion.speed", "it is DOUBLE, not a condition"),
        ("clip_id", "not a condition"),
        ("motion", "not a condition"),
        ("width_px > 1 and sum(width_px) > 1", "aggregates"),
        ("sum(width_px) over () > 1", "window functions"),
        ("width_px > ?", "Values were not provided"),
        ("unnest([true])", "UNNEST not supported"),
        ("list_sum(range(3000000000)) > 0", "uses range, whose results can have any size"),
        ("len(REPEAT(clip_id, 3000000000)) > 0", "uses repeat, whose results"),
        ("width_px > 1 or lpad('a', 3000000000, 'b') = 'c'", "uses lpad, whose results"),
        ("random() > 0.5", "uses random, whose result is not determined by the clip's columns"),
        ("width_px > 600 or not (1 - RANDOM() > 0.5)", "uses random"),
        ("coalesce(motion.speed, random()) > 0.5", "uses random"),
        ("now() > '2020-01-01'", "uses now"),
        ("current_date > '2020-01-01'", "uses current_date"),
        ("current_timestamp > '2020-01-01'", "uses current_timestamp"),
        ("localtime > '10:00'", "uses localtime"),
        ("today() > '2020-01-01'::date", "uses today"),
        ("uuid() > 'a'", "uses uuid"),
        ("gen_random_uuid()::text > 'a'", "uses gen_random_uuid"),
        ("age('2020-01-01'::timestamp) > interval 1 day", "uses age"),
        ("txid_current() > 1", "uses txid_current"),
        ("current_setting('memory_limit') = '1'", "uses current_setting"),
        ("sleep_ms(100000) is null", "uses sleep_ms"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_by_name(keep, message):
    with pytest.raises(OpenUniError, match=f"^keep.*{message}"):
        passing(keep)


@pytest.mark.parametrize(
    "keep",
    [
        "try_cast(clip_id as double) is null",
        "clip_id::int > 1 or true",  # a conversion that clips may allow
        "regexp_matches(clip_id, '^f') and length(clip_id) > 3",
        "greatest(motion.speed, 0.1) between 0.1 and 1",
        "case when motion.speed is null then true else motion.speed > 0.1 end",
        "list_contains(['fast', 'slow'], clip_id)",
        "null",
        "hash(clip_id) % 2 = 0",
    ],
)
def test_ordinary_functions_are_allowed(keep):
    keep_rule.check(keep_rule.parse(keep), SCHEMAS)


def test_a_long_evaluation_is_interrupted():
    connection = keep_rule.connect()
    with pytest.raises(OpenUniError, match=r"not evaluated within 0\.2 s"), keep_rule.evaluation(connection, 0.2):
        connection.execute("SELECT count(*) FROM range(1000000) a, range(1000000) b WHERE a.range * b.range % 7 = 3")


def test_a_value_that_does_not_fit_is_an_error_of_the_rule():
    connection = keep_rule.connect()
    connection.register("rows", ROWS)
    message = r"Could not convert string 'fast' to INT32.*TRY_CAST"
    with pytest.raises(OpenUniError, match=message), keep_rule.evaluation(connection, 5):
        connection.execute("SELECT 1 FROM rows WHERE clip_id::int > 1").fetchall()


def test_an_expression_reaches_no_file(tmp_path):
    (tmp_path / "secret.csv").write_text("a\n1\n")
    connection = keep_rule.connect()
    for query in (f"SELECT * FROM '{tmp_path}/secret.csv'", f"COPY (SELECT 1) TO '{tmp_path}/out.csv'"):
        with pytest.raises(Exception, match=r"disabled by configuration|Permission"):
            connection.execute(query)
    with pytest.raises(Exception, match="configuration has been locked"):
        connection.execute("SET enable_external_access = true")
    assert not (tmp_path / "out.csv").exists()


def test_an_evaluation_leaves_no_thread_behind():
    """One that still ends while the interpreter exits would abort the process: exit code 134 after a whole run."""
    connection, before = keep_rule.connect(), threading.enumerate()
    for _ in range(200):
        with keep_rule.evaluation(connection, 60.0):
            pass
        assert threading.enumerate() == before
