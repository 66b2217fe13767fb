"""Several drafters in one engine: each request has its own, the text is the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from paceline.cache.pool import Pool
from paceline.config import EngineConfig
from paceline.drafters.mtp import MTPDrafter
from paceline.drafters.several import SeveralDrafters
from paceline.errors import UserError
from paceline.loaded import Loaded
from paceline.request import Request, SamplingParams

NAMES = (None, "mtp", "ngram", "none")
PROMPT = [20, 21, 22, 23, 24] * 4


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> Loaded:
    return Loaded.from_dir(tiny_model)


def generate(loaded: Loaded, drafter: str, asked: tuple[str | None, ...]) -> tuple[list[Request], SeveralDrafters]:
    engine = loaded.engine(EngineConfig(drafter=drafter, num_speculative_tokens=3, max_model_len=96))
    params = [SamplingParams(max_tokens=40, ignore_eos=True, temperature=t, seed=7) for t in (0.0, 0.8)]
    requests = [
        engine.add_request(f"{i}", [*PROMPT, 30 + i], params[i % 2], drafter=name)[0] for i, name in enumerate(asked)
    ]
    while engine.has_unfinished:
        engine.step()
    assert set(engine.stats.by_drafter) == {request.drafter for request in requests}
    assert sum(stats.emitted for stats in engine.stats.by_drafter.values()) == engine.stats.speculation.emitted
    return requests, engine.drafter  # type: ignore[return-value]


def test_who_drafts_changes_no_text(loaded: Loaded) -> None:
    requests, _ = generate(loaded, "mtp,ngram", NAMES * 2)
    plain, _ = generate(loaded, "none", (None,) * len(NAMES) * 2)
    assert [request.generated for request in requests] == [request.generated for request in plain]
    drafted = {request.drafter: request.stats.drafted for request in requests}
    assert drafted["mtp"] and drafted["ngram"] and not drafted["none"]
    assert [request.drafter for request in requests[:4]] == ["mtp", "mtp", "ngram", "none"]


def test_all_memory_is_taken_at_once(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, taken = loaded.engine(EngineConfig(drafter="ngram,mtp", max_model_len=96)), []
    monkeypatch.setattr(Pool, "preallocate", lambda pool: taken.append(pool))
    engine.preallocate()
    assert taken == [engine.target.pool, engine.drafter.members["mtp"].pool]  # type: ignore[attr-defined]


def test_a_member_hears_only_of_its_own_requests(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    forward = MTPDrafter.forward

    def counted(self: MTPDrafter, d: int, *rest: object) -> object:
        passes.append(d)
        return forward(self, d, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(MTPDrafter, "forward", counted)
    generate(loaded, "ngram,mtp", (None, "ngram", "none"))
    assert not passes
    generate(loaded, "ngram,mtp", ("ngram", "mtp", "none"))
    assert set(passes) == {1, 2, 3} or set(passes) == {1, 2}


@pytest.mark.parametrize("names", ["mtp,mtp", "mtp,none", "mtp,guess", "mtp,", ",", "several,mtp"])
def test_impossible_companies_are_refused_in_one_sentence(loaded: Loaded, names: str) -> None:
    with pytest.raises(UserError, match="drafter '"):
        loaded.engine(EngineConfig(drafter=names, num_speculative_tokens=2))


def test_a_request_cannot_name_a_drafter_that_is_not_here(loaded: Loaded) -> None:
    engine = loaded.engine(EngineConfig(drafter="ngram", num_speculative_tokens=2))
    with pytest.raises(UserError, match="'mtp' does not work here; this engine drafts with ngram or none"):
        engine.add_request("a", PROMPT, SamplingParams(), drafter="mtp")
    assert not engine.has_unfinished
