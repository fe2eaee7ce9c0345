"""The processes ("ranks") of one training, one per device, as torchrun starts them: agreement on errors and signals.

Every rank runs the same code. Tensors of the model move between devices (`sharding.py`); this module only carries what
ranks must agree on, as numbers and JSON over gloo on the CPU: nothing is unpickled. An error that is raised inside
`together` or `first` is raised on all ranks, with the same class, and rank 0 prints it. An error outside of them ends
the other ranks through the store of the process group, as they may wait for this rank in a collective operation.
"""

import atexit
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from openuni.manifests.corpus.writer import StorageFull
from openuni.manifests.errors import MissingRequirement, OpenUniError, QuietError
from openuni.training.data.index import TensorError
from openuni.training.finite import NonFiniteError
from openuni.training.loop.training_checkpoint import DamagedCheckpoint

T = TypeVar("T")
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun
TIMEOUT = timedelta(hours=1)  # of one collective operation: rank 0 may write a checkpoint meanwhile
POLL_S = 1.0  # how often a rank looks whether another one has failed
GRACE_S = 5.0  # after another rank has failed: time to end by the same error
FAILED = "openuni/failed"  # key in the store
ERRORS: dict[str, type[OpenUniError]] = {
    kind.__name__: kind
    for kind in (OpenUniError, MissingRequirement, StorageFull, TensorError, NonFiniteError, DamagedCheckpoint)
}


class Ranks:
    """One process: nothing to agree on. `DistributedRanks` is the same for several."""

    rank, world, local_rank = 0, 1, 0
    context_size = 1  # ranks that share the tokens of each sample; consecutive ones
    mesh: DeviceMesh | None = None  # all ranks: weights are divided among them
    context_group: dist.ProcessGroup | None = None  # the ranks that share samples with this one
    has_agreed_end = False  # all ranks end by the same error or signal

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files, logs and messages."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Which part of a step's samples this rank has, of `data_world` parts."""
        return self.rank // self.context_size

    @property
    def data_world(self) -> int:
        """Number of parts that the samples of a step are divided into."""
        return self.world // self.context_size

    @property
    def counts_losses(self) -> bool:
        """Whether this rank reports the losses of its samples: ranks that share them have the same."""
        return self.rank % self.context_size == 0

    def device(self, device: str) -> str:
        """The device of this rank, from that of all: "cuda" -> "cuda:1"."""
        return device

    def together(self, call: Callable[[], T]) -> T:
        """Call on every rank. If it raises on one, an error with its class and message is raised on all."""
        return call()

    def agreed(self, error: T) -> T:
        """An error that every rank raises, as all have come to the same result: rank 0 alone prints it."""
        self.has_agreed_end = True
        return error

    def first(self, call: Callable[[], T]) -> T | None:
        """As `together`, but call on rank 0 only; the others wait and return None."""
        return self.together(lambda: call() if self.is_first else None)

    def highest(self, *values: int) -> tuple[int, ...]:
        """The highest of every number over all ranks."""
        return values

    def total(self, values: np.ndarray) -> np.ndarray:
        """Sum over all ranks, float64, equal on all."""
        return values

    def gathered(self, value: Any) -> list[Any]:
        """The JSON-able values of all ranks."""
        return [value]

    def differing(self, digest: str) -> list[int]:
        """The ranks whose digest is not that of rank 0."""
        digests = self.gathered(digest)
        return [rank for rank, other in enumerate(digests) if other != digests[0]]


class DistributedRanks(Ranks):
    """Several processes; see `Ranks`. Needs the variables that torchrun sets."""

    def __init__(self) -> None:
        self.rank, self.world, self.local_rank = (int(os.environ[name]) for name in VARIABLES[:3])
        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            if torch.cuda.is_available() and self.local_rank < torch.cuda.device_count():
                torch.cuda.set_device(self.local_rank)
            dist.init_process_group(backend, timeout=TIMEOUT)
            # left at the end of the process: a second training in it cannot meet the others on the same port again
            atexit.register(_leave)
        # a connection of its own: the watching thread must not wait for the training's
        self._store = dist.distributed_c10d._get_default_store().clone()
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="openuni-ranks", daemon=True)
        self._watcher.start()

    def device(self, device: str) -> str:
        """See `Ranks.device`. Raises `OpenUniError` if there are fewer GPUs than ranks."""
        kind = torch.device(device)
        if kind.type == "cpu":
            return device
        count = torch.accelerator.device_count()
        if kind.index is not None or self.local_rank >= count:
            raise OpenUniError(
                f'device "{device}" for rank {self.rank} of {self.world}: every process needs a device of its own, and '
                f"this machine has {count}. Start at most {count} per node (torchrun --nproc-per-node), or use the CPU."
            )
        return f"{kind.type}:{self.local_rank}"

    def make_mesh(self, device: str) -> None:
        """Create `mesh`, one dimension over all ranks, and `context_group`, of a mesh of data and context."""
        kind = torch.device(device).type
        self.mesh = init_device_mesh(kind, (self.world,), mesh_dim_names=("shard",))
        if self.context_size > 1:
            sizes = (self.data_world, self.context_size)
            both = init_device_mesh(kind, sizes, mesh_dim_names=("data", "context"))
            self.context_group = both.get_group("context")

    def together(self, call: Callable[[], T]) -> T:
        """See `Ranks.together`."""
        result, error = None, None
        try:
            result = call()
        except Exception as raised:  # noqa: BLE001  # raised below, on all ranks
            error = raised
        if not self.highest(int(error is not None))[0]:
            return result  # type: ignore[return-value]
        everyone = self.gathered(None if error is None else _told(error))
        self.has_agreed_end = True
        origin = next(rank for rank, entry in enumerate(everyone) if entry is not None)
        if error is not None and (origin == self.rank or _told(error)["kind"] not in ERRORS):
            raise error
        kind, message = everyone[origin]["kind"], everyone[origin]["message"]
        raise ERRORS.get(kind, PeerFailed)(message if all(everyone) else f"rank {origin}: {message}")

    def highest(self, *values: int) -> tuple[int, ...]:
        """See `Ranks.highest`."""
        tensor = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tuple(tensor.tolist())

    def total(self, values: np.ndarray) -> np.ndarray:
        """See `Ranks.total`."""
        tensor = torch.from_numpy(np.array(values, dtype=np.float64))
        dist.all_reduce(tensor)
        return tensor.numpy()

    def gathered(self, value: Any) -> list[Any]:
        """See `Ranks.gathered`."""
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(lengths, torch.tensor([len(own)]))
        longest = max(int(length) for length in lengths)
        rows = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world)]
        dist.all_gather(rows, torch.cat([own, torch.zeros(longest - len(own), dtype=torch.uint8)]))
        return [json.loads(bytes(row[: int(length)].numpy())) for row, length in zip(rows, lengths, strict=True)]

    def fail(self, error: BaseException) -> None:
        """Tell the other ranks that this one ends, by an error that they do not know of."""
        try:
            self._store.set(FAILED, json.dumps({"rank": self.rank} | _told(error)))
        except RuntimeError:  # the store is gone, as the ranks are
            return

    def failed_peer(self, wait_s: float = 0.0) -> dict[str, Any] | None:
        """What another rank told by `fail`."""
        deadline = time.monotonic() + wait_s
        while True:
            try:
                if self._store.check([FAILED]):
                    told = json.loads(self._store.get(FAILED))
                    return None if told["rank"] == self.rank else told
            except RuntimeError:
                return None
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.1)

    def stop_watching(self) -> None:
        """Ignore errors of other ranks from now on: this one ends."""
        self._done.set()

    def close(self) -> None:
        """End this training on this rank. The process group stays for another one."""
        self.stop_watching()
        self._watcher.join(2 * POLL_S)

    def _watch(self) -> None:
        """End this process, which may wait for ever, if another rank has failed."""
        while not self._done.wait(POLL_S):
            told = self.failed_peer()
            if told is not None and not self._done.wait(GRACE_S):
                sys.stderr.flush()
                os._exit(told["code"])


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


class LostRank(OpenUniError):
    """The connection to another rank was lost, because it has ended. A rerun resumes."""


class PeerFailed(QuietError):
    """Another rank ended by an error of the program, which it prints."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code=3)


def _told(error: BaseException) -> dict[str, Any]:
    """An error for other ranks: the most special class of `ERRORS` that it is."""
    kind = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in ERRORS), type(error).__name__)
    known = isinstance(error, OpenUniError | OSError | MemoryError)
    return {"kind": kind, "message": str(error), "code": 2 if known else 3}


def started_ranks() -> int:
    """Number of processes of this training, from the environment. Raises `OpenUniError` if variables are missing."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return 1
    try:
        world = int(os.environ["WORLD_SIZE"])
    except ValueError:
        world = 0
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if world < 1 or (world > 1 and missing):
        raise OpenUniError(
            f"WORLD_SIZE = {os.environ['WORLD_SIZE']!r}; missing variables: {', '.join(missing) or 'none'}. Start "
            "several processes with: torchrun --nproc-per-node N -m openuni train ...; or unset RANK and WORLD_SIZE to "
            "train in one process."
        )
    return world


@contextmanager
def training_ranks() -> Iterator[Ranks]:
    """The ranks that this process belongs to: those that torchrun started, else this process alone.

    An error that all ranks know of is raised as `QuietError` on all but the first, which prints it. An error that only
    this rank knows of ends the others with its exit code.
    """
    if _active:  # within another of these contexts, which ends as this one does
        yield _active[-1]
        return
    if started_ranks() == 1:
        yield Ranks()
        return
    ranks = DistributedRanks()
    if not ranks.is_first:
        logging.disable(logging.WARNING)  # rank 0 gives the same warnings
    _active.append(ranks)
    try:
        yield ranks
    except KeyboardInterrupt:
        ranks.stop_watching()
        if ranks.has_agreed_end:  # else a second Ctrl-C, which ends this process at once
            ranks.close()
        raise
    except Exception as error:
        told = _end_of(ranks, error)
        if not ranks.has_agreed_end:
            atexit.unregister(_leave)  # the others may be gone: leaving would wait for them
        if told is error:
            raise
        raise told from error
    else:
        ranks.close()
    finally:
        _active.clear()
        logging.disable(logging.NOTSET)


_active: list[Ranks] = []


def _end_of(ranks: DistributedRanks, error: Exception) -> Exception:
    """The error that ends this rank, after the others know of it."""
    if ranks.has_agreed_end and isinstance(error, OpenUniError):
        ranks.close()
        return error if ranks.is_first else QuietError(str(error))
    told = ranks.failed_peer(wait_s=GRACE_S) if _is_lost_connection(error) else None
    ranks.stop_watching()
    if told is not None:
        return QuietError(told["message"], code=told["code"])
    ranks.fail(error)
    if _is_lost_connection(error):
        return LostRank(
            f"rank {ranks.rank} lost the connection to another rank, which has ended: {error}. Finished checkpoints "
            "are kept. Look for the first error in the output of all ranks, then rerun the command."
        )
    return type(error)(f"rank {ranks.rank}: {error}") if type(error).__name__ in ERRORS else error


def _is_lost_connection(error: BaseException) -> bool:
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError)
        and any(word in str(error) for word in ("gloo", "Gloo", "closed by peer", "NCCL"))
    )
