"""Choosing within grammars: freely first, and a mask only where the free choice is refused.

What is chosen is the best token, by score and noise, of those that are allowed. Where the best of all is allowed it is
the best of the allowed ones too, and to look at one token costs a grammar a twentieth of looking at all. Where a token
is forced there is nothing to choose. So of JSON one token in five needs a mask, and the text is the same, bit for bit:
the tests compare it with `Sampler.choose`, which takes every mask.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from paceline.request import Request
from paceline.sampling import Sampler, mask_can_wait


def choose(sampler: Sampler, logits: Tensor, requests: Sequence[Request], paths: Sequence[list[int]]) -> list[int]:
    """As `Sampler.choose`, on the host."""
    if all(request.grammar is None for request in requests):
        tokens: list[int] = sampler.choose(logits, requests, paths).tolist()
        return tokens
    choices = Choices(sampler, logits, requests, paths)
    choices.settle(range(len(requests)))
    return choices.tokens


def choose_and_rate(
    sampler: Sampler, logits: Tensor, requests: Sequence[Request], paths: Sequence[list[int]]
) -> tuple[list[int], list[float]]:
    """As `Sampler.choose_and_rate`; but a free choice that stands is rated as it was made, among all tokens: no more
    than its rate among the allowed ones, which would take the mask. A token known to be forced is certain: 0."""
    if all(request.grammar is None for request in requests):
        return sampler.choose_and_rate(logits, requests, paths)
    choices = Choices(sampler, logits, requests, paths, rated=True)
    choices.settle(range(len(requests)))
    return choices.tokens, choices.rates


class Choices:
    """What follows each row of logits [R, V], which has its request and path as in `Sampler.choose`.

    tokens [R] and, when asked for, rates [R], on the host: free choices, which hold where they were settled."""

    def __init__(
        self,
        sampler: Sampler,
        logits: Tensor,
        requests: Sequence[Request],
        paths: Sequence[list[int]],
        rated: bool = False,
    ) -> None:
        self._sampler, self._logits, self._requests, self._paths = sampler, logits, requests, paths
        self._rated = rated
        sure = [None if (g := r.grammar) is None else g.sure(path) for r, path in zip(requests, paths, strict=True)]
        self.tokens, self.rates = [token or 0 for token in sure], [0.0] * len(sure)
        self._choose([row for row, token in enumerate(sure) if token is None], free=True)

    def settle(self, rows: Sequence[int]) -> None:
        """The choices in these rows hold from now on. Along a path they are settled in order, as far as it is gone."""
        refused = [row for row in rows if not self._stands(row)]
        self._choose(refused, free=False)
        for row in refused:  # the matcher goes on to where the next question will be asked
            grammar = self._requests[row].grammar
            if grammar is not None:
                grammar.answer(self._paths[row], self.tokens[row])

    def _stands(self, row: int) -> bool:
        """Whether the choice holds as it is, or is another that the grammar now knows to be forced."""
        grammar = self._requests[row].grammar
        if grammar is None or not mask_can_wait(self._requests[row].params):
            return True
        wish, answer = self.tokens[row], grammar.answer(self._paths[row], self.tokens[row])
        if answer is not None and answer != wish:
            self.tokens[row], self.rates[row] = answer, 0.0
        return answer is not None

    def _choose(self, rows: list[int], free: bool) -> None:
        if not rows:
            return
        logits = self._logits if len(rows) == len(self.tokens) else self._logits[rows]
        asked = logits, [self._requests[row] for row in rows], [self._paths[row] for row in rows]
        if self._rated:
            tokens, rates = self._sampler.choose_and_rate(*asked, free=free)
            for row, rate in zip(rows, rates, strict=True):
                self.rates[row] = rate
        else:
            tokens = self._sampler.choose(*asked, free=free).tolist()
        for row, token in zip(rows, tokens, strict=True):
            self.tokens[row] = token
