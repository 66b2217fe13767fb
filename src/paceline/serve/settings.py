"""How the server runs: frozen, with one home for each default."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from paceline.checkpoint.resolve import BUNDLED
from paceline.errors import UserError

# PaddleNLP's published requests name the model so.
DEFAULT_NAME = "default"


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """`options`: keywords of `LLM` for the engine process. `api_keys`: empty lets everybody in. Seconds: `timeout` for
    a whole request, `drain` for those that are open when the server is asked to stop, `interval` between the chunks of
    a stream: what faster steps bring is sent together. `max_queue`: answers that may
    wait beyond those that run. `served_names`: what clients may call the model, the first one is shown to them.

    Raises `UserError` for a value that makes no sense."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    served_names: tuple[str, ...] = (BUNDLED,)
    max_queue: int = 256
    timeout: float = 600.0
    drain: float = 60.0
    interval: float = 0.05
    max_body_mib: int = 8
    log_requests: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks = (
            (0 <= self.port <= 65535, "--port must lie between 0 and 65535"),
            (all(re.fullmatch(r"[\x21-\x7e]+", key) for key in self.api_keys), "--api-key takes plain ASCII, no blank"),
            (bool(self.served_names) and all(self.served_names), "--served-model-name must not be empty"),
            (0 <= self.max_queue <= 1 << 20, "--max-queue must lie between 0 and 1048576"),
            (0 < self.timeout < float("inf"), "--request-timeout must be above 0, and finite"),
            (0 <= self.drain < float("inf"), "--drain-timeout must be 0 or more, and finite"),
            (0 <= self.interval <= 60, "--chunk-interval must lie between 0 and 60 seconds"),
            (1 <= self.max_body_mib <= 1024, "--max-body-mib must lie between 1 and 1024"),
        )
        for good, sentence in checks:
            if not good:
                raise UserError(sentence + ".")
