"""What the web process and the engine process tell each other: JSON, one message a line, never pickle.

A job is one prompt with its `n` answers. Host data only; nothing here knows HTTP or torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from paceline.outputs import Timing
from paceline.request import SamplingParams, SpeculationStats

T = TypeVar("T")


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Start(_Message):
    """The first one: keywords of `LLM`, the cores that there are for both processes, and the `Outbox`'s interval."""

    kind: Literal["start"] = "start"
    options: dict[str, Any]
    cores: list[int] = []
    interval: float = 0.0


class Add(_Message):
    """num_speculative_tokens None: as many as the engine thinks right; drafter None: its first one."""

    kind: Literal["add"] = "add"
    job: str
    prompt: list[int]
    params: SamplingParams
    num_speculative_tokens: int | None = None
    drafter: str | None = None


class Abort(_Message):
    """For a job that is not there (any more) nothing happens."""

    kind: Literal["abort"] = "abort"
    job: str


class Ready(_Message):
    """The engine is up; what it can do.

    drafter: several are separated by commas, the first is whose drafts a request gets that names none.
    num_speculative_tokens: the most it drafts at a time; auto: it chooses how many, step by step.
    spare_cores: those it leaves to the web process; empty when they share."""

    kind: Literal["ready"] = "ready"
    drafter: str
    num_speculative_tokens: int
    auto: bool = False
    max_model_len: int
    vocab_size: int
    eos_token_ids: list[int]
    max_num_seqs: int
    spare_cores: list[int] = []


class Failed(_Message):
    """The engine cannot start: the sentence for the user. The process ends."""

    kind: Literal["failed"] = "failed"
    sentence: str


class Refused(_Message):
    """This job cannot be done; nothing of it was queued."""

    kind: Literal["refused"] = "refused"
    job: str
    sentence: str


class Finished(_Message):
    """How an answer ended."""

    reason: str
    seed: int
    prefix_hit_tokens: int
    speculation: SpeculationStats
    timing: Timing


class Piece(_Message):
    """What some steps added to answer `index` of a job. moments: when each of them ended, by the monotonic clock.
    origins, rejected: as in `Request`, if asked for; logprobs: a row a token, if asked for.

    prompt_logprobs, if asked for, with the first piece: a row for each token of the prompt but the first one."""

    job: str
    index: int
    tokens: list[int]
    origins: list[int] = []
    moments: list[float] = []
    rejected: list[int | None] | None = None
    logprobs: list[dict[int, float]] | None = None
    prompt_logprobs: list[dict[int, float]] | None = None
    finished: Finished | None = None

    def followed_by(self, other: Piece) -> Piece:
        """Both as one; this one has not ended its answer."""
        return other.model_copy(
            update={
                "tokens": self.tokens + other.tokens,
                "origins": self.origins + other.origins,
                "moments": self.moments + other.moments,
                "rejected": _both(self.rejected, other.rejected),
                "logprobs": _both(self.logprobs, other.logprobs),
                "prompt_logprobs": self.prompt_logprobs,
            }
        )


def _both(first: list[T] | None, second: list[T] | None) -> list[T] | None:
    return None if first is None or second is None else first + second


class Step(_Message):
    kind: Literal["step"] = "step"
    pieces: list[Piece]


class Stats(_Message):
    """A look at the engine: who is in it, the KV cache's blocks in use, and its counts since it started.

    seconds: where its time went, by part, as in `EngineStats`."""

    kind: Literal["stats"] = "stats"
    running: int
    waiting: int
    blocks_used: int
    blocks: int
    steps: int
    preemptions: int
    seconds: dict[str, float]


ToEngine = Annotated[Start | Add | Abort, Field(discriminator="kind")]
FromEngine = Annotated[Ready | Failed | Refused | Step | Stats, Field(discriminator="kind")]
_TO: TypeAdapter[Start | Add | Abort] = TypeAdapter(ToEngine)
_FROM: TypeAdapter[Ready | Failed | Refused | Step | Stats] = TypeAdapter(FromEngine)


def to_line(message: BaseModel) -> bytes:
    return message.model_dump_json().encode() + b"\n"


def to_engine(line: bytes) -> Start | Add | Abort:
    return _TO.validate_json(line)


def from_engine(line: bytes) -> Ready | Failed | Refused | Step | Stats:
    return _FROM.validate_json(line)
