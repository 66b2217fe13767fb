"""No drafter: every proposal is the pending token alone, and every step is plain decoding."""

from __future__ import annotations

from typing import Any

from paceline.config import EngineConfig
from paceline.drafters.base import Deeper, OnHost, Seen
from paceline.request import Request
from paceline.spec.proposal import Proposal


class NoDrafter(OnHost):
    """Proposes nothing. It exists so that plain decoding is the same path as speculation, at width 0."""

    name = "none"
    max_tokens = 0
    suspects = None
    quantization: str | None = None
    pools = ()
    at_once = False

    @classmethod
    def build(cls, config: EngineConfig, target_runner: Any) -> NoDrafter:
        return cls()

    def observe(self, seen: Seen) -> None:
        """Nothing to learn."""

    def propose(self, requests: list[Request], widths: list[int], deeper: Deeper | None = None) -> Proposal:
        return Proposal([[request.tokens[-1]] for request in requests])

    def forget(self, row: int) -> None:
        """Nothing to forget."""
