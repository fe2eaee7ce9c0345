"""Single options of a training recipe, changed by dotted name: `optimizer.steps`, `model.rank`, `tasks.joint`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, get_origin, get_type_hints

from openuni.manifests.contracts.options import former_names, strip_annotation
from openuni.manifests.errors import OpenUniError, did_you_mean
from openuni.training.recipe import TrainingRecipe


def changed(record: dict[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A recipe's tables with these options set. Values are checked when the tables are parsed.

    `where`: what sets them, for errors. Raises `OpenUniError` for a name that the recipe does not have.
    """
    known, open_tables = _names(TrainingRecipe, "")
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in record.items()}
    for name, value in changes.items():
        table, _, option = name.rpartition(".")
        if name not in known and table not in open_tables:
            near = did_you_mean(name, known) or _by_last_part(name, known)
            raise OpenUniError(
                f'{where} {name}: a training recipe has no option "{name}".{near} Options are written as in a recipe, '
                "TABLE.OPTION=VALUE, such as optimizer.steps=1000 or model.rank=16."
            )
        place = result
        if table:
            own = _spelled(result, table, TrainingRecipe)
            place = result.setdefault(own, {})
            if not isinstance(place, dict):
                raise OpenUniError(f"{where} {name}: the recipe's {own} is not a table")
        place[_spelled(place, option, known.get(table, TrainingRecipe))] = value
    return result


def _names(kind: Any, prefix: str) -> tuple[dict[str, Any], set[str]]:
    """Dotted names of all options with the dataclass of each table (also former ones), and names of open tables."""
    known: dict[str, Any] = {}
    open_tables = set()
    former = former_names(kind)
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if name not in {field.name for field in dataclasses.fields(kind)}:
            continue
        bare = strip_annotation(hint)
        for spelled in {name, former.get(name, name)}:
            known[f"{prefix}{spelled}"] = bare if dataclasses.is_dataclass(bare) else None
            if dataclasses.is_dataclass(bare):
                inner, inner_open = _names(bare, f"{prefix}{spelled}.")
                known |= inner
                open_tables |= inner_open
            elif get_origin(bare) is dict:
                open_tables.add(f"{prefix}{spelled}")
    return known, open_tables


def _by_last_part(name: str, known: Mapping[str, Any]) -> str:
    """A suggestion for a name without its table, such as `steps`."""
    last = name.rpartition(".")[2]
    same = [full for full in known if full.rpartition(".")[2] == last]
    if same:
        return f' Did you mean "{same[0]}"?'
    return did_you_mean(last, {full.rpartition(".")[2] for full in known})


def _spelled(table: Mapping[str, Any], name: str, kind: Any) -> str:
    """The name under which a table has an option: the recipe may use its former name."""
    if kind is None or not dataclasses.is_dataclass(kind) or name in table:
        return name
    former = former_names(kind)
    twins = [former.get(name, name), *(field for field, old in former.items() if old == name)]
    return next((twin for twin in twins if twin in table), name)
