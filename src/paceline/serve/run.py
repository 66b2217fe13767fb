"""From settings to a server that listens, and back: the port, the engine, signals, and the drain at the end."""

from __future__ import annotations

import asyncio
import gc
import socket
from pathlib import Path
from types import FrameType

import uvicorn
from uvicorn.loops.auto import auto_loop_factory

from paceline.errors import UserError
from paceline.serve.app import make_app
from paceline.serve.client import EngineClient
from paceline.serve.cores import available, engine_threads
from paceline.serve.log import say
from paceline.serve.metrics import Metrics
from paceline.serve.settings import ServerSettings
from paceline.serve.state import State
from paceline.tokenizer import Tokenizer


class Server(uvicorn.Server):
    """The first signal drains, the second one stops at once."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def run(model: Path, settings: ServerSettings) -> None:
    """Serves the model in that directory until a signal comes. Raises `UserError` when the port is taken, or the engine
    cannot start."""
    loops = asyncio.Runner(loop_factory=auto_loop_factory())
    with _bound(settings.host, settings.port) as listener, loops as runner:
        runner.run(_serve(model, settings, listener))


async def _serve(model: Path, settings: ServerSettings, listener: socket.socket) -> None:
    tokenizer = Tokenizer.from_dir(model)
    metrics = Metrics(settings.served_names[0])
    options = {"threads": engine_threads(len(available()))} | settings.options | {"model": str(model)}
    client = EngineClient(options, settings.max_queue, settings.timeout, metrics, interval=settings.interval)
    await client.start()
    try:
        config = uvicorn.Config(
            make_app(State(settings, client, tokenizer, metrics)),
            log_level="warning",
            access_log=False,  # `RequestLog` writes its own
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=max(1, round(settings.drain)),
        )
        gc.freeze()  # what is here by now stays, and need not be searched for garbage
        _announce(settings, listener, client)
        await Server(config).serve(sockets=[listener])
    finally:
        await client.stop()


def _bound(host: str, port: int) -> socket.socket:
    """Taken before the model is loaded; until it listens, clients are refused."""
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        return listener
    except OSError as error:
        if listener is not None:
            listener.close()
        raise UserError(
            f"The server cannot listen on {host} port {port} ({error.strerror}): choose another --port or --host."
        ) from None


def _announce(settings: ServerSettings, listener: socket.socket, client: EngineClient) -> None:
    listener.listen()  # what is announced can be reached: who comes before uvicorn does waits a moment
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    facts = client.facts
    drafts = f"{facts.drafter}, {'up to ' if facts.auto else ''}{facts.num_speculative_tokens} tokens at a time"
    say(f"paceline: {settings.served_names[0]} at http://{shown}:{port}/v1 ({drafts})")
