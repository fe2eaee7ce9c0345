"""Division of the samples of a step among ranks: a pure function of the streams of the samples.

Which samples form a step, and all their random draws, do not depend on the number of ranks.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

StreamSet = tuple[bool, tuple[str, ...]]  # whether there is a text stream; the latent streams


class Group(NamedTuple):
    """Samples of one forward pass, by their slots in the step: they have the same streams."""

    slots: tuple[int, ...]
    is_padding: bool = False  # repeats a sample, whose loss does not count


def divided(streams: Sequence[StreamSet], micro_batch: int, world: int) -> list[list[list[Group]]]:
    """Forward passes of each rank: by rank, gradient accumulation step and set of streams.

    `streams`: those of each sample of the step, by slot. `micro_batch`: maximum number of samples per rank and
    accumulation step. All ranks get equally many passes, as they communicate in each of them: ranks with fewer repeat
    one of their samples without counting its loss. Samples are dealt in turns, sorted by their streams, so that ranks
    get similar work and padding is rare. Requires at least one sample per rank.
    """
    if world == 1:
        slots = range(len(streams))
        return [[_grouped(streams, slots[at : at + micro_batch]) for at in range(0, len(slots), micro_batch)]]
    # the costliest first: all ranks then run passes of similar cost at a time
    ordered = sorted(range(len(streams)), key=lambda slot: (-len(streams[slot][1]), streams[slot], slot))
    ranks = []
    for rank in range(world):
        own = ordered[rank::world]
        ranks.append([_grouped(streams, own[at : at + micro_batch]) for at in range(0, len(own), micro_batch)])
    most = max(sum(map(len, parts)) for parts in ranks)
    for parts in ranks:
        last = parts[-1][-1].slots[-1]
        parts[-1] += [Group((last,), is_padding=True)] * (most - sum(map(len, parts)))
    return ranks


def _grouped(streams: Sequence[StreamSet], slots: Sequence[int]) -> list[Group]:
    groups: dict[StreamSet, list[int]] = defaultdict(list)
    for slot in slots:
        groups[streams[slot]].append(slot)
    return [Group(tuple(group)) for group in groups.values()]
