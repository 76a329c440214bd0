"""``score.py`` and ``imhi score``: how close the responses are to the gold responses."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from imhi.commands import add_datasets_argument, add_device_arguments, positive
from imhi.engines.ray_flags import absolute, add_engine_arguments, gpus_each, pool_options
from imhi.engines.ray_pool import open_pool
from imhi.errors import UserError
from imhi.metrics.gpt_templates import DEFAULT_TEMPLATE, TEMPLATES

if TYPE_CHECKING:
    from imhi.metrics.base import Metric

DESCRIPTION = (
    "Score generated responses against the gold responses: BART-score, BERTScore, BLEU, ROUGE, coverage, GPT-score.\n"
    "Writes scores.json and scores/DATASET.csv (a value per row) into the folder; values that are there already,\n"
    "of the same signature and texts, are kept."
)

METHODS = ("bart_score", "bert_score", "bleu", "rouge")
# Metrics of this toolkit's own, which "all" leaves out: docs/human-agreement.md.
OWN_METHODS = ("coverage", "info_gain")
# Those whose model runs here, as far as --gpt_api_base does not name a server: what a pool of workers spreads.
WITH_MODEL = ("bart_score", "bert_score", *OWN_METHODS, "gpt_score")
# Their options that may be paths.
PATHS = ("model", "weights", "baseline")
# The published name and ours; "all" leaves it out, since its model decides everything.
GPT_SCORE = ("GPT3_score", "gpt_score")
GPT_FLAGS = (
    *("gpt_model", "gpt_direction", "gpt_template"),
    *("gpt_api_base", "gpt_api_model", "gpt_api_key_env", "gpt_allow_remote"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gen_dir_name", required=True, help="name of a run under model_output/, or a folder")
    parser.add_argument(
        "--score_method",
        choices=[*METHODS, *OWN_METHODS, "all", *GPT_SCORE],
        default="bart_score",
        help="metric (default bart_score, as published; all: the first four; coverage, info_gain: how much of the\n"
        "gold comes back in the answer; GPT3_score, or gpt_score: log P(gold | answer) by a causal model)",
    )
    add_datasets_argument(parser)
    add_device_arguments(parser, dtype="float32 on the CPU, auto on a GPU")
    # What stands above is what the help says; None leaves the choice to the device.
    parser.set_defaults(dtype=None)
    parser.add_argument(
        "--batch_size", type=positive, help="texts or pairs a batch at most (default: as many as suit the metric)"
    )
    parser.add_argument("--overwrite", action="store_true", help="compute values again that are there already")
    add_metric_arguments(parser)
    add_engine_arguments(parser, "metrics' models")
    parser.add_argument(
        "--allow_remote", dest="gpt_allow_remote", action="store_true", help="the same as --gpt_allow_remote"
    )


def add_metric_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that say what is compared, and with which models; `metric_options` reads the latter."""
    parser.add_argument(
        "--target",
        choices=["response", "explanation"],
        default="response",
        help="compare whole texts (default, as published) or the parts after 'Reasoning:'",
    )
    bert = parser.add_argument_group("bert_score")
    bert.add_argument("--bert_model", help="folder or hub id (default embedded:minilm)")
    bert.add_argument(
        "--num_layers", type=positive, help="layer to match (needed for a model bert-score does not know)"
    )
    bert.add_argument(
        "--rescale_with_baseline", action="store_true", help="rescale so that unrelated texts score about 0"
    )
    bert.add_argument("--bert_baseline", metavar="FILE", help="baseline file LAYER,P,R,F (default: the package's)")
    bart = parser.add_argument_group("bart_score")
    bart.add_argument("--bart_model", help="folder or hub id (default facebook/bart-large-cnn)")
    bart.add_argument("--bart_weights", metavar="FILE", help="state dict loaded over it (bart_score.pth)")
    bart.add_argument(
        "--bart_direction",
        choices=["published", "reverse", "both"],
        help="P(gold | generated) as published (default), P(generated | gold), or both and their mean",
    )
    gpt = parser.add_argument_group("gpt_score (GPT3_score)")
    gpt.add_argument("--gpt_model", help="causal model: folder, GGUF file or hub id (default embedded:smollm2)")
    gpt.add_argument(
        "--gpt_direction",
        metavar="{hypo-to-ref,ref-to-hypo,both}",
        help="the text that is read, and the text that is scored: P(gold | generated) (default), P(generated | gold),\n"
        "or both and their mean; also as 'ref|hypo' and 'hypo|ref'",
    )
    gpt.add_argument(
        "--gpt_template",
        choices=list(TEMPLATES),
        metavar="NAME",
        help=f"what stands around the texts (src/imhi/metrics/gpt_templates.json):\n{_in_lines(TEMPLATES)}\n"
        f"(default {DEFAULT_TEMPLATE}: nothing, as published)",
    )
    gpt.add_argument(
        "--gpt_api_base",
        metavar="URL",
        help="instead of --gpt_model: an OpenAI-compatible server, up to /v1, that echoes log-probabilities (vLLM does)",
    )
    gpt.add_argument("--gpt_api_model", metavar="NAME", help="the model's name on that server")
    gpt.add_argument("--gpt_api_key_env", metavar="VARIABLE", help="environment variable that holds that server's key")
    gpt.add_argument(
        "--gpt_allow_remote",
        action="store_true",
        help="answers and golds may be sent to --gpt_api_base on another machine",
    )


def _in_lines(names: Iterable[str]) -> str:
    return textwrap.fill(", ".join(names), 100, break_on_hyphens=False)


def chosen_metrics(methods: Sequence[str]) -> list[str]:
    """Names of `imhi.metrics.METRICS` for names of ``--score_method``, each once."""
    named = {"all": METHODS, **dict.fromkeys(GPT_SCORE, ("gpt_score",))}
    return [*dict.fromkeys(name for method in methods for name in named.get(method, (method,)))]


def run(arguments: argparse.Namespace) -> int:
    pool_options(arguments)
    chosen = chosen_metrics([arguments.score_method])
    if arguments.engine == "ray" and (arguments.gpt_api_base or not set(chosen).intersection(WITH_MODEL)):
        raise UserError("--engine ray has no effect where no model runs here; leave it out")
    if arguments.gpt_api_base:
        for flag in ("batch_size", "dtype", "device", "cuda"):
            if getattr(arguments, flag):
                raise UserError(f"--{flag} has no effect with --gpt_api_base; leave it out")
    from imhi.data import parse_dataset_names
    from imhi.metrics import METRICS
    from imhi.runs import find_run
    from imhi.scoring import score_folder, score_table
    from imhi.talk import show

    folder = find_run(arguments.gen_dir_name, flag="--gen_dir_name")
    from imhi.devices import pick_device

    device = pick_device(cuda=arguments.cuda, device=arguments.device)
    shared: dict[str, object] = {
        "device": device,
        "dtype": arguments.dtype or ("float32" if device == "cpu" else "auto"),
    }
    if arguments.batch_size:
        shared["batch_size"] = arguments.batch_size
    options = metric_options(arguments, chosen, shared)
    # Making a metric checks what it needs: all of them before the first value.
    metrics = [make(**options.get(name, {})) for name, make in METRICS.items() if name in chosen]
    with _spread(metrics, options, arguments, device) as spread:
        results = score_folder(
            folder,
            spread,
            datasets=parse_dataset_names(arguments.datasets),
            target=arguments.target,
            overwrite=arguments.overwrite,
        )
    show(score_table(results))
    return 0


@contextmanager
def _spread(
    metrics: Sequence[Metric],
    options: Mapping[str, Mapping[str, object]],
    arguments: argparse.Namespace,
    device: str,
) -> Iterator[Sequence[Metric]]:
    """The metrics; with --engine ray, those that have a model spread over workers."""
    if arguments.engine != "ray":
        yield metrics
        return
    from imhi.metrics.pooled import over_workers

    with open_pool(pool_options(arguments), gpus=gpus_each(device)) as pool:
        yield [
            over_workers(metric, _from_the_root(options[metric.name]), pool) if metric.name in WITH_MODEL else metric
            for metric in metrics
        ]


def _from_the_root(options: Mapping[str, object]) -> dict[str, object]:
    """Options of a metric with absolute paths: workers run in other folders."""
    return {
        name: absolute(value) if name in PATHS and isinstance(value, str) else value for name, value in options.items()
    }


def metric_options(
    arguments: argparse.Namespace, chosen: Sequence[str], shared: Mapping[str, object]
) -> dict[str, dict[str, object]]:
    """Constructor arguments per metric, those of `shared` for every model; a flag of a metric that was not chosen is an error."""
    given = {
        name: [flag for flag in flags if getattr(arguments, flag)]
        for name, flags in (
            ("bert_score", ("bert_model", "num_layers", "rescale_with_baseline", "bert_baseline")),
            ("bart_score", ("bart_model", "bart_weights", "bart_direction")),
            ("gpt_score", GPT_FLAGS),
        )
    }
    for name, flags in given.items():
        if flags and name not in chosen:
            raise UserError(f"--{flags[0]} has no effect on --score_method {' '.join(chosen)}; leave it out")
    return {
        **{name: dict(shared) for name in OWN_METHODS},
        "bert_score": {
            **shared,
            "model": arguments.bert_model or "embedded:minilm",
            "num_layers": arguments.num_layers,
            "rescale_with_baseline": arguments.rescale_with_baseline,
            "baseline": arguments.bert_baseline,
        },
        "bart_score": {
            **shared,
            "model": arguments.bart_model or "facebook/bart-large-cnn",
            "weights": arguments.bart_weights,
            "direction": arguments.bart_direction or "published",
        },
        "gpt_score": {
            **shared,
            "model": arguments.gpt_model,
            "direction": arguments.gpt_direction or "hypo-to-ref",
            "template": arguments.gpt_template or DEFAULT_TEMPLATE,
            "api_base": arguments.gpt_api_base,
            "api_model": arguments.gpt_api_model,
            "api_key_env": arguments.gpt_api_key_env,
            "allow_remote": arguments.gpt_allow_remote,
        },
    }
