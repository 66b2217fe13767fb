"""The judges behind the measured figures: what counts as right, as looping, as the host's share."""

from __future__ import annotations

import answers
import pytest
from host_share import share_since

from paceline.engine.stats import HOST, PARTS


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
