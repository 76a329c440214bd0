"""``imhi humans``: how well each metric agrees with human judgement."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from imhi.commands import add_device_arguments, positive
from imhi.errors import UserError

if TYPE_CHECKING:
    from imhi.metrics.base import Metric

DESCRIPTION = (
    "Hold every metric, and plain length, against human ratings of explanations: correlations with intervals,\n"
    "tests against length and ROUGE-1, agreement of the annotators, a heat map."
)

METHODS = ("rouge", "bleu", "bert_score", "bart_score", "info_gain", "coverage", "label_support")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="annotation files (default: all of human_evaluation/DR_annotation in the data root)",
    )
    parser.add_argument(
        "--data_root",
        help="where annotations and gold explanations lie (default: $IMHI_DATA, else the made-up sample rows)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="also write humans.json, humans.md, humans.svg and values per row there"
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        choices=METHODS,
        metavar="NAME",
        help=f"only these of {', '.join(METHODS)} (default: all; bart_score only with --bart_model)",
    )
    parser.add_argument("--resamples", type=positive, default=2000, help="of the bootstrap over posts (default 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples and folds (default 0)")
    add_device_arguments(parser, dtype="float32 on the CPU, auto on a GPU")
    # What stands above is what the help says; None leaves the choice to the device.
    parser.set_defaults(dtype=None)
    parser.add_argument("--bert_model", help="encoder of bert_score and coverage (default embedded:minilm)")
    parser.add_argument("--num_layers", type=positive, help="its layer to match (needed where bert-score has none)")
    parser.add_argument("--causal_model", help="causal model of info_gain (default embedded:smollm2)")
    parser.add_argument("--bart_model", help="folder or hub id of a BART, for bart_score")
    parser.add_argument("--bart_weights", metavar="FILE", help="state dict loaded over it (bart_score.pth)")


def run(arguments: argparse.Namespace) -> int:
    from imhi.data import resolve_data_root
    from imhi.humans import DATASET, annotation_files, human_agreement, read_annotations, summary, write_agreement
    from imhi.talk import say, show

    chosen = _chosen(arguments)
    if arguments.out is not None and arguments.out.exists() and not arguments.out.is_dir():
        raise UserError(f"--out: {arguments.out} is a file; give a folder")
    root = resolve_data_root(arguments.data_root)
    say(root.describe())
    annotated = read_annotations(arguments.files or annotation_files(root))
    metrics, device = _metrics(arguments, chosen)
    classifier = None
    if "label_support" in chosen:
        import torch

        from imhi.labelers.folders import open_labelers

        classifier = open_labelers(None, [DATASET], device=device, dtype=torch.float32)[DATASET.name]
    setting = {"resamples": arguments.resamples, "seed": arguments.seed}
    measured = human_agreement(annotated, root, metrics, classifier, **setting)
    show(summary(measured.document))
    if arguments.out is not None:
        for path in write_agreement(measured, arguments.out):
            say(f"written: {path}")
    return 0


def _chosen(arguments: argparse.Namespace) -> list[str]:
    """The metrics to compute; a flag of one that is not among them is an error, not ignored."""
    given = set(arguments.metrics or METHODS)
    if arguments.metrics is None and arguments.bart_model is None and arguments.bart_weights is None:
        given.discard("bart_score")
    if "bart_score" in given and arguments.bart_model is None:
        raise UserError(
            "bart_score needs --bart_model, a folder or hub id of a BART (published: facebook/bart-large-cnn)"
        )
    for flag, users in (
        ("bert_model", {"bert_score", "coverage"}),
        ("num_layers", {"bert_score", "coverage"}),
        ("causal_model", {"info_gain"}),
        ("bart_model", {"bart_score"}),
        ("bart_weights", {"bart_score"}),
    ):
        if getattr(arguments, flag) is not None and not users & given:
            raise UserError(f"--{flag} has no effect without {' or '.join(sorted(users))} in --metrics; leave it out")
    return [name for name in METHODS if name in given]


def _metrics(arguments: argparse.Namespace, chosen: list[str]) -> tuple[list[Metric], str]:
    """The metrics in the order of the tables, each checked for what it needs, and the device."""
    from imhi.devices import pick_device
    from imhi.metrics import METRICS

    device = pick_device(cuda=arguments.cuda, device=arguments.device)
    shared = {"device": device, "dtype": arguments.dtype or ("float32" if device == "cpu" else "auto")}
    encoder = {**shared, "model": arguments.bert_model or "embedded:minilm", "num_layers": arguments.num_layers}
    options: dict[str, dict[str, object]] = {
        "bert_score": encoder,
        "coverage": encoder,
        "info_gain": {**shared, "model": arguments.causal_model or "embedded:smollm2"},
        "bart_score": {**shared, "model": arguments.bart_model, "weights": arguments.bart_weights, "direction": "both"},
    }
    return [METRICS[name](**options.get(name, {})) for name in chosen if name in METRICS], device
