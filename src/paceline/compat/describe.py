"""The tables of flags in words: for --help, and for docs/compat.md, which a test keeps equal to them."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.compat.flags import Flag, shown_value


def asks_for_help(words: Sequence[str]) -> bool:
    return bool({"-h", "-help", "--help"} & set(words))


def help_text(usage: str, flags: Sequence[Flag]) -> str:
    """What --help prints: one line a flag."""
    width = max(len(flag.name) for flag in flags)
    return "\n".join([usage, "", *(f"  --{flag.name:<{width}}  {meaning(flag)}" for flag in flags)])


def markdown(flags: Sequence[Flag]) -> str:
    """A table with the columns flag, default, here."""
    rows = ["| flag | if not given | here |", "|---|---|---|"]
    for flag in flags:
        default = "" if flag.default is None else f"`{shown_value(flag.default)}`"
        rows.append(f"| `--{flag.name}` | {default} | {meaning(flag).replace('|', '/')} |")
    return "\n".join(rows) + "\n"


def meaning(flag: Flag) -> str:
    """What becomes of a flag, in one line."""
    parts = [part for part in (flag.to, _words(flag), flag.help) if part]
    only = " or ".join(shown_value(value) or "empty" for value in flag.fits)
    if flag.refuse:
        parts.append(f"only {only}: {flag.refuse}" if only else f"refused: {flag.refuse}")
    if flag.note:
        parts.append(f"{'noted unless ' + only if only else 'noted'}: {flag.note}")
    return "; ".join(parts)


def _words(flag: Flag) -> str:
    """Example: `weight_only_int8 is int8, a8w8_fp8 is fp8`."""
    return ", ".join(
        f"{word} is {here or 'none'}" for word, here in (flag.words or {}).items() if word and word != here
    )
