"""What a server's /metrics says, and what changed between two looks at it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from paceline.errors import UserError

PATIENCE = 5.0  # seconds for an answer
MAX_PAGE = 8 << 20
_SAMPLE = re.compile(r"^paceline:(\w+?)(?:\{(.*)\})? ([^ ]+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Unreachable(UserError):
    """There is no server, or it does not answer with numbers."""


@dataclass(frozen=True)
class Page:
    """`samples`: by name, each with its labels. `at`: seconds of a clock that only goes forward."""

    samples: Mapping[str, list[tuple[dict[str, str], float]]] = field(default_factory=dict)
    at: float = 0.0

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples with these labels; 0 without any."""
        return sum(value for found, value in self.samples.get(name, ()) if labels.items() <= found.items())

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """The same for each value of `label`, in order of the values (numbers as numbers)."""
        values = {found[label] for found, _ in self.samples.get(name, ()) if label in found}
        ordered = sorted(values, key=lambda value: (not value.isdecimal(), value.zfill(9)))
        return {value: self.total(name, **{label: value}, **labels) for value in ordered}

    def since(self, before: Page) -> Page:
        """What was added to each sample, over so many seconds; a counter that began again counts from zero."""
        old = {(name, *sorted(found.items())): value for name, all_ in before.samples.items() for found, value in all_}
        new: dict[str, list[tuple[dict[str, str], float]]] = {}
        for name, samples in self.samples.items():
            for found, value in samples:
                was = old.get((name, *sorted(found.items())), 0.0)
                new.setdefault(name, []).append((found, value - was if value >= was else value))
        return Page(new, self.at - before.at)

    def quantile(self, name: str, share: float) -> float | None:
        """Of a histogram, as Prometheus estimates it: by a straight line within the bucket; None when it is empty.

        Example: buckets up to 1 and up to 2 with 1 and 2 samples below: the median is 1."""
        buckets = {float(edge): count for edge, count in self.by(f"{name}_bucket", "le").items()}
        wanted = share * max(buckets.values(), default=0.0)
        low = below = 0.0
        for edge in sorted(buckets) if wanted else ():
            if buckets[edge] >= wanted:
                inside = buckets[edge] - below
                return low if edge == float("inf") else low + (edge - low) * (wanted - below) / inside
            low, below = edge, buckets[edge]
        return None


def parsed(text: str, at: float) -> Page:
    """A page in Prometheus' text format; lines that are no number of ours are skipped."""
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for name, labels, value in _SAMPLE.findall(text):
        try:
            samples.setdefault(name, []).append((dict(_LABEL.findall(labels)), float(value)))
        except ValueError:
            continue
    return Page(samples, at)


def scrape(url: str, key: str | None) -> Page:
    """Raises `Unreachable` when there is no such server, `UserError` for a URL that is none, or a key that is wrong."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url!r} is no address of a server; give one as http://127.0.0.1:8000.")
    request = Request(url.rstrip("/") + "/metrics", headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urlopen(request, timeout=PATIENCE) as answer:
            page = parsed(answer.read(MAX_PAGE).decode("utf-8", "replace"), time.monotonic())
    except HTTPError as error:
        if error.code == 401:
            raise UserError(f"The server at {url} asks for a key; give it with --api-key.") from None
        raise Unreachable(f"The server at {url} answers with status {error.code}; is it paceline serve?") from None
    except (URLError, HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise Unreachable(
            f"No server answers at {url} ({reason}); start one with paceline serve, or name it with --url."
        ) from None
    if "engine_up" not in page.samples:
        raise Unreachable(f"What answers at {url} is no Paceline; name the server with --url.")
    return page
