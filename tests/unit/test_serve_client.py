"""The client of the engine process against engines that misbehave; texts out of pieces; what needs no model."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Coroutine
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.main import get_command

from paceline.cli.main import make_app
from paceline.cli.serve import SERVER
from paceline.errors import UserError
from paceline.outputs import Timing
from paceline.request import SamplingParams, SpeculationStats
from paceline.serve import app, chat, completions, tokenize
from paceline.serve.channel import Channel, Lines
from paceline.serve.client import EngineClient
from paceline.serve.errors import ApiError
from paceline.serve.job import Drafts, Job
from paceline.serve.log import log
from paceline.serve.logprobs import LEAST, completion_logprobs
from paceline.serve.messages import Add, Finished, Piece, Ready, Step, from_engine, to_engine, to_line
from paceline.serve.metrics import Metrics
from paceline.serve.protocol import ChatBody, CompletionBody
from paceline.serve.settings import ServerSettings
from paceline.serve.text import AnswerText
from paceline.tokenizer import Tokenizer

PARAMS = SamplingParams(max_tokens=4)
DRAFTS = Drafts("mtp", None)
FACTS = Ready(
    drafter="mtp", num_speculative_tokens=4, max_model_len=64, vocab_size=320, eos_token_ids=[1], max_num_seqs=2
)
# An engine that does to each job what its first prompt token says.
ENGINE = """
import os, sys
from paceline.serve import app, chat, completions, tokenize
from paceline.serve.channel import Channel
from paceline.serve.messages import *
from paceline.request import SpeculationStats
channel = Channel.of_standard_streams()
print("what a library prints is no message")
start = channel.receive(wait=True)[0]
if "fail" in start.options: channel.send(Failed(sentence="No such model.")); sys.exit()
if "die" in start.options: sys.exit(3)
channel.send(Ready(drafter="mtp", num_speculative_tokens=4, max_model_len=64, vocab_size=320, eos_token_ids=[1],
                   max_num_seqs=2))
while not channel.closed:
    for message in channel.receive(wait=True):
        if isinstance(message, Abort): open(start.options["log"], "a").write(message.job + " ")
        elif message.prompt[0] == 1:
            told = dict(speculation=SpeculationStats(), timing=Timing(0, 0, 0))
            end = Finished(reason="length", seed=5, prefix_hit_tokens=0, **told)
            pieces = [Piece(job=message.job, index=0, tokens=[7], origins=[0], finished=end)]
            channel.send(Step(pieces=pieces))
        elif message.prompt[0] == 2: os._exit(1)
        elif message.prompt[0] == 3: os.write(channel._target, b"nonsense\\n")
        elif message.prompt[0] == 4: channel.send(Refused(job=message.job, sentence="Not that."))
"""


def with_engine(
    story: Any, tmp_path: Path, timeout: float = 60.0, max_queue: int = 1, options: dict[str, Any] | None = None
) -> None:
    """Runs `story(client)` with an engine of that kind."""

    async def run() -> None:
        command = (sys.executable, "-c", ENGINE)
        log = {"log": str(tmp_path / "aborts")}
        client = EngineClient(log | (options or {}), max_queue, timeout, Metrics("m"), command)
        try:
            await client.start()
            await asyncio.wait_for(story(client), 60)
        finally:
            await client.stop()

    asyncio.run(run())


async def tokens(job: Job) -> list[int]:
    found: list[int] = []
    while True:
        await job.news.wait()
        job.news.clear()
        found += [token for piece in job.take() for token in piece.tokens]
        if job.ended:
            return found


async def error(work: Coroutine[Any, Any, Any]) -> ApiError:
    with pytest.raises(ApiError) as raised:
        await work
    return raised.value


async def alive_again(client: EngineClient) -> None:
    while not client.alive:
        await asyncio.sleep(0.02)


def test_a_job_comes_back(tmp_path: Path) -> None:
    async def story(client: EngineClient) -> None:
        assert client.facts == FACTS
        assert await tokens(client.submit([1], PARAMS, DRAFTS)) == [7]
        assert client.open_answers == 0

    with_engine(story, tmp_path)


@pytest.mark.parametrize("mischief", [2, 3])
def test_an_engine_that_dies_or_raves_is_started_again(tmp_path: Path, mischief: int) -> None:
    """Those who wait hear of it at once, those who come are told to come back, and then it works."""

    async def story(client: EngineClient) -> None:
        waiting = client.submit([9], PARAMS, DRAFTS)
        assert (await error(tokens(client.submit([mischief], PARAMS, DRAFTS)))).status == 503
        assert (await error(tokens(waiting))).status == 503
        with pytest.raises(ApiError) as raised:
            client.submit([1], PARAMS, DRAFTS)
        assert raised.value.status == 503 and raised.value.headers["Retry-After"]
        await alive_again(client)
        assert await tokens(client.submit([1], PARAMS, DRAFTS)) == [7]

    with_engine(story, tmp_path, max_queue=8)


def test_a_job_that_takes_too_long_ends(tmp_path: Path) -> None:
    async def story(client: EngineClient) -> None:
        job = client.submit([9], PARAMS, DRAFTS)
        assert (await error(tokens(job))).status == 504
        while not (tmp_path / "aborts").exists():
            await asyncio.sleep(0.02)
        assert (tmp_path / "aborts").read_text() == f"{job.id} " and client.open_answers == 0

    with_engine(story, tmp_path, timeout=0.2)


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_a_clock_that_jumps_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    """Deadlines and measured times are of the clock that only goes forward."""
    told = time.time()

    async def story(client: EngineClient) -> None:
        waiting = client.submit([9], PARAMS, DRAFTS)
        monkeypatch.setattr(time, "time", lambda: told + jump)
        assert await tokens(client.submit([1], PARAMS, DRAFTS)) == [7]
        assert client.open_answers == 1  # the one that waits
        client.abort(waiting)
        page = client._watcher.text(client.stats, client.alive).decode()  # type: ignore[attr-defined]
        (seconds,) = re.findall(r"e2e_request_latency_seconds_sum\S* (\S+)", page)
        assert 0 <= float(seconds) < 60

    with_engine(story, tmp_path)


def test_a_full_server_says_so(tmp_path: Path) -> None:
    async def story(client: EngineClient) -> None:
        jobs = [client.submit([9], PARAMS, DRAFTS) for _ in range(3)]
        with pytest.raises(ApiError) as raised:
            client.submit([1], PARAMS, DRAFTS)
        assert raised.value.status == 429 and raised.value.headers["Retry-After"]
        with pytest.raises(ApiError) as raised:
            client.submit([1], SamplingParams(n=4), DRAFTS)
        assert raised.value.status == 400  # it would never fit
        client.abort(jobs[0])
        assert await tokens(client.submit([1], PARAMS, DRAFTS)) == [7]
        assert (await error(tokens(client.submit([4], PARAMS, DRAFTS)))).status == 400

    with_engine(story, tmp_path)


@pytest.mark.parametrize(("how", "sentence"), [("fail", "No such model"), ("die", "before it was ready")])
def test_an_engine_that_cannot_start(tmp_path: Path, how: str, sentence: str) -> None:
    async def story(client: EngineClient) -> None:
        raise AssertionError("it started")

    with pytest.raises(UserError, match=sentence):
        with_engine(story, tmp_path, options={how: True})


def test_messages_survive_the_pipe() -> None:
    """Infinities, and any way in which the bytes arrive."""
    params = SamplingParams(stop="é\u2028", logit_bias={3: -inf}, seed=2**63 - 1)
    add = Add(job="a", prompt=[1, 2], params=params, num_speculative_tokens=0)
    step = Step(pieces=[Piece(job="a", index=0, tokens=[3], origins=[0], logprobs=[{3: -inf}])])
    assert to_engine(to_line(add)) == add and from_engine(to_line(step)) == step
    source, target = os.pipe()
    channel = Channel(source, target)
    line = to_line(add)
    assert line.count(b"\n") == 1
    for part in (line[:5], line[5:-1], line[-1:] + line):
        assert channel.receive(wait=False) == []
        os.write(target, part)
    assert channel.receive(wait=True) == [add, add]
    os.close(target)
    assert channel.receive(wait=True) == [] and channel.closed


@given(st.binary(max_size=60), st.lists(st.integers(0, 9)))
def test_lines_are_the_same_however_they_come(data: bytes, cuts: list[int]) -> None:
    lines, found, at = Lines(), list[bytes](), 0
    for count in [*cuts, len(data)]:
        found += lines.push(data[at : at + count])
        at += count
    assert found == data.split(b"\n")[:-1]


def test_a_slow_reader_gets_all_pieces_as_one() -> None:
    job = Job("j", [5], SamplingParams(max_tokens=9, n=2), DRAFTS)
    end = Finished(reason="stop", seed=0, prefix_hit_tokens=0, speculation=SpeculationStats(), timing=Timing(0, 0, 0))
    one: dict[str, Any] = dict(job="j", origins=[0], logprobs=[{3: -1.0}])
    job.put(Piece(index=0, tokens=[3], moments=[1.0], prompt_logprobs=[{7: -2.0}], rejected=[None], **one))
    job.put(Piece(index=1, tokens=[8], moments=[1.0], **one))
    job.put(Piece(index=0, tokens=[4], moments=[1.5], rejected=[9], finished=end, **one))
    first, second = sorted(job.take(), key=lambda piece: piece.index)
    assert (first.tokens, first.origins, first.moments, first.rejected) == ([3, 4], [0, 0], [1.0, 1.5], [None, 9])
    assert first.logprobs == [{3: -1.0}] * 2 and first.prompt_logprobs == [{7: -2.0}] and first.finished == end
    assert (second.tokens, second.rejected, second.finished) == ([8], None, None)
    assert job.take() == [] and job.open == 1


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30), st.lists(st.integers(1, 4)), st.sampled_from([(), ("e",), ("ab", "\u20ac")]))
def test_text_is_the_same_however_it_comes(
    tiny_tokens: Tokenizer, text: str, cuts: list[int], stop: tuple[str, ...]
) -> None:
    """In any pieces: together the whole text, cut at the first stop string, and never half a character."""
    ids = tiny_tokens.encode(text, add_special_tokens=False)
    job = Job("j", [5], SamplingParams(max_tokens=10**6, stop=stop), Drafts("none", 0))
    answer = AnswerText(tiny_tokens, FACTS.model_copy(update={"max_model_len": 10**6}), job, 0)
    found, at, expected = "", 0, min([text, *(text[: text.index(s)] for s in stop if s in text)], key=len)
    for count in [*cuts, len(ids) + 1]:
        piece = Piece(job="j", index=0, tokens=ids[at : at + count], origins=[])
        delta = answer.push(piece)
        found, at = found + delta.text, at + count
        assert expected.startswith(found)
        if any(each in tiny_tokens.decode(ids[:at]) for each in stop):
            break  # the engine ends there
    end = Finished(reason="stop", seed=0, prefix_hit_tokens=0, speculation=SpeculationStats(), timing=Timing(0, 0, 0))
    found += answer.push(Piece(job="j", index=0, tokens=[1], origins=[], finished=end)).text
    assert found == expected


@pytest.fixture(scope="module")
def tiny_tokens(tiny_model: Path) -> Tokenizer:
    return Tokenizer.from_dir(tiny_model)


def test_what_has_no_probability_is_still_json(tiny_tokens: Tokenizer) -> None:
    found, end = completion_logprobs([5, 6], [{5: -inf, 6: -0.5}, {6: -0.1}], 1, tiny_tokens)
    assert found["token_logprobs"] == [LEAST, -0.1] and end == sum(map(len, found["tokens"]))
    assert found["top_logprobs"][0] == {tiny_tokens.token(6): -0.5, tiny_tokens.token(5): LEAST}


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 70000},
        {"api_keys": ("",)},
        {"max_queue": -1},
        {"timeout": inf},
        {"served_names": ()},
        {"interval": -0.1},
        {"interval": nan},
    ],
)
def test_settings_refuse(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        ServerSettings(**wrong)


def test_the_documentation_names_every_route_and_flag() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    routes = [
        route.path for part in (app.router, chat.router, completions.router, tokenize.router) for route in part.routes
    ]  # type: ignore[attr-defined]
    flags = [
        flag
        for each in get_command(make_app()).commands["serve"].params
        for flag in each.opts
        if each.rich_help_panel == SERVER
    ]  # type: ignore[attr-defined]
    assert len(routes) > 8 and len(flags) > 7
    assert not [name for name in (*routes, *flags) if name.replace("{name:path}", "").rstrip("/") not in page]
    fields = {*ChatBody.model_fields, *CompletionBody.model_fields} - {"model", "best_of", "prompt", "messages"}
    assert not [name for name in fields if name not in page]


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", FullDisk())
    with pytest.raises(OSError):
        print("this is one", file=sys.stderr)
    log("request", path="/")


def test_without_its_libraries_the_rest_works() -> None:
    """One sentence that tells what to install."""
    program = """
import sys
sys.modules.update(dict.fromkeys(["fastapi", "starlette", "uvicorn", "prometheus_client"]))
sys.argv = ["paceline", "serve"]
import paceline.llm
from paceline.cli.main import main
main()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, text=True)
    assert ended.returncode == 2 and "paceline[serve]" in ended.stderr and "Traceback" not in ended.stderr
