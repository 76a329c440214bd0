"""Pairs per second of the toolkit's BART-score against the published loop, on the same model and the same pairs.

The sides take turns, each turn in a process of its own:

- ``reference``: the loop of ``bart_score.py`` of Yuan, Neubig, Liu, "BARTScore", NeurIPS 2021, as the IMHI scripts call
  it: pairs in file order, four at a time, both texts padded to the longest of their batch and cut at 1024 tokens, in
  float32; log-softmax over the logits of every position, padding included, and the negative log-likelihood of the
  target summed and divided by the target's tokens.
- ``toolkit``: `imhi.metrics.bartscore` in float32, log P(gold | generated) as published.
- ``toolkit-bf16``: the same in bfloat16, where the hardware computes in it.

facebook/bart-large-cnn is not here: random weights of its shape stand in for it, since the time does not depend on the
values, and its tokenizer is a byte-level BPE of 49,152 entries (SmolLM2's), whose texts are about as long as with
BART's 50,265.  A row's "generated" text is the gold answer of the next row of its dataset, so that both texts are real
answers of different length.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measuring import RESULTS, leave, machine, medians, peak_memory, publish, take_turns

from imhi.commands import positive
from imhi.data import load_suite, resolve_data_root
from imhi.devices import pick_device, pick_dtype
from imhi.errors import run_main
from imhi.provenance import environment, now
from imhi.talk import say, table

SCRIPT = Path(__file__)
SIDES = {"reference": "float32", "toolkit": "float32", "toolkit-bf16": "bfloat16"}
BASELINE = "reference"
REFERENCE_BATCH = 4
MAX_TOKENS = 1024
# What facebook/bart-large-cnn and bart-base have, and something for a test.
SHAPES = {
    "large": {"d_model": 1024, "layers": 12, "heads": 16, "ffn": 4096, "vocabulary": 50264},
    "base": {"d_model": 768, "layers": 6, "heads": 12, "ffn": 3072, "vocabulary": 50265},
    "tiny": {"d_model": 32, "layers": 2, "heads": 4, "ffn": 64, "vocabulary": 49164},
}
SPECIALS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}

Pairs = Sequence[tuple[str, str]]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Pairs per second: the toolkit's BART-score, the published loop.")
    parser.add_argument("--shape", choices=SHAPES, default="large", help="of the model, random weights (default large)")
    parser.add_argument("--rows", type=positive, default=32, help="pairs, in true proportions (default 32)")
    parser.add_argument("--repeats", type=positive, default=3, help="turns of each; medians are reported (default 3)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default cpu)")
    parser.add_argument("--data_root", help="folder with test_data/ (default $IMHI_DATA, else the sample rows)")
    parser.add_argument(
        "--sides", nargs="+", choices=SIDES, help="who takes part (default: all that the hardware computes natively)"
    )
    parser.add_argument("--out", type=Path, help="JSON file (default benchmarks/results/bartscore-DEVICE.json)")
    # What a side's process is told.
    for name in ("--side", "--figures", "--work"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def pick_pairs(files: Mapping[str, Sequence[str]], count: int) -> list[tuple[str, str]]:
    """About `count` pairs (gold of the next row, gold), each dataset in proportion, evenly spaced in file order."""
    total = sum(map(len, files.values()))
    pairs = []
    for golds in files.values():
        taken = min(len(golds), max(1, round(count * len(golds) / total)))
        for number in range(taken):
            at = number * len(golds) // taken
            pairs.append((golds[(at + 1) % len(golds)], golds[at]))
    return pairs


def save_bart(folder: Path, shape: str) -> None:
    """A BART of random weights, and a tokenizer that puts ``<s>`` and ``</s>`` around a text as BART's does."""
    import torch
    from tokenizers import Tokenizer, processors
    from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

    from imhi.checkpoints import convert_gguf, locate

    tokenizer = Tokenizer.from_file(str(convert_gguf(locate("embedded:smollm2")) / "tokenizer.json"))
    tokenizer.add_special_tokens(list(SPECIALS.values()))
    ids = {name: tokenizer.token_to_id(token) for name, token in SPECIALS.items()}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", ids["bos_token"]), ("</s>", ids["eos_token"])]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIALS).save_pretrained(str(folder))
    size = SHAPES[shape]
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=size["vocabulary"],
        d_model=size["d_model"],
        encoder_layers=size["layers"],
        decoder_layers=size["layers"],
        encoder_attention_heads=size["heads"],
        decoder_attention_heads=size["heads"],
        encoder_ffn_dim=size["ffn"],
        decoder_ffn_dim=size["ffn"],
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=ids["bos_token"],
        pad_token_id=ids["pad_token"],
        eos_token_id=ids["eos_token"],
        decoder_start_token_id=ids["eos_token"],
        forced_eos_token_id=ids["eos_token"],
    )
    BartForConditionalGeneration(config).save_pretrained(str(folder))


class Reference:
    """The published loop: made once, then called with pairs; values in their order."""

    def __init__(self, folder: Path, device: str):
        import torch
        from transformers import AutoTokenizer, BartForConditionalGeneration

        self.tokenizer = AutoTokenizer.from_pretrained(str(folder))
        self.model = BartForConditionalGeneration.from_pretrained(str(folder), dtype=torch.float32).to(device).eval()
        self.device = device

    def __call__(self, pairs: Pairs) -> list[float]:
        import torch

        pad = self.model.config.pad_token_id
        log_softmax = torch.nn.LogSoftmax(dim=1)
        loss_of = torch.nn.NLLLoss(reduction="none", ignore_index=pad)
        options: dict[str, Any] = {
            "return_tensors": "pt",
            "padding": True,
            "truncation": True,
            "max_length": MAX_TOKENS,
        }
        values: list[float] = []
        for start in range(0, len(pairs), REFERENCE_BATCH):
            batch = pairs[start : start + REFERENCE_BATCH]
            source = self.tokenizer([generated for generated, _ in batch], **options).to(self.device)
            target = self.tokenizer([gold for _, gold in batch], **options).to(self.device)
            with torch.no_grad():
                logits = self.model(
                    input_ids=source["input_ids"],
                    attention_mask=source["attention_mask"],
                    labels=target["input_ids"],
                ).logits
                flat = log_softmax(logits.view(-1, logits.shape[-1]))
                losses = loss_of(flat, target["input_ids"].view(-1)).view(len(batch), -1)
                values += (-losses.sum(dim=1) / target["attention_mask"].sum(dim=1)).tolist()
        return values


class Toolkit:
    """The toolkit's metric, loaded: made once, then called with pairs."""

    def __init__(self, folder: Path, device: str, dtype: str):
        from imhi.metrics.bartscore import BartScore

        self.metric = BartScore(str(folder), device=device, dtype=dtype)
        _ = self.metric._model, self.metric._tokenizer

    def __call__(self, pairs: Pairs) -> list[float]:
        found = self.metric.statistics([generated for generated, _ in pairs], [gold for _, gold in pairs])
        return [value for (value,) in found]


def run_side(arguments: argparse.Namespace) -> int:
    """One turn of one side, in a process of its own: loading, one pair to warm up, then all pairs by the clock."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    work = Path(arguments.work)
    pairs = [(generated, gold) for generated, gold in json.loads((work / "pairs.json").read_text(encoding="utf-8"))]
    started = time.perf_counter()
    score: Reference | Toolkit
    if arguments.side == BASELINE:
        score = Reference(work, arguments.device)
    else:
        score = Toolkit(work, arguments.device, SIDES[arguments.side])
    loading = time.perf_counter() - started
    score(pairs[:1])
    started = time.perf_counter()
    values = score(pairs)
    figures = {
        "seconds": time.perf_counter() - started,
        "loading_seconds": loading,
        "peak_memory": peak_memory(arguments.device),
        "values": values,
    }
    leave(Path(arguments.figures), figures)
    return 0


def token_counts(folder: Path, pairs: Pairs) -> dict[str, int]:
    """Tokens of all sources and targets, the longest of each, and what the reference's batches pad them to."""
    from imhi.checkpoints import load_tokenizer

    tokenizer = load_tokenizer(folder)
    found: dict[str, int] = {}
    for at, side in enumerate(("source", "target")):
        encoded = tokenizer([pair[at] for pair in pairs], truncation=True, max_length=MAX_TOKENS)["input_ids"]
        lengths = [len(ids) for ids in encoded]
        batches = [lengths[start : start + REFERENCE_BATCH] for start in range(0, len(lengths), REFERENCE_BATCH)]
        found[side] = sum(lengths)
        found[f"longest_{side}"] = max(lengths)
        found[f"{side}_padded_by_reference"] = sum(len(batch) * max(batch) for batch in batches)
    return found


def measure(arguments: argparse.Namespace, device: str) -> dict[str, Any]:
    root = resolve_data_root(arguments.data_root)
    say(root.describe())
    suite = load_suite(root, "IMHI")
    golds: dict[str, list[str]] = {name: [] for name in suite.files}
    for row in suite.rows:
        golds[row.dataset].append(row.gold)
    pairs = pick_pairs(golds, arguments.rows)
    native = "bfloat16" in str(pick_dtype("auto", device))
    sides = arguments.sides or [side for side, dtype in SIDES.items() if dtype == "float32" or native]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        save_bart(work, arguments.shape)
        (work / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
        tokens = token_counts(work, pairs)
        told = ["--work", str(work), "--device", device]
        turns = take_turns(SCRIPT, sides, told, repeats=arguments.repeats, pythons={})
    values = {turn["side"]: turn.pop("values") for turn in turns}
    return {
        "made": now(),
        "device": device,
        "shape": {"name": arguments.shape, **SHAPES[arguments.shape]},
        "data": "sample rows, made up and short" if root.is_samples else "released test files",
        "rows": len(pairs),
        "distinct_pairs": len(set(pairs)),
        "tokens": tokens,
        **summary(turns, values),
        "turns": [
            {name: round(value, 3) if isinstance(value, float) else value for name, value in turn.items()}
            for turn in turns
        ],
        "machine": machine(device),
        "environment": environment(),
    }


def summary(turns: Sequence[Mapping[str, Any]], values: Mapping[str, list[float]]) -> dict[str, Any]:
    """Medians over the turns of each side, pairs per second, and ratio and largest difference to the reference."""
    seconds, loading, memory = (medians(turns, figure) for figure in ("seconds", "loading_seconds", "peak_memory"))
    sides = {
        side: {
            "dtype": SIDES[side],
            "seconds": round(seconds[side], 3),
            "loading_seconds": round(loading[side], 3),
            "pairs_per_second": round(len(values[side]) / seconds[side], 3),
            "peak_memory": int(memory[side]),
            "mean_value": sum(values[side]) / len(values[side]),
        }
        for side in seconds
    }
    reference = values.get(BASELINE)
    compared = {} if reference is None else {side: found for side, found in values.items() if side != BASELINE}
    return {
        "sides": sides,
        "ratios": {side: round(seconds[BASELINE] / seconds[side], 2) for side in compared},
        "largest_difference": {
            side: max(abs(a - b) for a, b in zip(reference or [], found, strict=True))
            for side, found in compared.items()
        },
    }


def result_table(result: dict[str, Any]) -> str:
    rows = []
    for side, figures in result["sides"].items():
        rows.append(
            [
                f"{side}, {figures['dtype']}",
                f"{figures['seconds']:.1f}",
                f"{figures['loading_seconds']:.1f}",
                f"{figures['pairs_per_second']:.2f}",
                f"{figures['peak_memory'] / 2**30:.2f}",
                f"{result['ratios'][side]:.2f}" if side in result["ratios"] else "",
                f"{result['largest_difference'][side]:.1e}" if side in result["largest_difference"] else "",
            ]
        )
    where, tokens = result["machine"], result["tokens"]
    turns = max(turn["turn"] for turn in result["turns"])
    headers = ["", "seconds", "and loading", "pairs/s", "peak GiB", "times", "largest difference"]
    return (
        f"{result['rows']} pairs ({result['data']}), {tokens['source']} and {tokens['target']} tokens, BART of shape "
        f"{result['shape']['name']}, {where['gpu'] or where['cpu']}, {where['threads']} threads on {where['cores']} "
        f"cores, median of {turns}\n\n" + table(headers, rows)
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.side is not None:
        return run_side(arguments)
    device = pick_device(device=arguments.device)
    result = measure(arguments, device)
    out = arguments.out or RESULTS / f"bartscore-{device.partition(':')[0]}.json"
    publish(result, result_table(result), out)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(lambda: run(parse())))
