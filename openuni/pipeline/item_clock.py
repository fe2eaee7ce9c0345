"""How long the stages of one item take, measured where they run: in threads of their own."""

import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from openuni.console.usage import ItemUsage
from openuni.manifests.video.decoder.progress import decoder_seconds


class ItemClock:
    """Seconds of one item."""

    def __init__(self) -> None:
        self.prepare_s = self.compute_s = self.store_s = self.wait_s = 0.0
        self.decode_s = 0.0  # within the computation
        self.operators_s: Mapping[str, float] = {}

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Around the reading of the item."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.prepare_s = time.perf_counter() - started

    @contextmanager
    def computing(self, free_since: float) -> Iterator[None]:
        """Around the computation. `free_since`: when the thread ended the one before, as `time.perf_counter` counts."""
        started, decoded_s = time.perf_counter(), decoder_seconds()
        try:
            yield
        finally:
            self.decode_s = decoder_seconds() - decoded_s
            self.wait_s = max(0.0, started - free_since) + self.decode_s
            self.compute_s = max(0.0, time.perf_counter() - started - self.decode_s)

    @contextmanager
    def storing(self) -> Iterator[None]:
        """Around the writing of the item, or of a part of it."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.store_s += time.perf_counter() - started

    def add_batch(self, seconds: float, operators_s: Mapping[str, float]) -> None:
        """Count the item's share of a computation of several items together."""
        self.compute_s += seconds
        self.operators_s = {**self.operators_s, **operators_s}

    def usage(self) -> ItemUsage:
        """What was measured, on this host."""
        return ItemUsage(
            host=platform.node(),
            decode_s=self.prepare_s + self.decode_s,
            compute_s=self.compute_s,
            store_s=self.store_s,
            wait_s=self.wait_s,
            operators_s=self.operators_s,
        )
