"""The page: templates, style and script put into one file that asks nobody for anything.

Every text goes through Jinja's autoescape; the answers themselves are packed (`imhi.report.browser`) and written by the
page's script as text, never as markup.  A content security policy names the digests of our style and script, so that
nothing else can run even if something slipped in.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from imhi import __version__
from imhi.provenance import now
from imhi.report.browser import browser_data, packed
from imhi.report.layout import BY, Report
from imhi.report.published import CITATION, NOTE, PUBLISHED
from imhi.results import RunResults
from imhi.statistics import Interval

__all__ = ["page"]

TEMPLATES = Path(__file__).parent / "templates"
DASH = "–"


def page(report: Report, runs: Sequence[RunResults]) -> str:
    """The whole page as text; `runs` are those of the report, in its order."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    # Cut to their lines' ends here, so that the digests are of the very text between the tags.
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent, bounds=bounds, score=score, count=count, many=many, score_bounds=score_bounds
    )
    return environment.get_template("page.html.j2").render(
        report=report,
        by=BY,
        published=PUBLISHED,
        published_note=NOTE,
        citation=CITATION,
        made=now()[:10],
        version=__version__,
        style=Markup(style),
        script=Markup(script),
        policy=(
            f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:; "
            "base-uri 'none'; form-action 'none'"
        ),
        answers=packed(
            browser_data(runs, [run.figures.name for run in report.runs], include_posts=report.include_posts)
        ),
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def percent(value: float | None, digits: int = 2) -> str:
    """A share of 0 to 1 in per cent."""
    return DASH if value is None else f"{100 * value:.{digits}f}"


def bounds(interval: Interval) -> str:
    """The interval of a share, in per cent."""
    return f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def score(value: float) -> str:
    return f"{value:.4f}".replace("-", "−")


def score_bounds(interval: Interval) -> str:
    return f"[{interval.low:.3f}, {interval.high:.3f}]".replace("-", "−")


def many(value: int, what: str) -> str:
    """A number of things: "1 row", "2,113 rows"."""
    return f"{value:,} {what}{'' if value == 1 else 's'}"


def count(value: int | None) -> str:
    return DASH if value is None else f"{value:,}"
