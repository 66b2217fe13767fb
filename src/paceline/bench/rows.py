"""One row of the table: all arms under the same load with the same requests, in turn, several times over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from paceline.bench.columns import Columns, steady_state, whole_run
from paceline.bench.here import EngineArm, in_turns
from paceline.bench.intervals import medians, ratio
from paceline.bench.record import Record
from paceline.bench.runs import Answer, Arm, Closed, Job, Load, Tick
from paceline.bench.verdicts import best_fixed
from paceline.request import SpeculationStats

WARM_UP_TOKENS, WARM_UP_REQUESTS = 16, 8
Decode = Callable[[list[int]], str]
Extra = Callable[[Sequence[Answer], Columns], Columns]  # further columns, of the answers and the columns there are


@dataclass(frozen=True)
class Level:
    """One load. where: in words and numbers, as {"concurrency": 8}."""

    where: dict[str, Any]
    jobs: Sequence[Job]
    load: Load
    extra: Extra = lambda answers, columns: {}

    @property
    def concurrency(self) -> int | None:
        """None in an open loop."""
        return self.load.concurrency if isinstance(self.load, Closed) else None

    @property
    def tokens(self) -> int:
        """At most, of all answers."""
        return sum(job.params.max_tokens for job in self.jobs)


@dataclass
class Side:
    """What one arm did in the repeats so far. stats: of all repeats together; None when nobody counted."""

    whole: list[Columns] = field(default_factory=list)
    steady: list[Columns | None] = field(default_factory=list)
    stats: SpeculationStats | None = None
    different: int = 0
    cached: int = 0

    def add(self, answers: Sequence[Answer], level: Level) -> None:
        columns = whole_run(answers, level.concurrency)
        self.whole.append(columns | level.extra(answers, columns))
        self.steady.append(None if level.concurrency is None else steady_state(answers, level.concurrency))
        self.cached += sum(answer.cached for answer in answers)
        for answer in answers:
            if answer.stats is not None:
                self.stats = self.stats or SpeculationStats()
                self.stats.add(answer.stats)


@dataclass
class Row:
    """What each arm made of a load; the first arm is the baseline. reference: the arm with whose answers those of the
    others are compared."""

    where: dict[str, Any]
    sides: dict[str, Side]
    reference: str
    by_ids: bool = True

    @property
    def repeats(self) -> int:
        return min(len(side.whole) for side in self.sides.values())

    def as_dict(self) -> dict[str, Any]:
        """Only of the repeats in which every arm took part."""
        count = self.repeats
        base = next(iter(self.sides.values()))
        return self.where | {
            "repeats": count,
            "compared": "token ids" if self.by_ids else "text",
            "arms": {name: _arm(side, base, count) for name, side in self.sides.items()},
            "best_fixed": best_fixed({name: _rates(side.whole[:count]) for name, side in self.sides.items()}),
        }


def _arm(side: Side, base: Side, count: int) -> dict[str, Any]:
    whole, steady = side.whole[:count], side.steady[:count]
    return {
        "whole": medians(whole),
        "steady": medians(steady),
        "speculation": None if side.stats is None else side.stats.as_dict(),
        "same": side.different == 0,
        "different": side.different,
        "cached_tokens": side.cached,
        "speedup": {
            "output": ratio(_rates(whole), _rates(base.whole[:count])),
            "tpot": ratio(_tpots(base.whole[:count]), _tpots(whole)),
            "steady": ratio(_rates(steady), _rates(base.steady[:count])),
        },
        "by_repeat": [{"whole": one, "steady": other} for one, other in zip(whole, steady, strict=True)],
    }


def _rates(columns: Sequence[Columns | None]) -> list[float | None]:
    return [None if entry is None else entry["output_tokens_per_second"] for entry in columns]


def _tpots(columns: Sequence[Columns]) -> list[float | None]:
    return [entry["tpot_ms"]["mean"] for entry in columns]


def measure(
    record: Record,
    arms: Sequence[Arm],
    levels: Sequence[Level],
    repeats: int,
    tick: Tick,
    say: Callable[[str], None] = lambda words: None,
    reference: str | None = None,
    decode: Decode | None = None,
) -> Iterator[dict[str, list[Answer]]]:
    """Fills the record, a row for each level, after every repeat. Who begins a repeat changes from one to the next, and
    a first short run of everyone is not counted. reference: the arm whose answers are right, else the first. decode:
    for arms of which some tell token ids, others text. Yields the answers of each level's last repeat."""
    for index, level in enumerate(levels):
        say(", ".join(f"{name} {value}" for name, value in level.where.items()))
        row = Row(level.where, {arm.name: Side() for arm in arms}, reference or arms[0].name)
        warm_up(arms, level.jobs, level.concurrency or 1)
        found: dict[str, list[Answer]] = {}
        for number in range(repeats):
            turn = number % len(arms)
            found = run_all([*arms[turn:], *arms[:turn]], level, tick)
            for arm in arms:
                row.sides[arm.name].add(found[arm.name], level)
            _compare(row, found, decode)
            record.put(index, row.as_dict())
        yield found


def run_all(arms: Sequence[Arm], level: Level, tick: Tick) -> dict[str, list[Answer]]:
    """One repeat. Engines of this process take turns within it, if requests need not come by the clock; all others run
    one after the other."""
    engines = [arm for arm in arms if isinstance(arm, EngineArm)] if isinstance(level.load, Closed) else []
    found = in_turns(engines, level.jobs, level.load, tick)
    return found | {arm.name: arm.run(level.jobs, level.load, tick) for arm in arms if arm.name not in found}


def warm_up(arms: Sequence[Arm], jobs: Sequence[Job], concurrency: int) -> None:
    """Caches, allocators, and what an adaptive policy learns of this load in its first steps."""
    short = [
        replace(job, params=replace(job.params, max_tokens=min(WARM_UP_TOKENS, job.params.max_tokens)))
        for job in jobs[: max(concurrency, WARM_UP_REQUESTS)]
    ]
    for arm in arms:
        arm.run(short, Closed(min(concurrency, len(short))), lambda tokens: None)


def _compare(row: Row, found: dict[str, list[Answer]], decode: Decode | None) -> None:
    """Counts the answers that are not the reference's, by token ids where both sides tell them, else by text."""
    base = found[row.reference]
    for name, side in row.sides.items():
        for one, other in zip(base, found[name], strict=True):
            by_ids = one.tokens is not None and other.tokens is not None
            row.by_ids = row.by_ids and by_ids
            said = [answer.tokens if by_ids else _text(answer, decode) for answer in (one, other)]
            side.different += said[0] != said[1]


def _text(answer: Answer, decode: Decode | None) -> str | None:
    return answer.text if answer.tokens is None or decode is None else decode(answer.tokens)
