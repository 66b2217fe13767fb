"""The one error and the one warning shown to users: a single clear sentence that names the thing and the mend."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class UserError(ValueError):
    """Bad flag, checkpoint, file or request. Commands print it and exit with 2; a server answers 400."""


class PacelineWarning(UserWarning):
    """Something is odd, and the work goes on. Commands print it on stderr; nothing is said twice."""


@contextmanager
def as_exit_code() -> Iterator[None]:
    """Around a command: a user's mistake is one sentence on stderr and exit 2; an interrupt is exit 130.

    Our own warnings are one sentence as well."""
    try:
        with _plain_warnings():
            yield
    except UserError as error:
        print(f"paceline: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, PacelineWarning):
                print(f"paceline: {message}", file=sys.stderr)
            else:
                usual(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield
