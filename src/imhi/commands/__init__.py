"""The command line: one file a command, each with DESCRIPTION, add_arguments(parser) and run(arguments).

Nothing heavy is imported at the top of these files, so that ``--help`` and argument errors are instant.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

from imhi.benchmark import DATASETS
from imhi.devices import DTYPES
from imhi.engines import Decoding, positive
from imhi.errors import UserError, run_main

__all__ = [
    "add_datasets_argument",
    "add_device_arguments",
    "add_exclusion_arguments",
    "add_model_arguments",
    "add_sampling_arguments",
    "decoding_from",
    "positive",
    "run_script",
]


def run_script(command: str, argv: Sequence[str] | None = None) -> int:
    """Run one command as a script of its own (``src/IMHI.py`` and its siblings); returns the exit status."""
    module = import_module(f"imhi.commands.{command}")
    parser = argparse.ArgumentParser(description=module.DESCRIPTION, formatter_class=argparse.RawTextHelpFormatter)
    module.add_arguments(parser)
    return run_main(lambda: module.run(parser.parse_args(argv)))


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that name a generator."""
    parser.add_argument(
        "--model_path",
        help="checkpoint or adapter folder, GGUF file, hub id or embedded: name\n"
        "(default: the base of --lora_path, else embedded:imhi-smollm2)",
    )
    parser.add_argument("--llama", action="store_true", help="the checkpoint is LLaMA (checked)")
    parser.add_argument("--lora", action="store_true", help="apply the adapter of --lora_path")
    parser.add_argument("--lora_path", help="PEFT adapter folder; merged into the model")


def add_datasets_argument(parser: argparse.ArgumentParser) -> None:
    """The flag that chooses datasets; `imhi.data.parse_dataset_names` reads what it holds."""
    parser.add_argument(
        "--datasets",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"only these of {', '.join(DATASETS)} (default: all present)",
    )


def add_device_arguments(parser: argparse.ArgumentParser, *, dtype: str = "auto") -> None:
    """Flags that say where and in which number format a model runs."""
    parser.add_argument("--cuda", action="store_true", help="run on the first GPU")
    parser.add_argument("--device", help="cpu, cuda, cuda:N or mps (default cpu, or cuda:0 with --cuda)")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default=dtype,
        help=f"number format (default {dtype}; auto: bfloat16 where the hardware has it, else float32)",
    )


def add_exclusion_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Flags that leave rows out of the figures; `imhi.exclusions.leave_out` takes them."""
    parser.add_argument(
        "--drop_leaked", action="store_true", help="leave out rows whose post stands in a training file"
    )
    parser.add_argument(
        "--dedup_posts",
        action="store_true",
        help="leave out rows whose post stands in a test set before theirs, and prompts that repeat",
    )


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that say how answers are decoded."""
    parser.add_argument("--max_new_tokens", type=positive, default=512, help="limit of an answer (default 512)")
    parser.add_argument("--max_length", type=positive, help="limit of prompt and answer together (published: 2048)")
    parser.add_argument("--chat_template", action="store_true", help="wrap prompts in the tokenizer's chat template")
    parser.add_argument("--do_sample", action="store_true", help="sample instead of greedy decoding")
    parser.add_argument("--temperature", type=float, help="with --do_sample (default 1.0)")
    parser.add_argument("--top_p", type=float, help="with --do_sample (default 1.0)")
    parser.add_argument("--top_k", type=int, help="with --do_sample (default 0: off)")
    parser.add_argument("--seed", type=int, help="with --do_sample (default 0)")


def decoding_from(arguments: argparse.Namespace) -> Decoding:
    """Checked decoding settings from the flags of `add_model_arguments` and `add_sampling_arguments`."""
    if arguments.lora and not arguments.lora_path:
        raise UserError("--lora needs --lora_path, the folder of the adapter")
    given = {name: getattr(arguments, name) for name in ("temperature", "top_p", "top_k", "seed")}
    given = {name: value for name, value in given.items() if value is not None}
    if given and not arguments.do_sample:
        raise UserError(f"--{next(iter(given))} has no effect on greedy decoding; add --do_sample")
    if not 0 < given.get("temperature", 1.0) < float("inf"):
        raise UserError("--temperature must be above 0; greedy decoding is the default without --do_sample")
    if not 0 < given.get("top_p", 1.0) <= 1:
        raise UserError("--top_p must be above 0 and at most 1")
    if given.get("top_k", 0) < 0:
        raise UserError("--top_k must be 0 (off) or more")
    return Decoding(
        max_new_tokens=arguments.max_new_tokens,
        max_length=arguments.max_length,
        do_sample=arguments.do_sample,
        chat_template=arguments.chat_template,
        **given,
    )
