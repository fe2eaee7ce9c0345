"""What the nodes of a cluster have, and how many workers fit on them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

MAX_NODES_SHOWN = 4
CPU_STEPS = (8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.25)  # cores of one worker, from the most down
EPSILON = 1e-6  # Ray counts resources in steps of 1e-4


@dataclass(frozen=True)
class Shape:
    """What one worker reserves on its node."""

    cpus: float = 1.0
    gpus: float = 0.0  # a share of one GPU, or a whole number of GPUs

    def __str__(self) -> str:
        return " and ".join([_count(self.cpus, "CPU"), *([_count(self.gpus, "GPU")] if self.gpus else [])])


@dataclass(frozen=True)
class Node:
    """One node of a cluster."""

    name: str  # host name
    cpus: float
    gpus: float = 0.0
    node_id: str = ""  # Ray's

    def fits(self, shape: Shape) -> int:
        """How many workers of this shape the node holds."""
        by_cpus = int(self.cpus / shape.cpus + EPSILON) if shape.cpus else 10**6
        if not shape.gpus:
            return by_cpus
        if shape.gpus > 1:
            return min(by_cpus, int(self.gpus / shape.gpus + EPSILON))
        # a share below one never spans two GPUs
        per_gpu = int(1 / shape.gpus + EPSILON)
        by_gpus = int(self.gpus + EPSILON) * per_gpu + int((self.gpus % 1) / shape.gpus + EPSILON)
        return min(by_cpus, by_gpus)


@dataclass(frozen=True)
class Capacity:
    """The nodes that a run may use."""

    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> float:
        """CPUs of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)

    def fits(self, shape: Shape) -> int:
        """How many workers of this shape fit on all nodes together."""
        return sum(node.fits(shape) for node in self.nodes)

    def without(self, shape: Shape, count: int) -> "Capacity":
        """What is left beside `count` workers of this shape, spread evenly over the nodes that can hold them."""
        held = [0] * len(self.nodes)
        for _ in range(count):
            free = [index for index, node in enumerate(self.nodes) if held[index] < node.fits(shape)]
            if not free:
                break
            held[min(free, key=lambda index: held[index])] += 1
        left = [
            replace(node, cpus=node.cpus - number * shape.cpus, gpus=max(0.0, node.gpus - number * shape.gpus))
            for node, number in zip(self.nodes, held, strict=True)
        ]
        return Capacity(tuple(left))

    def largest_cpus(self, count: int, gpus: float = 0.0, most: float = CPU_STEPS[0]) -> float:
        """The most cores per worker with which `count` workers still fit; 0 if they fit with none."""
        steps = (cpus for cpus in CPU_STEPS if cpus <= most)
        return next((cpus for cpus in steps if self.fits(Shape(cpus, gpus)) >= count), 0.0)

    def __str__(self) -> str:
        totals = f"{_count(self.cpus, 'CPU')} and {_count(self.gpus, 'GPU')}"
        if len(self.nodes) == 1:
            return totals
        return f"{len(self.nodes)} nodes with {totals} ({_listed(self.nodes)})"


def _listed(nodes: Sequence[Node]) -> str:
    shown = [f"{node.name}: {_count(node.cpus, 'CPU')}, {_count(node.gpus, 'GPU')}" for node in nodes[:MAX_NODES_SHOWN]]
    more = len(nodes) - len(shown)
    return "; ".join([*shown, *([f"{more} more"] if more else [])])


def _count(number: float, unit: str) -> str:
    return f"{number:g} {unit}{'' if number == 1 else 's'}"
