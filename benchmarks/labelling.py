"""Rows per second of the toolkit's classifiers against the published loop on ten separate checkpoints.

Three sides label the same texts, take turns, each turn in a process of its own:

- ``published``: the loop of ``label_inference.py`` of Yang et al., "MentaLLaMA", WWW 2024.  For each dataset a BERT-base
  checkpoint is loaded, and its answers go through it in file order, eight at a time, each batch tokenised on its own,
  padded to its longest text and cut at 512 tokens, in float32.
- ``toolkit-bert-base``: the toolkit on the same ten checkpoints: the same model against the same model.
- ``toolkit``: the classifiers that come with the toolkit, as a user gets them.

The published weights are not here, so that random ones of the same shape stand in for them: the time does not depend on
the values.  The texts are the gold answers of the released test files, each dataset in its true proportion, or of the
sample rows where ``$IMHI_DATA`` is not set.  Loading counts on all sides, and is reported apart.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from measuring import RESULTS, leave, machine, medians, peak_memory, publish, take_turns

from imhi.benchmark import DATASETS
from imhi.checkpoints import load_tokenizer, locate
from imhi.commands import positive
from imhi.data import load_suite, resolve_data_root
from imhi.devices import DTYPES, pick_device, pick_dtype
from imhi.errors import UserError, run_main
from imhi.provenance import environment, now
from imhi.talk import say, table

SCRIPT = Path(__file__)
SIDES = {
    "published": "published loop, BERT-base",
    "toolkit-bert-base": "toolkit, BERT-base",
    "toolkit": "toolkit, its own classifiers",
}
BASELINE = "published"
PUBLISHED_BATCH = 8
PUBLISHED_TOKENS = 512
FIGURES = ("seconds", "loading_seconds", "peak_memory")

Texts = Mapping[str, Sequence[str]]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Rows per second: the toolkit's classifiers, the published loop.")
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument("--rows", type=positive, default=400, help="rows in all, every k-th of each file (default 400)")
    rows.add_argument("--all", action="store_true", help="every row (8,169 in the released files)")
    parser.add_argument("--repeats", type=positive, default=3, help="turns of each; medians are reported (default 3)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default cpu)")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="number format of the toolkit (default float32 on the CPU, auto on a GPU)"
    )
    parser.add_argument("--data_root", help="folder with test_data/ (default $IMHI_DATA, else the sample rows)")
    parser.add_argument("--adapters", type=Path, help="folder of classifiers (default: the toolkit's own)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="who takes part (default: all)")
    parser.add_argument("--out", type=Path, help="JSON file (default benchmarks/results/labelling-DEVICE.json)")
    # What a side's process is told.
    for name in ("--side", "--figures", "--work"):
        parser.add_argument(name, help=argparse.SUPPRESS)
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


def save_checkpoints(folder: Path, names: Sequence[str]) -> None:
    """A BERT-base of random weights for each dataset, with the vocabulary that all sides read.

    All but the heads is on disk once: each checkpoint has it as a link, for ten copies would take 4 GB.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import BertConfig, BertForSequenceClassification

    body, head = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    torch.manual_seed(0)
    state = BertForSequenceClassification(BertConfig()).state_dict()
    shared = {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}
    save_file(shared, str(folder / body), {"format": "pt"})
    settings = {"do_lower_case": True, "model_max_length": PUBLISHED_TOKENS, "tokenizer_class": "BertTokenizer"}
    for name in names:
        classes, place = len(DATASETS[name].labels), folder / name
        config = BertConfig(num_labels=classes, architectures=["BertForSequenceClassification"])
        config.save_pretrained(str(place))
        # Wide enough that texts get different labels.
        own = {
            "classifier.weight": torch.randn(classes, config.hidden_size),
            "classifier.bias": torch.zeros(classes),
        }
        save_file(own, str(place / head), {"format": "pt"})
        (place / body).symlink_to(folder / body)
        index = {"metadata": {}, "weight_map": {**dict.fromkeys(shared, body), **dict.fromkeys(own, head)}}
        (place / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        for file in ("vocab.txt", "tokenizer.json"):
            shutil.copy(locate("embedded:minilm") / file, place / file)
        (place / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def published_loop(folder: Path, texts: Texts, device: str) -> dict[str, Any]:
    """What a side leaves: seconds in all, those of loading, and the label and its probability of every row."""
    import torch
    from transformers import BertForSequenceClassification, BertTokenizer

    rows: list[torch.Tensor] = []
    started, loading = time.perf_counter(), 0.0
    for name, answers in texts.items():
        begun = time.perf_counter()
        model = BertForSequenceClassification.from_pretrained(str(folder / name)).to(device)
        tokenizer = BertTokenizer.from_pretrained(str(folder / name))
        loading += time.perf_counter() - begun
        for start in range(0, len(answers), PUBLISHED_BATCH):
            batch = list(answers[start : start + PUBLISHED_BATCH])
            inputs = tokenizer(
                batch, return_tensors="pt", padding=True, truncation=True, max_length=PUBLISHED_TOKENS
            ).to(device)
            with torch.no_grad():
                rows.extend(model(**inputs)[0].cpu())
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "loading_seconds": loading,
        "labels": [int(logits.argmax()) for logits in rows],
        "confidences": [float(logits.softmax(dim=-1).max()) for logits in rows],
    }


def toolkit(folder: Path | None, texts: Texts, device: str, dtype: str) -> dict[str, Any]:
    """What a side leaves; loading is what `open_labelers` and `Classifier.ready` take."""
    from imhi.labelers.classifier import Classifier
    from imhi.labelers.folders import open_labelers

    ready, waits = Classifier.ready, []

    def watched(self: Classifier, dataset: Any) -> Any:
        begun = time.perf_counter()
        found = ready(self, dataset)
        waits.append(time.perf_counter() - begun)
        return found

    Classifier.ready = watched  # type: ignore[method-assign]
    labels: list[int] = []
    confidences: list[float] = []
    try:
        started = time.perf_counter()
        labelers = open_labelers(
            folder, [DATASETS[name] for name in texts], device=device, dtype=pick_dtype(dtype, device)
        )
        waits.append(time.perf_counter() - started)
        for name, answers in texts.items():
            result = labelers[name].label(DATASETS[name], answers)
            names = list(DATASETS[name].label_names)
            labels += [names.index(str(label)) for label in result.labels]
            confidences += result.confidences or []
        seconds = time.perf_counter() - started
    finally:
        Classifier.ready = ready  # type: ignore[method-assign]
    return {"seconds": seconds, "loading_seconds": sum(waits), "labels": labels, "confidences": confidences}


def run_side(arguments: argparse.Namespace) -> int:
    """One turn of one side, in a process of its own."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    work = Path(arguments.work)
    texts = json.loads((work / "texts.json").read_text(encoding="utf-8"))
    folder = arguments.adapters if arguments.side == "toolkit" else work

    def turn(texts: Texts) -> dict[str, Any]:
        if arguments.side == "published":
            return published_loop(work, texts, arguments.device)
        return toolkit(folder, texts, arguments.device, arguments.dtype)

    # What comes once a process: imports, files into the page cache, the GPU's libraries.
    turn({name: answers[:1] for name, answers in list(texts.items())[:1]})
    leave(Path(arguments.figures), {**turn(texts), "peak_memory": peak_memory(arguments.device)})
    return 0


def measure(arguments: argparse.Namespace, device: str) -> dict[str, Any]:
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
    asked = arguments.dtype or ("float32" if device == "cpu" else "auto")
    dtype = str(pick_dtype(asked, device)).removeprefix("torch.")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        save_checkpoints(work, list(texts))
        (work / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
        told = ["--work", str(work), "--device", device, "--dtype", dtype]
        if arguments.adapters is not None:
            told += ["--adapters", str(arguments.adapters)]
        # Each side's labels are long; only what they say in common is kept.
        turns = take_turns(SCRIPT, arguments.sides, told, repeats=arguments.repeats, pythons={})
    answers = {turn["side"]: (turn.pop("labels"), turn.pop("confidences")) for turn in turns}
    return {
        "made": now(),
        "device": device,
        "dtype": {side: "float32" if side == BASELINE else dtype for side in arguments.sides},
        "data": "sample rows, made up and short" if root.is_samples else "released test files",
        "rows": {"all": count, **{name: len(answers) for name, answers in texts.items()}},
        # Of what must be computed at least: texts that a dataset repeats count once.
        "distinct_tokens": sum(token_count(set(answers)) for answers in texts.values()),
        "classifiers": "the toolkit's own" if arguments.adapters is None else str(arguments.adapters),
        **summary(turns, count),
        "same_checkpoints": agreement(answers),
        "turns": [
            {name: round(value, 3) if isinstance(value, float) else value for name, value in turn.items()}
            for turn in turns
        ],
        "machine": machine(device),
        "environment": environment(),
    }


def token_count(texts: Collection[str]) -> int:
    """Tokens of BERT's vocabulary in texts, each cut at the published limit."""
    tokenizer = load_tokenizer(locate("embedded:minilm"))
    return sum(map(len, tokenizer(list(texts), truncation=True, max_length=PUBLISHED_TOKENS)["input_ids"]))


def agreement(answers: Mapping[str, tuple[list[int], list[float]]]) -> dict[str, Any] | None:
    """How near the toolkit's labels are to the published loop's, on the same checkpoints; None where one is absent."""
    if not {"published", "toolkit-bert-base"} <= answers.keys():
        return None
    (published, theirs), (own, ours) = answers["published"], answers["toolkit-bert-base"]
    return {
        "equal_labels": sum(one == other for one, other in zip(published, own, strict=True)),
        "largest_difference_of_confidences": max(abs(a - b) for a, b in zip(theirs, ours, strict=True)),
    }


def summary(turns: Sequence[Mapping[str, Any]], count: int) -> dict[str, Any]:
    """Medians over the turns of each side, rows per second, and how many times faster than the published loop."""
    found = {figure: medians(turns, figure) for figure in FIGURES}
    alone = medians([{**turn, "alone": turn["seconds"] - turn["loading_seconds"]} for turn in turns], "alone")
    sides = {
        side: {
            "seconds": round(found["seconds"][side], 3),
            "loading_seconds": round(found["loading_seconds"][side], 3),
            "rows_per_second": round(count / found["seconds"][side], 2),
            "rows_per_second_after_loading": round(count / alone[side], 2),
            "peak_memory": int(found["peak_memory"][side]),
        }
        for side in alone
    }
    ratios = {
        side: {
            "with_loading": round(found["seconds"][BASELINE] / found["seconds"][side], 2),
            "after_loading": round(alone[BASELINE] / alone[side], 2),
        }
        for side in sides
        if side != BASELINE and BASELINE in sides
    }
    return {"sides": sides, "ratios": ratios}


def result_table(result: dict[str, Any]) -> str:
    rows = []
    for side, figures in result["sides"].items():
        ratio = result["ratios"].get(side)
        rows.append(
            [
                f"{SIDES[side]}, {result['dtype'][side]}",
                f"{figures['seconds']:.1f}",
                f"{figures['loading_seconds']:.1f}",
                f"{figures['rows_per_second']:.1f}",
                f"{figures['rows_per_second_after_loading']:.1f}",
                f"{figures['peak_memory'] / 2**30:.2f}",
                f"{ratio['with_loading']:.1f}" if ratio else "",
                f"{ratio['after_loading']:.1f}" if ratio else "",
            ]
        )
    where = result["machine"]
    turns = max(turn["turn"] for turn in result["turns"])
    headers = ["", "seconds", "of them loading", "rows/s", "after loading", "peak GiB", "times", "after loading"]
    told = (
        f"{result['rows']['all']} rows ({result['data']}), {where['gpu'] or where['cpu']}, "
        f"{where['threads']} threads on {where['cores']} cores, median of {turns}\n\n" + table(headers, rows)
    )
    same = result["same_checkpoints"]
    if same is not None:
        told += (
            f"\n\nsame checkpoints: {same['equal_labels']} of {result['rows']['all']} labels equal, confidences to "
            f"{same['largest_difference_of_confidences']:.1e}"
        )
    return told


def run(arguments: argparse.Namespace) -> int:
    if arguments.side is not None:
        return run_side(arguments)
    device = pick_device(device=arguments.device)
    result = measure(arguments, device)
    out = arguments.out or RESULTS / f"labelling-{device.partition(':')[0]}.json"
    publish(result, result_table(result), out)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(lambda: run(parse())))
