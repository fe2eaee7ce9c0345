"""The counts of one phase, as the display and the ledger show them."""

import time
from typing import Any

from openuni.console.usage import PhaseUsage


def duration_text(seconds: float) -> str:
    """ "40 s", "12 min", "3 h 20 min"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def percent(share: float | None) -> str:
    """ "85 %"; "-" for what was not measured."""
    return "-" if share is None else f"{share:.0%}".replace("%", " %")


class Phase:
    """Counts of one phase."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total = name, total
        self.ok = self.failed = self.decodes = self.decode_fallbacks = 0
        self.vram_mb: dict[str, float] = {}
        self.usage = PhaseUsage(name)
        self.placed = self.wanted = self.in_flight = 0  # workers that have started, all of them; items that they hold
        self.started = time.perf_counter()
        self.seconds = 0.0

    @property
    def done(self) -> int:
        """Items finished, whatever became of them."""
        return self.ok + self.failed

    @property
    def queue(self) -> int:
        """Items that no worker holds yet."""
        return max(0, self.total - self.done - self.in_flight)

    @property
    def is_pool(self) -> bool:
        """Whether workers in processes of their own do it."""
        return self.wanted > 0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the phase began; when it has ended, those that it took."""
        return self.seconds or (time.perf_counter() - self.started)

    @property
    def items_per_s(self) -> float:
        """Mean rate since the phase began."""
        return self.done / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds that are left at this rate; None if nothing is left, or nothing is known."""
        left, rate = self.total - self.done, self.items_per_s
        return left / rate if left > 0 and rate else None

    def text(self) -> str:
        """Counts, rate and, while items are left, the ETA: "3/8 done, 0 failed, 0.5/s, ETA 10 s".

        Of a pool of workers also: "; 4/6 workers, GPU 45 %, decode 80 %, store 3 %, queue 20".
        """
        rate, eta_s = self.items_per_s, self.eta_s
        speed = f"{rate:.1f}/s" if rate >= 0.1 or not rate else f"{1 / rate:.0f} s per item"
        text = f"{self.done}/{self.total} done, {self.failed} failed, {speed}"
        if eta_s is not None:
            text = f"{text}, ETA {duration_text(eta_s)}"
        if not self.is_pool:
            return text
        decode, store = self.usage.shares()
        busy = self.usage.gpu_busy
        gpu = "" if busy is None else f"GPU {percent(busy)}, "
        text = f"{text}; {self.placed}/{self.wanted} workers, {gpu}decode {percent(decode)}, store {percent(store)}"
        return f"{text}, queue {self.queue}" if self.queue else text

    def as_record(self) -> dict[str, Any]:
        """What the ledger keeps: `decodes` counts how often video was opened to decode frames, `decode_fallbacks` how
        often the CPU did so because NVDEC could not.
        """
        record = {
            "phase": self.name,
            "planned": self.total,
            "ok": self.ok,
            "failed": self.failed,
            "seconds": round(self.seconds, 3),
            "items_per_s": round(self.items_per_s, 3),
            "decodes": self.decodes,
        }
        record |= {"vram_mb": self.vram_mb} if self.vram_mb else {}
        record |= {"decode_fallbacks": self.decode_fallbacks} if self.decode_fallbacks else {}
        return record | (self.usage.as_record() if self.usage.nodes else {})
