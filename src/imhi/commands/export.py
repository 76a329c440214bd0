"""``imhi export``: the benchmark in the form that another tool reads."""

from __future__ import annotations

import argparse
from pathlib import Path

from imhi.commands import add_datasets_argument, positive

DESCRIPTION = "Write the benchmark as tasks of another tool (`lm-eval`: lm-evaluation-harness)."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    formats = parser.add_subparsers(dest="format", required=True, metavar="{lm-eval}")
    lm_eval = formats.add_parser(
        "lm-eval",
        help="task files and rows that `lm_eval --include_path DIR --tasks imhi_instruction` runs",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    lm_eval.add_argument("dir", metavar="DIR", help="folder to write; it then holds posts")
    lm_eval.add_argument(
        "--data_root", help="folder in the published layout (default $IMHI_DATA, else made-up sample rows)"
    )
    add_datasets_argument(lm_eval)
    lm_eval.add_argument("--max_new_tokens", type=positive, default=512, help="limit of an answer (default 512)")
    lm_eval.add_argument("--limit", type=positive, help="at most this many rows a dataset, from the top")
    lm_eval.add_argument(
        "--overwrite", action="store_true", help="replace an earlier export in DIR (other files are never replaced)"
    )


def run(arguments: argparse.Namespace) -> int:
    from imhi.data import parse_dataset_names, resolve_data_root
    from imhi.errors import UserError
    from imhi.lm_eval_export import export_lm_eval
    from imhi.talk import say

    if not arguments.dir.strip():
        raise UserError("DIR is empty; give the folder to write the tasks into")
    root = resolve_data_root(arguments.data_root)
    say(root.describe())
    done = export_lm_eval(
        Path(arguments.dir).expanduser(),
        root,
        datasets=parse_dataset_names(arguments.datasets),
        max_new_tokens=arguments.max_new_tokens,
        limit=arguments.limit,
        overwrite=arguments.overwrite,
    )
    for form, rows in done.rows.items():
        counts = ", ".join(f"{name} {count}" for name, count in rows.items())
        say(f"imhi_{form}: {sum(rows.values())} rows ({counts})")
    for form in done.absent:
        say(f"imhi_{form}: no such test files in this data root")
    holds = "made-up sample rows" if root.is_samples else "posts"
    say(f"tasks in {done.folder}, which holds {holds}; how to run them: {done.folder / 'README.md'}")
    return 0
