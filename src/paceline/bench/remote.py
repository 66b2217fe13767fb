"""An arm behind HTTP: any server with OpenAI's `/v1/completions`, read as a stream."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from threading import Event
from typing import Any
from urllib.parse import urlsplit

from paceline.bench.runs import Answer, Closed, Job, Load, Tick
from paceline.errors import UserError
from paceline.request import SpeculationStats
from paceline.tokenizer import Tokenizer

MAX_LINE = 1 << 20  # bytes of an event
MAX_ERROR = 300
SAME = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "max_tokens", "seed")
BEYOND = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}  # not in OpenAI's API: sent only when they say something


class ServerError(Exception):
    """status: of the HTTP answer; None when there was none."""

    def __init__(self, sentence: str, status: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status


class ServerArm:
    """speculation: the field of that name, for Paceline's own server; None: not sent.

    What a server understands is found out with the first request: token ids or text, fixed length or not, token counts
    in every event or at the end."""

    def __init__(
        self,
        name: str,
        url: str,
        tokenizer: Tokenizer,
        speculation: dict[str, Any] | None = None,
        model: str | None = None,
        timeout: float = 300.0,
        api_key: str | None = None,
    ) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{url} is no address of a server; write it as http://127.0.0.1:8000.")
        self.name, self.url, self._tokenizer, self._timeout = name, url, tokenizer, timeout
        self._kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._host, self._port = parts.hostname, parts.port
        self._root = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._speculation, self._model, self._ways = speculation, model, [*_WAYS]
        self._over = Event()  # nobody waits for answers any more

    def run(self, jobs: Sequence[Job], load: Load, tick: Tick) -> list[Answer]:
        """Raises `UserError` when the server refuses, or dies: then with how far it came."""
        try:
            self._learn(jobs[0])
            return self._all(jobs, load, tick)
        except ServerError as error:
            raise UserError(f"The server {self.url} {error}; what was measured before is kept.") from error

    def _learn(self, job: Job) -> None:
        """Asks for one token in ever simpler ways, until the server does not call it a bad request."""
        self._model = self._model or self._first_model()
        while len(self._ways) > 1:
            try:
                self._over.clear()
                answer = self._ask(job, self._body(job) | {"max_tokens": 1}, None)
                self._ways = self._ways[:1]
                if self._speculation is not None and answer.stats is None:
                    raise UserError(
                        f"The server {self.url} does not know Paceline's speculation field, so both arms would be the "
                        "same: start one without speculation, and name it with --baseline-server."
                    )
            except ServerError as error:
                if error.status not in (400, 422):
                    raise
                self._ways.pop(0)

    def _first_model(self) -> str:
        """What the server calls its first model; "default" where it does not tell."""
        connection = self._kind(self._host, self._port, timeout=self._timeout)
        try:
            connection.request("GET", f"{self._root}/v1/models", headers=self._headers)
            with connection.getresponse() as response:
                return str(json.loads(response.read(MAX_LINE))["data"][0]["id"])
        except (OSError, HTTPException, ValueError, LookupError, TypeError, RecursionError):
            return "default"
        finally:
            connection.close()

    def _all(self, jobs: Sequence[Job], load: Load, tick: Tick) -> list[Answer]:
        start = time.perf_counter()
        waiting: dict[Future[Answer], Job] = {}
        self._over.clear()
        with ThreadPoolExecutor(load.lanes(len(jobs))) as pool:
            try:
                for index, job in enumerate(jobs):
                    due = start + load.due(index, 0)  # in a closed loop the pool itself lets nobody in too early
                    time.sleep(max(0.0, due - time.perf_counter()))
                    sent = None if isinstance(load, Closed) else due
                    waiting[pool.submit(self._ask, job, self._body(job), sent)] = job
                for future in as_completed(waiting):
                    future.result()
                    tick(waiting[future].params.max_tokens)
            except ServerError as error:
                done = sum(future.done() and future.exception() is None for future in waiting)
                raise ServerError(f"{error} after {done} of {len(jobs)} requests", error.status) from error
            finally:
                self._over.set()
                pool.shutdown(wait=False, cancel_futures=True)
        return [future.result() for future in waiting]

    def _body(self, job: Job) -> dict[str, Any]:
        way, params = self._ways[0], job.params
        beyond = {name: getattr(params, name) for name, off in BEYOND.items() if getattr(params, name) != off}
        return {
            "model": self._model,
            "prompt": job.prompt if way["ids"] else self._tokenizer.decode(job.prompt),
            **{name: getattr(params, name) for name in SAME},
            **beyond,
            **({"ignore_eos": True} if params.ignore_eos and way["fixed"] else {}),
            **({} if self._speculation is None else {"speculation": self._speculation}),
            "stream": True,
            "stream_options": {"include_usage": True, **({"continuous_usage_stats": True} if way["counts"] else {})},
        }

    def _ask(self, job: Job, body: dict[str, Any], sent: float | None) -> Answer:
        answer = Answer(time.perf_counter() if sent is None else sent, len(job.prompt), text="")
        connection = self._kind(self._host, self._port, timeout=self._timeout)
        try:
            connection.request("POST", f"{self._root}/v1/completions", json.dumps(body), self._headers)
            with connection.getresponse() as response:
                if response.status != 200:
                    raise ServerError(f"refused ({response.status}: {_complaint(response)})", response.status)
                for event in _events(response):
                    if self._over.is_set():
                        break
                    _read(event, answer)
        except (OSError, HTTPException) as error:
            raise ServerError(f"stopped answering ({getattr(error, 'strerror', None) or repr(error)})") from error
        finally:
            connection.close()
        if not answer.times:
            raise ServerError("answered without a token")
        return answer


# What is asked of a server, from the most telling to what everyone understands.
_WAYS: tuple[dict[str, bool], ...] = (
    {"ids": True, "fixed": True, "counts": True},
    {"ids": True, "fixed": True, "counts": False},
    {"ids": False, "fixed": True, "counts": False},
    {"ids": False, "fixed": False, "counts": False},
)


def _complaint(response: HTTPResponse) -> str:
    raw = response.read(1 << 16).decode(errors="replace")
    try:
        return str(json.loads(raw)["error"]["message"])[:MAX_ERROR]
    except (ValueError, KeyError, TypeError, RecursionError):
        return raw[:MAX_ERROR].strip() or "without a word"


def _events(response: HTTPResponse) -> Iterator[dict[str, Any]]:
    """Raises `ServerError` when the stream ends without `[DONE]`, or holds what is no event."""
    while line := response.readline(MAX_LINE):
        said = line.strip().removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
        if said == b"[DONE]":
            return
        if not said:
            continue
        try:
            event = json.loads(said)
        except (ValueError, RecursionError) as error:
            raise ServerError(f"sent what is no JSON ({said[:60]!r})") from error
        if not isinstance(event, dict) or event.get("error"):
            raise ServerError(f"failed in the middle of an answer ({str(event)[:MAX_ERROR]})")
        yield event
    raise ServerError("hung up in the middle of an answer")


def _read(event: dict[str, Any], answer: Answer) -> None:
    """Text and time of a step's tokens; counts as soon as they are told, else shared out evenly in the end."""
    usage = event.get("usage") or {}
    choices = event.get("choices") or []
    text = choices[0].get("text") or "" if choices else ""
    counted = usage.get("completion_tokens")
    if choices and (text or (counted or 0) > answer.output_tokens):
        answer.text = (answer.text or "") + text
        answer.times.append(time.perf_counter())
        answer.counts.append(counted - answer.output_tokens if counted is not None else 1)
    elif counted is not None and not choices and answer.times:
        answer.counts = shared_out(answer.counts, counted)
    if not choices and usage:
        answer.prompt_tokens = usage.get("prompt_tokens") or answer.prompt_tokens
        answer.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        answer.stats = stats_of(usage.get("speculation"))


def shared_out(counts: list[int], total: int) -> list[int]:
    """The counts as they are when they make up the total; else the total, evenly over the steps.

    Example: shared_out([1, 1, 1], 7) = [3, 2, 2]."""
    if sum(counts) == total:
        return counts
    each, more = divmod(total, len(counts))
    return [each + (index < more) for index in range(len(counts))]


def stats_of(told: Any) -> SpeculationStats | None:
    """The counts behind `usage.speculation` of Paceline's server; None from servers that do not tell."""
    if not isinstance(told, dict) or not isinstance(told.get("verifications"), int):
        return None
    offered, taken, widths = (
        list(told.get(name) or []) for name in ("drafted_by_position", "accepted_by_position", "width_histogram")
    )
    emitted = round(float(told.get("acceptance_length") or 0.0) * told["verifications"])
    return SpeculationStats(told["verifications"], emitted, offered, taken, widths)
