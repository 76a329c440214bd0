"""``imhi demo``: the first look that ``make demo`` runs."""

from __future__ import annotations

import argparse

from imhi.commands import positive

DESCRIPTION = (
    "A first look: the embedded responder on made-up sample rows, labelled and scored. Minutes on a CPU, no network."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model_output_path",
        help="name of the run under model_output/, or a path\n(default demo, with --base-only demo-base)",
    )
    parser.add_argument(
        "--base-only",
        "--base_only",
        action="store_true",
        help="the general chat model, without the adapter trained on IMHI",
    )
    parser.add_argument("--limit", type=positive, help="at most this many rows a dataset")
    parser.add_argument("--cuda", action="store_true", help="run on the first GPU")
    parser.add_argument("--overwrite", action="store_true", help="discard an earlier demo run")


def run(arguments: argparse.Namespace) -> int:
    from imhi.demo import run_demo
    from imhi.runs import run_folder

    return run_demo(
        run_folder(arguments.model_output_path or ("demo-base" if arguments.base_only else "demo")),
        limit=arguments.limit,
        base_only=arguments.base_only,
        cuda=arguments.cuda,
        overwrite=arguments.overwrite,
    )
