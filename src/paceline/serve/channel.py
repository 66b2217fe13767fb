"""The engine process's end of two pipes: messages in, without waiting while there is work, and messages out."""

from __future__ import annotations

import os
import select
import sys
from typing import Self

from pydantic import BaseModel

from paceline.serve.messages import Abort, Add, Start, to_engine, to_line

_READ = 1 << 20


class Channel:
    """`closed` once the other side has hung up, which is how it says that the work is over."""

    def __init__(self, source: int, target: int) -> None:
        self._source, self._target = source, target
        self._rest = b""
        self.closed = False

    @classmethod
    def of_standard_streams(cls) -> Self:
        """stdin and stdout are the channel from now on; what any library prints goes to stderr."""
        source, target = os.dup(0), os.dup(1)
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(sys.stderr.fileno(), 1)
        return cls(source, target)

    def receive(self, wait: bool) -> list[Start | Add | Abort]:
        """All messages that are there; with `wait` at least one, unless the other side has hung up."""
        found: list[Start | Add | Abort] = []
        while not self.closed and select.select([self._source], [], [], None if wait and not found else 0)[0]:
            data = os.read(self._source, _READ)
            self.closed = not data
            *lines, self._rest = (self._rest + data).split(b"\n")
            found += map(to_engine, lines)
        return found

    def send(self, message: BaseModel) -> None:
        """A reader that has gone is noticed by `receive`."""
        data = memoryview(to_line(message))
        try:
            while data:
                data = data[os.write(self._target, data) :]
        except BrokenPipeError:
            self.closed = True
