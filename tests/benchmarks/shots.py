"""How many cuts, dissolves and fades each weight-free shot detector finds in films of our own making.

Run with: python -m tests.benchmarks.shots
"""

import time

import numpy as np

from openuni.shots.shot_detector import find_shot_detector
from tests.openuni.shots.edited_films import film, find, matched

SEEDS = range(600, 612)  # none of those that the detectors were set with
JOINTS = 6
DETECTORS = ("content", "adaptive", "gradual")
FILMS = {"hard cuts": ["hard"], "dissolves": ["dissolve"], "fades": ["fade"], "mixed": ["hard", "dissolve", "fade"]}


def row(name: str, kinds: list[str]) -> str:
    """Precision, recall and F1 of one detector on films with these kinds of joints, and its errors in frames."""
    detector = find_shot_detector(name)()
    hits, found, there, errors, frames, spent_s = 0, 0, 0, [], 0, 0.0
    for seed in SEEDS:
        pictures, joints = film(seed, np.random.default_rng(seed).choice(kinds, JOINTS).tolist())
        started = time.perf_counter()
        transitions = find(detector, pictures)
        spent_s += time.perf_counter() - started
        pairs = matched(transitions, joints)
        hits, found, there, frames = (
            hits + len(pairs),
            found + len(transitions),
            there + len(joints),
            frames + len(pictures),
        )
        errors += [abs(one.start - joint.start) for one, joint in pairs]
        errors += [abs(one.stop - joint.stop) for one, joint in pairs]
    scores = f"{hits / max(1, found):.3f} | {hits / there:.3f} | {2 * hits / (found + there):.3f}"
    return f"{scores} | {f'{np.mean(errors):.1f}' if errors else '-'} | {spent_s / frames * 1000:.2f}"


if __name__ == "__main__":
    print("| detector | films with | precision | recall | F1 | error of the ends, frames | ms per frame |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in DETECTORS:
        for title, kinds in FILMS.items():
            print(f"| `{name}` | {title} | {row(name, kinds)} |", flush=True)
