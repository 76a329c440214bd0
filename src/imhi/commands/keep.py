"""``imhi keep``: runs without any text, small enough and fit to be published."""

from __future__ import annotations

import argparse
from pathlib import Path

from imhi.errors import UserError

DESCRIPTION = (
    "Keep runs without any text, so that their figures can be published: labels, lengths and score values row by row,\n"
    "manifest and signatures; no posts, golds or answers.  imhi report and imhi compare read what is kept as a run."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="name of a run under model_output/, or a folder")
    parser.add_argument(
        "--out",
        required=True,
        metavar="FOLDER",
        help="gets a folder of the run's name for each run; replaced if kept before",
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders of classifier labels, one a run (default: RUN/labels, RUN-labels, or RUN's own columns)",
    )
    parser.add_argument(
        "--data_root",
        metavar="DIR",
        help="where the posts are, to tell which rows are about one post and which question each asks\n"
        "(default: where the run found them, else $IMHI_DATA)",
    )


def run(arguments: argparse.Namespace) -> int:
    from imhi.kept import keep_run
    from imhi.results import data_root_of, read_results
    from imhi.runs import find_run
    from imhi.talk import say

    folders = [find_run(name, flag="RUN") for name in arguments.runs]
    if arguments.labels and len(arguments.labels) != len(folders):
        raise UserError(f"--labels: {len(arguments.labels)} folders for {len(folders)} runs; give one a run, in order")
    names = [folder.resolve().name for folder in folders]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"RUN: two runs are called {twice}, and one folder cannot keep both; give them one by one")
    labels: list[Path | None] = [find_run(name, flag="--labels") for name in arguments.labels]
    for folder, labelled in zip(folders, labels or [None] * len(folders), strict=True):
        results = read_results(folder, labels=labelled, data_root=data_root_of(folder, arguments.data_root))
        unknown = [name for name, one in results.datasets.items() if one.posts is None]
        if unknown:
            say(
                f"{folder}: posts of {', '.join(unknown)} not at hand (--data_root); every row is kept as about a post of "
                "its own, and no question's aspect"
            )
        kept = keep_run(results, Path(arguments.out).expanduser())
        size = sum(path.stat().st_size for path in kept.iterdir())
        say(f"kept {results.rows} rows of {len(results.datasets)} datasets in {kept} ({size / 1024:.0f} KiB)")
    return 0
