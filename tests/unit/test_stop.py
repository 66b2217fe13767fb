"""Where requests end, and what text is shown until then."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paceline.engine.stop import Ending, TextStream
from paceline.request import Request, SamplingParams


class Pieces:
    """Token i is `pieces[i]`; "?" is held back until the next token, as half a character would be."""

    def __init__(self, *pieces: str) -> None:
        self.pieces, self.held = pieces, ""

    def push(self, ids: list[int]) -> str:
        text = self.held + "".join(self.pieces[i] for i in ids)
        self.held = "?" if text.endswith("?") else ""
        return text.removesuffix("?") if self.held else text

    def flush(self) -> str:
        text, self.held = self.held, ""
        return text


def ending(text: TextStream | None = None, *, prompt: int = 2, max_model_len: int = 100, **params: object) -> Ending:
    request = Request("a", [1] * prompt, prompt, SamplingParams(**params), 0)  # type: ignore[arg-type]
    return Ending(request, [0], max_model_len, text)


def test_what_may_become_a_stop_string_is_held_back() -> None:
    stream = TextStream(Pieces("a", "E", "N", "x"), ("END",))
    shown = []
    for token in range(4):
        assert not stream.append(token)
        shown.append(stream.take())
    assert shown == ["a", "", "", "ENx"]


def test_half_a_character_at_the_end_is_shown_as_it_is() -> None:
    stream = TextStream(Pieces("a", "?"), ("zz",))
    stream.append(0)
    stream.append(1)
    assert stream.take() == "a"
    stream.close()
    assert (stream.take(), stream.text) == ("?", "a?")


@given(
    st.lists(st.text("ab", min_size=0, max_size=4), min_size=1, max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
)
def test_the_text_ends_before_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    """The fewest tokens whose text has a stop string, and that text before the earliest one."""
    stream, shown, stopped_at = TextStream(Pieces(*pieces), stops), "", None
    for token in range(len(pieces)):
        if stream.append(token):
            stopped_at = token
            break
        shown += stream.take()
        assert not any(stop in shown for stop in stops)
    stream.close()
    shown += stream.take()
    for count in range(1, len(pieces) + 1):
        text = "".join(pieces[:count])
        found = [text.index(stop) for stop in stops if stop in text]
        if found:
            assert stopped_at == count - 1 and shown == stream.text == text[: min(found)]
            return
    assert stopped_at is None and shown == stream.text == "".join(pieces)


def test_tokens_after_the_end_are_dropped() -> None:
    assert ending().cut(2, [5, 0, 6, 7]) == ([5, 0], "stop")
    assert ending(stop_token_ids=(6,)).cut(2, [5, 6, 7]) == ([5, 6], "stop")
    assert ending(max_tokens=2).cut(2, [5, 6, 7]) == ([5, 6], "length")
    assert ending(max_model_len=5).cut(3, [5, 6, 7]) == ([5, 6], "length")
    assert ending(ignore_eos=True).cut(2, [5, 0, 6]) == ([5, 0, 6], None)


@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=4), max_size=5), st.integers(1, 9))
def test_looking_at_each_token_or_at_none_is_the_same(steps: list[list[int]], most: int) -> None:
    """A stop string that never comes makes it look at each."""
    texts = [TextStream(Pieces("", "a", "b?", "c"), stop) for stop in ((), ("never",))]
    quick, slow = (ending(text, max_tokens=most) for text in texts)
    length = 2
    for emitted in steps:
        kept, reason = quick.cut(length, emitted)
        assert (kept, reason) == slow.cut(length, emitted)
        assert texts[0].text == texts[1].text
        if reason is not None:
            break
        length += len(kept)


def test_nothing_stops_before_min_tokens() -> None:
    assert ending(min_tokens=3, max_tokens=9).cut(2, [0, 0, 0, 0]) == ([0, 0, 0], "stop")
    text = TextStream(Pieces("", "x", "y"), ("x",))
    assert ending(text, min_tokens=2, stop=("x",)).cut(2, [1, 2, 1]) == ([1, 2, 1], "stop")
    assert text.text == "xy"


def test_a_stop_token_is_kept_but_not_shown() -> None:
    text = TextStream(Pieces("<eos>", "a", "b"))
    assert ending(text, stop_token_ids=(2,)).cut(2, [1, 2]) == ([1, 2], "stop")
    text.close()
    assert text.text == "a"
