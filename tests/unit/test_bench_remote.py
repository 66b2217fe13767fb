"""The arm behind HTTP, against servers that know little, refuse, lie or die."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from conftest import tiny_tokenizer
from paceline.bench.remote import ServerArm, shared_out, stats_of
from paceline.bench.runs import Closed, Job, Open
from paceline.errors import UserError
from paceline.request import SamplingParams, SpeculationStats
from paceline.tokenizer import Tokenizer

Body = dict[str, Any]
Answering = Callable[[Body, Callable[[str], None]], tuple[int, str] | None]
PARAMS = SamplingParams(max_tokens=6, ignore_eos=True, seed=3)
JOBS = [Job([4 + number, 5, 6], PARAMS, str(number), "test") for number in range(5)]


@contextmanager
def fake_server(answering: Answering) -> Iterator[tuple[str, list[Body]]]:
    """`answering` writes events of a stream, or returns a status with a body."""
    asked: list[Body] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body | {"path": self.path, "key": self.headers.get("Authorization")})
            events: list[str] = []
            refused = answering(body, events.append)
            status, text = refused or (200, "".join(f"data: {event}\n\n" for event in events))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"data": [{"id": "served"}]}')

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def arm(url: str, **more: Any) -> ServerArm:
    return ServerArm("auto", url, Tokenizer(tiny_tokenizer()), **more)


def chunk(text: str, done: int | None = None) -> str:
    usage = {} if done is None else {"usage": {"completion_tokens": done}}
    return json.dumps({"choices": [{"index": 0, "text": text}], **usage})


def ours(body: Body, say: Callable[[str], None]) -> None:
    """Three steps of 1, 3 and 2 tokens, with all that Paceline's server tells."""
    for text, done in (("a", 1), ("bcd", 4), ("ef", 6)):
        say(chunk(text, done))
    speculation = {
        "verifications": 2, "acceptance_length": 2.5, "drafted_by_position": [2, 2], "accepted_by_position": [2, 1],
        "width_histogram": [0, 0, 2],
    }  # fmt: skip
    usage = {"prompt_tokens": 3, "completion_tokens": 6, "prompt_tokens_details": {"cached_tokens": 2}}
    say(json.dumps({"choices": [], "usage": usage | {"speculation": speculation}}))
    say("[DONE]")


@pytest.mark.parametrize("load", [Closed(1), Closed(3), Open((0.0, 0.0, 0.001, 0.001, 0.002))])
def test_what_a_server_tells(load: Closed | Open) -> None:
    ticks: list[int] = []
    with fake_server(ours) as (url, asked):
        field = {"num_speculative_tokens": 2}
        answers = arm(f"{url}/v1/", speculation=field, api_key="k").run(JOBS, load, ticks.append)
    assert sum(ticks) == 30 and len(asked) == 6  # one to learn what the server understands
    for answer in answers:
        assert (answer.text, answer.tokens, answer.counts, answer.cached) == ("abcdef", None, [1, 3, 2], 2)
        assert answer.stats == SpeculationStats(2, 5, [2, 2], [2, 1], [0, 0, 2])
        assert answer.sent <= answer.times[0] and answer.times == sorted(answer.times)
    body = asked[-1]
    assert (body["path"], body["key"], body["speculation"]) == ("/v1/completions", "Bearer k", field)
    assert body["ignore_eos"] and body["seed"] == 3 and "top_k" not in body
    assert sorted(body["prompt"] for body in asked[1:]) == [job.prompt for job in JOBS]


def simple(body: Body, say: Callable[[str], None]) -> tuple[int, str] | None:
    """A server that knows text only, and OpenAI's own fields."""
    if (
        not isinstance(body["prompt"], str)
        or "ignore_eos" in body
        or "continuous_usage_stats" in body["stream_options"]
    ):
        return 422, '{"detail": "what?"}'
    for text in "abc":
        say(chunk(text))
    say(json.dumps({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 7}}))
    say("[DONE]")
    return None


def test_a_server_that_knows_little() -> None:
    with fake_server(simple) as (url, asked):
        side = arm(url)
        answers = side.run(JOBS, Closed(2), lambda tokens: None)
        side.run(JOBS, Closed(2), lambda tokens: None)
    assert len(asked) == 3 + 5 + 5  # three ways refused, once
    assert (answers[0].counts, answers[0].stats, answers[0].prompt_tokens) == ([3, 2, 2], None, 9)


def dying(body: Body, say: Callable[[str], None]) -> None:
    say(chunk("a"))


def failing(body: Body, say: Callable[[str], None]) -> None:
    say(chunk("a"))
    say('{"error": {"message": "out of luck"}}')


def raving(body: Body, say: Callable[[str], None]) -> None:
    say("{nonsense")


def silent(body: Body, say: Callable[[str], None]) -> None:
    say("[DONE]")


def full(body: Body, say: Callable[[str], None]) -> tuple[int, str]:
    return 429, '{"error": {"message": "The server is full."}}'


def strange(body: Body, say: Callable[[str], None]) -> tuple[int, str]:
    return 400, "<html>no</html>"


@pytest.mark.parametrize(
    ("answering", "said"),
    [
        (dying, "hung up in the middle"), (failing, "out of luck"), (raving, "no JSON"), (silent, "without a token"),
        (full, "429: The server is full"), (strange, "<html>no</html>"),
    ],
)  # fmt: skip
def test_a_server_that_fails_is_one_sentence(answering: Answering, said: str) -> None:
    with fake_server(answering) as (url, _), pytest.raises(UserError) as found:
        arm(url).run(JOBS, Closed(2), lambda tokens: None)
    sentence = str(found.value)
    assert said in sentence and url in sentence and sentence.endswith("is kept.") and "\n" not in sentence


def test_a_server_that_dies_later_says_how_far_it_came() -> None:
    count = iter(range(99))

    def mortal(body: Body, say: Callable[[str], None]) -> tuple[int, str] | None:
        return ours(body, say) if next(count) < 4 else (500, "gone")

    with fake_server(mortal) as (url, _), pytest.raises(UserError, match="after 3 of 5 requests; what was measured"):
        arm(url).run(JOBS, Closed(1), lambda tokens: None)


def test_nobody_there_and_no_address() -> None:
    with fake_server(ours) as (url, _):
        pass
    with pytest.raises(UserError, match="stopped answering"):
        arm(url).run(JOBS, Closed(1), lambda tokens: None)
    for bad in ("ftp://x", "http://", ""):
        with pytest.raises(UserError, match="no address"):
            arm(bad)


def test_a_server_without_our_field_is_told_from_ours() -> None:
    """It would answer both arms in the same way."""

    def foreign(body: Body, say: Callable[[str], None]) -> None:
        say(chunk("a", 1))
        say("[DONE]")

    with fake_server(foreign) as (url, _):
        assert arm(url).run(JOBS, Closed(2), lambda tokens: None)[0].stats is None
        with pytest.raises(UserError, match="does not know Paceline's speculation field"):
            arm(url, speculation={"drafter": "none"}).run(JOBS, Closed(2), lambda tokens: None)


def test_the_model_is_called_what_the_server_calls_it() -> None:
    with fake_server(ours) as (url, asked):
        arm(url).run(JOBS, Closed(1), lambda tokens: None)
        arm(url, model="mine").run(JOBS, Closed(1), lambda tokens: None)
    assert [body["model"] for body in asked] == ["served"] * 6 + ["mine"] * 6


def test_counts_that_nobody_told() -> None:
    assert shared_out([1, 1, 1], 7) == [3, 2, 2] and shared_out([1, 3], 4) == [1, 3]
    assert stats_of(None) is None and stats_of({"verifications": "2"}) is None
