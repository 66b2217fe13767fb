"""The one error that is shown to users: a single clear sentence that names the thing and the mend."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Bad flag, checkpoint, file or request. Commands print it and exit with 2; a server answers 400."""


@contextmanager
def as_exit_code() -> Iterator[None]:
    """Around a command: a user's mistake is one sentence on stderr and exit 2; an interrupt is exit 130."""
    try:
        yield
    except UserError as error:
        print(f"paceline: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
