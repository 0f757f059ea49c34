"""The report in Chromium, light, dark and as wide as a phone: nothing runs, nothing is asked for, nothing overflows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from helpers_run_folder import write_whole_run

from modelswarms_fast.records.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(write_whole_run(tmp_path_factory.mktemp("run"))).as_uri()


def opened(browser: Any, address: str, width: int, scheme: str) -> tuple[Any, list[str]]:
    """The page, and all that happened while it was opened."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    events: list[str] = []
    page.on("dialog", lambda dialog: (events.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("pageerror", lambda error: events.append(f"error {error}"))
    page.on("console", lambda message: events.append(f"console {message.text}"))
    page.on("request", lambda request: events.append(f"request {request.url}"))
    page.goto(address)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    page.wait_for_timeout(200)
    return page, events


@pytest.mark.parametrize(("width", "scheme"), [(1000, "light"), (1000, "dark"), (400, "light"), (400, "dark")])
def test_nothing_happens_and_everything_fits(browser: Any, address: str, width: int, scheme: str) -> None:
    page, events = opened(browser, address, width, scheme)
    assert events == [f"request {address}"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # The boxes that may scroll do so by themselves; no other box holds more than it shows.
    wide = "[...document.querySelectorAll('body *')].filter(one => !one.closest('svg') && !one.closest('.scroll'))"
    assert page.evaluate(f"{wide}.filter(one => one.getBoundingClientRect().right > {width}).length") == 0
    boxes = page.evaluate(
        "[...document.querySelectorAll('svg, img')].map(one => one.getBoundingClientRect())"
        ".map(box => [box.width, box.height])"
    )
    assert len(boxes) == 7
    assert all(box[0] > 300 and box[1] > 60 for box in boxes)
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_of_plots_can_be_read(browser: Any, address: str, scheme: str) -> None:
    """Every text of a plot has the page's colours, is large enough on a phone and lies inside its plot."""
    page, _ = opened(browser, address, 400, scheme)
    texts = page.evaluate(
        """[...document.querySelectorAll('svg text')].map(one => {
            const box = one.getBoundingClientRect(), plot = one.closest('svg').getBoundingClientRect();
            return {text: one.textContent, fill: getComputedStyle(one).fill, height: box.height,
                    inside: box.left >= plot.left - 2 && box.right <= plot.right + 2
                        && box.top >= plot.top - 2 && box.bottom <= plot.bottom + 2}; })"""
    )
    assert len(texts) > 50
    assert [one["text"] for one in texts if not one["inside"]] == []
    assert min(one["height"] for one in texts) >= 8
    colours = {one["fill"] for one in texts}
    brightness = [sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) for colour in colours]
    assert all((total > 380) == (scheme == "dark") for total in brightness)
    page.close()
