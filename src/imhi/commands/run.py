"""``imhi run``: generate, label, score and report, as the three scripts and ``imhi report`` do one by one."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from imhi.checkpoints import DEFAULT_MODEL
from imhi.commands import add_model_arguments
from imhi.commands.generate import add_generation_arguments, generation_request
from imhi.commands.report import add_report_options, report_options
from imhi.commands.score import GPT_SCORE, METHODS, OWN_METHODS, add_metric_arguments, chosen_metrics, metric_options
from imhi.errors import UserError

DESCRIPTION = (
    "Generate, label, score and report in one go; the same command goes on where it stopped, and repeats nothing\n"
    "whose inputs are the same."
)

STAGES = ("generate", "label", "score", "report")
WITHOUT_A_CHECKPOINT = ("bleu", "rouge", "bert_score")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--model_output_path",
        help="name of the run (a folder under model_output/), or a path with a slash\n(default: after model and test set)",
    )
    add_generation_arguments(parser)
    stages = parser.add_argument_group("stages")
    stages.add_argument(
        "--from",
        dest="first",
        choices=STAGES,
        default=None,
        help="begin here, with what lies in the run folder, and compute labels, scores or report anew",
    )
    stages.add_argument("--to", dest="last", choices=STAGES, default="report", help="end here (default report)")
    stages.add_argument(
        "--classifiers",
        metavar="DIR",
        help="label classifiers, as label_inference.py's --model_path (default: our own)",
    )
    stages.add_argument(
        "--score_method",
        nargs="+",
        choices=[*METHODS, *OWN_METHODS, "all", *GPT_SCORE],
        help="metrics (default bleu rouge bert_score, and bart_score where a --bart_ flag is given)",
    )
    add_metric_arguments(parser)
    add_report_options(parser)


def run(arguments: argparse.Namespace) -> int:
    from imhi.runs import run_folder

    name = arguments.model_output_path or default_name(
        arguments.model_path or getattr(arguments, "model", None), arguments.lora_path, arguments.test_dataset
    )
    request = generation_request(arguments, run_folder(name))
    from imhi.checkpoints import locate
    from imhi.devices import pick_device
    from imhi.metrics import METRICS
    from imhi.pipeline import PipelineRequest, run_pipeline

    device = pick_device(cuda=arguments.cuda, device=arguments.device)
    bart = any((arguments.bart_model, arguments.bart_weights, arguments.bart_direction))
    named = chosen_metrics(arguments.score_method or [])
    chosen = named or [*WITHOUT_A_CHECKPOINT, *(["bart_score"] if bart else [])]
    options = metric_options(arguments, chosen, {"device": device, "dtype": "float32" if device == "cpu" else "auto"})
    complaint = run_pipeline(
        PipelineRequest(
            generation=request,
            classifiers=None if arguments.classifiers is None else locate(arguments.classifiers, flag="--classifiers"),
            # Making a metric checks what it needs: before the first hour of work.
            metrics=[make(**options.get(metric, {})) for metric, make in METRICS.items() if metric in chosen],
            target=arguments.target,
            report=report_options(arguments),
            first=arguments.first or "generate",
            last=arguments.last,
            repeat=arguments.first is not None,
        )
    )
    if complaint is not None:
        raise UserError(complaint, code=1)
    return 0


def default_name(model: str | None, lora: str | None, suite: str) -> str:
    """A run's name after what ran: the last parts of model and adapter, and the test set where it is not the usual one."""
    parts = [Path((lora or model or DEFAULT_MODEL).rpartition(":")[2]).name]
    if lora and model:
        parts.insert(0, Path(model.rpartition(":")[2]).name)
    if suite != "IMHI":
        parts.append(suite)
    return "-".join(re.sub(r"[^\w.-]+", "_", part) for part in parts)
