"""Rows per second of the toolkit's text metrics against the packages that define them.

``--stage overlap``, ROUGE-1/2/L and BLEU, both sides on one thread:

- reference: ``RougeScorer.score`` of rouge-score for every pair; nltk's ``corpus_bleu``, and its ``sentence_bleu`` for
  every pair, on the toolkit's 13a tokens (each text tokenised once, which counts), so that both sides' values are the
  same;
- toolkit: ``Rouge().score`` and ``Bleu().score``.

``--stage bertscore``, the same checkpoint and layer on both sides, loading included:

- reference: ``bert_score.score``, 64 texts a batch by default as there;
- toolkit: ``BertScore(...).score``.

The pairs are released rows: the gold answer of a row, and beside it as the generated text that of the next row of the
same dataset in the other form, completion; of the sample rows where ``$IMHI_DATA`` is not set.  A benchmark whose sides
disagree about the corpus values fails.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from measuring import RESULTS, leave, machine, medians, peak_memory, publish, take_turns

from imhi.commands import positive
from imhi.data import DataRoot, load_suite, resolve_data_root
from imhi.devices import pick_device
from imhi.errors import UserError, run_main
from imhi.provenance import environment, library_versions, now
from imhi.talk import say, table

SIDES = {
    "overlap": {
        "reference": "rouge-score; nltk's corpus_bleu and sentence_bleu on 13a tokens",
        "toolkit": "Rouge and Bleu",
    },
    "bertscore": {"reference": "bert_score.score", "toolkit": "BertScore"},
}
# What two right implementations may differ by: the order of summation, and for BERTScore float32 and the batches.
TOLERANCE = {"overlap": 1e-12, "bertscore": 1e-4}
DEFAULT_ROWS = {"overlap": None, "bertscore": 400}

# Value name → corpus value; "seconds_*" are parts of a side's time.
Figures = dict[str, float]
Pairs = tuple[list[str], list[str]]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Rows per second: the toolkit's text metrics, the reference packages.")
    parser.add_argument("--stage", choices=list(SIDES), default="overlap", help="what to measure (default overlap)")
    parser.add_argument(
        "--rows", type=positive, help="pairs in all, every k-th (default: all for overlap, 400 for bertscore)"
    )
    parser.add_argument("--repeats", type=positive, default=3, help="turns of each; medians are reported (default 3)")
    parser.add_argument("--data_root", help="folder with test_data/ (default $IMHI_DATA, else the sample rows)")
    parser.add_argument(
        "--out", type=Path, help="JSON file (default benchmarks/results/text-metrics[-STAGE]-DEVICE.json)"
    )
    bert = parser.add_argument_group("bertscore")
    bert.add_argument("--device", help="cpu, cuda or cuda:N (default cpu)")
    bert.add_argument("--bert_model", default="embedded:minilm", help="folder (default embedded:minilm)")
    bert.add_argument("--num_layers", type=positive, default=5, help="layer to match (default 5)")
    bert.add_argument("--batch_size", type=positive, default=64, help="texts a batch of the reference (default 64)")
    # A side's own process.
    parser.add_argument("--side", choices=["reference", "toolkit"], help=argparse.SUPPRESS)
    parser.add_argument("--figures", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def gold_texts(root: DataRoot, suite: str) -> dict[str, list[str]]:
    """Dataset → its gold answers in file order."""
    loaded = load_suite(root, suite)
    texts: dict[str, list[str]] = {name: [] for name in loaded.files}
    for row in loaded.rows:
        texts[row.dataset].append(row.gold)
    return texts


def read_pairs(root: DataRoot, rows: int | None) -> Pairs:
    """Generated and gold texts, shape (rows,) each, evenly spaced over all pairs."""
    golds, completions = gold_texts(root, "IMHI"), gold_texts(root, "IMHI-completion")
    pairs = [
        (completions[name][(at + 1) % len(completions[name])], gold)
        for name in golds
        if name in completions
        for at, gold in enumerate(golds[name])
    ]
    count = min(rows or len(pairs), len(pairs))
    chosen = [pairs[number * len(pairs) // count] for number in range(count)]
    return [generated for generated, _ in chosen], [gold for _, gold in chosen]


def reference_overlap(generated: Sequence[str], golds: Sequence[str]) -> Figures:
    from nltk.translate.bleu_score import corpus_bleu, sentence_bleu
    from rouge_score.rouge_scorer import RougeScorer

    from imhi.metrics.bleu import tokenize_13a

    started = time.perf_counter()
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    scores = [scorer.score(gold, text) for text, gold in zip(generated, golds, strict=True)]
    values = {
        name: math.fsum(score[name].fmeasure for score in scores) / len(scores)
        for name in ("rouge1", "rouge2", "rougeL")
    }
    between = time.perf_counter()
    tokens = {text: tokenize_13a(text) for text in dict.fromkeys([*generated, *golds])}
    answers, references = [tokens[text] for text in generated], [[tokens[gold]] for gold in golds]
    with warnings.catch_warnings():
        # nltk warns where a pair shares no n-gram of an order; such a pair counts as 0 here too.
        warnings.simplefilter("ignore")
        for answer, wanted in zip(answers, references, strict=True):
            sentence_bleu(wanted, answer)
        values["bleu"] = float(corpus_bleu(references, answers))
    ended = time.perf_counter()
    return {**values, "seconds_rouge": between - started, "seconds_bleu": ended - between}


def toolkit_overlap(generated: Sequence[str], golds: Sequence[str]) -> Figures:
    from imhi.metrics.bleu import Bleu
    from imhi.metrics.rouge import Rouge

    started = time.perf_counter()
    values = Rouge().score(generated, golds).values
    between = time.perf_counter()
    values |= Bleu().score(generated, golds).values
    ended = time.perf_counter()
    return {**values, "seconds_rouge": between - started, "seconds_bleu": ended - between}


def reference_bertscore(generated: Sequence[str], golds: Sequence[str], arguments: argparse.Namespace) -> Figures:
    import bert_score

    from imhi.checkpoints import locate

    found = bert_score.score(
        list(generated),
        list(golds),
        model_type=str(locate(arguments.bert_model, flag="--bert_model")),
        num_layers=arguments.num_layers,
        batch_size=arguments.batch_size,
        device=arguments.device,
    )
    names = ("bert_precision", "bert_recall", "bert_f1")
    return {name: float(values.double().mean()) for name, values in zip(names, found, strict=True)}


def toolkit_bertscore(generated: Sequence[str], golds: Sequence[str], arguments: argparse.Namespace) -> Figures:
    from imhi.metrics.bertscore import BertScore

    metric = BertScore(arguments.bert_model, num_layers=arguments.num_layers, device=arguments.device)
    return metric.score(generated, golds).values


def work_of(arguments: argparse.Namespace) -> Callable[[Sequence[str], Sequence[str]], Figures]:
    if arguments.stage == "overlap":
        return {"reference": reference_overlap, "toolkit": toolkit_overlap}[arguments.side]
    bertscore = {"reference": reference_bertscore, "toolkit": toolkit_bertscore}[arguments.side]
    return lambda generated, golds: bertscore(generated, golds, arguments)


def run_side(arguments: argparse.Namespace) -> int:
    """One turn of one side, in this process."""
    generated, golds = read_pairs(resolve_data_root(arguments.data_root), arguments.rows)
    work = work_of(arguments)
    # Imports and the file cache belong to no side's time.
    work(generated[:1], golds[:1])
    started = time.perf_counter()
    found = work(generated, golds)
    figures = {
        "seconds": time.perf_counter() - started,
        "peak_memory": peak_memory(arguments.device),
        "rows": len(golds),
        **{name: value for name, value in found.items() if name.startswith("seconds_")},
        "values": {name: value for name, value in found.items() if not name.startswith("seconds_")},
    }
    leave(arguments.figures, figures)
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    # This process stays small and reads no texts: a child's peak memory begins with what its parent held.
    stage = arguments.stage
    lacking = [name for name in ("nltk", "rouge_score") if stage == "overlap" and find_spec(name) is None]
    if lacking:
        raise UserError(
            f"{' and '.join(lacking)} not installed; pip install '.[bench]' brings what is measured against"
        )
    root = resolve_data_root(arguments.data_root)
    say(root.describe())
    flags = {
        "--stage": stage,
        "--data_root": root.path,
        "--rows": arguments.rows or DEFAULT_ROWS[stage],
        "--device": arguments.device,
        "--bert_model": arguments.bert_model,
        "--num_layers": arguments.num_layers,
        "--batch_size": arguments.batch_size,
    }
    passed = [str(word) for flag, value in flags.items() if value is not None for word in (flag, value)]
    turns = take_turns(Path(__file__), list(SIDES[stage]), passed, repeats=arguments.repeats, pythons={})
    refuse_different(turns, TOLERANCE[stage])
    return {
        "made": now(),
        "stage": stage,
        "sides": SIDES[stage],
        "device": arguments.device,
        "data": "sample rows, made up and short" if root.is_samples else "released test files",
        **({"model": arguments.bert_model, "layer": arguments.num_layers} if stage == "bertscore" else {}),
        **summary(turns),
        "turns": turns,
        "machine": {**machine(arguments.device), **({"threads": 1} if stage == "overlap" else {})},
        "environment": environment(),
        "measured_packages": library_versions(("rapidfuzz", "nltk", "rouge-score", "bert-score")),
    }


def refuse_different(turns: Sequence[Mapping[str, Any]], tolerance: float) -> None:
    """UserError where two turns found corpus values further apart than `tolerance`."""
    for name, value in turns[0]["values"].items():
        for turn in turns:
            if not abs(turn["values"][name] - value) <= tolerance:
                raise UserError(
                    f"{name}: {turns[0]['side']} found {value}, {turn['side']} {turn['values'][name]}; no comparison",
                    code=1,
                )


def summary(turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians over the turns, rows per second, and how many times faster the toolkit is."""
    rows = turns[0]["rows"]
    seconds = medians(turns)
    parts = [name for name in turns[0] if name.startswith("seconds_")]
    found = {name: medians(turns, name) for name in parts}
    return {
        "rows": rows,
        "seconds": seconds,
        **found,
        "peak_memory_bytes": medians(turns, "peak_memory"),
        "rows_per_second": {side: rows / value for side, value in seconds.items()},
        "ratio": seconds["reference"] / seconds["toolkit"],
        **{name.replace("seconds", "ratio"): part["reference"] / part["toolkit"] for name, part in found.items()},
    }


def result_table(result: Mapping[str, Any]) -> str:
    parts = [name.removeprefix("ratio_") for name in result if name.startswith("ratio_")]
    lines = [
        [
            f"{side}: {described}",
            *(f"{result[f'seconds_{part}'][side]:.2f}" for part in parts),
            f"{result['seconds'][side]:.2f}",
            f"{result['rows_per_second'][side]:.1f}",
            f"{result['peak_memory_bytes'][side] / 2**20:.0f}",
        ]
        for side, described in result["sides"].items()
    ]
    lines.append(["ratio", *(f"{result[f'ratio_{part}']:.1f}" for part in parts), "", f"{result['ratio']:.1f}", ""])
    where = result["machine"]
    return (
        f"{result['rows']} pairs ({result['data']}), {where['gpu'] or where['cpu']}, {where['threads']} threads on "
        f"{where['cores']} cores, median of {len(result['turns']) // len(result['sides'])}\n\n"
        + table(["", *(f"{part} s" for part in parts), "seconds", "rows/s", "peak MiB"], lines)
    )


def run(arguments: argparse.Namespace) -> int:
    arguments.device = pick_device(device=arguments.device)
    if arguments.side:
        return run_side(arguments)
    result = measure(arguments)
    stage = "" if arguments.stage == "overlap" else f"-{arguments.stage}"
    out = arguments.out or RESULTS / f"text-metrics{stage}-{arguments.device.partition(':')[0]}.json"
    publish(result, result_table(result), out)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(lambda: run(parse())))
