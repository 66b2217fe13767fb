"""What drafts were worth at every place of real texts, and what steps cost: all that a policy can be judged by.

Recorded from an engine that drafts at every place and verifies nothing: one token a step, so that no place is skipped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from paceline.drafters.base import Deeper, Drafter, OnHost, Seen
from paceline.errors import UserError
from paceline.llm import LLM, Prompt
from paceline.request import Request, SamplingParams
from paceline.spec.cost import CostTable
from paceline.spec.proposal import Proposal
from paceline.spec.width import StepFacts

MAX_BYTES = 256 << 20


@dataclass(frozen=True)
class Trace:
    """One answer. Place i: its first i + 1 tokens are there. accepted[i] of the drafts made there would be accepted;
    confidences[i]: their log q."""

    prompt_tokens: int
    drawn: bool
    accepted: list[int]
    confidences: list[list[float]]


@dataclass(frozen=True)
class Traces:
    """most: drafts at each place. costs: of the machine where they were recorded."""

    most: int
    costs: CostTable
    traces: list[Trace]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: Path) -> Traces:
        """Raises `UserError` for a file that is no recording."""
        try:
            if path.stat().st_size > MAX_BYTES:
                raise UserError(f"{path} is larger than any recording; name a file that `bench policy --save` wrote.")
            raw = json.loads(path.read_text(encoding="utf-8"))
            found = Traces(
                int(raw["most"]), CostTable.from_dict(raw["costs"]), [Trace(**trace) for trace in raw["traces"]]
            )
            sane = found.most > 0 and all(_is_sane(trace, found.most) for trace in found.traces)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is no recording of `bench policy --save`: {error}.") from error
        if not sane or not found.traces:
            raise UserError(f"{path} is a damaged recording; record it again.")
        return found


def _is_sane(trace: Trace, most: int) -> bool:
    return len(trace.accepted) == len(trace.confidences) > 0 and all(
        0 <= count <= len(row) <= most and all(x <= 1e-3 for x in row)
        for count, row in zip(trace.accepted, trace.confidences, strict=True)
    )


@dataclass
class Place:
    """The drafts made where a request had so many tokens."""

    length: int
    drafts: list[int]
    confidences: list[float] = field(default_factory=list)


class Recorder(OnHost):
    """A width policy that drafts all it can and verifies none of it, and a drafter that remembers what was drafted."""

    listens = asks = True
    idle = 0

    def __init__(self, drafter: Drafter, most: int) -> None:
        self.drafter, self.most = drafter, most
        self.name, self.max_tokens, self.suspects = drafter.name, drafter.max_tokens, None
        self.quantization, self.pools, self.at_once = drafter.quantization, drafter.pools, drafter.at_once
        self.places: dict[str, list[Place]] = {}
        self._confidences: dict[str, list[float]] = {}

    def widths(self, ready: list[Request]) -> list[int]:
        self._confidences = {request.id: [] for request in ready}
        return [self.most] * len(ready)

    def deeper(self, depth: int, requests: list[Request], confidences: list[float]) -> list[bool]:
        for request, confidence in zip(requests, confidences, strict=True):
            self._confidences[request.id].append(confidence)
        return [True] * len(requests)

    def cut(self, requests: list[Request], drafted: list[int]) -> list[int]:
        return [0] * len(requests)

    def skip(self, steps: int) -> None:
        """None is skipped."""

    def learn(self, facts: StepFacts) -> None:
        """Nothing to learn."""

    def as_dict(self) -> dict[str, Any]:
        return {}

    def observe(self, seen: Seen) -> None:
        self.drafter.observe(seen)

    def propose(self, requests: list[Request], widths: list[int], deeper: Deeper | None = None) -> Proposal:
        proposal = self.drafter.propose(requests, widths, deeper)
        for request, row in zip(requests, proposal.tokens, strict=True):
            place = Place(len(request.tokens), row[1:], self._confidences[request.id][: len(row) - 1])
            self.places.setdefault(request.id, []).append(place)
        return proposal

    def forget(self, row: int) -> None:
        self.drafter.forget(row)


def record(
    llm: LLM,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    costs: CostTable,
    progress: Callable[[int], None] = lambda done: None,
) -> Traces:
    """Traces of the answers to `prompts`. llm: an engine of its own, whose policy is replaced for good."""
    most = llm.most_speculative_tokens
    recorder = Recorder(llm.engine.drafter, most)
    llm.engine.drafter, llm.engine.policy.policy = recorder, recorder
    llm.engine.canary.suspects = None
    traces = []
    for result in llm.iterate(prompts, params):
        tokens = result.prompt_token_ids + result.outputs[0].token_ids
        mine = recorder.places.pop(next(iter(recorder.places)))
        traces.append(_trace(len(result.prompt_token_ids), tokens, mine, params.temperature > 0))
        progress(len(result.outputs[0].token_ids))
    return Traces(most, costs, [trace for trace in traces if trace.accepted])


def _trace(prompt_tokens: int, tokens: list[int], places: list[Place], drawn: bool) -> Trace:
    """Places at the end are left out: nobody knows what drafts beyond the text were worth, and of a single draft
    nobody asks how sure it is."""
    accepted, confidences = [], []
    for place in places:
        if len(place.drafts) == len(place.confidences) > 0 and place.length + len(place.drafts) <= len(tokens):
            right = 0
            while right < len(place.drafts) and place.drafts[right] == tokens[place.length + right]:
                right += 1
            accepted.append(right)
            confidences.append([round(min(x, 0.0), 5) for x in place.confidences])
    return Trace(prompt_tokens, drawn, accepted, confidences)
