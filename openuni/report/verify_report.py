"""The result of `openuni verify`: what is damaged and what depends on it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

MAX_NAMED_CLIPS = 10
MAX_SHOWN = 50  # lines of damage on the terminal; --json has all


class Damage(NamedTuple):
    """One damaged file, or one kind of damage in a file."""

    file: str  # name relative to the corpus or run
    kind: str  # record, part, shard, payload, reference, duplicate, log, checkpoint
    reason: str
    depends: tuple[str, ...] = ()  # operators, column groups or jobs that use it
    clips: int | None = None  # number of affected clips; None: unknown, because their rows cannot be read
    clip_ids: tuple[str, ...] = ()  # some of them
    repaired: str = ""  # what --repair did

    def __str__(self) -> str:
        lines = [f"{self.file}: {self.reason}"]
        if self.depends:
            lines.append(f"  used by: {', '.join(self.depends)}")
        if self.clips is not None:
            more = f", ... ({self.clips:,} in all)" if self.clips > len(self.clip_ids) else ""
            lines.append(f"  clips: {', '.join(self.clip_ids)}{more}")
        if self.repaired:
            lines.append(f"  repair: {self.repaired}")
        return "\n".join(lines)


class VerifyReport(NamedTuple):
    """What `openuni verify` found. `bool(report.damage)` is false for a sound corpus or run."""

    url: str
    records: int  # verified JSON and log files
    parts: int  # verified Parquet parts
    payloads: int  # payloads whose checksum was verified; for runs, files
    payload_bytes: int
    all_payloads: int  # payloads there are; more than `payloads` with --sample
    damage: tuple[Damage, ...]
    notes: tuple[str, ...]  # not damage: pending clips, leftover temporary files, ...

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged, or a repair has set aside all that was."""
        return all(damage.repaired for damage in self.damage)

    def as_record(self) -> dict[str, Any]:
        """The report as JSON-able tables."""
        record = self._asdict()
        record["damage"] = [damage._asdict() for damage in self.damage]
        return record | {"is_sound": self.is_sound}

    def __str__(self) -> str:
        of = f" of {self.all_payloads:,}" if self.all_payloads > self.payloads else ""
        size = f"{self.payload_bytes / 1e6:,.1f} MB"
        lines = [
            f"{self.url}: verified {self.records:,} records, {self.parts:,} Parquet parts, {self.payloads:,}{of} "
            f"payloads ({size})"
        ]
        lines += [str(damage) for damage in self.damage[:MAX_SHOWN]]
        if len(self.damage) > MAX_SHOWN:
            lines.append(f"... and {len(self.damage) - MAX_SHOWN:,} more; --json lists all")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, self.verdict()])

    def verdict(self) -> str:
        """The last line: sound, repaired, or how many findings."""
        if not self.damage:
            return "sound" if self.payloads == self.all_payloads else "no damage found in the sample"
        repaired = sum(bool(damage.repaired) for damage in self.damage)
        text = f"{len(self.damage):,} damaged"
        return f"{text}, {repaired:,} of them repaired" if repaired else text


def named(clip_ids: Sequence[str]) -> tuple[str, ...]:
    """The clips that a report names, of all that are affected."""
    return tuple(clip_ids[:MAX_NAMED_CLIPS])
