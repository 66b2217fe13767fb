"""A process whose stdin and stdout are messages, one a line, as the web process holds it."""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Self

from pydantic import BaseModel

from paceline.serve.channel import READ, Lines
from paceline.serve.log import log
from paceline.serve.messages import to_line

PATIENCE = 2.0  # seconds for a process to end by itself


class Child:
    """What it says is handed on line by line as soon as it can be read, in the event loop and without a task in
    between: asyncio's streams take three more turns of the loop for each message. An empty line is the end: it has
    hung up, or talked nonsense."""

    def __init__(self, process: Process, source: int, hear: Callable[[bytes], None]) -> None:
        self._process, self._source, self._hear = process, source, hear
        self._lines = Lines()
        self._unsent: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(source, self._read)
        self._reads = True

    @classmethod
    async def start(cls, command: Sequence[str], env: Mapping[str, str], hear: Callable[[bytes], None]) -> Self:
        """hear: whatever it raises is taken for nonsense in the line that it got."""
        source, target = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=target, env=env)
        except BaseException:
            os.close(source)
            raise
        finally:
            os.close(target)
        return cls(process, source, hear)

    @property
    def exit_code(self) -> int | None:
        return self._process.returncode

    def send(self, message: BaseModel) -> None:
        """With all that is sent in this turn of the event loop: requests that come together reach the engine's step
        together. Nothing happens when it has gone."""
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(to_line(message))

    async def end(self) -> None:
        """Hangs up and waits a little; then kills."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), PATIENCE)
        except TimeoutError:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        self._hang_up()

    def _flush(self) -> None:
        assert self._process.stdin is not None
        data, self._unsent = b"".join(self._unsent), []
        if not self._process.stdin.is_closing():
            self._process.stdin.write(data)

    def _read(self) -> None:
        try:
            data = os.read(self._source, READ)
            for line in self._lines.push(data):
                self._hear(line)
        except Exception as error:  # nobody may wait for a process that nobody reads
            log("engine_unreadable", error=str(error)[:1000])
            data = b""
        if not data:
            self._hang_up()
            self._hear(b"")

    def _hang_up(self) -> None:
        if self._reads:
            self._reads = False
            self._loop.remove_reader(self._source)
            os.close(self._source)
