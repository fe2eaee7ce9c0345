"""The producer contract: a component that fills a column group, whose declared result is the group's schema."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from openuni.manifests.contracts.component import Component


@dataclass(frozen=True)
class Producer(Component, ABC):
    """Base of operators, which compute from a clip, and importers, which read a clip of another project's set."""

    @classmethod
    @abstractmethod
    def result_type(cls) -> type[tuple[Any, ...]]:
        """The NamedTuple of modalities and plain values that this gives per clip: the one declaration of the columns.

        Raises `OpenUniError` where the class does not declare one.
        """
