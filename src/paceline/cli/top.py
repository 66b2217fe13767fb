"""`paceline top`: a server's numbers, live in the terminal."""

from __future__ import annotations

import os
import time
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from paceline.cli.scraped import Page, Unreachable, scrape
from paceline.cli.serve import KEY_VARIABLE

BAR = 30  # characters of a full bar
HOST = ("schedule", "assemble", "verify", "commit")


def top(
    url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:8000",
    api_key: Annotated[
        str | None, typer.Option(help="Its key.", show_default=f"the variable {KEY_VARIABLE}, if there is one")
    ] = None,
    interval: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1, max=3600.0)] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame, then end.")] = False,
) -> None:
    """Show what a server does right now: speed, latencies, acceptance, widths, memory, where the time goes."""
    key = api_key or os.environ.get(KEY_VARIABLE)
    console, before = Console(), scrape(url, key)
    if once:
        time.sleep(interval)
        console.print(frame(before, scrape(url, key), url))
        return
    with Live(frame(before, before, url), console=console, auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(interval)
            try:
                now = scrape(url, key)
            except Unreachable as error:  # it may be starting again
                live.update(Panel(Text(str(error), style="bold red"), title="paceline top"), refresh=True)
                before = Page()
                continue
            live.update(frame(before, now, url), refresh=True)
            before = now


def frame(before: Page, now: Page, url: str) -> RenderableType:
    """One picture. Rates are of the time between the two looks; shares and latencies as well if anything happened
    then, else of all the time."""
    window = now.since(before)
    recent = window if window.total("engine_steps_total") else now
    model = next((labels.get("model_name", "") for labels, _ in now.samples.get("engine_up", ())), "")
    state = "up" if now.total("engine_up") else "the engine is being started again"
    parts = (_speed(window, now), _drafts(recent), _time(recent))
    return Panel(Group(*parts), title=f"paceline top   {model}   {url}   {state}", expand=False)


def _speed(window: Page, now: Page) -> Table:
    recent = window if window.total("engine_steps_total") else now
    seconds = window.at or 1.0
    table = _table()
    tokens, answers = (window.total(name) / seconds for name in ("generation_tokens_total", "request_success_total"))
    table.add_row("speed", f"{tokens:.1f} tokens/s   {answers:.2f} answers/s")
    running, waiting = now.total("num_requests_running"), now.total("num_requests_waiting")
    table.add_row("answers", f"{running:.0f} running   {waiting:.0f} waiting")
    for label, name in (("first token", "time_to_first_token_seconds"), ("between", "inter_token_latency_seconds")):
        quantiles = [(share, recent.quantile(name, share)) for share in (0.5, 0.95)]
        table.add_row(label, "   ".join(f"p{share * 100:.0f} {_milliseconds(value)}" for share, value in quantiles))
    table.add_row("KV cache", _bar(now.total("kv_cache_usage_perc")))
    hits, asked = recent.total("prefix_cache_hits_total"), recent.total("prefix_cache_queries_total")
    table.add_row("prefix hits", _bar(hits / asked if asked else 0.0))
    return table


def _drafts(recent: Page) -> Table:
    """Per drafter: what was accepted at each position, and how many drafts a verification had."""
    table, name = _table(), "spec_decode_num"
    for drafter, drafted in recent.by(f"{name}_draft_tokens_total", "drafter").items():
        verified = recent.total(f"{name}_drafts_total", drafter=drafter)
        if not drafted or not verified:
            continue
        accepted = recent.total(f"{name}_accepted_tokens_total", drafter=drafter)
        length = f"{drafted / verified:.2f} drafts, {1 + accepted / verified:.2f} tokens a verification"
        table.add_row(f"\n{drafter}", f"\n{accepted / drafted:.0%} accepted   {length}")
        offered = recent.by(f"{name}_draft_tokens_per_pos_total", "position", drafter=drafter)
        taken = recent.by(f"{name}_accepted_tokens_per_pos_total", "position", drafter=drafter)
        for position in (position for position, count in offered.items() if count):
            table.add_row(f"position {int(position) + 1}", _bar(taken.get(position, 0.0) / offered[position], "green"))
        for width, count in recent.by(f"{name}_drafts_per_width_total", "width", drafter=drafter).items():
            if count:
                table.add_row(f"width {width}", _bar(count / verified, "magenta"))
    return table


def _time(recent: Page) -> Table:
    """Where the engine's time goes: the target, the drafter, and the host for both."""
    table, parts = _table(), recent.by("engine_seconds_total", "part")
    shares = {"target": parts.get("target", 0.0), "draft": parts.get("draft", 0.0)}
    shares["host"] = sum(parts.get(part, 0.0) for part in HOST)
    whole = sum(shares.values()) or 1.0
    for number, (part, seconds) in enumerate(shares.items()):
        table.add_row("\n" * (not number) + part, Text("\n" * (not number)) + _bar(seconds / whole, "yellow"))
    return table


def _table() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", min_width=12, style="bold")
    table.add_column()
    return table


def _bar(share: float, colour: str = "cyan") -> Text:
    full = round(BAR * min(1.0, max(0.0, share)))
    return Text("█" * full, style=colour).append("·" * (BAR - full), style="dim").append(f" {share:.0%}", style="")


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"
