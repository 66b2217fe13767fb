"""The `paceline` field of chats: who wrote each token, and which draft it took the place of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from servers import Served, serving

CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Tell me about the sea."}],
    "max_tokens": 40,
    "temperature": 0.8,
    "seed": 5,
    "speculation": {"num_speculative_tokens": 4},
}
DETAILS = {"paceline": {"tokens": True}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("serve") / "log", "--threads", "1") as served:
        yield served


def told_in_a_stream(server: Served, body: dict[str, Any]) -> tuple[str, list[dict[str, Any]], dict[str, float]]:
    """The text, all tokens, and the timing that comes last."""
    choices = [event["choices"][0] for event in server.events(CHAT, body)]
    text = "".join(choice["delta"].get("content", "") for choice in choices)
    parts = [choice["paceline"] for choice in choices if "paceline" in choice]
    assert ["timing" in part for part in parts] == [False] * (len(parts) - 1) + [True]
    return text, [token for part in parts for token in part["tokens"]], parts[-1]["timing"]


def test_each_token_tells_who_wrote_it(server: Served) -> None:
    whole = server.answer(CHAT, ASKED | DETAILS)
    choice, counts = whole["choices"][0], whole["usage"]["speculation"]
    tokens = choice["paceline"]["tokens"]
    assert "".join(token["text"] for token in tokens) == choice["message"]["content"] and choice["logprobs"] is None
    assert len(tokens) == whole["usage"]["completion_tokens"]
    assert sum(token["origin"] > 0 for token in tokens) == counts["accepted"] > 0
    rejected = [token for token in tokens if token["rejected"] is not None]
    assert 0 < len(rejected) <= counts["drafted"] - counts["accepted"]
    for token in rejected:
        assert token["origin"] == 0 and token["rejected"]["id"] != token["id"] and token["rejected"]["text"]
        assert token["rejected"]["logprob"] <= 0 and token["logprob"] <= 0
    assert choice["paceline"]["timing"]["tokens_per_second"] > 0


def test_a_stream_tells_the_same(server: Served) -> None:
    whole = server.answer(CHAT, ASKED | DETAILS)["choices"][0]
    text, tokens, timing = told_in_a_stream(server, ASKED | DETAILS)
    assert text == whole["message"]["content"]
    same = ("id", "text", "logprob")  # who drafted what is the server's affair
    assert [[token[name] for name in same] for token in tokens] == [
        [token[name] for name in same] for token in whole["paceline"]["tokens"]
    ]
    assert timing.keys() == {"ttft_ms", "tpot_ms", "tokens_per_second"}


def test_the_log_probability_of_a_rejected_draft_is_the_targets(server: Served) -> None:
    """With top_logprobs it is told twice, when it is likely: to the same number."""
    choice = server.answer(CHAT, ASKED | DETAILS | {"logprobs": True, "top_logprobs": 5})["choices"][0]
    rows = zip(choice["paceline"]["tokens"], choice["logprobs"]["content"], strict=True)
    twice = 0
    for token, row in rows:
        assert token["logprob"] == row["logprob"] and len(row["top_logprobs"]) == 5
        if token["rejected"] is not None:
            same = [e["logprob"] for e in row["top_logprobs"] if e["token"] == token["rejected"]["text"]]
            twice += token["rejected"]["logprob"] in same
    assert twice


def test_several_answers_tell_of_themselves(server: Served) -> None:
    for choice in server.answer(CHAT, ASKED | DETAILS | {"n": 3, "max_tokens": 12})["choices"]:
        assert "".join(token["text"] for token in choice["paceline"]["tokens"]) == choice["message"]["content"]


@pytest.mark.parametrize("value", [{}, {"tokens": False}, None])
def test_who_does_not_ask_hears_nothing(server: Served, value: Any) -> None:
    whole = server.answer(CHAT, ASKED | {"max_tokens": 4, "paceline": value})["choices"][0]
    stream = server.events(CHAT, ASKED | {"max_tokens": 4, "paceline": value})
    assert all("paceline" not in choice for choice in [whole, *(event["choices"][0] for event in stream)])


@pytest.mark.parametrize("value", [True, 1, "tokens", [], {"tokens": 1}, {"tokens": "yes"}, {"colour": True}])
def test_what_is_malformed_is_refused(server: Served, value: Any) -> None:
    response = server.post(CHAT, ASKED | {"paceline": value})
    assert response.status_code == 400 and response.json()["error"]["message"].endswith(".")


def test_completions_do_not_have_it(server: Served) -> None:
    response = server.post("/v1/completions", {"prompt": "a"} | DETAILS)
    assert response.status_code == 400 and "'paceline'" in response.json()["error"]["message"]
