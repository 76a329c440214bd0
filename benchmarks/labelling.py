"""Rows per second of the toolkit's classifiers against the published loop on ten separate checkpoints.

The published loop is that of ``label_inference.py`` of Yang et al., "MentaLLaMA", WWW 2024: for each dataset a
BERT-base checkpoint is loaded, and its answers go through it in file order, eight at a time, each batch tokenised on
its own, padded to its longest text and cut at 512 tokens, in float32.  Its weights are not here, so that random ones
of the same shape stand in for them: the time does not depend on the values.

Both label the same texts: the gold answers of the released test files, each dataset in its true proportion, or of the
sample rows where ``$IMHI_DATA`` is not set.  Loading counts on both sides; the two take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imhi.benchmark import DATASETS
from imhi.commands import positive
from imhi.data import load_suite, resolve_data_root, write_text_atomically
from imhi.devices import pick_device
from imhi.errors import UserError, run_main
from imhi.provenance import environment, now
from imhi.talk import say, show, table

RESULTS = Path(__file__).parent / "results"
PUBLISHED_BATCH = 8
PUBLISHED_TOKENS = 512


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Rows per second: the toolkit's classifiers, the published loop.")
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument("--rows", type=positive, default=400, help="rows in all, every k-th of each file (default 400)")
    rows.add_argument("--all", action="store_true", help="every row (8,169 in the released files)")
    parser.add_argument("--repeats", type=positive, default=3, help="turns of each; medians are reported (default 3)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default cpu)")
    parser.add_argument("--data_root", help="folder with test_data/ (default $IMHI_DATA, else the sample rows)")
    parser.add_argument("--adapters", type=Path, help="folder of classifiers (default: the toolkit's own)")
    parser.add_argument("--out", type=Path, help="JSON file (default benchmarks/results/labelling-DEVICE.json)")
    return parser.parse_args(argv)


def every_kth(texts: Sequence[str], count: int) -> list[str]:
    """`count` of `texts`, evenly spaced, in their order."""
    return [texts[number * len(texts) // count] for number in range(count)]


def sample(files: dict[str, list[str]], rows: int | None) -> dict[str, list[str]]:
    """The texts of each dataset in proportion, at least one each; all of them where `rows` is None."""
    total = sum(map(len, files.values()))
    if rows is None or rows >= total:
        return files
    return {name: every_kth(texts, max(1, round(rows * len(texts) / total))) for name, texts in files.items()}


def save_checkpoint(folder: Path) -> None:
    """A BERT-base of random weights, with the vocabulary that both sides read."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from imhi.checkpoints import locate

    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig()).save_pretrained(str(folder))
    for name in ("vocab.txt", "tokenizer.json"):
        shutil.copy(locate("embedded:minilm") / name, folder / name)
    settings = {"do_lower_case": True, "model_max_length": PUBLISHED_TOKENS, "tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def published_loop(folder: Path, texts: dict[str, list[str]], device: str) -> tuple[float, float]:
    """Seconds in all, and seconds of them for loading."""
    import torch
    from transformers import BertForSequenceClassification, BertTokenizer

    started, loading = time.perf_counter(), 0.0
    for name, answers in texts.items():
        begun = time.perf_counter()
        model = BertForSequenceClassification.from_pretrained(
            str(folder), num_labels=len(DATASETS[name].labels), ignore_mismatched_sizes=True
        ).to(device)
        tokenizer = BertTokenizer.from_pretrained(str(folder))
        loading += time.perf_counter() - begun
        for start in range(0, len(answers), PUBLISHED_BATCH):
            batch = answers[start : start + PUBLISHED_BATCH]
            inputs = tokenizer(
                batch, return_tensors="pt", padding=True, truncation=True, max_length=PUBLISHED_TOKENS
            ).to(device)
            with torch.no_grad():
                model(**inputs)[0].cpu().numpy().argmax(axis=1)
    return time.perf_counter() - started, loading


def toolkit(folder: Path | None, texts: dict[str, list[str]], device: str) -> float:
    """Seconds in all."""
    import torch

    from imhi.labelers.folders import open_labelers

    started = time.perf_counter()
    labelers = open_labelers(folder, [DATASETS[name] for name in texts], device=device, dtype=torch.float32)
    for name, answers in texts.items():
        labelers[name].label(DATASETS[name], answers)
    return time.perf_counter() - started


def toolkit_loading(folder: Path | None, texts: dict[str, list[str]], device: str) -> float:
    """Seconds for what `toolkit` does before and between the texts, measured on its own."""
    import torch

    from imhi.labelers.folders import open_labelers

    started = time.perf_counter()
    labelers = open_labelers(folder, [DATASETS[name] for name in texts], device=device, dtype=torch.float32)
    for name in texts:
        labelers[name].load(DATASETS[name])[0].to(device)
    return time.perf_counter() - started


def machine(device: str) -> dict[str, Any]:
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "cpu": next(named, platform.processor() or platform.machine()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(torch.device(device)) if device.startswith("cuda") else None,
    }


def load_average() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def measure(arguments: argparse.Namespace, device: str) -> dict[str, Any]:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if arguments.adapters is not None and not arguments.adapters.is_dir():
        raise UserError(f"--adapters: no folder {arguments.adapters}")
    root = resolve_data_root(arguments.data_root)
    say(root.describe())
    suite = load_suite(root, "IMHI")
    files: dict[str, list[str]] = {name: [] for name in suite.files}
    for row in suite.rows:
        files[row.dataset].append(row.gold)
    texts = sample(files, None if arguments.all else arguments.rows)
    count = sum(map(len, texts.values()))
    turns: list[dict[str, float | None]] = []
    with tempfile.TemporaryDirectory() as temporary:
        # First what takes no time, so that a mistake in the adapters does not cost a turn of the slow loop.
        toolkit(arguments.adapters, {name: answers[:1] for name, answers in texts.items()}, device)
        checkpoint = Path(temporary)
        save_checkpoint(checkpoint)
        published_loop(checkpoint, {name: answers[:1] for name, answers in list(texts.items())[:1]}, device)
        for number in range(arguments.repeats):
            busy = load_average()
            published, published_loading = published_loop(checkpoint, texts, device)
            ours = toolkit(arguments.adapters, texts, device)
            loading = toolkit_loading(arguments.adapters, texts, device)
            turns.append(
                {
                    "published": published,
                    "published_loading": published_loading,
                    "toolkit": ours,
                    "toolkit_loading": loading,
                    "load_average_before": busy,
                }
            )
            say(f"turn {number + 1} of {arguments.repeats}: published {published:.1f} s, toolkit {ours:.1f} s")
    return {
        "made": now(),
        "device": device,
        "data": "sample rows, made up and short" if root.is_samples else "released test files",
        "rows": {"all": count, **{name: len(answers) for name, answers in texts.items()}},
        "classifiers": "the toolkit's own" if arguments.adapters is None else str(arguments.adapters),
        **summary(turns, count),
        "turns": [{name: value and round(value, 3) for name, value in turn.items()} for turn in turns],
        "machine": machine(device),
        "environment": environment(),
    }


def summary(turns: Sequence[dict[str, float | None]], count: int) -> dict[str, Any]:
    """Medians over the turns, rows per second, and how many times faster the toolkit is."""
    medians = {
        name: statistics.median(value for turn in turns if (value := turn[name]) is not None)
        for name in ("published", "published_loading", "toolkit", "toolkit_loading")
    }
    # Where a few rows take hardly any time, the separately measured loading can exceed the whole by noise.
    after = {name: max(medians[name] - medians[f"{name}_loading"], 1e-3) for name in ("published", "toolkit")}
    return {
        "seconds": {name: round(value, 3) for name, value in medians.items()},
        "rows_per_second": {name: round(count / medians[name], 2) for name in after},
        "rows_per_second_after_loading": {name: round(count / after[name], 2) for name in after},
        "ratio": round(medians["published"] / medians["toolkit"], 2),
        "ratio_after_loading": round(after["published"] / after["toolkit"], 2),
    }


def result_table(result: dict[str, Any]) -> str:
    rows = [
        [
            label,
            f"{result['seconds'][name]:.1f}",
            f"{result['seconds'][f'{name}_loading']:.1f}",
            f"{result['rows_per_second'][name]:.1f}",
            f"{result['rows_per_second_after_loading'][name]:.1f}",
        ]
        for name, label in (("published", "published loop, BERT-base"), ("toolkit", "toolkit"))
    ]
    rows.append(["ratio", "", "", f"{result['ratio']:.1f}", f"{result['ratio_after_loading']:.1f}"])
    where = result["machine"]
    return (
        f"{result['rows']['all']} rows ({result['data']}), {result['machine']['gpu'] or where['cpu']}, "
        f"{where['threads']} threads on {where['cores']} cores, median of {len(result['turns'])}\n\n"
        + table(["", "seconds", "of them loading", "rows/s", "rows/s after loading"], rows)
    )


def run(arguments: argparse.Namespace) -> int:
    device = pick_device(device=arguments.device)
    result = measure(arguments, device)
    out = arguments.out or RESULTS / f"labelling-{device.partition(':')[0]}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(out, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    show(result_table(result))
    say(f"written to {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(lambda: run(parse())))
