"""Rows per second of ``--engine ray`` on one machine against one process with as many threads, and of its driver alone.

    python benchmarks/ray_workers.py           needs a Python that has Ray: pip install 'imhi[ray]'
    python benchmarks/ray_workers.py --plan    measures nothing: writes the plan in docs/cluster.md from the results

Sides take turns, each turn in a process of its own, each with the journal of a run folder on disk:

- ``one``: the transformers engine in this process, with a thread for every core.
- ``ray``: the same over Ray workers that share those cores.  Workers wait for each other when they have loaded, so that
  the clock of the steady state starts when all of them can compute, as it does for ``one``.
- ``relay``: the Ray engine over workers that answer at once, with made-up prompts and answers as long as the
  benchmark's in the mean: what driver, object store and journal carry.  Its memory is read after a tenth of the rows,
  and at the end.

``one`` and ``ray`` answer the same rows of the benchmark, picked as `generation.py` picks them, and each model has
answered one short row before.  Start-up is everything before: imports, the cluster, the model's loading.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from generation import WARM, pick_rows
from measuring import RESULTS, leave, machine, medians, peak_memory, publish, take_turns

from imhi.commands import positive
from imhi.data import load_suite, resolve_data_root, write_text_atomically
from imhi.engines import Completion, Decoding, Engine, EngineRequest, Prompt, ray_engine, transformers_engine
from imhi.engines.ray_pool import pack, require_ray
from imhi.errors import UserError, run_main
from imhi.provenance import environment, now
from imhi.runs import JOURNAL, open_run
from imhi.talk import say, table

BEGUN = time.time()

SCRIPT = Path(__file__)
SIDES = {"one": "one process", "ray": "ray", "relay": "ray, answers at once"}
BASELINE = "one"
DEFAULT_MODEL = "embedded:smollm2"
# Bytes that a row of the released test files has in the mean.
QUERY_BYTES, ANSWER_BYTES = 631, 565
FIGURES = ("seconds", "startup_seconds")
RELAY_FIGURES = (
    "journal_bytes_per_row",
    "memory_per_prompt",
    "memory_per_answer",
    "peak_memory",
)
GUIDE = SCRIPT.parents[1] / "docs" / "cluster.md"
BEGIN, END = "<!-- plan: benchmarks/ray_workers.py --plan -->", "<!-- end of plan -->"
MILLION = 1_000_000
PATIENCE = 600


def open_and_meet(place: str, workers: int, *given: Any) -> Callable[[Any], Iterator[Any]]:
    """`ray_engine.open_engine`, in a worker: loaded, warmed up, and back only when all workers are so far."""
    work = ray_engine.open_engine(*given)
    for _ in work(ray_engine.Chunk((Prompt("warm", WARM),))):
        pass
    (Path(place) / str(os.getpid())).touch()
    deadline = time.monotonic() + PATIENCE
    while len(list(Path(place).iterdir())) < workers:
        if time.monotonic() > deadline:
            raise UserError(f"{workers} workers did not load within {PATIENCE} s")
        time.sleep(0.005)
    return work


@cache
def drawn_words() -> str:
    """A text that does not compress better than others do."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(1, 9))) for _ in range(4000)]
    return " ".join(draw.choices(words, k=100_000))


def passage(number: int, size: int) -> str:
    """One of the passages of `drawn_words`, of so many bytes."""
    text = drawn_words()
    start = number * 7919 % (len(text) - size)
    return text[start : start + size]


class AtOnce:
    """An engine that answers a prompt at once."""

    def check(self, prompts: Sequence[Prompt]) -> None:
        pass

    def describe(self) -> dict[str, Any]:
        return {"class": "AtOnce"}

    def complete(self, prompts: Sequence[Prompt], *, done: frozenset[str]) -> Iterator[list[Completion]]:
        for prompt in prompts:
            text = passage(int(prompt.id.partition("/")[2]), ANSWER_BYTES)
            yield [Completion(prompt.id, text, 140, 125, "stop")]


def open_relay(*given: Any) -> Callable[[Any], Iterator[Any]]:
    return partial(ray_engine._answers, AtOnce(), str(os.getpid()))


def journaled(
    engine: Engine, prompts: Sequence[Prompt], folder: Path, on_rows: Callable[[int], None] = lambda rows: None
) -> None:
    """Answer and journal all prompts; UserError where a row failed or did not come once."""
    rows = 0
    with open_run(folder, {"benchmark": SCRIPT.name}) as run:
        for group in engine.complete(prompts):
            run.append(group)
            rows += len(group)
            on_rows(rows)
        if failed := run.failed:
            raise UserError(f"{len(failed)} rows failed, the first: {failed[0].error}", code=1)
        if rows != len(prompts) or len(run.completions) != len(prompts):
            raise UserError(f"{rows} answers to {len(prompts)} rows", code=1)


def read_prompts(work: Mapping[str, Any]) -> list[Prompt]:
    return [Prompt(row["id"], row["text"]) for row in work["rows"]]


def request_for(work: Mapping[str, Any], **options: Any) -> EngineRequest:
    decoding = Decoding(max_new_tokens=work["max_new_tokens"])
    return EngineRequest(model=work["model"], dtype=work["dtype"], decoding=decoding, options=options)


def run_one(work: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    import torch

    torch.set_num_threads(work["cores"])
    engine = transformers_engine.prepare(request_for(work)).load()
    for _ in engine.complete([Prompt("warm", WARM)]):
        pass
    ready = time.time()
    journaled(engine, read_prompts(work), folder)
    return {"ready": ready, "done": time.time(), "engine": engine.describe()}


def run_ray(work: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    place = folder.with_name("loaded")
    place.mkdir()
    with in_workers(partial(open_and_meet, str(place), work["workers"])):
        engine = ray_engine.prepare(request_for(work, workers=work["workers"])).load()
        try:
            journaled(engine, read_prompts(work), folder)
            done = time.time()
            facts = engine.describe()
        finally:
            engine.close()
    ready = max(path.stat().st_mtime for path in place.iterdir())
    if facts["chunks_lost"]:
        raise UserError("a worker was lost on the way: no figure", code=1)
    return {"ready": ready, "done": done, "engine": facts, "with_close": time.time() - BEGUN}


def run_relay(work: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    rows = work["relay_rows"]
    before = resident()
    prompts = [Prompt(f"DR/{at}", passage(at, QUERY_BYTES)) for at in range(rows)]
    held = resident() - before
    early: list[tuple[float, int]] = []
    memory: list[tuple[int, int]] = []

    def on_rows(count: int) -> None:
        if not early:
            early.append((time.time(), count))
        if count == rows or (not memory and count >= rows / 10):
            memory.append((resident(), count))

    with in_workers(open_relay):
        engine = ray_engine.prepare(request_for(work, workers=work["workers"])).load()
        try:
            journaled(engine, prompts, folder, on_rows)
            done = time.time()
            facts = engine.describe()
        finally:
            engine.close()
    first, count = early[0]
    (then, some), (last, every) = memory
    return {
        # The first group is there when the clock starts: its rows do not count.
        "ready": first,
        "done": done,
        "rows": rows - count,
        "engine": facts,
        "journal_bytes_per_row": round((folder / JOURNAL).stat().st_size / rows, 1),
        "memory_per_prompt": round(held / rows, 1),
        # Between a tenth of the rows and all of them.
        "memory_per_answer": round((last - then) / (every - some), 1),
    }


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def in_workers(opened: Callable[..., Any]) -> Iterator[None]:
    """While this is open, workers load with `opened`, a function of this file, which they import by its name."""
    path = [str(SCRIPT.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(path)
    kept = ray_engine.open_engine
    ray_engine.open_engine = opened
    try:
        yield
    finally:
        ray_engine.open_engine = kept


TURNS = {"one": run_one, "ray": run_ray, "relay": run_relay}


def run_side(arguments: argparse.Namespace) -> int:
    """One turn of one side, in a process of its own."""
    work = json.loads(arguments.work.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        found = TURNS[arguments.side](work, folder)
        rows = [json.loads(line) for line in (folder / JOURNAL).read_text(encoding="utf-8").splitlines()]
    ready, done = found.pop("ready"), found.pop("done")
    answers = {row["id"]: row["text"] for row in rows} if arguments.side != "relay" else {}
    figures = {
        "rows": len(rows),
        "seconds": done - ready,
        "startup_seconds": ready - BEGUN,
        "new_tokens": sum(row["new_tokens"] for row in rows),
        "peak_memory": peak_memory(),
        "answers": answers,
        **found,
    }
    leave(Path(arguments.figures), figures)
    return 0


def summary(turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians of each side; rows per second when all is loaded and from the start, and both against one process."""
    found = {figure: medians(turns, figure) for figure in FIGURES}
    rows = {str(turn["side"]): int(turn["rows"]) for turn in turns}
    sides = {
        side: {
            "rows": rows[side],
            "seconds": round(found["seconds"][side], 3),
            "startup_seconds": round(found["startup_seconds"][side], 3),
            "rows_per_second": round(rows[side] / found["seconds"][side], 3),
            "rows_per_second_with_startup": round(
                rows[side] / (found["seconds"][side] + found["startup_seconds"][side]), 3
            ),
        }
        for side in rows
    }
    if "relay" in sides:
        relays = [turn for turn in turns if turn["side"] == "relay"]
        sides["relay"] |= {name: medians(relays, name)["relay"] for name in RELAY_FIGURES}
    ratios = {}
    if {"ray", BASELINE} <= sides.keys():
        ratios = {
            "steady": round(sides["ray"]["rows_per_second"] / sides[BASELINE]["rows_per_second"], 3),
            "with_startup": round(
                sides["ray"]["rows_per_second_with_startup"] / sides[BASELINE]["rows_per_second_with_startup"], 3
            ),
        }
    return {"sides": sides, "ratios": ratios}


def equal_answers(turns: Sequence[Mapping[str, Any]]) -> float | None:
    """Part of the rows to which ``one`` and ``ray`` gave the same text; None where one of them is absent."""
    answers = {turn["side"]: turn["answers"] for turn in turns if turn["answers"]}
    if not {"ray", BASELINE} <= answers.keys():
        return None
    one, other = answers[BASELINE], answers["ray"]
    return round(sum(one[row] == other[row] for row in one) / len(one), 4)


def result_table(result: Mapping[str, Any]) -> str:
    rows = [
        [
            SIDES[side],
            str(figures["rows"]),
            f"{figures['seconds']:.1f}",
            f"{figures['startup_seconds']:.1f}",
            f"{figures['rows_per_second']:.2f}",
            f"{figures['rows_per_second_with_startup']:.2f}",
        ]
        for side, figures in result["sides"].items()
    ]
    turns = max(turn["turn"] for turn in result["turns"])
    told = (
        f"{result['model']}, at most {result['max_new_tokens']} new tokens, {result['workers']} workers on "
        f"{result['machine']['cores']} cores ({result['machine']['cpu']}), median of {turns}\n\n"
        + table(["", "rows", "seconds", "start-up", "rows/s", "with start-up"], rows)
    )
    if result["ratios"]:
        told += (
            f"\n\nray against one process: {result['ratios']['steady']:.2f} times the rows/s when all is loaded, "
            f"{result['ratios']['with_startup']:.2f} with start-up; {result['equal_answers']:.1%} of the answers equal"
        )
    return told


def plan(results: Path = RESULTS) -> str:
    """What a million rows need, by the figures that were measured, as a table."""
    ray, generation, labelling, overlap, bert = (
        json.loads((results / name).read_text(encoding="utf-8"))
        for name in (
            "ray-cpu.json",
            "generation-cpu.json",
            "labelling-cpu.json",
            "text-metrics-cpu.json",
            "text-metrics-bertscore-cpu.json",
        )
    )
    one, relay = ray["sides"]["one"], ray["sides"]["relay"]
    rate = relay["rows_per_second"]
    startups = f"{ray['sides']['ray']['startup_seconds']:.0f} s against {one['startup_seconds']:.0f} s"
    memory = relay["memory_per_prompt"] + relay["memory_per_answer"]
    steady = ray["ratios"]["steady"]

    def hours(per_second: float) -> str:
        found = MILLION / per_second / 3600
        return f"{found:.1f} h" if found >= 1 else f"{found * 60:.1f} min"

    def per_row(size: float) -> list[str]:
        return [f"{size:.0f} bytes", f"{size * MILLION / 1e9:.2f} GB"]

    threads = generation["machine"]["threads"]
    speeds = [
        (
            "answers, SmolLM2-135M in bfloat16",
            generation["sides"]["toolkit"]["rows_per_second"] * steady,
            "generation-cpu",
        ),
        ("labels, own classifiers", labelling["sides"]["toolkit"]["rows_per_second_after_loading"], "labelling-cpu"),
        ("BERTScore, MiniLM", bert["rows_per_second"]["toolkit"], "text-metrics-bertscore-cpu"),
    ]
    rows = [
        ["prompts in the object store, packed", *per_row(ray["packed_bytes_per_prompt"]), "ray-cpu"],
        ["`responses.jsonl`, one writer", *per_row(relay["journal_bytes_per_row"]), "ray-cpu"],
        ["memory of the driver: prompts and answers", *per_row(memory), "ray-cpu"],
        ["driver, with workers that answer at once", f"{rate:.0f} rows/s", hours(rate), "ray-cpu"],
        *([f"{what}, {threads} cores", f"{speed:.1f} rows/s", hours(speed), name] for what, speed, name in speeds),
        [
            "ROUGE and BLEU, in the driver's process",
            f"{overlap['rows_per_second']['toolkit']:.0f} rows/s",
            hours(overlap["rows_per_second"]["toolkit"]),
            "text-metrics-cpu",
        ],
    ]
    lines = ["| what | measured | a million rows | in benchmarks/results |", "| --- | --- | --- | --- |"]
    lines += ["| " + " | ".join([*row[:3], f"{row[3]}.json"]) + " |" for row in rows]
    told = (
        f"{ray['machine']['cpu']}, {ray['machine']['cores']} cores, Ray {ray['ray']}, {ray['made'][:10]}. Two workers of one "
        f"thread each gave {steady:.2f} times the rows/s of one process with two threads when all was loaded, "
        f"{ray['ratios']['with_startup']:.2f} times with start-up ({startups}); the line of answers is one process's figure "
        f"times the former. The driver saturates at {rate:.0f} rows/s: {rate / 16:.0f} rows/s for each of 16 workers."
    )
    return "\n".join([*lines, "", told])


def write_plan(guide: Path = GUIDE, results: Path = RESULTS) -> None:
    """Put `plan` between its markers in the guide."""
    text = guide.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    write_text_atomically(guide, f"{before}{BEGIN}\n{plan(results)}\n{END}{after}")
    say(f"plan written to {guide}")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Rows per second of --engine ray against one process.")
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"default {DEFAULT_MODEL}")
    parser.add_argument("--dtype", default="auto", help="default auto")
    parser.add_argument("--rows", type=positive, default=800, help="about how many rows (default 800)")
    parser.add_argument("--max_new_tokens", type=positive, default=128, help="default 128")
    parser.add_argument("--workers", type=positive, help="default: one for every core")
    parser.add_argument("--relay_rows", type=positive, default=100_000, help="rows of relay (default 100000)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="who takes part (default: all)")
    parser.add_argument("--repeats", type=positive, default=3, help="turns of each; medians are reported (default 3)")
    parser.add_argument("--data_root", help="folder with test_data/ (default $IMHI_DATA, else the sample rows)")
    parser.add_argument("--out", type=Path, default=RESULTS / "ray-cpu.json", help="JSON file")
    parser.add_argument("--plan", action="store_true", help="measure nothing; write the plan in docs/cluster.md")
    # What a side's process is told.
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    for name in ("--side", "--figures"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> int:
    if arguments.side is not None:
        return run_side(arguments)
    if arguments.plan:
        write_plan()
        return 0
    version = require_ray()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    root = resolve_data_root(arguments.data_root)
    rows = pick_rows(load_suite(root, "IMHI"), arguments.rows)
    prompts = tuple(Prompt(row.id, row.query) for row in rows)
    work = {
        "model": arguments.model,
        "dtype": arguments.dtype,
        "max_new_tokens": arguments.max_new_tokens,
        "cores": cores,
        "workers": arguments.workers or cores,
        "relay_rows": arguments.relay_rows,
    }
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "work.json"
        texts = [{"id": prompt.id, "text": prompt.text} for prompt in prompts]
        file.write_text(json.dumps({**work, "rows": texts}), encoding="utf-8")
        turns = take_turns(SCRIPT, arguments.sides, ["--work", str(file)], repeats=arguments.repeats, pythons={})
    equal = equal_answers(turns)
    for turn in turns:
        # Answers to the released rows do not leave the machine.
        del turn["answers"]
    result = {
        "made": now(),
        "data": "sample rows, made up and short" if root.is_samples else "released test files",
        **work,
        "ray": version,
        "packed_bytes_per_prompt": round(len(pack((0, ray_engine.Chunk(prompts)))) / len(prompts), 1),
        **summary(turns),
        "equal_answers": equal,
        "turns": [
            {name: round(value, 3) if isinstance(value, float) else value for name, value in turn.items()}
            for turn in turns
        ],
        "machine": machine(),
        "environment": environment(),
    }
    publish(result, result_table(result), arguments.out)
    return 0


if __name__ == "__main__":
    # Not this file as __main__: workers import what they are sent by its name.
    import ray_workers

    ray_workers.BEGUN = BEGUN
    sys.exit(run_main(lambda: ray_workers.run(ray_workers.parse())))
