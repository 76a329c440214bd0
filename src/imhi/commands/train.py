"""``imhi train``: the toolkit's own models, from a data root."""

from __future__ import annotations

import argparse
from pathlib import Path

from imhi.commands import add_datasets_argument, add_device_arguments, positive
from imhi.data import parse_dataset_names, resolve_data_root
from imhi.errors import UserError
from imhi.talk import say, show

DESCRIPTION = "Train the label classifiers."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from imhi.training.fitting import Recipe

    default = Recipe()
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    labelers = what.add_parser(
        "labelers",
        help="the ten label classifiers: a LoRA adapter and a head each, or whole checkpoints",
        description="Train the ten label classifiers into OUT/DATASET; the same command resumes.",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    labelers.add_argument(
        "--data_root", help="folder in the published layout (default: $IMHI_DATA, else the sample rows)"
    )
    labelers.add_argument(
        "--out", required=True, help="folder for the classifiers; label_inference.py takes it as --model_path"
    )
    add_datasets_argument(labelers)
    labelers.add_argument(
        "--base",
        default=default.base,
        help=f"a BERT encoder: path, hub id or embedded: name (default {default.base});\n"
        "its classifiers are adapters of it, or, with --full, checkpoints of its size",
    )
    labelers.add_argument(
        "--layers",
        type=int,
        nargs="+",
        metavar="N",
        help="keep only these layers of it, counted from 0\n"
        f"(default: {' '.join(map(str, default.layers or ()))} of {default.base}, all of another)",
    )
    labelers.add_argument(
        "--full", action="store_true", help="train all weights into whole checkpoints, without an adapter"
    )
    labelers.add_argument("--rank", type=positive, help=f"rank of the adapters (default {default.rank})")
    labelers.add_argument(
        "--learning_rate", type=float, help=f"peak (default {default.learning_rate}, with --full 5e-05)"
    )
    labelers.add_argument(
        "--common_chunks",
        type=positive,
        default=default.common_chunks,
        help=f"longest fit on all datasets, in chunks of 4 batches (default {default.common_chunks})",
    )
    labelers.add_argument(
        "--chunks", type=positive, default=default.chunks, help=f"longest fit on one dataset (default {default.chunks})"
    )
    labelers.add_argument(
        "--batch_size", type=positive, default=default.batch, help=f"answers a step (default {default.batch})"
    )
    labelers.add_argument(
        "--seed", type=int, default=default.seed, help=f"of answers and weights (default {default.seed})"
    )
    labelers.add_argument(
        "--no_folds",
        action="store_true",
        help="leave out the cross-validation of sets that have only test rows: no gold figures for them",
    )
    labelers.add_argument(
        "--overwrite", action="store_true", help="replace what OUT holds of another recipe or other data"
    )
    add_device_arguments(labelers)


def run(arguments: argparse.Namespace) -> int:
    from imhi.training.fitting import Recipe

    default = Recipe()
    if arguments.full and arguments.rank is not None:
        raise UserError("--rank has no effect with --full, which trains all weights; leave one of them out")
    if arguments.dtype == "float16":
        raise UserError("--dtype float16 is not trained in; take bfloat16 or float32")
    if arguments.learning_rate is not None and not 0 < arguments.learning_rate < 1:
        raise UserError(f"--learning_rate {arguments.learning_rate}: expected a number above 0 and below 1")
    rate = arguments.learning_rate or (5e-5 if arguments.full else default.learning_rate)
    recipe = Recipe(
        base=arguments.base,
        layers=tuple(arguments.layers)
        if arguments.layers
        else default.layers
        if arguments.base == default.base
        else None,
        rank=0 if arguments.full else arguments.rank or default.rank,
        learning_rate=rate,
        own_rate=rate * default.own_rate / default.learning_rate,
        common_chunks=arguments.common_chunks,
        chunks=arguments.chunks,
        batch=arguments.batch_size,
        seed=arguments.seed,
    )
    names = parse_dataset_names(arguments.datasets)
    root = resolve_data_root(arguments.data_root)
    say(root.describe())
    from imhi.devices import pick_device, pick_dtype
    from imhi.training.labelers import figures_table, train_labelers

    device = pick_device(cuda=arguments.cuda, device=arguments.device)
    out = Path(arguments.out).expanduser()
    settings = train_labelers(
        root,
        out,
        recipe,
        datasets=names,
        device=device,
        dtype=pick_dtype(arguments.dtype, device),
        folds=not arguments.no_folds,
        overwrite=arguments.overwrite,
    )
    show(figures_table(settings))
    say(f"classifiers in {out}; labels with them: label_inference.py --model_path {out} ...")
    return 0
