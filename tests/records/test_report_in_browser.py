"""The report in Chromium, light, dark and as wide as a phone: nothing runs, nothing is asked for, nothing overflows."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_run_folder import IMAGE, NASTY, write_whole_run

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


HOSTILE = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<svg onload=alert(1)>", "</script><script>alert(1)//",
    "</svg></figure><iframe src=javascript:alert(1)>", "\"><img src=x onerror=alert(1) x=\"",
    "' onmouseover='alert(1)",
    "</style><style>@import 'http://127.0.0.1:1/x.css';</style>", "<a href='javascript:alert(1)'>x</a>",
    "<base href='http://127.0.0.1:1/'>", "<meta http-equiv=refresh content='0;url=http://127.0.0.1:1/'>",
    "<form action=http://127.0.0.1:1/><input autofocus onfocus=alert(1)>", "]]><script>alert(1)</script>", "<!--",
    "-->",
    "{{ cycler.__init__.__globals__ }}", "{% raw %}",
    "$x_{1}^2$ $\\frac{", "\\mathdefault{x}",
    "&lt;img src=x onerror=alert(1)&gt;",
    "%3Cscript%3Ealert(1)%3C/script%3E", "<details open ontoggle=alert(1)>", "\x00<b>\x1b[31m\u202e\u2028", "\ud800<i>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>", "<textarea>", "<plaintext>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
)  # fmt: skip


def report_of(folder: Path, text: str) -> str:
    """A report in which every text that a user, a data file or a model can choose is this one."""
    folder.mkdir()
    write_whole_run(folder)
    nasty, image = (json.dumps(one)[1:-1] for one in (NASTY, IMAGE))
    olds = "|".join(map(re.escape, (nasty, image, "riddles", "some-base", "science", "my experts")))
    ends = {image: "2", "science": "3"}
    for path in folder.glob("*.json*"):
        content = path.read_text(encoding="utf-8")
        # All at once, since the text may hold one of them.
        content = re.sub(olds, lambda old: json.dumps(text)[1:-1] + ends.get(old[0], ""), content)
        path.write_text(content, encoding="utf-8")
    return write_report(folder).as_uri()


def elements(page: Any) -> Any:
    """How many elements of each kind a page has, and the names of their attributes."""
    return page.evaluate(
        """(() => { const found = {};
            for (const one of document.querySelectorAll('*'))
                for (const name of [one.tagName, ...one.getAttributeNames().map(name => one.tagName + ' ' + name)])
                    found[name] = (found[name] || 0) + 1;
            return found; })()"""
    )


def test_hostile_names_prompts_and_answers_are_text(browser: Any, tmp_path: Path) -> None:
    """Nothing runs or is asked for, and the page has the elements that it has with plain texts of the same length."""
    for number in range(4):  # several at once, since a page takes a second
        text = " ".join(HOSTILE[number::4])
        page, _ = opened(browser, report_of(tmp_path / f"plain{number}", "x" * len(text)), 1000, "light")
        plain = elements(page)  # long texts are folded
        page.close()
        address = report_of(tmp_path / str(number), text)
        page, events = opened(browser, address, 1000, "light")
        assert events == [f"request {address}"], text
        assert elements(page) == plain, text
        page.close()
