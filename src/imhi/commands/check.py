"""``imhi check``: a run's figures against a stored baseline, for CI."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = (
    "Check a run's figures against a baseline, for CI: exits 1 on a regression, 2 on changed rows or definitions."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_folder", metavar="RUN", help="name of a run under model_output/, or a folder of DATASET.csv files"
    )
    parser.add_argument("--baseline", required=True, metavar="FILE.json", help="the stored figures")
    parser.add_argument("--update", action="store_true", help="write the baseline from RUN, after telling what moved")
    parser.add_argument(
        "--tolerance",
        nargs="+",
        default=[],
        metavar="METRIC=VALUE",
        help="by how much a figure may fall: accuracy=0.01, classifier_macro_f1=0.02, rouge=0.005, in the baseline's\n"
        "standard errors with se (bleu=2se), for every figure with all=VALUE\n"
        "(default 1e-6; 1e-4 for scores by a model)",
    )
    parser.add_argument(
        "--labels",
        metavar="DIR",
        help="folder of the labels by classifier (default RUN/labels, else RUN-labels beside it, else the column labels\n"
        "in RUN itself)",
    )
    parser.add_argument(
        "--data_root",
        help="with --update: where the posts are looked up, rows on one post count together in the standard errors\n"
        "(default: the folder that the run recorded, else $IMHI_DATA, else every row counts by itself)",
    )


def run(arguments: argparse.Namespace) -> int:
    from imhi.errors import UserError
    from imhi.regression import (
        baseline_of,
        check_run,
        check_table,
        parse_tolerances,
        read_baseline,
        with_text_metrics,
        write_baseline,
    )
    from imhi.results import data_root_of, read_results
    from imhi.runs import find_run
    from imhi.talk import say, show

    if arguments.data_root and not arguments.update:
        raise UserError("--data_root has no effect without --update; leave it out")
    tolerances = parse_tolerances(arguments.tolerance)
    path = Path(arguments.baseline).expanduser()
    baseline = None if arguments.update and not path.exists() else read_baseline(path)
    labels = find_run(arguments.labels, flag="--labels") if arguments.labels else None
    folder = find_run(arguments.run_folder, flag="RUN")
    root = data_root_of(folder, arguments.data_root) if arguments.update else None
    found = with_text_metrics(read_results(folder, labels=labels, data_root=root))
    status = 0
    if baseline is not None:
        check = check_run(found, baseline, tolerances)
        show(check_table(check, baseline))
        status = check.exit_status
    if not arguments.update:
        return status
    write_baseline(path, baseline_of(found))
    say(f"baseline written to {path}")
    return 0
