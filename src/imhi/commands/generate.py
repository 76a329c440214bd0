"""``IMHI.py`` and ``imhi generate``: a response to every test item."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imhi.benchmark import SUITES
from imhi.commands import (
    add_datasets_argument,
    add_device_arguments,
    add_model_arguments,
    add_sampling_arguments,
    decoding_from,
    positive,
)
from imhi.engines import BATCHING, ENGINES
from imhi.errors import UserError
from imhi.prompts import DEFAULT_STYLE, STYLES

if TYPE_CHECKING:
    from imhi.generation import GenerationRequest

DESCRIPTION = (
    "Generate a response to every item of the IMHI benchmark; killed or interrupted, the same command goes on."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--model_output_path",
        required=True,
        help="name of the run (a folder under model_output/), or a path with a slash",
    )
    parser.add_argument(
        "--rule_calculate", action="store_true", help="label the answers by rule and print accuracy and F1"
    )
    add_generation_arguments(parser)


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that say which rows are answered, and how; `generation_request` reads them."""
    parser.add_argument("--test_dataset", choices=list(SUITES), default="IMHI", help="which test files (default IMHI)")
    add_datasets_argument(parser)
    parser.add_argument("--limit", type=positive, help="at most this many rows a dataset, from the top")
    parser.add_argument(
        "--data_root", help="folder in the published layout (default $IMHI_DATA, else made-up sample rows)"
    )
    add_device_arguments(parser)
    parser.add_argument(
        "--engine", choices=list(ENGINES), default="transformers", help="what runs the model (default transformers)"
    )
    for name, module in ENGINES.items():
        import_module(module).add_arguments(parser.add_argument_group(f"--engine {name}"))
    parser.add_argument(
        "--batch_size", type=positive, help="rows at once, at most (default: what suits the device and its memory)"
    )
    parser.add_argument(
        "--batching",
        choices=BATCHING,
        help="in-flight: a row that ends makes room for the next (default where the model can);\n"
        "buckets: whole batches through transformers' generate",
    )
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="every row by itself: no answer depends on the rows beside it; several times slower (BENCHMARKS.md)",
    )
    add_sampling_arguments(parser)
    parser.add_argument(
        "--shots",
        type=int,
        default=0,
        metavar="N",
        help="show N worked examples of every label before each prompt, from the training files (default 0)",
    )
    parser.add_argument(
        "--shots_seed", type=int, metavar="S", help="with --shots: another seed, other examples (default 0)"
    )
    parser.add_argument(
        "--prompt_style",
        choices=list(STYLES),
        default=DEFAULT_STYLE,
        help="how prompts are worded, after the evaluation paper (src/imhi/prompt_styles.json):\n"
        + "".join(f"{name}: {style.title}\n" for name, style in STYLES.items())
        + f"(default {DEFAULT_STYLE})",
    )
    parser.add_argument(
        "--max_errors", type=int, default=10, help="stop after more than this many failed rows (default 10)"
    )
    parser.add_argument(
        "--retry_refused",
        action="store_true",
        help="ask again what a server's content filter refused in an earlier session",
    )
    parser.add_argument("--overwrite", action="store_true", help="discard an earlier run in the same folder")


def generation_request(arguments: argparse.Namespace, output: Path) -> GenerationRequest:
    """What the flags ask for; raises UserError where they contradict each other."""
    decoding = decoding_from(arguments)
    if arguments.deterministic and arguments.batch_size not in (None, 1):
        raise UserError(f"--deterministic takes every row by itself; leave --batch_size {arguments.batch_size} out")
    if arguments.max_errors < 0:
        raise UserError("--max_errors must be 0 (stop at the first failed row) or more")
    if arguments.shots < 0:
        raise UserError("--shots must be 0 (no examples) or more")
    if arguments.shots_seed is not None and not arguments.shots:
        raise UserError("--shots_seed has no effect without examples; add --shots")
    if (arguments.shots_seed or 0) < 0:
        raise UserError("--shots_seed must be 0 or more")
    from imhi.data import parse_dataset_names
    from imhi.generation import GenerationRequest

    return GenerationRequest(
        output=output,
        model=arguments.model_path,
        lora_path=arguments.lora_path,
        llama=arguments.llama,
        suite=arguments.test_dataset,
        datasets=parse_dataset_names(arguments.datasets),
        limit=arguments.limit,
        data_root=arguments.data_root,
        cuda=arguments.cuda,
        device=arguments.device,
        dtype=arguments.dtype,
        batch_size=arguments.batch_size,
        batching=arguments.batching,
        deterministic=arguments.deterministic,
        engine=arguments.engine,
        engine_options=_engine_options(arguments),
        decoding=decoding,
        shots=arguments.shots,
        shots_seed=arguments.shots_seed or 0,
        prompt_style=arguments.prompt_style,
        max_errors=arguments.max_errors,
        retry_refused=arguments.retry_refused,
        overwrite=arguments.overwrite,
    )


def _engine_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The given flags of the chosen engine's own, by name; UserError on those of another."""
    own: dict[str, Any] = {}
    strange: dict[str, str] = {}
    for name, module_name in ENGINES.items():
        module, parser = import_module(module_name), argparse.ArgumentParser(add_help=False)
        module.add_arguments(parser)
        given = {action.dest for action in parser._actions if hasattr(arguments, action.dest)}
        if name == arguments.engine or name in getattr(import_module(ENGINES[arguments.engine]), "ALSO_TAKES", ()):
            own |= {flag: getattr(arguments, flag) for flag in given}
        else:
            strange |= dict.fromkeys(given, name)
    for flag, name in strange.items():
        if flag not in own:
            raise UserError(f"--{flag} is a flag of --engine {name}; add that, or leave --{flag} out")
    return own


def run(arguments: argparse.Namespace) -> int:
    from imhi.runs import run_folder

    request = generation_request(arguments, run_folder(arguments.model_output_path))
    from imhi.generation import generate_responses
    from imhi.labelling import earlier_figures
    from imhi.rule_labelling import SOURCE, label_folder_by_rules, rule_table
    from imhi.talk import say, show

    if arguments.rule_calculate and not arguments.overwrite:
        # Before the long work: what would stop the comparison behind it.
        earlier_figures(request.output, source=SOURCE)
    outcome = generate_responses(request)
    if arguments.rule_calculate:
        folder = outcome.folder
        show(rule_table(label_folder_by_rules(folder, datasets=outcome.datasets, published_results=True)))
        say(f"figures in {folder / 'correctness.json'} and {folder / 'results.txt'}")
    if outcome.failed:
        # After the figures: one row that cannot be answered must not hide the others'.
        raise UserError(outcome.complaint(), code=1)
    return 0
