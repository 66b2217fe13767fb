"""Several drafters in one engine: each request takes the drafts of the one that it names, else of the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from paceline.drafters.base import Deeper, Drafter, OnHost, Seen
from paceline.request import Request
from paceline.spec.proposal import Proposal


class SeveralDrafters(OnHost):
    """Each member hears of its own requests only, so the others cost it nothing. A request that names nobody here gets
    no drafts. Example: members mtp and ngram are the drafter "mtp,ngram"."""

    def __init__(self, members: Sequence[Drafter]) -> None:
        self.members = {member.name: member for member in members}
        self.name = ",".join(self.members)
        self.max_tokens = max(member.max_tokens for member in members)
        self.suspects = members[0].suspects
        self.pools = [pool for member in members for pool in member.pools]
        self.at_once = any(member.at_once for member in members)
        self.quantization = next((member.quantization for member in members if member.quantization), None)

    def observe(self, seen: Seen) -> None:
        for name, member in self.members.items():
            mine = self._of(name, seen.requests)
            if mine:
                member.observe(seen if len(mine) == len(seen.requests) else _part(seen, mine))

    def propose(self, requests: list[Request], widths: list[int], deeper: Deeper | None = None) -> Proposal:
        parts = []
        for name, member in self.members.items():
            mine = self._of(name, requests)
            most = member.max_tokens
            asked = [requests[r] for r in mine], [min(widths[r], most) for r in mine]
            parts.append((mine, member.propose(*asked, deeper)))  # also for nobody: it may have something to finish
        return _joined(requests, parts)

    def forget(self, row: int) -> None:
        for member in self.members.values():
            member.forget(row)

    def _of(self, name: str, requests: list[Request]) -> list[int]:
        """Which of these requests are that member's."""
        first = next(iter(self.members))
        return [r for r, request in enumerate(requests) if (request.drafter or first) == name]


def _part(seen: Seen, chosen: list[int]) -> Seen:
    """What was seen of some of the requests."""
    lists = [field.name for field in fields(Seen) if field.name not in ("hidden", "rounds")]
    mine: dict[str, Any] = {name: [getattr(seen, name)[r] for r in chosen] for name in lists}
    return replace(seen, **mine)


def _joined(requests: list[Request], parts: list[tuple[list[int], Proposal]]) -> Proposal:
    """One proposal for all requests, of proposals for some of them each; who is in none has a root alone."""
    used = [(mine, part) for mine, part in parts if mine]
    if len(used) == 1 and len(used[0][0]) == len(requests):
        return used[0][1]
    tokens, parents = [[request.tokens[-1]] for request in requests], [[-1] for _ in requests]
    for mine, part in used:
        assert part.log_q is None, "drafts of several drafters are points"
        for r, nodes, above in zip(mine, part.tokens, part.parents or map(_chain, part.tokens), strict=True):
            tokens[r], parents[r] = nodes, above
    return Proposal(tokens, None if all(part.chain for _, part in used) else parents)


def _chain(nodes: list[int]) -> list[int]:
    return list(range(-1, len(nodes) - 1))
