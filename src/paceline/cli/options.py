"""The options that several commands share, declared once.

Options of the engine default to None, "not given": `EngineConfig` is the home of their defaults, and a test keeps what
--help says of them equal to it. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from paceline.cli.groups import option
from paceline.errors import UserError
from paceline.speculative_config import KEYS, parse_speculative_config, speculation_options

MODEL, ENGINE, SAMPLING = "Model", "Engine", "Sampling"
_model, _engine = partial(option, MODEL), partial(option, ENGINE)

Model = Annotated[str | None, _model("Directory or Hugging Face id of a checkpoint.", show_default="the bundled model")]
Dtype = Annotated[str | None, _model("bfloat16, float16 or float32.", show_default="the checkpoint's", metavar="NAME")]
Device = Annotated[str | None, _model("cpu, cuda, cuda:1, ...", show_default="cuda if there is one")]
Quantization = Annotated[
    str | None,
    _model(
        "Keep most weights in int8 or fp8, or in none of them.",
        show_default="as stored; fp8 on a GPU only",
        metavar="KIND",
    ),
]
DraftQuantization = Annotated[
    str | None,
    _engine(
        "The same for the MTP modules: int8, fp8, none, or auto: int8 where that makes drafts cheaper.",
        show_default="auto",
        metavar="KIND",
    ),
]
Threads = Annotated[int | None, _model("CPU threads.", show_default="torch's choice", min=1)]

Drafter = Annotated[
    str | None,
    _engine(
        "Who guesses: mtp, ngram, none, or several by commas (mtp,ngram); a request may choose one of them.",
        show_default="mtp",
    ),
]
NumSpeculativeTokens = Annotated[
    str | None,
    _engine(
        "Tokens guessed at a time: auto (as many as pay, step by step), or 0 to 16.",
        "--num-speculative-tokens",
        "-k",
        show_default="auto",
        metavar="K",
    ),
]
LatencyWeight = Annotated[
    float | None,
    _engine(
        "Whose time counts for -k auto: 0 that of all tokens together, 1 that of each request, slow ones too.",
        show_default="0.0",
    ),
]
MtpModules = Annotated[
    int | None,
    _engine("MTP modules used; the last one is recycled for further tokens.", show_default="one for each token"),
]
DraftModel = Annotated[
    str | None,
    _engine(
        "Directory or Hugging Face id of the MTP modules: an export of them, or a checkpoint (mtp).",
        show_default="the model's own",
    ),
]
DraftWindow = Annotated[
    int | None,
    _engine(
        "Tokens that a token sees at most when MTP modules draft; 0: all (mtp).",
        show_default="256 beside at most 16 layers, else all",
        min=0,
    ),
]
NgramMin = Annotated[int | None, _engine("Shortest n-gram looked up (ngram).", show_default="2")]
NgramMax = Annotated[int | None, _engine("Longest n-gram looked up (ngram).", show_default="4")]
SpeculativeConfig = Annotated[
    str | None,
    _engine(
        """Speculation as vLLM's users write it: '{"method": "mtp", "num_speculative_tokens": 1}'.""", metavar="JSON"
    ),
]
BlockSize = Annotated[int | None, _engine("Tokens a block of the KV cache holds.", show_default="16")]
NumBlocks = Annotated[int | None, _engine("Blocks of the KV cache.", show_default="what max-num-seqs requests need")]
MaxNumSeqs = Annotated[int | None, _engine("Most requests at a time.", show_default="16")]
MaxNumBatchedTokens = Annotated[int | None, _engine("Most tokens in a step.", show_default="1024")]
MaxModelLen = Annotated[int | None, _engine("Most tokens of prompt and answer.", show_default="the model's context")]
NumSchedulerSteps = Annotated[
    int | None,
    _engine(
        "Most passes of the model between two looks at the queue, where compiled code runs them in one call.",
        show_default="64",
    ),
]
NoPrefixCache = Annotated[bool, _engine("Share no blocks between prompts.", "--no-prefix-cache")]


@dataclass(frozen=True)
class ModelChoice:
    """Which model, and where."""

    model: Model = None
    dtype: Dtype = None
    device: Device = None
    quantization: Quantization = None
    threads: Threads = None


@dataclass(frozen=True)
class Drafting:
    """Who guesses, and how much."""

    drafter: Drafter = None
    num_speculative_tokens: NumSpeculativeTokens = None
    latency_weight: LatencyWeight = None


@dataclass(frozen=True)
class Modules:
    """What belongs to the drafter mtp."""

    mtp_modules: MtpModules = None
    draft_model: DraftModel = None
    draft_quantization: DraftQuantization = None
    draft_window: DraftWindow = None


@dataclass(frozen=True)
class Lookup:
    """What belongs to the drafter ngram; and the way in which users of vLLM say all of it."""

    ngram_min: NgramMin = None
    ngram_max: NgramMax = None
    speculative_config: SpeculativeConfig = None


@dataclass(frozen=True)
class Sizes:
    """What the engine holds."""

    block_size: BlockSize = None
    num_blocks: NumBlocks = None
    max_num_seqs: MaxNumSeqs = None
    max_num_batched_tokens: MaxNumBatchedTokens = None
    max_model_len: MaxModelLen = None
    num_scheduler_steps: NumSchedulerSteps = None
    no_prefix_cache: NoPrefixCache = False


_BELONGS_TO = {**dict.fromkeys(Modules.__annotations__, "mtp"), "ngram_min": "ngram", "ngram_max": "ngram"}


def given(*groups: Any) -> dict[str, Any]:
    """The options of these groups that the user gave."""
    return {name: value for group in groups for name, value in vars(group).items() if value is not None}


def engine_options(*groups: Any) -> dict[str, Any]:
    """What the user gave, as `EngineConfig` takes it."""
    chosen = given(*groups)
    if chosen.pop("no_prefix_cache", False):
        chosen["enable_prefix_caching"] = False
    if "num_speculative_tokens" in chosen:
        chosen["num_speculative_tokens"] = draft_count(chosen["num_speculative_tokens"])
    if "speculative_config" in chosen:
        chosen["speculative_config"] = parse_speculative_config(chosen["speculative_config"])
    return chosen


def draft_count(text: str | int) -> int | str:
    """A number where it is one; `EngineConfig` tells of everything else but "auto"."""
    return int(text) if str(text).lstrip("-").isdecimal() else text


def refuse_idle_options(*groups: Any) -> None:
    """Raises `UserError` for an option that the chosen drafter would not look at."""
    chosen = given(*groups)
    drafter = chosen.get("drafter")
    if "speculative_config" in chosen:
        _refuse_twice(chosen)
        drafter = speculation_options(parse_speculative_config(chosen["speculative_config"]))["drafter"]
    if drafter == "none" and chosen.get("num_speculative_tokens", "0") != "0":
        raise UserError("--drafter none guesses nothing; leave -k out, or name another drafter.")
    for name, owner in _BELONGS_TO.items():
        if name in chosen and owner not in (drafter or "mtp").split(","):
            raise UserError(f"{flag(name)} belongs to --drafter {owner}; add that, or leave {flag(name)} out.")


def _refuse_twice(chosen: dict[str, Any]) -> None:
    for name in KEYS.values():
        if name in chosen:
            raise UserError(f"{flag(name)} and --speculative-config exclude each other; give one of them.")


def flag(name: str) -> str:
    """Example: flag("draft_model") = "--draft-model"."""
    return "--" + name.replace("_", "-")
