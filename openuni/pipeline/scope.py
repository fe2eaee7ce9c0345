"""The scope of a run: which part of it to execute."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RunScope:
    """Which sources, operators and phases a run covers."""

    limit: int | None = None  # only the first N sources
    only: tuple[str, ...] = ()  # only these operators, or "ingest", "encode"; empty: all
    add: bool = False  # sources that share nothing with the corpus's may be added to it
    retry_failed: bool = False  # also items that failed before
    raise_errors: bool = False  # stop at the first failed item with its exception
    update_captions: bool = False  # read caption files again that were edited after ingest

    def covers(self, name: str) -> bool:
        """Whether the operator or phase of that name is to run."""
        return not self.only or name in self.only
