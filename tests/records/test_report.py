"""The report: what it says of a run folder, that it stands alone, and that no text in it acts as markup."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelswarms_fast.errors import InputError
from modelswarms_fast.records.plots import mixture_plot, ticks_around
from modelswarms_fast.records.report import write_report

NASTY = '<script>alert("1")</script>&'
CONFIG: dict[str, Any] = {
    "base": "some-base",
    "task": "exact_match",
    "dataset": "riddles",
    "experts": ["science", NASTY, "x" * 60],
    "particles": 3,
    "seed": 11,
    "inner": {"patience": 7, "empty": None},
}
MIXTURE = [0.75, -0.25, 0.5]
SUMMARY: dict[str, Any] = {
    "stopped": "patience",
    "start": {"particle": 1, "expert": NASTY, "dev": 0.25, "test": 0.2},
    "end": {"particle": 2, "dev": 0.5, "test": 0.36},
    "mixture": dict(zip(CONFIG["experts"], MIXTURE, strict=True)),
    "dev_examples": 100,
    "test_examples": 400,
    "evaluations": 12,
    "prompts": 1200,
    "tokens": 34567,
    "prompts_per_second": 1234.56,
    "seconds": {
        "setup": 1.0,
        "update": 0.5,
        "load": 0.5,
        "generate": 6.0,
        "score": 0.0,
        "test": 1.0,
        "total": 10.0,
    },
}


def line(iteration: int, utilities: list[float | None], best: float, worst: float, **more: Any) -> dict[str, Any]:
    return {
        "iteration": iteration,
        "utilities": utilities,
        "restarts": [],
        "global_best": {"particle": 0, "utility": best},
        "global_worst": {"particle": 1, "utility": worst},
        "global_best_mixture": MIXTURE,
        "seconds": {"update": 0.25, "load": 0.25, "generate": 2.0, "score": 0.5, "total": 3.0},
    } | more


HISTORY = [
    line(0, [0.25, 0.1, 0.2], 0.25, 0.1),
    line(1, [0.3, None, 0.2], 0.3, 0.1),
    line(2, [0.3, 0.2, 0.5], 0.5, 0.1, restarts=[1]),
    line(3, [0.4, 0.2, 0.4], 0.5, 0.1),
]


def run_folder(
    folder: Path,
    history: list[dict[str, Any]] = HISTORY,
    config: dict[str, Any] = CONFIG,
    summary: dict[str, Any] | None = SUMMARY,
) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "history.jsonl").write_text("".join(json.dumps(one) + "\n" for one in history))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


class Page(HTMLParser):
    """Texts, tags and attributes of a page; fails on tags that are not nested properly."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def plots(self) -> list[ElementTree.Element]:
        """The two plots, without the keys of the legend."""
        found = [ElementTree.fromstring(one) for one in re.findall(r"<svg .*?</svg>", self.source, re.S)]
        return [one for one in found if one.get("role") == "img"]


def marked(plot: ElementTree.Element, tag: str, kind: str) -> list[ElementTree.Element]:
    return [one for one in plot.iter(tag) if one.get("class") == kind]


def points(one: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in one.attrib["points"].split())]


def test_scores_with_standard_errors(tmp_path: Path) -> None:
    text = Page(write_report(run_folder(tmp_path))).text
    for expected in (
        "0.2500 ± 0.0433",
        "0.5000 ± 0.0500",
        "0.2000 ± 0.0200",
        "0.3600 ± 0.0240",
        "+0.2500",
        "+0.1600",
    ):
        assert expected in text
    assert "one standard error" in text
    assert "1,234.6 prompts/s" in text
    assert "stopped: patience" in text
    assert "3 experts, 3 particles, 3 iterations" in text


def test_scores_of_a_function_have_no_standard_error(tmp_path: Path) -> None:
    text = Page(write_report(run_folder(tmp_path, config=CONFIG | {"task": "tasks:reward"}))).text
    assert "0.2500" in text
    assert "±" not in text


def test_graded_scores_have_the_error_of_the_run_on_test_and_none_on_dev(tmp_path: Path) -> None:
    errors = SUMMARY | {"test_standard_error": {"start": 0.0123, "end": 0.0045}}
    text = Page(write_report(run_folder(tmp_path, config=CONFIG | {"task": "reward"}, summary=errors))).text
    assert "0.2000 ± 0.0123" in text
    assert "0.3600 ± 0.0045" in text
    assert text.count("±") == 3  # the third says what it is


def test_curves_are_where_the_utilities_are(tmp_path: Path) -> None:
    plot = Page(write_report(run_folder(tmp_path))).plots()[0]
    (best,) = marked(plot, "polyline", "best")
    (worst,) = marked(plot, "polyline", "worst")
    (start,) = marked(plot, "line", "start")
    xs = [x for x, _ in points(best)]
    assert len(xs) == 4
    assert [round(b - a, 1) for a, b in pairwise(xs)] == pytest.approx([xs[1] - xs[0]] * 3, abs=0.2)
    heights = [y for _, y in points(best)]
    low = points(worst)[0][1]
    scale = (low - heights[0]) / (0.25 - 0.1)
    assert [(low - y) / scale + 0.1 for y in heights] == pytest.approx([0.25, 0.3, 0.5, 0.5], abs=1e-3)
    assert [y for _, y in points(worst)] == [low] * 4
    assert float(start.attrib["y1"]) == float(start.attrib["y2"]) == heights[0]
    # Particle 1 was not evaluated in iteration 1: a dot before the gap, a line after it.
    lines = [points(one) for one in marked(plot, "polyline", "particle")]
    assert [len(one) for one in lines] == [4, 2, 4]
    (dot,) = marked(plot, "circle", "particle dot")
    assert (float(dot.attrib["cx"]), float(dot.attrib["cy"])) == (xs[0], low)
    (restart,) = marked(plot, "circle", "restart")
    assert (float(restart.attrib["cx"]), float(restart.attrib["cy"])) == lines[1][0]


def test_mixture_bars(tmp_path: Path) -> None:
    plot = Page(write_report(run_folder(tmp_path))).plots()[1]
    plus, minus = marked(plot, "rect", "plus"), marked(plot, "rect", "minus")
    widths = [float(bar.attrib["width"]) for bar in (*plus, *minus)]
    assert [width / widths[0] for width in widths] == pytest.approx([1, 2 / 3, 1 / 3], abs=1e-2)
    zero = float(plus[0].attrib["x"])
    assert float(minus[0].attrib["x"]) + widths[2] == pytest.approx(zero, abs=0.1)
    texts = [one.text for one in plot.iter("text")]
    assert texts == ["science", "+0.750", f"{'x' * 14}…{'x' * 15}", "+0.500", NASTY, "-0.250"]
    assert "The coefficients sum to 1.000" in (tmp_path / "report.html").read_text()


@example({"a": 5e-308})
@given(st.dictionaries(st.text(max_size=40), st.floats(-5, 5), min_size=1, max_size=25))
def test_nothing_overlaps_or_leaves_the_mixture_plot(mixture: dict[str, float]) -> None:
    clean = {"".join(c for c in name if c.isprintable()): value for name, value in mixture.items()}
    plot = ElementTree.fromstring(mixture_plot(clean))
    width, height = (float(size) for size in plot.attrib["viewBox"].split()[2:])
    rows: dict[float, list[tuple[float, float]]] = {}
    for text in plot.iter("text"):
        length = 7 * min(len(text.text or ""), 30)  # 12 px type is at most so wide on average
        at = float(text.attrib["x"])
        span = (at, at + length) if text.attrib["text-anchor"] == "start" else (at - length, at)
        rows.setdefault(float(text.attrib["y"]), []).append(span)
    for bar in plot.iter("rect"):
        at = float(bar.attrib["x"])
        rows[float(bar.attrib["y"]) + 13].append((at, at + float(bar.attrib["width"])))
    assert len(rows) == len(clean)
    for y, spans in rows.items():
        assert 0 < y < height
        spans.sort()
        assert spans[0][0] >= 0
        assert spans[-1][1] <= width
        assert all(a[1] <= b[0] + 1 for a, b in pairwise(spans))


def test_everything_is_escaped(tmp_path: Path) -> None:
    nasty = {"base": NASTY, "task": NASTY, "dataset": NASTY, "state": NASTY, NASTY: NASTY, "list": [NASTY]}
    page = Page(write_report(run_folder(tmp_path, config=CONFIG | nasty, summary=SUMMARY | {"stopped": NASTY})))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(NASTY) >= 10


def test_page_needs_nothing_else(tmp_path: Path) -> None:
    page = Page(write_report(run_folder(tmp_path)))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "image", "use"}
    images = [attributes.pop("src") for tag, attributes in page.tags if tag == "img"]
    assert images
    assert all((image or "").startswith("data:image/svg+xml;base64,") for image in images)
    assert not {name for _, attributes in page.tags for name in attributes} & {"src", "href", "xlink:href"}
    assert not re.search(r"url\(|@import|https?:", page.source)
    assert "prefers-color-scheme: dark" in page.source


def test_time_by_phase(tmp_path: Path) -> None:
    page = Page(write_report(run_folder(tmp_path)))
    bars = [a for tag, a in page.tags if tag == "div" and "title" in a]
    assert [(a["title"], (a["style"] or "").split(";")[0]) for a in bars] == [
        ("setup", "width:10.00%"),
        ("update", "width:5.00%"),
        ("load", "width:5.00%"),
        ("generate", "width:60.00%"),
        ("score", "width:0.00%"),
        ("test", "width:10.00%"),
        ("other", "width:10.00%"),
    ]
    assert "12 evaluations, 1,200 prompts, 34,567 tokens" in page.text


def test_settings_are_listed(tmp_path: Path) -> None:
    text = Page(write_report(run_folder(tmp_path))).text
    assert "inner.patience 7" in text
    assert "inner.empty n/a" in text
    assert "seed 11" in text


# Runs that are not whole


def test_run_that_has_not_ended(tmp_path: Path) -> None:
    run_folder(tmp_path, summary=None)
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"iteration": 4, "util')
    page = Page(write_report(tmp_path))
    assert "not ended" in page.text
    assert "best at the start" in page.text
    assert "0.2500" in page.text
    assert "0.5000" in page.text
    assert "12.00" in page.text  # four iterations of three seconds
    assert [one.text for one in page.plots()[1].iter("text")][:2] == ["science", "+0.750"]


def test_run_that_has_hardly_begun(tmp_path: Path) -> None:
    page = Page(write_report(run_folder(tmp_path, history=[], summary=None, config={})))
    assert "No utility is recorded yet" in page.text
    assert "The mixture is not known" in page.text
    assert "No times are recorded yet" in page.text


def test_first_iteration_alone(tmp_path: Path) -> None:
    plot = Page(write_report(run_folder(tmp_path, history=HISTORY[:1], summary=None))).plots()[0]
    assert len(marked(plot, "circle", "particle dot")) == 3
    assert len(marked(plot, "circle", "best dot")) == 1


def test_utilities_that_are_all_unknown(tmp_path: Path) -> None:
    unknown = line(0, [None, None], 0, 0, global_best=None, global_worst={"utility": None}, global_best_mixture=None)
    page = Page(write_report(run_folder(tmp_path, history=[unknown], summary=None)))
    assert "No utility is recorded yet" in page.text
    assert "The mixture is not known" in page.text


def test_experts_without_names_are_numbered(tmp_path: Path) -> None:
    config = {name: value for name, value in CONFIG.items() if name != "experts"}
    page = Page(write_report(run_folder(tmp_path, config=config, summary=None)))
    assert [one.text for one in page.plots()[1].iter("text")][::2] == ["expert 0", "expert 2", "expert 1"]


def test_missing_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json"):
        write_report(tmp_path)
    run_folder(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(InputError, match=r"summary\.json"):
        write_report(tmp_path)
    (tmp_path / "history.jsonl").write_text("{}\n[\n{}\n")
    with pytest.raises(InputError, match="line 2"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_report_is_replaced_and_its_path_returned(tmp_path: Path) -> None:
    run_folder(tmp_path)
    (tmp_path / "report.html").write_text("old")
    assert write_report(str(tmp_path)) == tmp_path / "report.html"
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.booleans())
def test_ticks_enclose_the_values(low: float, span: float, whole: bool) -> None:
    high = low + span
    if whole:
        low, high = math.floor(low), math.floor(high) + 1
    ticks = ticks_around(low, high, whole)
    assert 2 <= len(ticks) <= 11
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert ticks == sorted(set(ticks))
    step = min(b - a for a, b in pairwise(ticks))
    leading = step / 10 ** math.floor(math.log10(step * 1.0001))
    assert any(leading == pytest.approx(factor, rel=1e-3) for factor in (1, 2, 5))
    if whole:
        assert all(tick == round(tick) for tick in ticks)
