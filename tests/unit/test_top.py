"""`paceline top`: what it makes of a server's numbers, and what it says when there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import StringIO
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_pages import busy_page
from rich.console import Console
from typer.testing import CliRunner

from paceline.cli.main import make_app
from paceline.cli.scraped import Page, Unreachable, parsed, scrape
from paceline.cli.top import frame
from paceline.errors import UserError


@contextmanager
def answering(body: bytes, status: int = 200) -> Iterator[str]:
    """A server that always answers so; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def shown(before: Page, now: Page) -> str:
    console = Console(width=120, file=StringIO())
    console.print(frame(before, now, "http://there"))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_once_prints_one_frame() -> None:
    with answering(busy_page().encode()) as url:
        result = CliRunner().invoke(make_app(), ["top", "--once", "--interval", "0.1", "--url", url])
    assert result.exit_code == 0, result.output
    for words in ("1 running", "mtp", "position 1", "position 3", "width 3", "target", "host", "KV cache"):
        assert words in result.output, words
    assert "67% accepted" in result.output  # of three drafts two


def test_rates_are_of_the_window() -> None:
    page = parsed(busy_page(), 10.0)
    later = {name: [(labels, value * 3) for labels, value in all_] for name, all_ in page.samples.items()}
    text = shown(page, Page(later, 12.0))
    assert "2.0 tokens/s" in text and "1.00 answers/s" in text  # in two seconds


def test_a_server_that_began_again_counts_from_zero() -> None:
    page = parsed(busy_page(), 10.0)
    more = {name: [(labels, value * 9) for labels, value in all_] for name, all_ in page.samples.items()}
    assert page.since(Page(more, 8.0)).total("generation_tokens_total") == 2.0
    assert "1.0 tokens/s" in shown(Page(more, 8.0), page)


def test_it_outlives_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """While nobody answers it says so, and goes on when somebody does."""
    page = parsed(busy_page(), 1.0)
    seen: list[int] = []

    def look(url: str, key: str | None) -> Page:
        seen.append(len(seen))
        if len(seen) in (3, 4):
            raise Unreachable("Nobody is there.")
        if len(seen) == 7:
            raise KeyboardInterrupt
        return page

    monkeypatch.setattr("paceline.cli.top.scrape", look)
    result = CliRunner().invoke(make_app(), ["top", "--interval", "0.1"])
    assert len(seen) == 7 and result.exit_code != 1, result.output


def test_quantiles_are_those_of_the_buckets() -> None:
    lines = [f'paceline:x_bucket{{le="{edge}"}} {count}' for edge, count in (("1.0", 1), ("2.0", 3), ("+Inf", 4))]
    page = parsed("\n".join(lines), 0.0)
    assert [page.quantile("x", share) for share in (0.25, 0.5, 0.75, 1.0)] == [1.0, 1.5, 2.0, 2.0]
    assert Page().quantile("x", 0.5) is None


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from([*busy_page().splitlines(), "paceline:engine_up", "paceline:x{ 1", "\x00", "a" * 99])))
def test_any_page_makes_a_frame(lines: list[str]) -> None:
    page = parsed("\n".join(lines), 1.0)
    assert "tokens/s" in shown(Page(), page) and "tokens/s" in shown(page, page)


@pytest.mark.parametrize(
    ("status", "body", "sentence"), [(401, b"", "--api-key"), (404, b"", "404"), (200, b"hello", "no Paceline")]
)
def test_what_is_no_server_of_ours_is_told(status: int, body: bytes, sentence: str) -> None:
    with answering(body, status) as url, pytest.raises(UserError, match=sentence):
        scrape(url, None)


def test_without_a_server() -> None:
    with answering(b"") as url:
        pass
    with pytest.raises(Unreachable, match="paceline serve"):
        scrape(url, None)
    with pytest.raises(UserError, match="no address"):
        scrape("ftp://x", None)
