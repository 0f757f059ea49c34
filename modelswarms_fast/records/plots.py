"""The two plots of the report as inline SVG; colours and fonts come from the classes of the report's style
sheet.

None stands for a value that is not known (a particle that was not evaluated, or a NaN utility) and leaves a
gap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

Series = Sequence[float | None]

_LEFT, _TOP, _WIDTH, _HEIGHT = 58, 12, 770, 330  # of the utility plot, inside its axes
_BOTTOM = _TOP + _HEIGHT


def utility_plot(
    iterations: Sequence[int],
    particles: Sequence[Series],
    global_best: Series,
    global_worst: Series,
    restarts: Iterable[tuple[int, int]],
    start: float | None,
    start_label: str,
) -> str:
    """Utility by iteration as HTML.

    particles: one series a particle; every series has a value an iteration. restarts: (index of the
    iteration, particle). start: a utility that is drawn as a horizontal line named `start_label`.
    """
    series = (*particles, global_best, global_worst, [start])
    values = [value for one in series for value in one if value is not None]
    if not values:
        return "<p>No utility is recorded yet.</p>"
    ticks = ticks_around(min(values), max(values))
    low, high = ticks[0], ticks[-1]
    first, last = iterations[0], max(iterations[-1], iterations[0] + 1)
    right = _LEFT + _WIDTH

    def x(iteration: float) -> float:
        return round(_LEFT + _WIDTH * (iteration - first) / (last - first), 1)

    def y(value: float) -> float:
        return round(_TOP + _HEIGHT * (high - value) / (high - low), 1)

    def curve(one: Series, kind: str) -> str:
        points = [
            None if value is None else (x(iteration), y(value))
            for iteration, value in zip(iterations, one, strict=True)
        ]
        return _curve(points, kind)

    marks = [_horizontal("axis", y(tick)) + _text(_LEFT - 8, y(tick) + 4, f"{tick:.6g}", "end") for tick in ticks]
    for tick in ticks_around(first, last, whole=True):
        if first <= tick <= last:
            at = x(tick)
            marks.append(f'<line class="axis" x1="{at}" x2="{at}" y1="{_BOTTOM}" y2="{_BOTTOM + 5}"/>')
            marks.append(_text(at, _BOTTOM + 19, f"{tick:.0f}", "middle"))
    marks.append(_text(_LEFT + _WIDTH / 2, _BOTTOM + 40, "iteration (0: initial)", "middle"))
    turned = f'transform="translate(12 {_TOP + _HEIGHT / 2}) rotate(-90)"'
    marks.append(f'<text {turned} text-anchor="middle">utility on dev</text>')

    marks += [curve(one, "particle") for one in particles]
    if start is not None:
        marks.append(_horizontal("start", y(start)))
    marks += [curve(global_worst, "worst"), curve(global_best, "best")]
    restarts = list(restarts)
    radius = 3 if len(restarts) <= 100 else 1.5  # many of them must not hide the curves
    circles = []
    for index, particle in restarts:
        value = particles[particle][index] if particle < len(particles) else None
        if value is not None:
            where = f'cx="{x(iterations[index])}" cy="{y(value)}" r="{radius}"'
            circles.append(f'<circle class="restart" {where}><title>restart of {particle}</title></circle>')

    names = {"best": "global best", "worst": "global worst", "start": start_label}
    names["particle"] = f"{len(particles)} particles"
    if start is None:
        del names["start"]
    keys = {kind: f'<line class="{kind}" x1="0" x2="26" y1="5" y2="5"/>' for kind in names}
    if circles:
        names["restart"] = "restart"
        keys["restart"] = '<circle class="restart" cx="13" cy="5" r="3"/>'
    legend = "".join(
        f'<span><svg viewBox="0 0 26 10" aria-hidden="true">{keys[kind]}</svg>{escape(name)}</span>'
        for kind, name in names.items()
    )
    label = "Utility of every particle, global best and global worst by iteration"
    return f'<div class="legend">{legend}</div>{_svg(right + 20, _BOTTOM + 50, label, marks + circles)}'


def mixture_plot(mixture: Mapping[str, float]) -> str:
    """Bars of the coefficients by expert, largest first, as HTML; `mixture` holds at least one."""
    left, width, row = 230, 600, 24
    low, high = min(0.0, *mixture.values()), max(0.0, *mixture.values())
    # A number stands beyond the end of its bar: each side that has bars keeps room for one.
    room_low, room_high = (60 if low < 0 else 0), 60
    scale = (width - room_low - room_high) / max(high - low, 1e-9)
    zero = round(left + room_low - low * scale, 1)

    marks = []
    for index, (name, value) in enumerate(sorted(mixture.items(), key=lambda item: -item[1])):
        top = 4 + index * row
        length = round(max(abs(value) * scale, 0.5), 1)
        kind, start, end, anchor = ("plus", zero, zero + length + 6, "start")
        if value < 0:
            kind, start, end, anchor = ("minus", zero - length, zero - length - 6, "end")
        shown = name if len(name) <= 30 else f"{name[:14]}…{name[-15:]}"
        title = f"<title>{escape(name)}</title>"
        marks.append(f'<g class="name">{_text(left - 12, top + 13, shown, "end")}{title}</g>')
        marks.append(f'<rect class="{kind}" x="{start:.1f}" y="{top}" width="{length}" height="{row - 8}"/>')
        marks.append(_text(end, top + 13, f"{round(value, 3) + 0.0:+.3f}", anchor))  # the sum turns -0 into 0
    bottom = 4 + len(mixture) * row
    marks.append(f'<line class="axis" x1="{zero}" x2="{zero}" y1="0" y2="{bottom}"/>')
    return _svg(left + width + 18, bottom + 4, "Coefficient of every expert in the global best", marks)


def ticks_around(low: float, high: float, whole: bool = False) -> list[float]:
    """Three to ten numbers, 1, 2 or 5 times a power of ten apart, the first at most `low`, the last at least
    `high`.

    whole: only whole numbers.
    """
    if high - low < 1e-6 * max(1.0, abs(high), abs(low)):
        margin = 0.05 * max(1.0, abs(high))
        low, high = low - margin, high + margin
    power = 10.0 ** math.floor(math.log10((high - low) / 8))
    step = next(power * factor for factor in (1, 2, 5, 10) if (high - low) <= 8 * power * factor * (1 + 1e-9))
    if whole:
        step = max(1.0, step)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * index, 12) for index in range(first, last + 1)]


def _curve(points: Sequence[tuple[float, float] | None], kind: str) -> str:
    """Lines through neighbouring points; a point without neighbours becomes a dot."""
    runs: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if point is None:
            runs.append([])
        else:
            runs[-1].append(point)
    marks = []
    for run in runs:
        if len(run) == 1:
            marks.append(f'<circle class="{kind} dot" cx="{run[0][0]}" cy="{run[0][1]}" r="2.5"/>')
        elif run:
            line = " ".join(f"{x},{y}" for x, y in run)
            marks.append(f'<polyline class="{kind}" points="{line}"/>')
    return "".join(marks)


def _horizontal(kind: str, y: float) -> str:
    return f'<line class="{kind}" x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y}" y2="{y}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: float, height: float, label: str, marks: Iterable[str]) -> str:
    box = f'viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}"'
    return f"<svg {box}>{''.join(marks)}</svg>"
