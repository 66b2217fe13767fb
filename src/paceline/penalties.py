"""Penalties for what a request has already said, exact for every node of a draft."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from paceline.request import Request


class Penalties:
    """Repetition, frequency and presence penalties, with what each request has said counted once.

    As in vLLM, the repetition penalty (Keskar et al. 2019) looks at prompt and generated tokens, the other two at
    generated ones only. Drafts on the path to a node count as generated. The counts are kept as long as the request
    lives and grow with its tokens, so that a step does not pay for the context before it.
    """

    def __init__(self) -> None:
        self._said: WeakKeyDictionary[Request, _Said] = WeakKeyDictionary()

    def apply(self, scores: Tensor, request: Request, paths: list[list[int]]) -> None:
        """In place, to a request's scores [n, V] float32; row i is for the token after `request.tokens + paths[i]`."""
        params = request.params
        said = self._said.get(request)
        if said is None:
            said = self._said[request] = _Said(scores.shape[1], scores.device)
        said.extend(request)
        counts, seen = said.along(paths)
        if params.repetition_penalty != 1:
            factors = torch.where(scores > 0, 1 / params.repetition_penalty, params.repetition_penalty)
            scores.mul_(factors.where(seen, 1.0))
        scores.sub_(counts, alpha=params.frequency_penalty)
        scores.sub_(counts.clamp_(max=1), alpha=params.presence_penalty)


class _Said:
    """counts [V] float32: how often each token was generated; seen [V] bool: it was, or it is in the prompt."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.counts = torch.zeros(vocab_size, device=device)
        self.seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self.known = 0

    def extend(self, request: Request) -> None:
        """Count the tokens committed since the last call."""
        if self.known == len(request.tokens):
            return
        tokens = torch.tensor(request.tokens[self.known :], device=self.counts.device)
        self.seen[tokens] = True
        generated = tokens[max(request.num_prompt - self.known, 0) :]
        self.counts.index_add_(0, generated, torch.ones(len(generated), device=tokens.device))
        self.known = len(request.tokens)

    def along(self, paths: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Counts and seen [n, V] at the end of each path."""
        counts, seen = self.counts.repeat(len(paths), 1), self.seen.repeat(len(paths), 1)
        nodes = [(row, token) for row, path in enumerate(paths) for token in path]
        if nodes:
            rows, tokens = torch.tensor(nodes, device=counts.device).unbind(1)
            counts.index_put_((rows, tokens), torch.ones((), device=counts.device), accumulate=True)
            seen[rows, tokens] = True
        return counts, seen
