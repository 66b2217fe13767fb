"""Choosing tokens: one function for the target and for drafters, so that both use the same parameters and noise.

A row of logits belongs to a request and to a path: the drafts between the request's last token and the one to be
chosen. What is chosen is a function of that row's logits, the request's parameters and seed, its tokens and the path;
never of the other rows.

The order is vLLM's: min_tokens, logit_bias, penalties, the grammar's mask, temperature, min_p, top_k, top_p, then
Gumbel-max. The mask has the last word: what it allows is chosen from even where all of it is forbidden otherwise.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor

from paceline.errors import UserError
from paceline.filters import cut_min_p, cut_top_k, cut_top_p
from paceline.grammar import forbidden
from paceline.kernels import best_of, best_token, native
from paceline.noise import Noise
from paceline.penalties import Penalties
from paceline.request import Request, SamplingParams

# The least score of a token that a grammar allows: finite also when divided by a temperature, so that it beats -inf.
_ALLOWED = -1e30


class Sampler:
    """Chooses tokens. `eos_token_ids`: what `min_tokens` forbids beside the request's own stop_token_ids."""

    def __init__(self, eos_token_ids: Sequence[int] = ()) -> None:
        self.eos_token_ids = tuple(eos_token_ids)
        self._noise = Noise()
        self._penalties = Penalties()

    def choose(
        self, logits: Tensor, requests: Sequence[Request], paths: Sequence[list[int]], *, free: bool = False
    ) -> Tensor:
        """The token that follows `requests[i].tokens + paths[i]`, [R] int64, from logits [R, V] of any float type.

        The same request may own several rows (the nodes of its draft), next to each other. Ties go to the lowest id.
        free: without the masks that can wait (see `spec.constrained`).
        """
        if (found := self._choose_at_once(logits, requests, paths, rate=False, free=free)) is not None:
            return found[0]
        scores, drawn = self._scores(logits, requests, paths, free)
        return best_token(self._perturb(scores, requests, paths, drawn))

    def choose_and_rate(
        self, logits: Tensor, requests: Sequence[Request], paths: Sequence[list[int]], *, free: bool = False
    ) -> tuple[list[int], list[float]]:
        """As `choose`, on the host; and each chosen token's log-probability in the distribution that it was chosen
        from, at temperature 1 where the choice is greedy."""
        if (found := self._choose_at_once(logits, requests, paths, rate=True, free=free)) is not None:
            return found[0].tolist(), found[1].tolist()
        scores, drawn = self._scores(logits, requests, paths, free)
        chosen = best_token(self._perturb(scores.clone(), requests, paths, drawn))
        rated = scores.gather(1, chosen[:, None]).flatten() - scores.logsumexp(-1)
        return chosen.tolist(), rated.tolist()

    def _choose_at_once(
        self, logits: Tensor, requests: Sequence[Request], paths: Sequence[list[int]], rate: bool, free: bool
    ) -> tuple[Tensor, Tensor] | None:
        """Tokens and, if asked for, their log-probabilities, where only temperatures and seeds act on the logits and
        one call serves for all rows; else None."""
        masked = not free and not rate and all(request.grammar is not None for request in requests)
        params = [request.params for request in requests]
        heats = [heat for p in params if (heat := p.free_heat if free or masked else p.heat) is not None]
        if len(heats) < len(requests) or (masked and not native.serves(logits)):
            return None
        if masked:
            logits = native.only_allowed(logits.contiguous(), _masks(requests, paths), _ALLOWED)
        if not any(heats):
            return best_of(logits) if rate else (best_token(logits), logits[:0, 0])
        if not native.serves(logits):
            return None
        places = array("Q")
        for request, path in zip(requests, paths, strict=True):
            places.extend((request.seed, len(request.tokens) + len(path)))
        hashes = self._noise.token_hashes(logits.shape[1], logits.device)
        return native.choose(logits.contiguous(), places, heats, hashes, rate)

    def _scores(
        self, logits: Tensor, requests: Sequence[Request], paths: Sequence[list[int]], free: bool
    ) -> tuple[Tensor, list[int]]:
        """What is chosen from, in a new tensor, and which rows are drawn at random: these are divided by their
        temperatures and cut."""
        scores = logits.to(torch.float32, copy=True)
        self._edit(scores, requests, paths)
        _mask(scores, requests, paths, free)
        drawn = [i for i, request in enumerate(requests) if not request.params.greedy]
        if drawn:
            params = [requests[i].params for i in drawn]
            heat = [p.temperature for p in params]
            _update(scores, drawn, lambda rows: cut(rows / _column(heat, rows)[:, None], params))
        return scores, drawn

    def _edit(self, scores: Tensor, requests: Sequence[Request], paths: Sequence[list[int]]) -> None:
        """What acts on chosen tokens' scores whatever the temperature, in place: min_tokens, logit_bias, penalties."""
        for _, group in groupby(range(len(requests)), key=lambda i: id(requests[i])):
            rows = list(group)
            request = requests[rows[0]]
            params = request.params
            mine = scores[rows[0] : rows[-1] + 1]
            if params.min_tokens > len(request.tokens) - request.num_prompt:
                self._forbid_end(mine, request, [paths[i] for i in rows])
            if params.logit_bias:
                ids, bias = zip(*params.logit_bias.items(), strict=True)
                mine[:, list(ids)] += torch.tensor(bias, device=scores.device)
            if params.has_penalties:
                self._penalties.apply(mine, request, [paths[i] for i in rows])

    def _forbid_end(self, scores: Tensor, request: Request, paths: list[list[int]]) -> None:
        params = request.params
        ends = [*params.stop_token_ids, *(() if params.ignore_eos else self.eos_token_ids)]
        generated = len(request.tokens) - request.num_prompt
        for row, path in enumerate(paths):
            if generated + len(path) < params.min_tokens:
                scores[row, ends] = -torch.inf

    def _perturb(
        self, scores: Tensor, requests: Sequence[Request], paths: Sequence[list[int]], drawn: list[int]
    ) -> Tensor:
        """Adds noise to the rows that are drawn at random, in place; returns the scores."""
        if drawn:
            places = [(requests[i].seed, len(requests[i].tokens) + len(paths[i])) for i in drawn]
            noise = self._noise.gumbel(places, scores.shape[1], scores.device)
            _update(scores, drawn, lambda rows: noise.add_(rows))
        return scores


def mask_can_wait(params: SamplingParams) -> bool:
    """Whether the best of all tokens is the best of the allowed ones, if it is one of them: no cut depends on what is
    allowed, and no score is so low that `_ALLOWED` raises it."""
    return params.free_heat is not None


def _mask(scores: Tensor, requests: Sequence[Request], paths: Sequence[list[int]], free: bool) -> None:
    """What the grammars forbid becomes -inf, in place; free: unless it can wait."""
    rows = [i for i, r in enumerate(requests) if r.grammar is not None and not (free and mask_can_wait(r.params))]
    if rows:
        masks = _masks([requests[i] for i in rows], [paths[i] for i in rows])
        bad = torch.from_numpy(forbidden(masks, scores.shape[1])).to(scores.device)
        _update(scores, rows, lambda mine: mine.clamp_(min=_ALLOWED).masked_fill_(bad, -torch.inf))


def _masks(requests: Sequence[Request], paths: Sequence[list[int]]) -> list[bytes]:
    """What may follow, of requests that have grammars."""
    return [g.mask(path) for r, path in zip(requests, paths, strict=True) if (g := r.grammar) is not None]


def cut(scores: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """min_p, top_k and top_p on scores [R, V] already divided by the temperature; what is cut becomes -inf."""
    vocab_size = scores.shape[1]
    if rows := [i for i, p in enumerate(params) if p.min_p > 0]:
        _update(scores, rows, lambda x: cut_min_p(x, _column([params[i].min_p for i in rows], x)))
    if rows := [i for i, p in enumerate(params) if 0 < p.top_k < vocab_size]:
        _update(scores, rows, lambda x: cut_top_k(x, torch.tensor([params[i].top_k for i in rows], device=x.device)))
    if rows := [i for i, p in enumerate(params) if p.top_p < 1]:
        _update(scores, rows, lambda x: cut_top_p(x, _column([params[i].top_p for i in rows], x, torch.float64)))
    return scores


def top_logprobs(logits: Tensor, chosen: Sequence[int], count: int) -> list[dict[int, float]]:
    """{token: log-probability} of the chosen token, then of the `count` likeliest, for each row of raw logits [R, V].

    As in vLLM these are the model's own: before temperature, penalties and filters.
    """
    logprobs = logits.double().log_softmax(-1).float()  # rounded, so that the last bit cannot tell how it was summed
    best = logprobs.topk(min(count, logits.shape[1]))
    own = logprobs.gather(1, torch.tensor(chosen, device=logits.device)[:, None])
    rows = zip(chosen, own.flatten().tolist(), best.indices.tolist(), best.values.tolist(), strict=True)
    return [{token: value} | dict(zip(ids, values, strict=True)) for token, value, ids, values in rows]


def check_token_ids(params: SamplingParams, vocab_size: int) -> None:
    """Raises `UserError` when `logit_bias` or `stop_token_ids` names a token that the model does not have."""
    for name, ids in (("logit_bias", params.logit_bias or ()), ("stop_token_ids", params.stop_token_ids)):
        for token in ids:
            if not 0 <= token < vocab_size:
                raise UserError(f"{name} names token {token}; the model's token ids run from 0 to {vocab_size - 1}.")


def _column(values: list[float], like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=like.device)


def _update(scores: Tensor, rows: list[int], change: Callable[[Tensor], Tensor]) -> None:
    """scores[rows] = change(scores[rows]), without gathering when these are all the rows."""
    if len(rows) == len(scores):
        scores.copy_(change(scores))
    else:
        scores[rows] = change(scores[rows])
