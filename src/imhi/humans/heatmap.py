"""Correlations as a picture: a panel a reference, a line a metric, a column an aspect; SVG without outside parts."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from imhi.humans.figures import POOLED
from imhi.humans.report import REFERENCE_WORDS, number, title_of

__all__ = ["heat_map"]

CELL_WIDTH, CELL_HEIGHT, LABELS, GAP, TOP, FOOT = 92, 26, 178, 36, 74, 58
# The ends of the scale: below, above; between them white in light mode and the page's dark in dark mode.
BELOW, ABOVE = "#b2552a", "#1f6f8b"
# Correlations of this size have the full colour.
FULL = 0.6

STYLE = """
  .page { fill: #ffffff } .cell-ground { fill: #f4f4f2 } text { font: 13px system-ui, sans-serif; fill: #1d2126 }
  .heading { font-weight: 600 } .small { font-size: 11.5px; fill: #5b6570 } .value { text-anchor: middle }
  .label { text-anchor: end } .strong { fill: #ffffff } .certain { font-weight: 700 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #15181c } .cell-ground { fill: #22272d } text { fill: #e6e8ea } .small { fill: #9aa4ae }
    .strong { fill: #ffffff }
  }
"""


def heat_map(document: Mapping[str, Any]) -> str:
    """The pooled Pearson correlations of every column with every aspect, as an SVG document.

    Bold where the 95 % interval leaves out 0.  A reference without figures has no panel.
    """
    panels = {
        reference: part["figures"][POOLED]
        for reference, part in document["references"].items()
        if part["figures"].get(POOLED)
    }
    parts = []
    left = 0
    height = TOP + FOOT
    for reference, scoped in panels.items():
        rows = document["references"][reference]["rows"]
        parts.append(_panel(scoped, left, f"Reference: {REFERENCE_WORDS[reference]}", f"{rows} rows"))
        aspects = len(next(iter(scoped.values())))
        left += LABELS + aspects * CELL_WIDTH + GAP
        height = max(height, TOP + len(scoped) * CELL_HEIGHT + FOOT)
    width = max(left, 360)
    level = round(100 * document["level"])
    foot = (
        f"Pearson correlation with the mean of three annotators, pooled within files; bold: the {level} % interval leaves "
        "out 0."
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="Correlation of metrics with human ratings">\n<style>{STYLE}</style>\n'
        f'<rect class="page" width="{width}" height="{height}"/>\n'
        + "\n".join(parts)
        + f'\n<text class="small" x="16" y="{height - 18}">{escape(foot)}</text>\n</svg>\n'
    )


def _panel(scoped: Mapping[str, Any], left: int, heading: str, subheading: str) -> str:
    aspects = list(next(iter(scoped.values())))
    start = left + LABELS
    parts = [
        f'<text class="heading" x="{start}" y="24">{escape(heading)}</text>',
        f'<text class="small" x="{start}" y="41">{escape(subheading)}</text>',
    ]
    for column, aspect in enumerate(aspects):
        middle = start + (column + 0.5) * CELL_WIDTH
        parts.append(f'<text class="small value" x="{middle}" y="{TOP - 9}">{escape(aspect)}</text>')
    for line, (name, of) in enumerate(scoped.items()):
        y = TOP + line * CELL_HEIGHT
        parts.append(f'<text class="label" x="{start - 10}" y="{y + 17}">{escape(title_of(name))}</text>')
        for column, aspect in enumerate(aspects):
            parts.append(_cell(of[aspect]["pearson"], start + column * CELL_WIDTH, y, f"{title_of(name)}, {aspect}"))
    return "\n".join(parts)


def _cell(interval: Mapping[str, float | None] | None, x: int, y: int, what: str) -> str:
    box = f'x="{x + 1}" y="{y + 1}" width="{CELL_WIDTH - 2}" height="{CELL_HEIGHT - 2}" rx="3"'
    value = None if interval is None else interval["value"]
    parts = [f'<rect class="cell-ground" {box}/>']
    classes = ["value"]
    said = f"{what}: not defined"
    if interval is not None and value is not None:
        strength = min(abs(value) / FULL, 1.0)
        parts.append(f'<rect {box} fill="{ABOVE if value >= 0 else BELOW}" fill-opacity="{strength:.3f}"/>')
        classes += ["strong"] if strength > 0.7 else []
        low, high = interval["low"], interval["high"]
        said = f"{what}: {number(value)}"
        if low is not None and high is not None:
            classes += ["certain"] if low > 0 or high < 0 else []
            said += f" [{number(low)}, {number(high)}]"
    parts.append(f'<text class="{" ".join(classes)}" x="{x + CELL_WIDTH / 2}" y="{y + 17}">{number(value)}</text>')
    return f"<g><title>{escape(said)}</title>{''.join(parts)}</g>"
