"""``label_inference.py`` and ``imhi label``: labels for a folder of responses, and their correctness."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from imhi.benchmark import DATASETS
from imhi.commands import add_datasets_argument, add_device_arguments, positive
from imhi.data import ResponseFile, parse_dataset_names
from imhi.engines.ray_flags import absolute, add_engine_arguments, gpus_each, pool_options
from imhi.engines.ray_pool import open_pool
from imhi.errors import UserError
from imhi.labelers import Labeler
from imhi.talk import say, show

DESCRIPTION = (
    "Label a folder of responses with one classifier a dataset, or by rule, and compare the labels with the gold ones."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rules",
        metavar="DIR",
        help="label this folder by rule, without a model: prints accuracy and F1, ours and by the published rule,\n"
        "and writes correctness.json there",
    )
    parser.add_argument(
        "--model_path",
        help="folder with one classifier a dataset (MODEL_PATH/DR, MODEL_PATH/SAD, ...): full checkpoints,\n"
        "LoRA adapters, or some of both; one of them, as folder or hub id, where there is one dataset\n"
        "(default: the toolkit's own ten)",
    )
    parser.add_argument(
        "--data_path",
        help="name of a run under model_output/, or a folder of DATASET.csv with the columns\ngoldens,generated_text",
    )
    parser.add_argument(
        "--data_output_path",
        help="folder for DATASET.csv with labels and label_confidence behind those columns, and clear_label\n"
        "(the label, or unclear) where the classifier has a threshold; made if absent",
    )
    add_datasets_argument(parser)
    parser.add_argument("--calculate", action="store_true", help="print accuracy, weighted, micro and macro F1")
    parser.add_argument(
        "--labelled",
        action="store_true",
        help="with --calculate: take the column labels that --data_path already carries; no model is loaded",
    )
    parser.add_argument(
        "--skip_missing", action="store_true", help="leave out datasets that have no classifier under MODEL_PATH"
    )
    parser.add_argument("--overwrite", action="store_true", help="label again what is labelled, replace files")
    add_device_arguments(parser, dtype="float32 on the CPU, auto on a GPU")
    # What stands above is what the help says; None leaves the choice to the device.
    parser.set_defaults(dtype=None)
    parser.add_argument(
        "--batch_size", type=positive, help="texts a batch at most (default: as many as suit the device)"
    )
    add_engine_arguments(parser, "classifiers")


def run(arguments: argparse.Namespace) -> int:
    if arguments.engine == "ray" and (arguments.rules is not None or arguments.labelled):
        raise UserError("--engine ray has no effect where no classifier runs; leave it out")
    pool_options(arguments)
    if arguments.rules is not None:
        return _label_by_rules(arguments)
    if arguments.labelled:
        return _compare_only(arguments)
    return _label_with_classifiers(arguments)


def _label_by_rules(arguments: argparse.Namespace) -> int:
    given = [flag for flag in ("model_path", "data_path", "data_output_path", "labelled") if getattr(arguments, flag)]
    if given:
        raise UserError(f"--rules DIR reads and writes DIR alone; leave --{given[0]} out")
    from imhi.rule_labelling import label_folder_by_rules, rule_table
    from imhi.runs import find_run

    folder = find_run(arguments.rules, flag="--rules")
    datasets = parse_dataset_names(arguments.datasets)
    show(rule_table(label_folder_by_rules(folder, datasets=datasets, overwrite=arguments.overwrite)))
    say(f"figures in {folder / 'correctness.json'}")
    return 0


def _label_with_classifiers(arguments: argparse.Namespace) -> int:
    for flag in ("data_path", "data_output_path"):
        if not getattr(arguments, flag):
            raise UserError(f"--{flag} is missing; needed are --data_path and --data_output_path")
    if arguments.model_path is None and arguments.skip_missing:
        raise UserError("--skip_missing has no effect without --model_path; leave it out")
    from imhi.devices import pick_device, pick_dtype
    from imhi.labelling import counts_table, earlier_figures, label_folder, output_folder, read_folder
    from imhi.runs import find_run

    data = find_run(arguments.data_path, flag="--data_path")
    responses = read_folder(data, parse_dataset_names(arguments.datasets))
    out = Path(arguments.data_output_path).expanduser()
    if arguments.calculate:
        # Before the long work: what would stop the comparison behind it.
        earlier_figures(out, overwrite=arguments.overwrite)
        for response in responses.values():
            response.gold_labels()
    device = pick_device(cuda=arguments.cuda, device=arguments.device)
    gpus = gpus_each(device) if arguments.engine == "ray" else 0
    opened = partial(
        _open_labelers,
        absolute(arguments.model_path),
        list(responses),
        device=device,
        dtype=pick_dtype(arguments.dtype or ("float32" if device == "cpu" else "auto"), device),
        batch_size=arguments.batch_size,
        skip_missing=arguments.skip_missing,
    )
    labelers = opened()
    output_folder(out, data)
    with _spread(labelers, opened, responses, out, arguments, gpus=gpus) as spread:
        records = label_folder(responses, spread, out, overwrite=arguments.overwrite)
    show(counts_table(records))
    if arguments.calculate:
        _compare(read_folder(out, list(records)), out, overwrite=arguments.overwrite)
    return 0


def _open_labelers(model_path: str | None, names: Sequence[str], **options: Any) -> dict[str, Labeler]:
    """The labelers of these datasets, here or in a worker."""
    from imhi.checkpoints import locate
    from imhi.labelers.folders import open_labelers

    datasets = [DATASETS[name] for name in names]
    return dict(open_labelers(None if model_path is None else locate(model_path), datasets, **options))


@contextmanager
def _spread(
    labelers: Mapping[str, Labeler],
    opened: Callable[[], Mapping[str, Labeler]],
    responses: Mapping[str, ResponseFile],
    out: Path,
    arguments: argparse.Namespace,
    *,
    gpus: int,
) -> Iterator[Mapping[str, Labeler]]:
    """The labelers; with --engine ray, those that have something to label spread over workers."""
    from imhi.labelers.pooled import over_workers
    from imhi.labelling import unlabelled

    names = unlabelled(responses, labelers, out, overwrite=arguments.overwrite) if arguments.engine == "ray" else []
    if not names:
        yield labelers
        return
    texts = {name: responses[name].generated for name in names}
    with open_pool(pool_options(arguments), gpus=gpus) as pool:
        yield {**labelers, **over_workers(labelers, opened, texts, pool)}


def _compare_only(arguments: argparse.Namespace) -> int:
    if not arguments.calculate:
        raise UserError("--labelled labels nothing; add --calculate to compare the labels with the gold ones")
    if arguments.model_path:
        raise UserError("--labelled takes the labels that are there; leave --model_path out, or --labelled")
    if not arguments.data_path:
        raise UserError("--data_path is missing; give the folder of labelled DATASET.csv files")
    from imhi.labelling import output_folder, read_folder
    from imhi.runs import find_run

    data = find_run(arguments.data_path, flag="--data_path")
    responses = read_folder(data, parse_dataset_names(arguments.datasets))
    out = Path(arguments.data_output_path).expanduser() if arguments.data_output_path else None
    if out is not None and out.resolve() != data.resolve():
        output_folder(out, data)
    _compare(responses, out, overwrite=arguments.overwrite)
    return 0


def _compare(responses: Mapping[str, ResponseFile], out: Path | None, *, overwrite: bool) -> None:
    """Print the published lines and a table of the same figures; keep them in `out`."""
    from imhi.labelling import correctness_table, labelled_correctness, write_correctness

    figures = labelled_correctness(responses)
    for name, figure in figures.items():
        show(figure.published_line(name))
    show(correctness_table(figures))
    if out is not None:
        entries = {name: figure.as_dict() for name, figure in figures.items()}
        files = {name: response.path for name, response in responses.items()}
        say(f"figures in {write_correctness(out, entries, files, overwrite=overwrite)}")
