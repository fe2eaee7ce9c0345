"""Clusters around the clips that are kept."""

import numpy as np

from openuni.dedup.deduplicators._clusters import UnionFind, assign_representatives


def linked(count, pairs):
    groups = UnionFind(count)
    if pairs:
        groups.link(*np.array(pairs).T)
    return groups


def on_a_line(places, reach):
    """Clips alike when their places on a line are at most `reach` apart."""
    places = np.asarray(places, float)
    return lambda clip, others: np.where(
        np.abs(places[others] - places[clip]) <= reach, 1 - np.abs(places[others] - places[clip]) / 10, np.nan
    )


def test_links_join_sets_whatever_their_order():
    for pairs in ([(0, 1), (1, 2), (4, 5)], [(5, 4), (2, 1), (1, 0)], [(0, 2), (2, 1), (0, 1), (4, 5)]):
        groups = linked(7, pairs)
        assert [part.tolist() for part in groups.members()] == [[0, 1, 2], [4, 5]]
        apart = groups.unlinked(np.array([0, 0, 4, 3]), np.array([2, 4, 5, 6]))
        assert apart.tolist() == [False, True, False, True]


def test_the_best_of_a_set_is_kept():
    found = assign_representatives(linked(5, [(1, 3), (3, 4)]), on_a_line([9, 0, 5, 1, 0.5], 2))
    assert found.representative.tolist() == [0, 1, 2, 1, 1]
    assert found.similarity[[3, 4]].tolist() == [0.9, 0.95]
    assert np.isnan(found.similarity[[0, 1, 2]]).all()


def test_a_chain_of_small_steps_does_not_drop_what_resembles_nothing_kept():
    places = [0, 1, 2, 3, 4]
    pairs = [(left, left + 1) for left in range(4)]
    found = assign_representatives(linked(5, pairs), on_a_line(places, 1))
    assert found.representative.tolist() == [0, 0, 2, 2, 4]  # every dropped clip is within reach of its own


def test_a_clip_joins_the_most_similar_of_those_kept():
    found = assign_representatives(linked(3, [(0, 2), (1, 2)]), on_a_line([0, 3, 1.9], 2))
    assert found.representative.tolist() == [0, 1, 1]


def test_it_equals_comparing_all_with_all_by_rank():
    places = np.random.default_rng(0).uniform(0, 30, 60)
    alike = on_a_line(places, 0.5)
    near = np.argwhere(np.abs(places[:, None] - places[None]) <= 0.5)
    found = assign_representatives(linked(60, [tuple(pair) for pair in near if pair[0] < pair[1]]), alike)
    kept = []
    for clip in range(60):  # the rule, word by word
        like = [one for one in kept if abs(places[one] - places[clip]) <= 0.5]
        if not like:
            kept.append(clip)
        nearest = min(like, key=lambda one: abs(places[one] - places[clip])) if like else clip
        assert found.representative[clip] == nearest
    assert 10 < len(kept) < 55
