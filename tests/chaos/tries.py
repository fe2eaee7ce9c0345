"""One try: a command is disturbed, then given again until it ends; the result equals that of an undisturbed one."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.chaos.commands import COMMANDS, Command, Place, World, phase_of
from tests.chaos.disturbance import DISKS, SIGNALS, Disturbance
from tests.chaos.processes import Ended, Process

FORBIDDEN = ("Traceback", "internal error", "Exception ignored", "Fatal Python error")
SIGNAL_CODES = {"SIGTERM": (143, -15), "SIGINT": (130,)}
REDONE = 2  # items that may be done again after a disturbance: one computed, one being written


class Undisturbed(NamedTuple):
    """Of one command: its result, the changes and seconds of each call, and how many clips were annotated."""

    result: Any
    ends: list[Ended]
    annotated: int


class Record(NamedTuple):
    """What a try did: `phases`: where it was disturbed; `codes`: how the disturbed processes ended."""

    name: str
    kind: str
    seed: int
    phases: list[str]
    codes: list[int]
    fault: str  # "" if all is as it must be

    @property
    def label(self) -> str:
        """What repeats it: `python -m tests.chaos --repeat LABEL`."""
        return f"{self.name}/{self.kind}/{self.seed}"


class Laboratory:
    """Tries of all commands on a local disk, one after another in one folder."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.slot = world, folder / "slot"
        self.place = Place(world, self._root(), self.slot)
        self.commands = {command.name: command for command in COMMANDS if self._has(command)}
        self._undisturbed: dict[str, Undisturbed] = {}

    def _root(self) -> str:
        return str(self.slot)

    def _has(self, command: Command) -> bool:
        return True

    def reset(self, command: Command) -> None:
        shutil.rmtree(self.slot, ignore_errors=True)
        self.slot.mkdir()
        self.world.log.write_text("")
        for base in command.bases:
            shutil.copytree(self.world.folder / base, self.slot / base)

    def start(self, call: list[str], disturbance: Disturbance | None = None) -> Process:
        """Start a command line."""
        return Process(call, [self.slot], disturbance)

    def undisturbed(self, name: str) -> Undisturbed:
        """How the command ends if nothing happens."""
        if name not in self._undisturbed:
            command = self.commands[name]
            self.reset(command)
            ends = [self._measure(call) for call in command.calls(self.place)]
            assert ends[-1].code in command.codes, ends[-1]
            self._undisturbed[name] = Undisturbed(command.result(self.place), ends, self._annotated())
        return self._undisturbed[name]

    def _measure(self, call: list[str]) -> Ended:
        """An undisturbed call."""
        return self.start(call).wait()

    def attempt(self, name: str, kind: str, seed: int) -> Record:
        """One try. Its draws depend on its name, kind and seed alone."""
        record = Record(name, kind, seed, [], [], "")
        try:
            self._attempt(record, random.Random(record.label))
        except Exception as error:  # noqa: BLE001  # whatever is wrong is what is looked for
            return record._replace(fault=f"{type(error).__name__}: {error}"[:3000])
        return record

    def _attempt(self, record: Record, draw: random.Random) -> None:
        command, usual = self.commands[record.name], self.undisturbed(record.name)
        self.reset(command)
        calls = command.calls(self.place)
        (disturbed,) = draw.choices(range(len(calls)), [end.changes for end in usual.ends])
        for index, call in enumerate(calls):
            if index == disturbed:
                for _ in range(draw.choice((1, 1, 2))):
                    ended = self._disturb(call, record.kind, usual.ends[index], draw)
                    record.phases.append(phase_of(ended.place, self._folders()) or "not known")
                    record.codes.append(ended.code)
                    self._check(record.kind, ended, command)
                    if (ended.code in command.codes and record.kind not in SIGNALS) or self._claims(ended, call):
                        if index == len(calls) - 1:
                            _require_equal(command.result(self.place), usual.result, f"exit code {ended.code}")
                        break
                    self._read(draw, command)
            ended = self.start(self._again(call, record.codes)).wait()
            assert ended.code == usual.ends[index].code, f"given again: {_told(ended)}"
            self.check_text(ended)
        _require_equal(command.result(self.place), usual.result, "in the end")
        done = self._annotated()
        allowed = usual.annotated + REDONE * len(record.codes)
        assert done <= allowed, f"{done} clips were annotated, {usual.annotated} without a disturbance"

    def _disturb(self, call: list[str], kind: str, usual: Ended, draw: random.Random) -> Ended:
        if kind == "file size limit":
            return self.start(call, Disturbance(kind, int(2 ** draw.uniform(11, 16)))).wait()
        if kind == "small disk":
            ended = self.start(call, Disturbance(kind, 4096 * draw.randint(0, 60))).wait()
            shutil.rmtree(self.slot)
            shutil.rmtree(self.slot.with_name("seed"))
            self.slot.with_name("kept").rename(self.slot)
            return ended
        seconds = draw.uniform(0, usual.seconds)
        count = usual.writes if kind == "torn write" else usual.changes
        return self.start(call, Disturbance(kind, draw.randint(1, max(1, count)), seconds)).wait()

    def _again(self, call: list[str], codes: list[int]) -> list[str]:
        """The command that is given after a disturbance: the same."""
        return call

    @staticmethod
    def _claims(ended: Ended, call: list[str]) -> bool:
        """Whether it has printed its result, which must then be true. Exports that name failed clips retry them."""
        names_failures = call[0] == "export" and ended.code == 1
        return bool(ended.out.strip()) and call[0] != "verify" and not names_failures

    def _check(self, kind: str, ended: Ended, command: Command) -> None:
        self.check_text(ended)
        allowed: tuple[int, ...] = command.codes
        if kind in SIGNALS or kind.startswith(("SIGKILL", "machine returns")):
            allowed += SIGNAL_CODES.get(kind, (-9,) if " of the " not in kind else (-9, 2))
        elif not kind.startswith("slow"):
            allowed += (1, 2)
        assert ended.code in allowed, f"exit code {ended.code}: {_told(ended)}"
        if ended.code == 2:
            assert "openuni: " in ended.err, _told(ended)
            words = {"full disk": "no space left", "disk error": "Input/output error", "read-only disk": "Read-only"}
            assert kind not in DISKS or words[kind] in ended.err, _told(ended)
        if ended.code in (130, 143):
            assert "openuni: stopped. " in ended.err, _told(ended)

    @staticmethod
    def check_text(ended: Ended) -> None:
        assert ended.code != 3 and not any(word in ended.err for word in FORBIDDEN), _told(ended)

    def _read(self, draw: random.Random, command: Command) -> None:
        """Whoever looks at a corpus in between is told the truth: what was interrupted is not damaged."""
        corpora = self._corpora()
        if not corpora or draw.random() < 0.5:
            return
        corpus = draw.choice(corpora)
        question = draw.choice([["summary", corpus], ["verify", corpus], ["explain", corpus, "clip-000.mp4"]])
        ended = self.start(question).wait()
        self.check_text(ended)
        assert ended.code in (0, 1, 2), f"{question}: {_told(ended)}"
        if question[0] == "verify" and "damaged" not in command.bases:
            assert ended.code in (0, 2), f"{question}: {_told(ended)}"

    def _folders(self) -> list[Path]:
        return [self.slot]

    def _corpora(self) -> list[str]:
        return sorted(str(path.parent) for path in self.slot.glob("*/corpus.json"))

    def _annotated(self) -> int:
        log = self.world.log
        return len(log.read_text().splitlines()) if log.exists() else 0


def _require_equal(found: Any, expected: Any, when: str) -> None:
    place = _difference(found, expected, "")
    assert not place, f"{when}, the result differs from an undisturbed one: {place}"


def _difference(found: Any, expected: Any, where: str) -> str:
    """The first place at which two values differ; "" if there is none."""
    if isinstance(found, dict) and isinstance(expected, dict) and found.keys() == expected.keys():
        items: Any = ((f"{where}/{key}", found[key], expected[key]) for key in found)
    elif isinstance(found, list | tuple) and isinstance(expected, list | tuple) and len(found) == len(expected):
        items = ((f"{where}/{number}", *pair) for number, pair in enumerate(zip(found, expected, strict=True)))
    else:
        if isinstance(found, dict) and isinstance(expected, dict):
            found, expected = sorted(found), sorted(expected)
        return "" if found == expected else f"{where}: {str(found)[:400]} for {str(expected)[:400]}"
    return next((place for name, one, other in items if (place := _difference(one, other, name))), "")


def _told(ended: Ended) -> str:
    return f"exit code {ended.code} ({ended.place}): {ended.out[-300:]}\n{ended.err[-1500:]}"


def draw_tries(
    laboratory: Laboratory,
    kinds: tuple[str, ...],
    count: int,
    seed: int,
    report: Callable[[Record], None],
    only: str = "",
) -> list[Record]:
    """`count` tries that go through all commands whose names begin with `only`, and all kinds, in a drawn order."""
    draw = random.Random(seed)
    pairs: list[tuple[str, str]] = []
    names = [name for name in laboratory.commands if name.startswith(only)]
    found: list[Record] = []
    while names and len(found) < count:
        if not pairs:
            draw.shuffle(names)
            turns = list(kinds)
            draw.shuffle(turns)
            pairs = [(name, turns[(index + turn) % len(turns)]) for turn in range(len(turns)) for index, name in
                     enumerate(names)]  # fmt: skip
        name, kind = pairs.pop(0)
        found.append(laboratory.attempt(name, kind, seed * 1000 + len(found)))
        report(found[-1])
    return found
