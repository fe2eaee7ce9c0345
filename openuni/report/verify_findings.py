"""What a verification of a corpus has found so far."""

from dataclasses import dataclass, field
from typing import NamedTuple

from openuni.manifests.storage.store import Store
from openuni.report.verify_report import Damage, VerifyReport

NEXT_RUN = "the next run"


class Part(NamedTuple):
    """A sound Parquet part."""

    name: str
    folder: str  # a column group, or a folder of its superseded parts
    payloads: int
    has_checksums: bool


@dataclass
class Findings:
    """What a verification has found so far, for the report and for a repair."""

    store: Store
    damage: list[Damage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    records: int = 0
    parts: list[Part] = field(default_factory=list)  # sound ones
    payloads: int = 0
    payload_bytes: int = 0
    bad_records: list[str] = field(default_factory=list)
    bad_parts: list[str] = field(default_factory=list)
    bad_shards: list[str] = field(default_factory=list)  # headers damaged, or without a part
    bad_rows: dict[str, set[int]] = field(default_factory=dict)  # part -> rows to remove
    shards: dict[str, set[str]] = field(default_factory=dict)  # part -> shards that it refers to, or that only it can
    replaced: dict[str, list[str]] = field(default_factory=dict)  # merged part -> parts left by a killed compaction

    def report(self) -> VerifyReport:
        """The findings as the user sees them."""
        total = sum(part.payloads for part in self.parts)
        counts = self.records, len(self.parts), self.payloads, self.payload_bytes, total
        damage = sorted(self.damage, key=lambda one: (one.file, one.kind))
        notes = list(self.notes)
        if unprotected := sum(not part.has_checksums for part in self.parts):
            text = "have no checksums (written by an earlier version): a changed value in them cannot be found"
            notes.append(f"{unprotected:,} Parquet parts {text}")
        for merged, left in self.replaced.items():
            text = f"an interrupted compaction left {len(left):,} parts that it replaces, such as {left[0]}"
            notes.append(f"{merged}: {text}; {NEXT_RUN}, or --repair, deletes them")
        return VerifyReport(self.store.url, *counts, tuple(damage), tuple(notes))
