"""The engine process's end of two pipes: messages in, without waiting while there is work, and messages out."""

from __future__ import annotations

import os
import select
import sys
from typing import Self

from pydantic import BaseModel

from paceline.serve.messages import Abort, Add, Start, to_engine, to_line

READ = 1 << 20  # bytes at a time


class Lines:
    """Bytes in any pieces to whole lines, in time linear in the bytes."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []  # of the line that has not ended

    def push(self, data: bytes) -> list[bytes]:
        """The lines that have ended, without their ends."""
        first, *others = data.split(b"\n")
        self._parts.append(first)
        if not others:
            return []
        line, self._parts = b"".join(self._parts), [others.pop()]
        return [line, *others]


class Channel:
    """`closed` once the other side has hung up, which is how it says that the work is over."""

    def __init__(self, source: int, target: int) -> None:
        self._source, self._target = source, target
        self._lines = Lines()
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
            data = os.read(self._source, READ)
            self.closed = not data
            found += map(to_engine, self._lines.push(data))
        return found

    def send(self, *messages: BaseModel) -> None:
        """All at once, so that the reader wakes up once. A reader that has gone is noticed by `receive`."""
        data = memoryview(b"".join(map(to_line, messages)))
        try:
            while data:
                data = data[os.write(self._target, data) :]
        except BrokenPipeError:
            self.closed = True
