"""The tables of flags in words: for --help, and for docs/compat.md, which a test keeps equal to them."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.compat.flags import Flag, shown_value


def asks_for_help(words: Sequence[str]) -> bool:
    return bool({"-h", "-help", "--help"} & set(words))


def help_text(usage: str, flags: Sequence[Flag]) -> str:
    """What --help prints: one line a flag."""
    width = max(len(flag.name) for flag in flags)
    return "\n".join([usage, "", *(f"  --{flag.name:<{width}}  {meaning(flag)}{_unless(flag)}" for flag in flags)])


def markdown(flags: Sequence[Flag]) -> str:
    """A table with the columns flag, default, here. Flags of which the same is said share a row."""
    rows: dict[tuple[str, str], list[str]] = {}
    for flag in flags:
        default = "" if flag.default is None else f"`{shown_value(flag.default) or 'none'}`"
        rows.setdefault((default, meaning(flag)), []).append(f"`--{flag.name}`{_unless(flag)}")
    lines = [f"| {', '.join(named)} | {default} | {said} |" for (default, said), named in rows.items()]
    return "\n".join(["| flag | if not given | here |", "|---|---|---|", *lines]) + "\n"


def meaning(flag: Flag) -> str:
    """What becomes of a flag, in one line."""
    parts = [part for part in (f"as {flag.to}" if flag.to else "", _words(flag), flag.help) if part]
    parts += [f"refused: {flag.refuse}"] if flag.refuse else [f"noted: {flag.note}"] if flag.note else []
    return "; ".join(parts)


def _unless(flag: Flag) -> str:
    """The values of which nothing is to be said."""
    shown = " and ".join(shown_value(value) for value in flag.fits if value != "")
    return f" (unless {shown})" if shown else ""


def _words(flag: Flag) -> str:
    """Example: `weight_only_int8 is int8, a8w8_fp8 is fp8`."""
    return ", ".join(
        f"{word} is {here or 'none'}" for word, here in (flag.words or {}).items() if word and word != here
    )
