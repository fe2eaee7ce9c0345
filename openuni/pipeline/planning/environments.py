"""The environments of their own in which operators of a recipe run."""

import contextlib
from collections.abc import Iterable
from typing import Any

from openuni.config.recipe import CorpusRecipe
from openuni.manifests.errors import OpenUniError
from openuni.manifests.hosting.environment import ReadyEnvironment


def ready_environments(recipe: CorpusRecipe, kind: str, names: Iterable[str]) -> dict[str, ReadyEnvironment]:
    """By operator of a kind, the environment that the recipe names for it, built if need be. Raises `OpenUniError`."""
    places = {name: f"{kind}s.{name}" for name in names}
    return {name: recipe.environments[place].ready() for name, place in places.items() if place in recipe.environments}


def environment_facts(recipe: CorpusRecipe, kind: str, name: str) -> dict[str, Any]:
    """What the environment adds to an operator's version: nothing if it has none of its own."""
    found = ready_environments(recipe, kind, [name])
    return {"environment": found[name].contents.identity} if found else {}


def found_environments(recipe: CorpusRecipe) -> tuple[tuple[str, ReadyEnvironment], ...]:
    """The environments of all operators with their names, built if need be, without those for which that fails."""
    found = []
    for place, environment in recipe.environments.items():
        with contextlib.suppress(OpenUniError):
            found.append((place.partition(".")[2], environment.ready()))
    return tuple(found)
