"""`keep`: what is a rule, what passes, what is refused."""

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


def test_an_expression_reaches_no_file(tmp_path):
    (tmp_path / "secret.csv").write_text("a\n1\n")
    connection = keep_rule.connect()
    for query in (f"SELECT * FROM '{tmp_path}/secret.csv'", f"COPY (SELECT 1) TO '{tmp_path}/out.csv'"):
        with pytest.raises(Exception, match=r"disabled by configuration|Permission"):
            connection.execute(query)
    with pytest.raises(Exception, match="configuration has been locked"):
        connection.execute("SET enable_external_access = true")
    assert not (tmp_path / "out.csv").exists()
