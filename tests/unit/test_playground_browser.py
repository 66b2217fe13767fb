"""The playground in headless Chromium, against a server with the bundled model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from servers import Served, serving, until

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[browser]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]

QUESTION = "Tell me about yourself."
LONG = 'Write a short story titled "The Staring Game".'  # its answer goes on and on
CHAT = "**/v1/chat/completions"
PATIENCE = 30_000  # milliseconds


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("serve") / "log", "--threads", "1") as served:
        yield served


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def options() -> dict[str, Any]:
    """Of the browser's context; tests give their own with `parametrize`."""
    return {}


@pytest.fixture
def page(server: Served, chromium: Any, options: dict[str, Any]) -> Iterator[Any]:
    """The page, ready. At the end: no error on its console, and no request to anybody but the server."""
    context = chromium.new_context(**options)
    context.set_default_timeout(PATIENCE)
    found = context.new_page()
    errors, elsewhere = [], []
    found.on("pageerror", lambda error: errors.append(str(error)))
    found.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    found.on("request", lambda asked: None if asked.url.startswith(server.url) else elsewhere.append(asked.url))
    open_page(found, server)
    yield found
    context.close()
    assert not elsewhere
    assert not [error for error in errors if "Failed to load resource" not in error]  # of a request that has to fail


def open_page(page: Any, server: Served) -> None:
    page.goto(server.url + "/")
    page.locator("#drafter option").first.wait_for(state="attached")


def ask(page: Any, text: str = QUESTION, length: int = 40) -> None:
    page.fill("#length", str(length))
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def wait_for_end(page: Any) -> None:
    page.locator("#send").wait_for(state="visible")


def answer_of(page: Any) -> str:
    return str(page.locator(".answer .text").last.text_content())


def test_it_loads_and_offers_what_the_server_has(page: Any, server: Served) -> None:
    assert page.title() == "Paceline playground" and page.text_content("#model") == "paceline-16m"
    api.expect(page.locator("#state")).to_have_text("ready")
    told = server.http.get("/v1/models").json()["data"][0]["speculation"]
    drafters = page.eval_on_selector_all("#drafter option", "all => all.map((one) => one.value)")
    assert drafters == told["drafters"] and {"mtp", "none"} <= set(drafters)
    widths = page.eval_on_selector_all("#drafts option", "all => all.map((one) => one.value)")
    assert widths == ["auto", *map(str, range(told["num_speculative_tokens"] + 1))]
    for label in (
        "Message",
        "Drafter",
        "Drafts at a time (k)",
        "Temperature",
        "Seed",
        "Longest answer",
        "Send earlier messages",
    ):
        assert page.get_by_label(label, exact=True).count() == 1
    assert page.locator("#legend li").count() == 7


def test_an_answer_streams_and_is_the_servers(page: Any, server: Served) -> None:
    page.fill("#seed", "17")
    page.select_option("#drafts", "1")
    ask(page, LONG, length=1200)
    page.locator(".answer .token").nth(3).wait_for()
    assert page.locator("#stop").is_visible(), "it was not written bit by bit"
    wait_for_end(page)
    body = {"messages": [{"role": "user", "content": LONG}], "temperature": 0, "max_tokens": 1200}
    assert answer_of(page) == server.answer("/v1/chat/completions", body)["choices"][0]["message"]["content"]
    facts = page.locator(".facts").last.text_content()
    assert "tokens/s" in facts and "of drafts accepted" in facts and "seed 17" in facts
    assert page.locator(".answer .token.d1").count() and page.locator(".answer .token.target").count()


def test_switches_reach_the_server(page: Any) -> None:
    sent: list[dict[str, Any]] = []
    page.on("request", lambda asked: sent.append(json.loads(asked.post_data)) if asked.post_data else None)
    page.select_option("#drafts", "2")
    page.fill("#temperature", "0.7")
    page.fill("#seed", "5")
    ask(page, length=12)
    wait_for_end(page)
    page.select_option("#drafter", "none")
    assert page.is_disabled("#drafts")
    page.fill("#seed", "")
    ask(page, length=12)
    wait_for_end(page)
    page.uncheck("#memory")
    ask(page, length=12)
    wait_for_end(page)
    first, second, alone = sent
    assert first["speculation"] == {"drafter": "mtp", "num_speculative_tokens": 2}
    assert (first["temperature"], first["seed"], first["max_tokens"]) == (0.7, 5, 12)
    assert second["speculation"] == {"drafter": "none"} and 0 <= second["seed"] < 2**32
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
    assert alone["messages"] == [{"role": "user", "content": QUESTION}]
    assert page.locator(".answer").last.locator(".token:not(.target)").count() == 0


def test_stop_ends_the_answer_here_and_on_the_server(page: Any, server: Served) -> None:
    page.select_option("#drafter", "none")
    ask(page, LONG, length=1900)
    page.locator(".answer .token").nth(3).wait_for()
    page.click("#stop")
    wait_for_end(page)
    assert "stopped" in page.locator(".facts").last.text_content()
    until(lambda: server.metric("num_requests_running") == 0, "the answer goes on")
    kept = answer_of(page)
    page.reload()
    page.locator(".answer .token").first.wait_for()
    assert answer_of(page) == kept


def test_stop_before_the_first_token_gives_the_question_back(page: Any) -> None:
    page.route(CHAT, lambda route: None)  # never answered
    ask(page, "A question")
    page.locator("#stop").wait_for(state="visible")
    page.press("#prompt", "Escape")
    wait_for_end(page)
    assert page.input_value("#prompt") == "A question" and page.locator(".asked").count() == 0


def test_a_race_tells_the_ratio_and_the_same_text(page: Any) -> None:
    page.fill("#length", "40")
    page.fill("#temperature", "0.8")
    page.select_option("#drafts", "3")  # a fixed number: auto may rest where a busy clock says so
    page.fill("#prompt", QUESTION)
    page.click("#race")
    api.expect(page.locator(".same")).to_contain_text("same text")
    assert page.locator(".verdict strong").text_content().endswith("\N{MULTIPLICATION SIGN}")
    plain, speculated = page.locator(".lane .text").all_text_contents()
    assert plain and plain == speculated
    assert page.locator(".lane").first.locator(".token:not(.target)").count() == 0
    assert page.locator(".lane").last.locator(".token:not(.target)").count() > 0
    page.click("text=Race again")
    api.expect(page.locator(".rounds tbody tr")).to_have_count(2)
    page.locator("#send").wait_for()
    assert page.locator(".race").count() == 1
    page.reload()
    api.expect(page.locator(".rounds tbody tr")).to_have_count(2)


def test_a_reload_keeps_the_conversation_and_the_settings(page: Any) -> None:
    page.fill("#seed", "77")
    page.select_option("#drafts", "1")
    page.uncheck("#memory")
    ask(page)
    wait_for_end(page)
    before = page.locator(".log").inner_html()
    page.reload()
    page.locator("#drafter option").first.wait_for(state="attached")
    assert page.locator(".log").inner_html() == before
    assert (page.input_value("#seed"), page.input_value("#drafts")) == ("77", "1")
    assert not page.is_checked("#memory")
    page.click("#new")
    page.reload()
    assert page.locator(".asked").count() == 0 and page.locator("#empty").is_visible()


@pytest.mark.parametrize(
    "stored",
    ["{", "[]", '"text"', '{"turns": 3}', '{"turns": [{"role": "assistant"}, {"role": "race", "rounds": [1]}, null]}'],
)
def test_whatever_the_storage_holds_the_page_works(page: Any, server: Served, stored: str) -> None:
    page.evaluate("text => localStorage.setItem('paceline.playground.1', text)", stored)
    open_page(page, server)
    assert page.locator("#empty").is_visible()


def test_it_works_without_storage(page: Any, server: Served) -> None:
    page.add_init_script("Storage.prototype.setItem = Storage.prototype.getItem = () => { throw new Error('no'); }")
    open_page(page, server)
    page.click("#theme")
    ask(page, length=8)
    wait_for_end(page)
    assert answer_of(page)


def refuse(status: int, sentence: str, headers: dict[str, str] | None = None) -> Any:
    body = json.dumps({"error": {"message": sentence}})
    return lambda route: route.fulfill(status=status, body=body, headers=headers or {})


def test_a_full_server_is_told_and_asked_again_after_the_time_it_wants(page: Any) -> None:
    page.route(CHAT, refuse(429, "The server is full; try again.", {"Retry-After": "1"}))
    ask(page)
    api.expect(page.locator("#banner")).to_contain_text("The server is full; try again.")
    retry = page.locator("#banner button").first
    assert page.get_by_role("alert").count() == 1 and retry.is_disabled()
    page.unroute(CHAT)
    api.expect(retry).to_have_text("Retry")
    retry.click()
    wait_for_end(page)
    assert answer_of(page) and page.locator("#banner").is_hidden() and page.locator(".asked").count() == 1


@pytest.mark.parametrize(
    ("handle", "sentence"),
    [
        (lambda route: route.abort(), "cannot be reached"),
        (lambda route: route.fulfill(status=500, body="<html>"), "status 500"),
        (lambda route: route.fulfill(status=200, body='data: {"choices": []'), "ended in the middle"),
        (lambda route: route.fulfill(status=200, body='data: {"error": {"message": "It died."}}\n\n'), "It died."),
    ],
)
def test_every_failure_is_one_sentence_and_a_retry(page: Any, handle: Any, sentence: str) -> None:
    page.route(CHAT, handle)
    ask(page)
    api.expect(page.locator("#banner")).to_contain_text(sentence)
    page.unroute(CHAT)
    page.click("#banner >> text=Retry")
    wait_for_end(page)
    assert page.locator(".answer").count() == 1 and answer_of(page)


def test_what_the_server_refuses_is_told_in_its_words(page: Any) -> None:
    ask(page, "word " * 4000)
    api.expect(page.locator("#banner")).to_contain_text("shorten the prompt")
    page.click("#banner >> role=button[name='Dismiss']")
    assert page.locator("#banner").is_hidden()


def test_a_key_is_asked_for_and_goes_with_every_request(page: Any) -> None:
    sent: list[str | None] = []

    def handle(route: Any) -> None:
        sent.append(route.request.headers.get("authorization"))
        refuse(401, "This server asks for a key.")(route) if sent[-1] is None else route.continue_()

    page.route(CHAT, handle)
    ask(page)
    page.fill("#banner input", "a-key")
    page.press("#banner input", "Enter")
    wait_for_end(page)
    assert answer_of(page) and sent == [None, "Bearer a-key"]


def test_everything_can_be_done_with_keys(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.select_option("#drafts", "4")
    page.focus(".skip")
    page.keyboard.press("Enter")
    api.expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("Add up these numbers step by step: 87, 66, 84, 98.")
    page.keyboard.press("Enter")
    wait_for_end(page)
    for _ in range(4):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.classList.contains('token')"):
            break
    card = page.locator("#inspector")
    api.expect(card).to_contain_text("%")
    first = page.evaluate("document.activeElement.textContent")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.previousSibling.textContent") == first
    assert page.locator("#said").text_content().startswith("“")
    page.keyboard.press("ArrowDown")
    api.expect(card).to_contain_text("rejected")
    assert "rejected" in page.evaluate("document.activeElement.className")
    page.keyboard.press("Escape")
    assert card.is_hidden()
    assert page.locator('.answer .token[tabindex="0"]').count() == 1


def test_hovering_tells_who_wrote_a_token(page: Any) -> None:
    page.select_option("#drafts", "3")  # auto may rest where a busy clock says so
    ask(page)
    wait_for_end(page)
    card = page.locator("#inspector")
    for _ in range(5):  # the end of an answer may scroll the token away from under the pointer
        page.mouse.move(0, 0)
        page.locator(".token.d1").first.hover()
        if card.is_visible():
            break
    api.expect(card).to_contain_text("Accepted MTP draft, depth 1")
    box, window = card.bounding_box(), page.viewport_size
    assert box["x"] >= 0 and box["x"] + box["width"] <= window["width"]
    assert box["y"] >= 0 and box["y"] + box["height"] <= window["height"]


def test_text_never_becomes_markup(page: Any) -> None:
    text = "<img src=x onerror=\"document.title='broken'\"><b>bold</b>"
    ask(page, text, length=4)
    wait_for_end(page)
    assert page.locator(".asked").text_content() == text and page.locator(".asked *").count() == 0
    assert page.title() == "Paceline playground"


LUMINANCE = """(names) => {
  const probe = document.body.appendChild(document.createElement("i"));
  const channel = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const found = names.map((name) => {
    probe.style.color = `var(--${name})`;
    const [r, g, b] = getComputedStyle(probe).color.match(/[0-9.]+/g).map(Number).map(channel);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  });
  probe.remove();
  return found;
}"""


@pytest.mark.parametrize("options", [{"color_scheme": "light"}, {"color_scheme": "dark"}], ids=["light", "dark"])
def test_it_is_light_or_dark_as_the_system_says_until_told_otherwise(page: Any, options: dict[str, Any]) -> None:
    """In both, text stands out as WCAG AA asks for (4.5 to 1), and underlines as it asks of graphics (3 to 1)."""

    def contrast(front: str, back: str) -> float:
        low, high = sorted(page.evaluate(LUMINANCE, [front, back]))
        return float((high + 0.05) / (low + 0.05))

    def dark() -> bool:
        return bool(page.evaluate(LUMINANCE, ["page"])[0] < 0.5)

    assert dark() == (options["color_scheme"] == "dark")
    for click in ("light", "dark", "auto"):
        page.click("#theme")
        assert dark() == ((options["color_scheme"] if click == "auto" else click) == "dark")
        for back in ("page", "surface"):
            assert min(contrast(name, back) for name in ("text", "muted", "accent", "good")) >= 4.5
            assert min(contrast(name, back) for name in ("d1", "d2", "d3", "d4", "ngram", "refused")) >= 3
        assert contrast("bad", "bad-tint") >= 4.5 and contrast("on-accent", "accent") >= 4.5
    page.click("#theme")
    page.reload()
    assert not dark()


@pytest.mark.parametrize("options", [{"viewport": {"width": 360, "height": 640}, "has_touch": True}])
def test_a_phone_needs_no_horizontal_scroll(page: Any) -> None:
    def fits() -> bool:
        return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))

    assert fits()
    page.evaluate("document.getElementById('panel-switch').click()")
    assert fits() and page.locator("#panel").is_visible() and not page.locator("#composer").is_visible()
    page.fill("#length", "40")
    page.click("#panel-switch")
    assert page.locator("#composer").is_visible()
    page.fill("#prompt", "unbreakable" * 30)
    page.click("#race")
    api.expect(page.locator(".same")).to_be_visible()
    wait_for_end(page)
    assert fits()
    page.locator(".token").first.tap()
    assert fits() and page.locator("#inspector").is_visible()


def test_the_panel_follows_the_server(page: Any) -> None:
    ask(page, length=60)
    wait_for_end(page)
    bars = page.locator("#live .bars")
    for title in ("Accepted, by position", "Drafts at a time"):
        api.expect(page.locator(f"#live [role=img][aria-label^='{title}: ']")).to_have_attribute(
            "aria-label", re.compile("%")
        )
    assert bars.count() == 3


NUMBERS = """async ([before, after]) => {
  const { look, rate, acceptance, widths } = await import("/playground/metrics.js");
  const [one, two] = [look(before, 10), look(after, 12)];
  return { two, rate: rate(one, two), acceptance: acceptance(one, two), widths: widths(one, two) };
}"""


def exposition(generated: int, widths: list[int], drafted: list[int], accepted: list[int]) -> str:
    lines = ["# HELP paceline:x y", f'paceline:generation_tokens_total{{model_name="a \\"b\\", c"}} {generated}.0']
    lines += ['paceline:num_requests_running{model_name="m"} 2.0', "go_threads 9"]
    named = (
        ("draft_tokens_per_pos", "position", drafted),
        ("accepted_tokens_per_pos", "position", accepted),
        ("drafts_per_width", "width", widths),
    )
    for name, label, counts in named:
        start = f'paceline:spec_decode_num_{name}_total{{drafter="mtp",model_name="m",{label}='
        lines += [f'{start}"{at}"}} {count}' for at, count in enumerate(counts)]
        lines += [f'{start.replace("mtp", "ngram")}"0"}} 1.0']
    return "\n".join(lines) + "\n"


def test_numbers_come_from_two_looks_at_the_metrics(page: Any) -> None:
    """Lists may have grown between them, and drafters are added up."""
    before = exposition(100, [0, 5], [5], [4])
    found = page.evaluate(NUMBERS, [before, exposition(160, [2, 8, 5, 0], [13, 5], [10, 2])])
    assert found["rate"] == 30 and found["two"]["running"] == 2 and found["two"]["generated"] == 160
    assert found["acceptance"] == [6 / 8, 2 / 5]
    assert found["widths"] == pytest.approx([0.2, 0.3, 0.5])
