"""Rows per second of the toolkit's generation against the published loop, lm_eval, vLLM and transformers itself.

    python benchmarks/generation.py                  a real model on the CPU, every answer as long as the model makes it
    python benchmarks/generation.py --device cuda    LLaMA-2-7B's shape on a GPU, random weights, answers of drawn lengths

All sides (`generation_sides.py`) answer the same rows of the benchmark with the same model and the same limits of new
tokens, take turns, each turn in a process of its own, and report seconds for the answers alone, their loading apart,
and their peak memory.  The rows are taken in the true proportions of the datasets, post by post with all its questions,
so that they share as much of their prompts as the whole benchmark does.

Random weights say nothing that ends: with ``--shape``, each row's answer is as long as a gold answer drawn for it.  The
published loop goes on until the longest answer of a batch, as it does with a real model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from generation_sides import SIDES
from measuring import RESULTS, machine, medians, one_turn, publish, take_turns

from imhi.checkpoints import load_tokenizer, locate_generator
from imhi.commands import positive
from imhi.data import LoadedSuite, Row, load_suite, resolve_data_root
from imhi.devices import pick_device, pick_dtype
from imhi.errors import UserError, run_main
from imhi.provenance import environment, now
from imhi.talk import say, table

SCRIPT = Path(__file__).with_name("generation_sides.py")
DEFAULT_MODEL = "embedded:smollm2"
# Neither shape has a tokenizer of its own: the vocabulary is that of the default model, whose tokenizer both get.
SHAPES: dict[str, dict[str, int]] = {
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
    },
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 4096,
    },
}
WARM = "Consider this post: a short one. Question: does it warm up? Answer:"
# Against what the others are compared, where it took part.
BASELINES = ("published", "published-bf16", "lm_eval", "lm_eval-bf16", "generate_batch", "vllm")
# Whose medians are reported.
FIGURES = (
    "seconds",
    "loading_seconds",
    "peak_memory",
    "prompt_tokens",
    "new_tokens",
    "equal_answers",
    "common_prefix",
    "prefill_flops",
    "decode_bandwidth",
    "decode_flops",
)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Rows per second: the toolkit's generation, and others'.")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default cpu)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", help=f"a model that ends its answers (default on the CPU: {DEFAULT_MODEL})")
    what.add_argument("--shape", choices=SHAPES, help="random weights, answers of drawn lengths (default on a GPU: 7b)")
    parser.add_argument("--checkpoint", type=Path, help="folder in which --shape keeps its weights (default: none)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="who takes part (default: those that the bars name)")
    parser.add_argument("--vllm_python", type=Path, help="interpreter that has vLLM")
    parser.add_argument("--lm_eval_python", type=Path, help="interpreter that has lm_eval (default: this one)")
    parser.add_argument(
        "--rows", type=positive, help="about how many rows (default 200 with --model, 512 with --shape)"
    )
    parser.add_argument(
        "--rows_from",
        choices=("posts", "spread"),
        default="posts",
        help="whole posts with all their questions (default), or every k-th row: fewer share a beginning",
    )
    parser.add_argument("--max_new_tokens", type=positive, default=128, help="limit with --model (default 128)")
    parser.add_argument("--threads", type=positive, help="CPU threads of every side (default: all cores)")
    parser.add_argument("--repeats", type=positive, default=3, help="turns of each; medians are reported (default 3)")
    parser.add_argument("--data_root", help="folder with test_data/ (default $IMHI_DATA, else the sample rows)")
    parser.add_argument("--out", type=Path, help="JSON file (default benchmarks/results/generation-DEVICE.json)")
    parser.add_argument("--add", action="store_true", help="more turns of the same work, beside those in the JSON file")
    return parser.parse_args(argv)


def by_post(rows: Sequence[Row], count: int) -> list[Row]:
    """About `count` of one dataset's rows: every k-th post with all its questions, at least one post."""
    posts: list[list[Row]] = []
    for row in rows:
        if posts and _post(posts[-1][0]) == _post(row):
            posts[-1].append(row)
        else:
            posts.append([row])
    taken = min(len(posts), max(1, round(count * len(posts) / len(rows))))
    return [row for number in range(taken) for row in posts[number * len(posts) // taken]]


def _post(row: Row) -> str:
    return row.query.rsplit("Question:", 1)[0]


def spread(rows: Sequence[Row], count: int) -> list[Row]:
    """`count` of one dataset's rows, evenly spaced whatever their posts, at least one."""
    taken = min(len(rows), max(1, count))
    return [rows[number * len(rows) // taken] for number in range(taken)]


def pick_rows(suite: LoadedSuite, count: int, rows_from: str = "posts") -> list[Row]:
    """About `count` rows, each dataset in its true proportion, in the order of the files."""
    pick = {"posts": by_post, "spread": spread}[rows_from]
    picked: list[Row] = []
    for name in suite.files:
        rows = [row for row in suite.rows if row.dataset == name]
        picked += pick(rows, round(count * len(rows) / len(suite.rows)))
    return picked


def in_common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Elements with which both begin."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other)))


def shared_part(prompts: Sequence[Sequence[int]]) -> float:
    """Part of all prompt tokens that a prompt begins with as the one before it does, in sorted order."""
    common = sum(in_common(one, other) for one, other in pairwise(sorted(map(list, prompts))))
    return common / max(1, sum(map(len, prompts)))


def prepared(arguments: argparse.Namespace, suite: LoadedSuite, model: Path, device: str) -> dict[str, Any]:
    """The work that every side is given; `model` has a tokenizer, its weights may still be missing."""
    tokenizer = load_tokenizer(model)
    drawn = arguments.shape is not None
    rows = pick_rows(suite, arguments.rows, arguments.rows_from)
    ids = tokenizer([row.query for row in rows])["input_ids"]
    lengths: list[int | None] = [None] * len(rows)
    if drawn:
        golds = tokenizer([row.gold for row in suite.rows], add_special_tokens=False)["input_ids"]
        lengths = [max(1, length) for length in random.Random(0).choices([len(gold) for gold in golds], k=len(rows))]
    return {
        "model": str(model),
        "shape": {**SHAPES[arguments.shape], "vocab_size": len(tokenizer)} if drawn else None,
        "device": device,
        "threads": arguments.threads,
        "max_new_tokens": arguments.max_new_tokens,
        "drawn": drawn,
        "auto_dtype": str(pick_dtype("auto", device)).removeprefix("torch."),
        "published_bf16_batch": 24 if device.startswith("cuda") else 8,
        "warm": {"id": "warm", "text": WARM, "ids": tokenizer(WARM)["input_ids"], "new_tokens": 4 if drawn else None},
        "rows": [
            {"id": row.id, "text": row.query, "ids": prompt, "new_tokens": length}
            for row, prompt, length in zip(rows, ids, lengths, strict=True)
        ],
    }


def digest(work: Mapping[str, Any], model: str) -> str:
    """What tells works apart: the model, the rows, their lengths and limits, the device and its threads."""
    told = {name: value for name, value in work.items() if name != "model"}
    return hashlib.sha256(json.dumps([model, told], sort_keys=True).encode()).hexdigest()


def save_tokenizer_of(model: Path, folder: Path) -> None:
    """Copy the tokenizer's files beside weights that are still to be made."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in model.iterdir():
        if path.suffix in {".json", ".jinja", ".txt", ".model"} and path.name not in {
            "config.json",
            "generation_config.json",
            "converted_from.json",
        }:
            shutil.copy(path, folder / path.name)


def make_shape(folder: Path, shape: Mapping[str, int], work: Path) -> None:
    """Random weights in `folder`, in a process of its own, unless they are there; UserError if another shape is."""
    if not (folder / "config.json").exists():
        made = one_turn(SCRIPT, "shape", ["--work", str(work)])
        say(f"{folder}: random weights made in {made['seconds']:.1f} s")
    found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if differing := [name for name, value in shape.items() if found.get(name) != value]:
        raise UserError(f"--checkpoint: {folder} holds another shape ({', '.join(differing)}); name another folder")


def takers(arguments: argparse.Namespace) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """Who takes part, the interpreters of those that need another one, and who is left out, and why.

    A side that was asked for by name and cannot run is a UserError.
    """
    pythons = {}
    if arguments.vllm_python:
        pythons["vllm"] = str(arguments.vllm_python)
    if arguments.lm_eval_python or find_spec("lm_eval"):
        pythons |= dict.fromkeys(("lm_eval", "lm_eval-bf16"), str(arguments.lm_eval_python or sys.executable))
    obstacles = {}
    for side, flag in (
        ("vllm", "--vllm_python"),
        ("lm_eval", "--lm_eval_python"),
        ("lm_eval-bf16", "--lm_eval_python"),
    ):
        if side not in pythons:
            obstacles[side] = f"{flag} is not given"
        elif not Path(pythons[side]).exists():
            raise UserError(f"{flag}: no interpreter {pythons[side]}")
        elif arguments.shape and side != "vllm":
            obstacles[side] = "it ends no row at a length of its own"
    if arguments.sides:
        if refused := next((side for side in arguments.sides if side in obstacles), None):
            raise UserError(f"--sides {refused}: {obstacles[refused]}")
        return list(dict.fromkeys(arguments.sides)), pythons, {}
    if arguments.shape:
        wanted = ["published", "published-bf16", "generate_batch", "toolkit-buckets", "toolkit"]
    else:
        wanted = ["published", "lm_eval", "vllm", "toolkit-float32", "toolkit"]
    left_out = {side: reason for side, reason in obstacles.items() if side in wanted}
    return [side for side in wanted if side not in left_out], pythons, left_out


def model_sizes(model: Path) -> dict[str, int]:
    """Parameters that a token goes through: those of the layers, and those of the head that chooses the next token."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(model)))
    embeddings = empty.get_input_embeddings().weight.numel()
    return {
        "layers": sum(parameter.numel() for parameter in empty.base_model.parameters()) - embeddings,
        "head": empty.get_output_embeddings().weight.numel(),
    }


def agreement(texts: Sequence[str], reference: Sequence[str]) -> dict[str, float]:
    """Part of the answers that equal the reference's, and part of its characters up to the first that differs."""
    pairs = [(text.strip(), expected.strip()) for text, expected in zip(texts, reference, strict=True)]
    equal = sum(text == expected for text, expected in pairs)
    common = sum(in_common(text, expected) for text, expected in pairs)
    return {"equal_answers": equal / len(pairs), "common_prefix": common / max(1, sum(len(one) for _, one in pairs))}


def settled(turns: Sequence[dict[str, Any]], work: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Turns with counts and agreement in place of answers: answers to real posts do not belong into a result."""
    tokenizer = None
    references = [turn["answers"] for turn in turns if turn["side"] == "published"]
    done = []
    for turn in turns:
        turn = dict(turn)
        texts = turn.pop("answers", None)
        if texts is not None:
            if None in turn["new_tokens"]:
                tokenizer = tokenizer or load_tokenizer(Path(work["model"]))
                turn["new_tokens"] = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
            turn["new_tokens"] = sum(turn["new_tokens"])
            # Random weights tell next tokens apart by nothing: there an equal answer would say as little.
            if references and not work["drawn"]:
                turn |= agreement(texts, references[0])
        done.append(turn)
    return done


def limits_of(turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The best that the machine gave in any turn."""
    measured = [turn for turn in turns if turn["side"] == "limits"]
    return {
        "flops": {name: max(turn["flops"][name] for turn in measured) for name in measured[0]["flops"]},
        "copy_bytes_per_second": max(turn["copy_bytes_per_second"] for turn in measured),
    }


def utilisation(
    phases: Mapping[str, Any], dtype: str, sizes: Mapping[str, int], limits: Mapping[str, Any]
) -> dict[str, float]:
    """Parts of the machine's limits that the toolkit's steps reach; what it did not count is left out.

    prefill_flops : steps that read prompts, those who answer beside them included: two operations a parameter of the
        layers and a token, of the largest matrix product's rate.  Attention and head are left out.
    decode_bandwidth : steps that only answer: the weights once a step, and the keys and values that it reads, of the
        copy's rate.
    decode_flops : the same steps by operations: with many rows at once it is these that bound them on a CPU.
    """
    found = {}
    peak = limits["flops"].get(dtype)
    if phases.get("prompt_seconds") and peak:
        tokens = phases["prompt_tokens"] + phases["prompt_step_rows"]
        found["prefill_flops"] = 2 * sizes["layers"] * tokens / phases["prompt_seconds"] / peak
    if phases.get("answer_seconds"):
        weights = sizes["layers"] + sizes["head"]
        itemsize = 4 if dtype == "float32" else 2
        read = weights * itemsize * phases["answer_steps"] + phases["answer_cache_bytes"]
        found["decode_bandwidth"] = read / phases["answer_seconds"] / limits["copy_bytes_per_second"]
        if peak:
            found["decode_flops"] = 2 * weights * phases["answer_rows"] / phases["answer_seconds"] / peak
    return found


def summary(
    turns: Sequence[Mapping[str, Any]], sizes: Mapping[str, int], limits: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Medians of each side, and how many times faster it is than each baseline that took part."""
    measured = [
        {**turn, **utilisation(turn["phases"], turn["dtype"], sizes, limits)} for turn in turns if "dtype" in turn
    ]
    found: dict[str, dict[str, Any]] = {
        turn["side"]: {"dtype": turn["dtype"], "turns": 0, "versions": turn["versions"]} for turn in measured
    }
    for turn in measured:
        found[turn["side"]]["turns"] += 1
    for name in FIGURES:
        for who, value in medians([turn for turn in measured if name in turn], name).items():
            found[who][name] = round(value, 4)
    rows = measured[0]["rows"]
    for side in found.values():
        side["rows_per_second"] = round(rows / side["seconds"], 3)
        side["times_faster_than"] = {
            name: round(found[name]["seconds"] / side["seconds"], 2) for name in BASELINES if name in found
        }
    return found


def result_table(result: Mapping[str, Any]) -> str:
    baselines = [name for name in BASELINES if name in result["sides"]]
    headers = ["", "dtype", "seconds", "rows/s", *(f"x {name}" for name in baselines)]
    headers += ["peak GiB", "new tokens", "equal answers", "prefill FLOP/s", "decode bytes/s", "decode FLOP/s"]
    rows = [
        [
            name,
            side["dtype"],
            f"{side['seconds']:.1f}",
            f"{side['rows_per_second']:.2f}",
            *(f"{side['times_faster_than'][baseline]:.2f}" for baseline in baselines),
            f"{side['peak_memory'] / 2**30:.2f}",
            f"{side['new_tokens']:.0f}",
            *(
                f"{side[figure]:.1%}" if figure in side else ""
                for figure in ("equal_answers", "prefill_flops", "decode_bandwidth", "decode_flops")
            ),
        ]
        for name, side in result["sides"].items()
    ]
    # A figure that no side has gets no column.
    kept = [at for at in range(len(headers)) if not at or any(row[at] for row in rows)]
    figures = table([headers[at] for at in kept], [[row[at] for at in kept] for row in rows])
    where, limits = result["machine"], result["limits"]
    products = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in limits["flops"].items())
    lengths = "drawn" if result["drawn"] else f"the model's own, at most {result['max_new_tokens']} tokens"
    head = [
        f"{result['rows']['all']} rows ({result['data']}, {result['rows_from']}; {result['prompt_tokens']:,} prompt "
        f"tokens, {result['shared_part']:.0%} of them shared with the row before), {result['model']}; answers: {lengths}",
        f"{where['gpu'] or where['cpu']}, {where['threads']} threads on {where['cores']} cores; medians of "
        f"{max(side['turns'] for side in result['sides'].values())} turns; peak memory of the "
        f"{'GPU' if where['gpu'] else 'host'}",
        f"limits: {products}; copy {limits['copy_bytes_per_second'] / 1e9:,.1f} GB/s",
    ]
    versions = {
        " ".join(f"{name} {number}" for name, number in side["versions"].items()): None
        for side in result["sides"].values()
    }
    tail = [
        f"versions: {', '.join(versions)}",
        *(f"left out: {who} ({why})" for who, why in result["left_out"].items()),
    ]
    return "\n".join([*head, "", figures, "", *tail])


def earlier_turns(out: Path, work: str, where: Mapping[str, Any], commit: object) -> list[dict[str, Any]]:
    """The turns in a result file; UserError where they are of other work, another machine or another commit."""
    if not out.exists():
        return []
    earlier = json.loads(out.read_text(encoding="utf-8"))
    found = {
        "work": (earlier["work"], work),
        "machine": (earlier["machine"], dict(where)),
        "commit": (earlier["environment"]["git"], commit),
    }
    if differing := [name for name, (then, here) in found.items() if then != here]:
        raise UserError(f"--add: {out} has turns of another {' and '.join(differing)}; leave the flag out")
    return list(earlier["turns"])


def measure(arguments: argparse.Namespace, device: str, out: Path) -> dict[str, Any]:
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    sides, pythons, left_out = takers(arguments)
    for side, reason in left_out.items():
        say(f"left out: {side} ({reason})")
    root = resolve_data_root(arguments.data_root)
    say(root.describe())
    suite = load_suite(root, "IMHI")
    model = locate_generator(arguments.model or DEFAULT_MODEL).folder
    name = f"random weights of {arguments.shape} shape" if arguments.shape else arguments.model or DEFAULT_MODEL
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.shape:
            folder = (arguments.checkpoint or Path(temporary) / "shape").absolute()
            save_tokenizer_of(model, folder)
            model = folder
        work = prepared(arguments, suite, model, device)
        commit, where = environment()["git"], machine(device)
        turns = earlier_turns(out, digest(work, name), where, commit) if arguments.add else []
        file = Path(temporary) / "work.json"
        file.write_text(json.dumps(work), encoding="utf-8")
        if arguments.shape:
            make_shape(model, work["shape"], file)
        sizes = model_sizes(model)
        fresh = take_turns(
            SCRIPT, [*sides, "limits"], ["--work", str(file)], repeats=arguments.repeats, pythons=pythons
        )
        earlier = max((turn["turn"] for turn in turns), default=0)
        turns += [{**turn, "turn": turn["turn"] + earlier} for turn in settled(fresh, work)]
    limits = limits_of(turns)
    counts = dict.fromkeys(suite.files, 0)
    for row in work["rows"]:
        counts[row["id"].partition("/")[0]] += 1
    return {
        "made": now(),
        "work": digest(work, name),
        "device": device,
        "data": "sample rows, made up and short" if root.is_samples else "released test files",
        "rows": {"all": len(work["rows"]), **counts},
        "rows_from": arguments.rows_from,
        "prompt_tokens": sum(len(row["ids"]) for row in work["rows"]),
        "shared_part": round(shared_part([row["ids"] for row in work["rows"]]), 4),
        "model": name,
        "parameters": sizes,
        "drawn": work["drawn"],
        "max_new_tokens": max(row["new_tokens"] or arguments.max_new_tokens for row in work["rows"]),
        "published_batches": {"float32": 8, "bfloat16": work["published_bf16_batch"]},
        "sides": summary(turns, sizes, limits),
        "limits": limits,
        "left_out": left_out,
        "turns": turns,
        "machine": where,
        "environment": environment(),
    }


def run(arguments: argparse.Namespace) -> int:
    device = pick_device(device=arguments.device)
    if device.startswith("cuda") and arguments.model is None:
        arguments.shape = arguments.shape or "7b"
    arguments.rows = arguments.rows or (512 if arguments.shape else 200)
    arguments.threads = arguments.threads or machine()["cores"]
    out = arguments.out or RESULTS / f"generation-{device.partition(':')[0]}.json"
    result = measure(arguments, device, out)
    publish(result, result_table(result), out)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(lambda: run(parse())))
