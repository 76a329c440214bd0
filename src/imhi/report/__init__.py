"""Reports: a page, tables and figures of one run or several side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from imhi import __version__
from imhi.audit import Audit
from imhi.data import write_text_atomically
from imhi.errors import UserError
from imhi.provenance import environment, now
from imhi.report.data_facts import data_facts
from imhi.report.figures import figures_of, run_names
from imhi.report.layout import Report, RunView, layout
from imhi.report.page import page
from imhi.report.published import PUBLISHED
from imhi.report.setting import differences, facts_of, notices_about_data, notices_of
from imhi.report.tables import latex, markdown
from imhi.results import RunResults

__all__ = ["FILES", "FORMAT", "make_report", "write_report"]

FORMAT = "imhi-report-1"
# What a report is made of, in the folder that it is written to.
FILES = ("report.html", "report.md", "report.tex", "report.json")


def make_report(
    runs: Sequence[RunResults],
    *,
    audit: Audit | None = None,
    dropped: Sequence[Mapping[str, Mapping[str, int]]] = (),
    include_posts: bool = False,
    resamples: int = 2000,
) -> Report:
    """Compute every figure of a report.

    Parameters
    ----------
    runs : as `imhi.results.read_results` reads them.
    audit : of the data root that the rows come from; None leaves the section out.
    dropped : for each run what was left out of it before (reason → dataset → rows), () where nothing was.
    include_posts : put the posts into the page; they are in no other file.
    resamples : bootstrap resamples behind every interval.

    Raises
    ------
    UserError
        `include_posts` where no run's posts are known.
    """
    if include_posts and not any(run.has_texts for run in runs):
        raise UserError("--include_posts: these runs are kept without their texts; give the runs themselves")
    if include_posts and all(results.queries is None for run in runs for results in run.datasets.values()):
        raise UserError(
            "--include_posts: the posts of these runs are not at hand; name their test files with --data_root"
        )
    datasets = {name for run in runs for name in run.datasets}
    suite = next((run.suite for run in runs if run.suite), "IMHI")
    facts = None if audit is None else data_facts(audit, suite, datasets)
    views = []
    for number, (run, name) in enumerate(zip(runs, run_names(runs), strict=True)):
        figures = figures_of(run, name, resamples=resamples, dropped=dropped[number] if dropped else None)
        notices = [*notices_of(run, figures), *notices_about_data(facts)]
        views.append(RunView(figures, notices, differences(run), facts_of(run), run.has_texts))
    return layout(views, facts, include_posts=include_posts)


def write_report(report: Report, runs: Sequence[RunResults], out: Path) -> list[Path]:
    """Write the `FILES` of a report of these runs into `out` (created), each in one step; returns their paths."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"--out: {out} is a file; give a folder") from None
    texts = (page(report, runs), markdown(report), latex(report), _figures_json(report))
    paths = [out / name for name in FILES]
    for path, text in zip(paths, texts, strict=True):
        write_text_atomically(path, text)
    return paths


def _figures_json(report: Report) -> str:
    document = {
        "format": FORMAT,
        "imhi": __version__,
        "made": now(),
        "environment": environment(),
        "runs": [
            {
                **asdict(run.figures),
                "notices": [asdict(notice) for notice in run.notices],
                "differences": [asdict(difference) for difference in run.differences],
                "facts": dict(run.facts),
            }
            for run in report.runs
        ],
        "data": None if report.data is None else asdict(report.data),
        "published": [asdict(row) for row in PUBLISHED],
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
