"""``imhi report``: a page, tables and figures of one run, or of several side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from imhi.commands import add_datasets_argument, add_exclusion_arguments, positive
from imhi.errors import UserError

if TYPE_CHECKING:
    from imhi.pipeline import ReportOptions

DESCRIPTION = (
    "Make one self-contained page of a run, or of several side by side: figures with their uncertainty, confusion,\n"
    "lengths, calibration, the audit of the test data, and a browser of single answers.  Writes report.html,\n"
    "report.md, report.tex and report.json."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="name of a run under model_output/, or a folder")
    parser.add_argument("--out", metavar="DIR", help="where to write (default for one run: into it)")
    parser.add_argument(
        "--labels",
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders of classifier labels, one a run (default: RUN/labels, RUN-labels, or RUN's own columns)",
    )
    parser.add_argument(
        "--data_root", metavar="DIR", help="where the posts are (default: where the run found them, else $IMHI_DATA)"
    )
    add_datasets_argument(parser)
    add_report_options(parser)


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Flags that say what a report holds and which rows its figures are of."""
    report = parser.add_argument_group("report")
    report.add_argument("--include_posts", action="store_true", help="put the posts into the page; mind where it goes")
    add_exclusion_arguments(report)
    report.add_argument("--resamples", type=positive, default=2000, help="bootstrap resamples (default 2000)")


def report_options(arguments: argparse.Namespace) -> ReportOptions:
    """What the flags of `add_report_options` hold."""
    from imhi.pipeline import ReportOptions

    return ReportOptions(
        include_posts=arguments.include_posts,
        drop_leaked=arguments.drop_leaked,
        dedup_posts=arguments.dedup_posts,
        resamples=arguments.resamples,
    )


def run(arguments: argparse.Namespace) -> int:
    from imhi.data import parse_dataset_names
    from imhi.runs import find_run

    folders = [find_run(name, flag="RUN") for name in arguments.runs]
    if len(folders) > 1 and not arguments.out:
        raise UserError("--out is missing; give the folder that a report of several runs goes into")
    if arguments.labels and len(arguments.labels) != len(folders):
        raise UserError(f"--labels: {len(arguments.labels)} folders for {len(folders)} runs; give one a run, in order")
    datasets = parse_dataset_names(arguments.datasets)

    from imhi.pipeline import make_run_report, read_for_report
    from imhi.results import data_root_of

    labels: list[Path | None] = [find_run(name, flag="--labels") for name in arguments.labels]
    runs = [
        read_for_report(folder, labels=labelled, data_root=data_root_of(folder, arguments.data_root), datasets=datasets)
        for folder, labelled in zip(folders, labels or [None] * len(folders), strict=True)
    ]
    out = Path(arguments.out).expanduser() if arguments.out else folders[0]
    make_run_report(runs, out, report_options(arguments))
    return 0
