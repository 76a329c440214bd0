"""``imhi ask``: one post, one answer, through the same path as a full run."""

from __future__ import annotations

import argparse
import sys

from imhi.benchmark import DATASETS, FORMS
from imhi.commands import add_device_arguments, add_model_arguments, add_sampling_arguments, decoding_from
from imhi.errors import UserError

DESCRIPTION = "Ask a model one dataset's question about one post, and stream its answer."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("post", help="the post, in quotes; - reads it from standard input")
    parser.add_argument("--dataset", required=True, help=f"whose question to ask: {', '.join(DATASETS)}")
    parser.add_argument("--aspect", help="MultiWD's wellness dimension or Irf's risk (default: the first)")
    parser.add_argument(
        "--form", choices=list(FORMS), help="wording (default: instruction; completion for BART and T5)"
    )
    add_model_arguments(parser)
    add_device_arguments(parser)
    add_sampling_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    from imhi.asking import ask

    return ask(
        _standard_input() if arguments.post == "-" else arguments.post,
        dataset_name=arguments.dataset,
        aspect=arguments.aspect,
        form=arguments.form,
        model=arguments.model_path,
        lora_path=arguments.lora_path,
        llama=arguments.llama,
        cuda=arguments.cuda,
        device=arguments.device,
        dtype=arguments.dtype,
        decoding=decoding_from(arguments),
    )


def _standard_input() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        raise UserError("the post on standard input is not UTF-8 text; convert it to UTF-8") from None
