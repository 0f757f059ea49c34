"""The report: what it says of a run folder, that it stands alone, and that no text in it acts as markup."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_run_folder import (
    ANSWERS,
    CONFIG,
    HISTORY,
    IMAGE,
    NASTY,
    SUMMARY,
    line,
    question,
    write_run,
    write_whole_run,
)
from matplotlib.figure import Figure

from modelswarms_fast.errors import InputError
from modelswarms_fast.records import plots
from modelswarms_fast.records.analysis.registry import ANALYSES
from modelswarms_fast.records.report import write_report
from modelswarms_fast.records.style import PALETTE, inline, label_of, svg

VOID = {"meta", "img"}


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
        if tag not in VOID:
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
        return " ".join(" ".join(self.texts).split())

    def titles(self) -> list[str]:
        return re.findall(r"<h2>(.*?)</h2>", self.source)


def report(folder: Path, **files: Any) -> Page:
    return Page(write_report(write_run(folder, **files)))


# The headline


def test_scores_with_standard_errors(tmp_path: Path) -> None:
    text = report(tmp_path).text
    for expected in ("0.2500 ± 0.0433", "0.5000 ± 0.0500", "0.2000 ± 0.0200", "0.3600 ± 0.0240", "+0.2500", "+0.1600"):
        assert expected in text
    assert "one standard error" in text
    assert "1,234.6 prompts/s" in text
    assert "stopped: patience" in text
    assert "3 experts, 3 particles, 3 iterations" in text


def test_scores_of_a_function_have_no_standard_error(tmp_path: Path) -> None:
    text = report(tmp_path, config=CONFIG | {"task": "tasks:reward"}).text
    assert "0.2500" in text
    assert "±" not in text
    assert "0.1600 better than the best expert; the error of this difference is not known." in text


def test_graded_scores_have_the_error_of_the_run_on_test_and_none_on_dev(tmp_path: Path) -> None:
    errors = SUMMARY | {"test_standard_error": {"start": 0.0123, "end": 0.0045}}
    text = report(tmp_path, config=CONFIG | {"task": "reward"}, summary=errors).text
    assert "0.2000 ± 0.0123" in text
    assert "0.3600 ± 0.0045" in text
    assert text.count("±") == 3  # the third says what it is


def test_a_gain_is_compared_with_the_error_of_two_samples(tmp_path: Path) -> None:
    """(0.36 - 0.2) / sqrt(0.02² + 0.024²) = 5.1."""
    assert (
        "0.1600 better than the best expert, 5.1 standard errors of the difference: more than chance"
        in report(tmp_path).text
    )


def test_answers_give_the_error_of_the_same_questions(tmp_path: Path) -> None:
    """64 of 400 more, 80 differ: sqrt(80 - 64² / 400) / 400 = 0.0209, and 0.16 / 0.0209 = 7.7."""
    assert "7.7 standard errors of the difference: more than chance" in report(tmp_path, answers=ANSWERS).text


@pytest.mark.parametrize(
    ("end", "words"),
    [(0.22, "0.0200 better than the best expert, only 0.7 standard errors"), (0.2, "scores the same"), (0.1, "worse")],
)
def test_a_gain_within_the_error_may_be_chance(tmp_path: Path, end: float, words: str) -> None:
    text = report(tmp_path, summary=SUMMARY | {"end": {"particle": 2, "dev": 0.5, "test": end}}).text
    assert words in text
    assert ("may be chance" in text) == (end == 0.22)


def test_a_winner_by_confirm_says_so(tmp_path: Path) -> None:
    scores = {"start": {"dev": 0.25, "test": 0.2}, "end": {"dev": 0.5, "confirm": 0.45, "test": 0.36, "particle": 1}}
    text = report(tmp_path, summary=SUMMARY | scores | {"candidates": [{}, {}], "confirm_examples": 20}).text
    assert "0.4500 ± 0.1112" in text
    assert "the best of the last 2 candidates on confirm" in text


@pytest.mark.parametrize(("way", "words"), [("posterior", "highest mean of a Gaussian"), ("shrink", "largest gain on")])
def test_how_the_winner_was_chosen_and_what_was_expected_of_it(tmp_path: Path, way: str, words: str) -> None:
    end = {"dev": 0.5, "test": 0.36, "particle": 1, "iteration": 2, "chosen_by": way}
    expected = {"score": 0.4125, "low": 0.31, "high": 0.515, "level": 0.9}
    text = report(tmp_path, summary=SUMMARY | {"end": end, "expected_test": expected}).text
    assert words in text
    assert "expected to score 0.4125 on test; with a probability of 90%, from 0.3100 to 0.5150" in text


# What changed


def test_answers_of_both_are_shown(tmp_path: Path) -> None:
    page = report(tmp_path, answers=ANSWERS)
    assert page.titles()[0] == "What changed"
    assert "right on 72 test questions that the best expert misses, and misses 8" in page.text
    assert page.text.count(f"What is {NASTY}?") == 2
    assert [len(re.findall(f'class="{kind}"', page.source)) for kind in ("better", "worse")] == [3, 3]
    lost = page.source.split("Wrong now, right before")[1]
    assert lost.index('class="better"') < lost.index('class="worse"')


def test_graded_answers_are_neither_right_nor_wrong(tmp_path: Path) -> None:
    """Then the gain is not that of 64 questions, and nor is its error."""
    end = {"particle": 2, "dev": 0.5, "test": 0.3}
    page = report(tmp_path, summary=SUMMARY | {"end": end}, answers=ANSWERS)
    assert "higher than the best expert on 72 test questions, lower on 8, the same on 320." in page.text
    assert "Right now" not in page.source
    assert "3.3 standard errors" in page.text  # 0.1 / sqrt(0.02² + 0.0229²)


def test_long_answers_are_folded(tmp_path: Path) -> None:
    one = question(0, prompt="p" * 1000 + "end", winner="short")
    page = report(tmp_path, answers=ANSWERS | {"gained": [one], "lost": []})
    (folded,) = re.findall(r'<details class="long">(.*?)</details>', page.source, re.S)
    assert folded.startswith(f"<summary>{'p' * 240}…</summary>")
    assert folded.count("p" * 1000 + "end") == 1
    assert "Wrong now" not in page.text


def test_an_empty_answer_is_said_to_be_one(tmp_path: Path) -> None:
    page = report(tmp_path, answers=ANSWERS | {"gained": [question(0, best_expert=" \n")], "lost": []})
    assert "(nothing)" in page.text


def test_no_answers_no_section(tmp_path: Path) -> None:
    assert "What changed" not in report(tmp_path).titles()


# Plots


def shown(**more: Any) -> plots.Utilities:
    utilities = {
        "iterations": [0, 1, 2, 3],
        "particles": [[0.25, 0.3, 0.3, 0.4], [0.1, None, 0.2, 0.2], [0.2, 0.2, 0.5, 0.4]],
        "global_best": [0.25, 0.3, 0.5, 0.5],
        "global_worst": [0.1] * 4,
        "restarts": [(2, 1)],
        "start": 0.25,
        "start_label": "best expert",
    }
    return plots.Utilities(**(utilities | more))


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_lines_are_where_the_utilities_are() -> None:
    figure = plots.utilities(shown())
    (axes,) = figure.axes
    lines = [np.asarray(one.get_ydata(), dtype=float) for one in axes.lines]
    np.testing.assert_array_equal(lines[1], [0.1, np.nan, 0.2, 0.2])
    np.testing.assert_array_equal(lines[3], [0.1] * 4)
    np.testing.assert_array_equal(lines[4], [0.25, 0.25])
    np.testing.assert_array_equal(lines[5], [0.25, 0.3, 0.5, 0.5])
    # Particle 1 was not evaluated in iteration 1: a dot before the gap, which no line reaches.
    dots = [np.asarray(one.get_offsets()).tolist() for one in axes.collections]
    assert dots == [[], [[0, 0.1]], [], [], [], [[2, 0.2]]]
    assert legend_of(figure) == ["best so far", "worst so far", "best expert", "3 particles", "restart"]


def test_mixture_bars() -> None:
    mixture = {"science": 0.75, "_$x$": -0.25, IMAGE * 9: 0.5}
    (axes,) = plots.mixture(mixture).axes
    assert [bar.get_width() for bar in axes.patches] == [0.75, 0.5, -0.25]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["science", label_of(IMAGE * 9), "_$x$"]
    assert [text.get_text() for text in axes.texts] == ["+0.750", "+0.500", "-0.250"]


@pytest.mark.parametrize("value", [0.0, 5e-308, -1.0])
def test_a_mixture_of_one_expert_can_be_drawn(value: float) -> None:
    assert b"<svg" in svg(plots.mixture, {"a": value})


@pytest.mark.parametrize("name", [NASTY, "", "_", "$x$ \\frac", "a\nb\x00\x1b", "\udcff", "x" * 99, "模型"])
def test_any_name_can_be_drawn(name: str) -> None:
    """No letter breaks the SVG, and none acts as markup."""
    picture = inline(svg(plots.mixture, {name: 0.5, "other": 0.5}), "p", "label")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", picture)
    assert len(texts) == 4 - (not name)
    assert "<script" not in picture


def test_the_first_plot_of_a_new_home_says_nothing(tmp_path: Path) -> None:
    """matplotlib has no list of fonts there yet, and cannot keep one; a name has letters that its font lacks."""
    code = "from modelswarms_fast.records import plots, style; style.svg(plots.mixture, {'模型': 1.0})"
    home = {"HOME": "/proc", "MPLCONFIGDIR": "/proc/none", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment = {**os.environ, **home, "TMPDIR": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout + ended.stderr == ""


def test_a_name_stays_on_one_short_line() -> None:
    assert label_of("a" * 26) == "a" * 26
    assert label_of("a" * 50 + "end") == "a" * 12 + "…" + "a" * 10 + "end"
    assert label_of("a\nb") == "a\N{REPLACEMENT CHARACTER}b"


def test_colours_follow_the_page_and_ids_are_its_own() -> None:
    picture = svg(plots.utilities, shown())
    assert b"#0072b2" in picture
    first, second = inline(picture, "one", "l"), inline(picture, "two", "l")
    assert "var(--blue)" in first
    assert not re.search(r"#[0-9a-f]{6}\b", first)
    ids = [set(re.findall(r' id="([^"]*)"', one)) for one in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    used = re.findall(r'(?:url\(|href=")#([^)"]*)', first)
    assert used
    assert set(used) <= ids[0]


def test_colours_differ_for_every_reader() -> None:
    """A page replaces a colour by its name, which only works if each is another."""
    for side in (0, 1):
        assert len({pair[side] for pair in PALETTE.values()}) == len(PALETTE)


@pytest.mark.parametrize("side", [0, 1])
def test_text_stands_out_from_the_page(side: int) -> None:
    """The contrast that WCAG asks for: 4.5 for text, 3 for the lines and dots that carry the plots."""
    page = ("#ffffff", "#14181c")[side]
    for name, least in (("ink", 7.0), ("soft", 4.5), ("blue", 3.0), ("red", 3.0), ("green", 3.0), ("faint", 2.5)):
        assert contrast(PALETTE[name][side], page) >= least, name


def contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


# The page


def test_everything_is_there_and_in_order(tmp_path: Path) -> None:
    page = Page(write_report(write_whole_run(tmp_path)))
    assert page.titles() == [
        "What changed",
        "Utility by iteration",
        "What the winner is made of",
        *(one.title for one in ANALYSES.values()),
        "Where the time went",
        "Run it again",
        "Settings",
    ]
    assert sum(tag == "svg" for tag, _ in page.tags) == 2 + len(ANALYSES)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_everything_is_escaped(tmp_path: Path) -> None:
    nasty = {"base": NASTY, "task": NASTY, "dataset": NASTY, "state": NASTY, NASTY: NASTY, "list": [NASTY]}
    page = report(tmp_path, config=CONFIG | nasty, summary=SUMMARY | {"stopped": NASTY}, answers=ANSWERS)
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert page.text.count(NASTY) >= 15
    assert page.text.count(IMAGE) >= 3


def test_page_needs_nothing_else(tmp_path: Path) -> None:
    page = Page(write_report(write_whole_run(tmp_path)))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "image", "img"}
    attributes: list[Mapping[str, str | None]] = [attributes for _, attributes in page.tags]
    assert not {name for one in attributes for name in one} & {"src", "xlink:href"}
    assert all((one["href"] or "").startswith("#") for one in attributes if "href" in one)
    assert not re.search(r"url\([^#]|@import|https?:", page.source)
    assert "prefers-color-scheme: dark" in page.source


def test_time_by_phase(tmp_path: Path) -> None:
    page = report(tmp_path)
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
    assert "The largest share of the 10.0 s went to generate: 60%." in page.text
    assert "12 evaluations, 1,200 prompts, 34,567 tokens" in page.text


def test_the_command_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    assert f"modelswarms-fast search 'my experts' '{NASTY}'" in report(tmp_path).text
    config = {name: value for name, value in CONFIG.items() if name != "command"}
    assert "Run it again" not in report(tmp_path, config=config).titles()


def test_settings_are_listed(tmp_path: Path) -> None:
    text = report(tmp_path).text
    assert "inner.patience 7" in text
    assert "inner.empty n/a" in text
    assert "seed 11" in text


# Runs that are not whole


def test_run_that_has_not_ended(tmp_path: Path) -> None:
    write_run(tmp_path, summary=None)
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"iteration": 4, "util')
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"dev_examples": 100}))
    page = Page(write_report(tmp_path))
    assert "not ended" in page.text
    assert "0.2500 ± 0.0433" in page.text
    assert "best at the start" in page.text
    assert "The test split was not scored yet." in page.text
    assert "0.2500" in page.text
    assert "0.5000" in page.text
    assert "12.00" in page.text  # four iterations of three seconds
    assert "The largest part is science" in page.text


@pytest.mark.parametrize(
    "history",
    [[], [line(0, [None, None], 0, 0, global_best=None, global_worst={"utility": None}, global_best_mixture=None)]],
)
def test_what_is_not_known_has_no_section(tmp_path: Path, history: list[dict[str, Any]]) -> None:
    titles = report(tmp_path, history=history, summary=None).titles()
    assert not {"Utility by iteration", "What the winner is made of"} & set(titles)
    assert ("Where the time went" in titles) == bool(history)


def test_first_iteration_alone(tmp_path: Path) -> None:
    assert "Utility by iteration" in report(tmp_path, history=HISTORY[:1], summary=None).titles()


def test_coordinates_are_no_mixture(tmp_path: Path) -> None:
    page = report(tmp_path, config=CONFIG | {"randomness": "coordinate"})
    assert "so the global best is no mixture of the experts." in page.text


def test_missing_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json"):
        write_report(tmp_path)
    write_run(tmp_path, config={})
    with pytest.raises(InputError, match="names no experts"):
        write_report(tmp_path)
    write_run(tmp_path)
    for name in ("summary.json", "answers.json"):
        whole = json.dumps({"counts": {}}) if name == "answers.json" else json.dumps(SUMMARY)
        (tmp_path / name).write_text("{")
        with pytest.raises(InputError, match=name):
            write_report(tmp_path)
        (tmp_path / name).write_text(whole)
    (tmp_path / "history.jsonl").write_text("{}\n[\n{}\n")
    with pytest.raises(InputError, match="line 2"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_report_is_replaced_and_its_path_returned(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "report.html").write_text("old")
    assert write_report(str(tmp_path)) == tmp_path / "report.html"
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")
