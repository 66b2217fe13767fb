"""How many tokens to draft and to verify, request by request: what decides it, and the fixed number.

What is emitted is the target's own choice whatever was drafted (`verify`), so a policy may look at everything, also at
the drafted tokens, and cannot change the text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from paceline.request import Request


@dataclass(frozen=True)
class StepFacts:
    """What a step did, for a policy to learn from. Decoding request r had `verified[r]` drafts verified. agreed[r]: how
    many drafts in a row were the target's own choice, counting the first one that was made but not verified: the
    target's own token in its place tells.

    context: summed over the decoding requests. seconds: of all but the drafting and what the policy took; drafting:
    seconds of each depth's pass, the first with what it absorbed. clean: no prompts were read in this step nor in the
    one before, whose prompts drafters read now. steps, prompts: since it last learned, the steps and the tokens of
    prompts that they read. rounds: of a step of several rounds, by request,
    how many drafts in a row were right in each; spent: the seconds of each. Its `agreed` and `drafting` are empty.
    alone: steps that take fewer seconds come several at a time, and this one by itself: an exception."""

    verified: list[int]
    agreed: list[int]
    context: int
    seconds: float
    drafting: list[float]
    clean: bool = True
    steps: int = 1
    prompts: int = 0
    rounds: list[list[int]] = field(default_factory=list)
    spent: list[float] = field(default_factory=list)
    alone: float = 0.0


class WidthPolicy(Protocol):
    """Asked in this order, once a step: `widths`, `deeper` after each depth, `cut`, `learn`.

    A policy has no clock and no dice: seconds come in through `learn`, so the same measurements lead to the same
    decisions."""

    @property
    def listens(self) -> bool:
        """Whether there is anything to `learn` of the step whose `widths` were just given."""
        ...

    @property
    def asks(self) -> bool:
        """Whether `deeper` and `cut` have anything to say in the step whose `widths` were just given."""
        ...

    def widths(self, ready: list[Request]) -> list[int]:
        """The most drafts worth making for each request that decodes, whatever is read beside them."""
        ...

    def deeper(self, depth: int, requests: list[Request], confidences: list[float]) -> list[bool]:
        """Which of those that just got draft number `depth` shall get one more; confidences: log q of these drafts."""
        ...

    def cut(self, requests: list[Request], drafted: list[int]) -> list[int]:
        """How many of the drafted tokens are worth a row of the target's pass."""
        ...

    @property
    def idle(self) -> int:
        """How many steps like the one whose `widths` were just given may be done with it."""
        ...

    def skip(self, steps: int) -> None:
        """So many did."""
        ...

    def learn(self, facts: StepFacts) -> None: ...

    def as_dict(self) -> dict[str, Any]:
        """What it decided so far, for statistics."""
        ...


class FixedWidth:
    """The same number of drafts for everyone, or less where a request asks for less."""

    listens = asks = False
    idle = 1 << 30

    def __init__(self, num_speculative_tokens: int) -> None:
        self.k = num_speculative_tokens

    def widths(self, ready: list[Request]) -> list[int]:
        k = self.k
        return [k if (own := request.num_speculative_tokens) is None else min(k, own) for request in ready]

    def deeper(self, depth: int, requests: list[Request], confidences: list[float]) -> list[bool]:
        return [True] * len(requests)

    def cut(self, requests: list[Request], drafted: list[int]) -> list[int]:
        return drafted

    def skip(self, steps: int) -> None:
        """Nothing to count."""

    def learn(self, facts: StepFacts) -> None:
        """Nothing to learn."""

    def as_dict(self) -> dict[str, Any]:
        return {"num_speculative_tokens": self.k}
