"""What a run says while it works: sentences and progress bars on stderr; stdout is for results."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["progress_bar", "say", "show", "some", "table"]


def say(text: str) -> None:
    """One line of talk on stderr."""
    print(text, file=sys.stderr, flush=True)


def show(text: str) -> None:
    """A result on stdout."""
    print(text, flush=True)


def progress_bar(total: int, what: str, *, unit: str = "row", initial: int = 0) -> tqdm:
    """A tqdm bar on stderr; `initial` counts what an earlier run already did."""
    from tqdm import tqdm

    return tqdm(total=total, desc=what, unit=unit, initial=initial, dynamic_ncols=True, smoothing=0.05)


def some(names: Iterable[str], most: int = 12) -> str:
    """The first names of a list, and how many more there are."""
    shown = list(names)
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "") or "none"


def table(headers: list[str], rows: list[list[str]]) -> str:
    """A plain-text table; the first column is aligned left, the others right."""
    widths = [max(len(line[at]) for line in [headers, *rows]) for at in range(len(headers))]

    def line(cells: list[str]) -> str:
        first = cells[0].ljust(widths[0])
        return "  ".join([first, *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))])

    return "\n".join([line(headers), "  ".join("-" * width for width in widths), *(line(row) for row in rows)])
