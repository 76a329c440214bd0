"""``imhi compare``: two runs on the same rows, with paired tests."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from imhi.commands import add_datasets_argument, add_exclusion_arguments, positive
from imhi.errors import UserError

DESCRIPTION = (
    "Compare two runs on the same rows: differences with intervals, paired tests, effect sizes, rows that flipped."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, place in (("a", "A"), ("b", "B")):
        parser.add_argument(
            name, metavar=place, help="name of a run under model_output/, or a folder of DATASET.csv files"
        )
    for name, place in (("a", "A"), ("b", "B")):
        parser.add_argument(
            f"--labels_{name}",
            metavar="DIR",
            help=f"folder of {place}'s labels by classifier (default {place}/labels, else {place}-labels beside it, else\n"
            f"the column labels in {place} itself)",
        )
    add_datasets_argument(parser)
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=[],
        metavar="NAME",
        help="only these: accuracy, weighted_f1, macro_f1 (labels by rule), classifier_accuracy, ..., a score's name or\n"
        "column (bleu, rouge, rougeL, bert_score, ...) (default: all that both have)",
    )
    parser.add_argument("--resamples", type=positive, default=10_000, help="of interval and test (default 10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples (default 0)")
    parser.add_argument("--level", type=float, default=0.95, help="coverage of the intervals (default 0.95)")
    parser.add_argument(
        "--data_root",
        help="where the posts are looked up: rows on one post are drawn together\n"
        "(default: the folder that each run recorded, else $IMHI_DATA, else every row counts by itself)",
    )
    add_exclusion_arguments(parser)
    parser.add_argument("--out", metavar="FILE.json", help="write everything there, every flipped row included")
    parser.add_argument(
        "--include_answers", action="store_true", help="with --out: the answers of flipped rows, which quote posts"
    )


def run(arguments: argparse.Namespace) -> int:
    if not 0 < arguments.level < 1:
        raise UserError(f"--level {arguments.level:g}: expected a share between 0 and 1, such as 0.95")
    if arguments.resamples < 10:
        raise UserError(f"--resamples {arguments.resamples}: too few for an interval; give 1000 or more")
    if arguments.seed < 0:
        raise UserError(f"--seed {arguments.seed}: expected 0 or more")
    if arguments.include_answers and not arguments.out:
        raise UserError("--include_answers has no effect without --out; leave it out")
    import json

    from imhi.comparison import compare_runs, comparison_table
    from imhi.data import parse_dataset_names, write_text_atomically
    from imhi.exclusions import leave_out
    from imhi.results import data_root_of, read_results
    from imhi.runs import find_run
    from imhi.talk import say, show

    runs, left_out = [], []
    for name, labels, flag in (
        (arguments.a, arguments.labels_a, "a"),
        (arguments.b, arguments.labels_b, "b"),
    ):
        folder = find_run(name, flag=flag.upper())
        results = read_results(
            folder,
            labels=find_run(labels, flag=f"--labels_{flag}") if labels else None,
            datasets=parse_dataset_names(arguments.datasets),
            data_root=data_root_of(folder, arguments.data_root),
        )
        rest, counts = leave_out(results, drop_leaked=arguments.drop_leaked, dedup_posts=arguments.dedup_posts)
        runs.append(rest)
        left_out.append(counts)
    found = compare_runs(
        *runs,
        metrics=arguments.metrics,
        resamples=arguments.resamples,
        seed=arguments.seed,
        level=arguments.level,
        include_answers=arguments.include_answers,
    )
    # The runs have the same rows, or they would have been refused.
    found = replace(found, left_out=left_out[0])
    show(comparison_table(found))
    if arguments.out:
        out = Path(arguments.out).expanduser()
        write_text_atomically(out, json.dumps(found.as_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        say(f"written to {out}")
    return 0
