"""How every plot looks, and its SVG: a file of its own, or a part of a page that follows the page's colours."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

PALETTE = {
    "ink": ("#1b1f24", "#e6eaee"),
    "soft": ("#56606b", "#a3aeb9"),
    "line": ("#d5dae0", "#39424c"),
    "faint": ("#9aa4af", "#76828e"),
    "blue": ("#0072b2", "#4fb0e8"),
    "red": ("#c94f00", "#ff8a4a"),
    "green": ("#00805d", "#35c79a"),
    "orange": ("#e69f00", "#f2b63a"),
    "purple": ("#b2609a", "#dd9cc8"),
    "sky": ("#56b4e9", "#9bd6f7"),
    "olive": ("#8a8200", "#d8cf4a"),
}
"""By name a colour on a light page and on a dark one. After Okabe and Ito: colour-blind readers tell them apart."""

HUES = ("blue", "orange", "green", "red", "purple", "sky", "olive")
"""Colours for parts that have names, in order."""

WIDTH = 5.4
"""Of a plot, in inches. A phone shows it at 0.95 of its size, a screen at up to 1.5."""

_SETTINGS: dict[Any, Any] = {
    # Names inside the file would differ each time.
    "svg.hashsalt": "modelswarms",
    # Text stays text: small, searchable, in the reader's own font. An expert's name may have dollar signs.
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10.0,
    "axes.titlesize": 10.0,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}
_COLOURS = {
    "text.color": "ink",
    "axes.edgecolor": "line",
    "axes.labelcolor": "soft",
    "grid.color": "line",
    "xtick.color": "line",
    "ytick.color": "line",
    "xtick.labelcolor": "soft",
    "ytick.labelcolor": "soft",
}
_SVG = "{http://www.w3.org/2000/svg}"
_LONGEST = 26
_LETTER = 0.08  # inches, of an average letter in a legend


def colour(name: str) -> str:
    """A colour of the palette for matplotlib. Pages turn it into the variable of that name."""
    return PALETTE[name][0]


def new_axes(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes, `width` and `height` in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def whole_numbers(axis: Axis) -> None:
    """Put ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend above the axes, in as many columns as fit; the labels may begin with `_`."""
    longest = _LETTER * max(map(len, labels)) + 0.5  # inches, with the key before it
    columns = max(1, min(3, int(WIDTH / longest)))
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, handlelength=1.6, columnspacing=1.4)


def label_of(name: str) -> str:
    """`name` as a plot shows it: on one line, its middle left out if it is long."""
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in name)
    if len(shown) <= _LONGEST:
        return shown
    return f"{shown[: _LONGEST // 2 - 1]}…{shown[-(_LONGEST // 2) :]}"


def svg(plot: Callable[[Any], Figure], numbers: Any) -> bytes:
    """What `plot` draws of the numbers, as the bytes of an SVG file. The same numbers give the same bytes."""
    file = io.BytesIO()
    colours: dict[Any, Any] = {setting: colour(name) for setting, name in _COLOURS.items()}
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with _quiet():
        from matplotlib import rc_context

        with rc_context({**_SETTINGS, **colours}):
            plot(numbers).savefig(file, format="svg", transparent=True, metadata=nothing)
    return file.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    """Show nothing of what a user can do nothing about: that matplotlib lists the fonts once, and where it keeps the
    list; that its font lacks a letter, which the reader's has."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            yield
    finally:
        logger.setLevel(level)


def inline(picture: bytes, name: str, label: str) -> str:
    """An SVG file as a part of an HTML page.

    Its colours become the page's variables (`var(--blue)`), its size the page's, and its ids begin with `name`, so that
    those of two plots differ. `label` says what it shows to those who cannot see it. All text in it is escaped.
    """
    root = ElementTree.fromstring(picture)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        for key, value in list(element.attrib.items()):
            element.set(key, _for_page(value, name))
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key.endswith("}href"):  # inside HTML it is just that, and always an id of this picture
                del element.attrib[key]
                element.set("href", f"#{name}-{value.removeprefix('#')}")
        if element.tag == "g":
            element.attrib.pop("id", None)
    for definitions in root.iter("defs"):
        for rules in definitions.findall("style"):
            definitions.remove(rules)
    box = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "role": "img", "aria-label": label})
    return ElementTree.tostring(root, encoding="unicode")


def _for_page(value: str, name: str) -> str:
    value = value.replace("url(#", f"url(#{name}-")
    return re.sub(r"#[0-9a-f]{6}", lambda found: _VARIABLES.get(found[0], found[0]), value)


_VARIABLES = {light: f"var(--{name})" for name, (light, _) in PALETTE.items()}
