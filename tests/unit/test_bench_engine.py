"""The arm in this process: the engine's own tokens, never more in flight than asked, nobody left behind."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from mock_model import VOCAB, MockDrafter, make_engine, plain_text

from paceline.bench.here import EngineArm
from paceline.bench.record import Record
from paceline.bench.rows import Level, measure
from paceline.bench.runs import Answer, Closed, Job, Open, Tick
from paceline.engine.engine import Engine
from paceline.request import SamplingParams

PARAMS = SamplingParams(max_tokens=9, ignore_eos=True)


def engine(k: int = 3) -> Engine:
    return make_engine(MockDrafter(random.Random(1), 0.7, trees=False, lazy=False), k=k, prefix_caching=False)


def jobs(count: int) -> list[Job]:
    rng = random.Random(2)
    return [Job(rng.choices(range(1, VOCAB), k=rng.randint(1, 12)), PARAMS, str(i), "mock") for i in range(count)]


@pytest.mark.parametrize("load", [Closed(1), Closed(3), Closed(4), Open((0.0, 0.0, 0.001, 0.002, 0.02, 0.02, 0.02))])
def test_answers_are_those_of_the_definition(load: Closed | Open) -> None:
    work, ticks = jobs(7), list[int]()
    answers = EngineArm("a", engine()).run(work, load, ticks.append)
    for job, answer in zip(work, answers, strict=True):
        assert answer.tokens == plain_text(job.prompt, PARAMS, 48)[0]
        assert answer.output_tokens == 9 and answer.prompt_tokens == len(job.prompt)
        assert answer.sent <= answer.times[0] and answer.times == sorted(answer.times)
        assert answer.stats is not None and answer.stats.emitted == 8  # the first token ends the prompt's reading
    assert sum(ticks) == 7 * 9
    if isinstance(load, Closed):
        for answer in answers:
            assert sum(a.sent <= answer.sent < a.times[-1] for a in answers) <= load.concurrency
    else:
        first = answers[0].sent
        assert [a.sent - first for a in answers] == pytest.approx(load.offsets)


def test_nobody_is_left_behind() -> None:
    arm = EngineArm("a", engine())

    def stop(tokens: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        arm.run(jobs(5), Closed(2), stop)
    assert not arm.engine.has_unfinished
    assert len(arm.run(jobs(2), Closed(2), lambda tokens: None)) == 2


@dataclass
class Recorded:
    """An arm that notes when it ran, and may lie."""

    name: str
    log: list[tuple[str, int]] = field(default_factory=list)
    lies: bool = False

    def run(self, jobs: list[Job], load: Closed, tick: Tick) -> list[Answer]:
        self.log.append((self.name, jobs[0].params.max_tokens))
        return [Answer(0.0, 1, [1.0, 2.0], [1, 1], tokens=[1, 2 + (self.lies and i == 1)]) for i in range(len(jobs))]


def test_arms_take_turns_and_the_first_run_is_not_counted() -> None:
    log: list[tuple[str, int]] = []
    arms = [Recorded("none", log), Recorded("auto", log), Recorded("4", log, lies=True)]
    work = [Job([1], SamplingParams(max_tokens=30), str(i), "mock") for i in range(3)]
    record = Record("table", "", {}, {})
    seen = []
    for _ in measure(record, arms, [Level({"concurrency": 2}, work, Closed(2))], 3, lambda tokens: None):
        seen.append(record.rows[0])
    names = [name for name, _ in log]
    assert [tokens for _, tokens in log] == [16] * 3 + [30] * 9
    assert names[3:] == ["none", "auto", "4", "auto", "4", "none", "4", "none", "auto"]
    row = seen[-1]
    assert row["repeats"] == 3 and row["concurrency"] == 2 and row["compared"] == "token ids"
    assert {name: arm["different"] for name, arm in row["arms"].items()} == {"none": 0, "auto": 0, "4": 3}
    assert row["arms"]["auto"]["same"] and not row["arms"]["4"]["same"]
    assert row["arms"]["auto"]["speedup"]["output"]["median"] == 1.0


@pytest.mark.parametrize("lies", [False, True])
def test_text_is_compared_where_one_side_tells_no_ids(lies: bool) -> None:
    class Server(Recorded):
        def run(self, jobs: list[Job], load: Closed, tick: Tick) -> list[Answer]:
            answers = super().run(jobs, load, tick)
            for answer in answers:
                answer.text, answer.tokens = repr(answer.tokens), None
            return answers

    record, work = Record("compare", "", {}, {}), [Job([1], PARAMS, str(i), "mock") for i in range(2)]
    arms, levels = [Recorded("auto"), Server("me", lies=lies)], [Level({"concurrency": 1}, work, Closed(1))]
    list(measure(record, arms, levels, 2, lambda tokens: None, decode=repr))
    assert record.rows[0]["compared"] == "text" and record.rows[0]["arms"]["me"]["different"] == 2 * lies


def test_what_was_measured_stays_when_an_arm_dies() -> None:
    class Dies(Recorded):
        def run(self, jobs: list[Job], load: Closed, tick: Tick) -> list[Answer]:
            if len(self.log) == 4:  # a warm-up and a repeat
                raise RuntimeError("gone")
            return super().run(jobs, load, tick)

    log: list[tuple[str, int]] = []
    record = Record("table", "", {}, {})
    arms = [Recorded("none", log), Dies("auto", log)]
    work = [Job([1], PARAMS, str(i), "mock") for i in range(2)]
    with pytest.raises(RuntimeError):
        list(measure(record, arms, [Level({"concurrency": 1}, work, Closed(1))], 5, lambda tokens: None))
    assert [row["repeats"] for row in record.rows] == [1]
