"""The judges behind the measured figures: what counts as right, as looping, as the host's share."""

from __future__ import annotations

import random

import answers
import pytest
import questions
from host_share import share_since

from paceline.checkpoint.resolve import bundled_model
from paceline.engine.stats import HOST, PARTS
from paceline.tokenizer import Tokenizer
from paceline.train.examples import Example


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("so\n#### 15", "30 / 2\n#### 15", True),
        ("#### 3\nno:\n#### $1,200", "#### 1200.0", True),
        ("#### -4.", "#### -4", True),
        ("#### 1", "#### 15", False),
        ("15", "#### 15", False),
        ("####", "#### 15", False),
    ],
)
def test_numbers(answer: str, expected: str, right: bool) -> None:
    assert answers.same_number(answer, expected) == right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("```sql\nSELECT  a\nFROM t;\n```", True),
        ("Here:\n```\nSELECT a FROM t;\n```\nDone.", True),
        ("```sql\nSELECT b FROM t;\n```", False),
        ("SELECT a FROM t;", False),
        ("```sql\nSELECT a FROM t;", False),
    ],
)
def test_queries(answer: str, right: bool) -> None:
    assert answers.same_query(answer, "```sql\nSELECT a FROM t;\n```") == right


@pytest.mark.parametrize(
    ("code", "right"), [("def f():\n    return 1", True), ("def f(:", False), ("", False), ("x = '\0'", False)]
)
def test_code_that_parses(code: str, right: bool) -> None:
    assert answers.parses(f"```python\n{code}\n```", "") == right
    assert not answers.parses(code, "")


def test_text_is_the_same_but_for_its_edges() -> None:
    assert answers.same_text(" pto used\n", "pto used") and not answers.same_text("pto", "pto used")


def test_loops() -> None:
    assert answers.loops("yes\nno\n yes\nyes", [1]) and not answers.loops("yes\nno\n\n\n\nyes", [1])
    span = list(range(answers.SPAN))
    assert answers.loops("", [*span, 99, *span, 98, *span]) and not answers.loops("", [*span, 99, *span])


def test_the_prompt_ends_before_the_last_answer() -> None:
    turns = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user", "assistant", "user")]
    assert answers.split(turns) == (turns[:4], "assistant")


def test_the_hosts_share_is_of_the_time_between() -> None:
    before = dict.fromkeys(PARTS, 5.0)
    after = {part: 5.0 + (1.0 if part in HOST else 8.0) for part in PARTS}
    assert share_since(before, after) == pytest.approx(len(HOST) / (len(HOST) + 8.0 * (len(PARTS) - len(HOST))))


def chat(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"turn {i}"} for i, role in enumerate(roles)]


def test_a_question_is_what_comes_before_an_answer() -> None:
    messages = chat("system", "user", "assistant", "user", "assistant", "user")
    found = {len(questions.question(messages, random.Random(seed))) for seed in range(20)}
    assert found == {2, 4} and questions.answered(chat("assistant", "user")) == []


def test_of_each_source_the_same_number_and_only_what_is_answered() -> None:
    rows = [Example(source, messages=chat("user", "assistant")) for source in "aab" for _ in range(5)]
    rows += [Example("c", messages=chat("user")), Example("d", text="words")]
    found = questions.chosen(rows, False, 4, random.Random(0))
    assert sorted(example.source for example in found) == ["a"] * 4 + ["b"] * 4
    assert [example.source for example in questions.chosen(rows, True, 4, random.Random(0))] == ["d"]


def test_a_long_chat_ends_with_the_question() -> None:
    tokenizer, others = Tokenizer.from_dir(bundled_model()), [Example("a", messages=chat("user", "assistant"))]
    asked = [{"role": "user", "content": "the question"}]
    found = questions.behind_others(asked, others, 90, tokenizer, random.Random(0))
    assert found[-1:] == asked and found[:2] == chat("user", "assistant")
    assert 90 <= len(tokenizer.apply_chat_template(found)) < 90 + len(tokenizer.apply_chat_template(found[:2])) + 2
    assert questions.behind_others(asked, others, 0, tokenizer, random.Random(0)) == asked
