"""The producer contract: a component that fills a column group. Its declared result type is the group's schema."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from openuni.manifests.contracts.component import Component


@dataclass(frozen=True)
class Producer(Component, ABC):
    """Base of operators, which process a clip, and importers, which read a clip of another project's dataset."""

    @classmethod
    @abstractmethod
    def result_type(cls) -> type[tuple[Any, ...]]:
        """The NamedTuple of modalities and plain values per clip, which defines the columns.

        Raises `OpenUniError` if the class does not declare one.
        """
