"""What grammars do to a draft: what they refuse is worth no row, and what they force is a draft for nothing."""

from __future__ import annotations

from paceline.request import Request
from paceline.spec.proposal import Proposal


def with_forced(proposal: Proposal, requests: list[Request], rooms: list[int]) -> Proposal:
    """The same drafts as far as the grammars allow them, then what is forced behind them, rooms[r] tokens at most.

    Trees stay as they are.
    Example: drafts 8, 9, and the grammar allows no 9 behind 8, only 7 and then 6: the chain 8, 7, 6, two of it forced.
    """
    if not proposal.chain or not any(rooms) or all([request.grammar is None for request in requests]):
        return proposal
    chains, forced = [], []
    for r, request in enumerate(requests):
        chain, more = proposal.tokens[r], []
        if request.grammar is not None:
            chain = chain[: 1 + request.grammar.allowed(chain[1:])]
            more = request.grammar.forced(chain[1:], rooms[r] + 1 - len(chain))
        chains.append(chain + more)
        forced.append(len(more))
    return Proposal(chains, forced=forced)
