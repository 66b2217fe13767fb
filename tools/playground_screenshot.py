"""The picture of the playground in the README: `python tools/playground_screenshot.py docs/playground.png`.

Starts a server (or takes --url), asks a question, runs a race, and takes the picture in headless Chromium, which has to
be installed, and the Python package playwright too. Further flags go to the server.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

QUESTION = "Tell me about yourself."
RACE = "Add up these numbers step by step: 87, 66, 84, 98, 11, 12."
SERVE = (sys.executable, "-c", "from paceline.cli.main import main; main()", "serve", "--port", "0")


@contextmanager
def served(url: str | None, flags: list[str]) -> Iterator[str]:
    """The address of a server: the given one, or of one that lives as long as the picture takes."""
    if url is not None:
        yield url
        return
    with subprocess.Popen([*SERVE, *flags], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = next((match for line in process.stderr if (match := re.search(r" at (http://\S+)/v1", line))), None)
        if found is None:
            sys.exit("The server did not start.")
        try:
            yield found[1]
        finally:
            process.terminate()


def act(page: Page, rounds: int) -> None:
    """A question, a race, and a look at a place where a draft was rejected."""
    finished = page.locator("#send")
    page.locator("#memory").evaluate("box => box.click()")  # the bundled model answers single questions best
    page.fill("#prompt", QUESTION)
    page.press("#prompt", "Enter")
    finished.wait_for()
    page.fill("#prompt", RACE)
    page.click("#race")
    finished.wait_for()
    for _ in range(rounds - 1):
        page.click("text=Race again")
        page.locator("#stop").wait_for(state="hidden")
    page.mouse.move(2, 2)
    page.wait_for_timeout(2500)  # a few more points for the plots
    closest = "all => all.map((each) => each.token.rejected.logprob)"
    rejected = page.locator(".log > .answer .token.rejected")
    likely = rejected.evaluate_all(closest)
    if likely:
        rejected.nth(likely.index(max(likely))).focus()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument("--size", default="1280x1060", help="of the window, in pixels")
    parser.add_argument("--rounds", type=int, default=2, help="of the race")
    options, flags = parser.parse_known_args()
    width, height = map(int, options.size.split("x"))
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with served(options.url, flags) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=options.scheme)
        page.goto(url)
        page.locator("#state[data-state=up]").wait_for(state="attached")
        act(page, options.rounds)
        page.screenshot(path=options.out)
        browser.close()


if __name__ == "__main__":
    main()
