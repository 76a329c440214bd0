"""Where the marks of a chart stand: geometry in SVG units, drawn by ``templates/charts.html.j2``.

A template draws so that every text is escaped; nothing here is markup.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from imhi.report.figures import Bin, Lengths, Reliability, round_steps
from imhi.statistics import Interval

__all__ = ["Histogram", "ReliabilityChart", "Strip", "histogram", "reliability_chart", "strip", "strip_x"]

STRIP_WIDTH, STRIP_MARGIN, STRIP_LINE = 264.0, 8.0, 11.0


@dataclass(frozen=True)
class Mark:
    """A value with its interval; `style` numbers the series, which decides colour and shape."""

    x: float
    low: float
    high: float
    y: float
    style: int
    title: str


@dataclass(frozen=True)
class Reference:
    """A published value: a tick across the strip."""

    x: float
    style: int
    title: str


@dataclass(frozen=True)
class Strip:
    """Intervals of one dataset on the scale 0 to 1, one line a series."""

    width: float
    height: float
    grid: list[float]
    marks: list[Mark]
    references: list[Reference]
    label: str


def strip_x(value: float) -> float:
    """The position of a value, 0 to 1, in a strip."""
    return round(STRIP_MARGIN + value * (STRIP_WIDTH - 2 * STRIP_MARGIN), 2)


def strip(
    label: str, series: Sequence[tuple[str, Interval | None]], references: Sequence[tuple[str, float | None]] = ()
) -> Strip:
    """A strip of named intervals; None leaves a line empty.  `label` describes it to who cannot see it."""
    marks = []
    for number, (name, interval) in enumerate(series):
        if interval is not None:
            low, high = strip_x(interval.low), strip_x(interval.high)
            text = f"{name}: {100 * interval.value:.2f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
            marks.append(Mark(strip_x(interval.value), low, high, STRIP_LINE * (number + 0.5) + 3, number, text))
    ticks = [
        Reference(strip_x(value), number, f"{name}: {100 * value:.2f}")
        for number, (name, value) in enumerate(references)
        if value is not None
    ]
    said = "; ".join([*(mark.title for mark in marks), *(tick.title for tick in ticks)])
    grid = [strip_x(value / 4) for value in range(5)]
    return Strip(STRIP_WIDTH, STRIP_LINE * max(1, len(series)) + 6, grid, marks, ticks, f"{label}. {said}")


@dataclass(frozen=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Histogram:
    """Lengths of answers as bars and of golds as an outline (an SVG path), with ticks on both axes."""

    width: float
    height: float
    left: float
    right: float
    base: float
    bars: list[Bar]
    outline: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    label: str


def histogram(lengths: Lengths) -> Histogram:
    """The chart of `imhi.report.figures.Lengths`, in words."""
    width, height, left, right, top, base = 440.0, 176.0, 40.0, 430.0, 10.0, 146.0
    edges = lengths.edges
    most = max(*lengths.answers, *lengths.golds, 1)
    across = (right - left) / (edges[-1] - edges[0])

    def x(words: float) -> float:
        return round(left + across * words, 2)

    def y(rows: float) -> float:
        return round(base - (base - top) * rows / most, 2)

    open_end = max(lengths.answer_words[2], lengths.gold_words[2]) >= edges[-1]
    bars, path = [], f"M{x(edges[0])} {base}"
    for number, (answers, golds) in enumerate(zip(lengths.answers, lengths.golds, strict=True)):
        low, high = edges[number], edges[number + 1]
        last = number == len(lengths.answers) - 1
        words = (
            f"{low} words or more"
            if last and open_end
            else f"{low} to {high - 1} words"
            if high - low > 1
            else f"{low} words"
        )
        if answers:
            title = f"{words}: {answers:,} answers, {golds:,} golds"
            bars.append(Bar(x(low), y(answers), round(x(high) - x(low) - 0.6, 2), round(base - y(answers), 2), title))
        path += f"V{y(golds)}H{x(high)}"
    shown = _round_ticks(edges[-1])
    x_ticks = [
        Tick(x(words), f"{words}{'+' if open_end and words == edges[-2] else ''}")
        for words in shown
        if words <= edges[-2]
    ]
    label = (
        f"Answer lengths in words: median {lengths.answer_words[0]:.0f}, maximum {lengths.answer_words[2]:.0f}; "
        f"gold: median {lengths.gold_words[0]:.0f}, maximum {lengths.gold_words[2]:.0f}"
    )
    y_ticks = [Tick(y(rows), f"{rows:,}") for rows in _round_ticks(most, 4)]
    return Histogram(width, height, left, right, base, bars, path + f"V{base}Z", x_ticks, y_ticks, label)


def _round_ticks(highest: int, most: int = 6) -> list[int]:
    """Round numbers from 0 to `highest`, at most `most` steps apart."""
    step = next(step for step in round_steps() if highest / step <= most)
    return list(range(0, highest + 1, step))


@dataclass(frozen=True)
class Point:
    """The share of one bin with its interval."""

    x: float
    y: float
    low: float
    high: float
    title: str


@dataclass(frozen=True)
class ReliabilityChart:
    """Share right against confidence above, rows per bin below."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    bars_top: float
    bars_bottom: float
    series: list[list[Point]]
    bars: list[Bar]
    ticks: list[tuple[float, float, str]]
    label: str


def reliability_chart(reading: Reliability | None, against_gold: Reliability) -> ReliabilityChart:
    """The chart of two reliabilities: agreement with the rule's reading (if any), accuracy against gold."""
    width, height, left, right, top, bottom = 300.0, 300.0, 40.0, 288.0, 10.0, 218.0
    bars_top, bars_bottom = 230.0, 262.0
    across, up = right - left, bottom - top

    def x(value: float) -> float:
        return round(left + across * value, 2)

    def y(value: float) -> float:
        return round(bottom - up * value, 2)

    def points(found: Reliability, what: str, aside: float) -> list[Point]:
        return [_point(each, what, x, y, aside) for each in found.bins if each.rows]

    most = max(each.rows for each in against_gold.bins)
    bars = []
    for each in against_gold.bins:
        if each.rows:
            tall = round(max(1.0, (bars_bottom - bars_top) * each.rows / most), 2)
            title = f"confidence {each.low:.1f} to {each.high:.1f}: {each.rows:,} answers"
            bars.append(Bar(x(each.low), bars_bottom - tall, round(across / 10 - 1, 2), tall, title))
    by_rule = [] if reading is None else points(reading, "agree with the rule", -2.2)
    label = f"Share right by confidence: against gold, calibration error {against_gold.error:.3f}"
    if reading is not None:
        label += f"; against the rule's reading, {reading.error:.3f}"
    ticks = [(x(value / 4), y(value / 4), f"{value / 4:g}") for value in range(5)]
    return ReliabilityChart(
        width,
        height,
        left,
        right,
        top,
        bottom,
        bars_top,
        bars_bottom,
        [by_rule, points(against_gold, "right against gold", 2.2)],
        bars,
        ticks,
        label,
    )


def _point(each: Bin, what: str, x: Callable[[float], float], y: Callable[[float], float], aside: float) -> Point:
    """The point of a bin; `aside` keeps two series with equal confidence apart."""
    assert each.confidence is not None and each.share is not None
    assert each.share_low is not None and each.share_high is not None
    title = (
        f"confidence {each.low:.1f} to {each.high:.1f}: {100 * each.share:.1f} % of {each.rows:,} {what} "
        f"[{100 * each.share_low:.1f}, {100 * each.share_high:.1f}]"
    )
    return Point(round(x(each.confidence) + aside, 2), y(each.share), y(each.share_low), y(each.share_high), title)
