"""Requests per second of the openai engine on one core, and its memory against the rows; the server answers at once.

What is measured is the client: the server is ``tests/stub_server.py`` in a process and on a core of its own, and its
answers cost it next to nothing.  Sides take turns, each turn in a process of its own that is held to one core:

- ``aiohttp``: as many workers post the same requests and parse the answers, and nothing else: the floor.
- ``engine``: `OpenAIEngine.complete` alone, its groups thrown away.
- ``journaled``: the same, each group in the journal of a run folder, on disk before the next.
- ``run``: all of ``imhi generate``, from reading the test file to writing the run's CSV.

Prompts are made up, 200 words each.  For all sides but ``run`` they are made as they are taken and answers are let go,
so that what grows with the rows is the engine's own.  ``run`` holds the test file and the answers, as every run does.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

from measuring import RESULTS, leave, machine, medians, one_turn, peak_memory, publish, take_turns

from imhi.benchmark import DATASETS, SUITES, gold_answer, query
from imhi.commands import positive
from imhi.engines import EngineRequest, Prompt
from imhi.engines.openai_engine import OpenAIEngine, prepare
from imhi.errors import UserError, run_main
from imhi.generation import GenerationRequest, generate_responses
from imhi.provenance import environment, library_versions, now
from imhi.runs import open_run
from imhi.talk import table

SCRIPT = Path(__file__)
STUB = SCRIPT.parents[1] / "tests" / "stub_server.py"
SIDES = {
    "aiohttp": "aiohttp alone",
    "engine": "openai engine",
    "journaled": "openai engine, journaled",
    "run": "imhi generate, all of it",
}
BASELINE = "aiohttp"
# Whose memory is measured against the number of rows.
MEMORY_SIDES = ("engine", "run")
MODEL = "stub-model"
WARM_ROWS = 100
POST = " ".join(f"word{number}" for number in range(200))
DATASET = DATASETS["dreaddit"]
FIGURES = ("seconds", "cpu_seconds", "peak_memory")


class Prompts(Sequence[Prompt]):
    """So many prompts, each made when it is asked for."""

    def __init__(self, rows: int):
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    @overload
    def __getitem__(self, at: int) -> Prompt: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Prompt]: ...
    def __getitem__(self, at: int | slice) -> Prompt | Sequence[Prompt]:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(self.rows))]
        if not 0 <= at < self.rows:
            raise IndexError(at)
        return Prompt(f"{DATASET.name}/{at}", query(DATASET, "instruction", f"{POST}, day {at}."))


def write_data_root(root: Path, rows: int) -> None:
    """The same prompts as a test file, written row by row: the file's size must not count as memory of the run."""
    table = root / SUITES["IMHI"].folder / f"{DATASET.name}.csv"
    table.parent.mkdir(parents=True)
    gold = gold_answer(DATASET.labels[0], "instruction", "It says so.")
    with table.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(("query", "gpt-3.5-turbo"))
        for prompt in Prompts(rows):
            writer.writerow((prompt.text, gold))


@contextmanager
def stub(folder: Path, core: int | None) -> Iterator[str]:
    """The server in a process of its own, on one core; yields its address."""
    port_file = folder / "port"
    process = subprocess.Popen([sys.executable, str(STUB), "--port_file", str(port_file)])
    try:
        if core is not None:
            os.sched_setaffinity(process.pid, {core})
        while not port_file.exists():
            if process.poll() is not None:
                raise UserError(f"{STUB} ended with status {process.returncode}", code=1)
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port_file.read_text(encoding='ascii')}/v1"
    finally:
        process.terminate()
        process.wait()


def aiohttp_alone(engine: OpenAIEngine, prompts: Sequence[Prompt]) -> Iterator[int]:
    """Post every prompt's request with the engine's concurrency; yields the number of answers, once."""

    async def work(session: Any, url: str, rows: Iterator[Prompt]) -> int:
        answers = 0
        for prompt in rows:
            data = json.dumps(engine.payload(prompt)).encode()
            async with session.post(url, data=data, headers={"Content-Type": "application/json"}) as response:
                answers += bool(json.loads(await response.read())["choices"])
        return answers

    async def all_of_them() -> int:
        import aiohttp

        rows = iter(prompts)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            url = f"{engine.server.address.url}/chat/completions"
            return sum(await asyncio.gather(*(work(session, url, rows) for _ in range(engine.limits.concurrency))))

    yield asyncio.run(all_of_them())


def journaled(engine: OpenAIEngine, prompts: Sequence[Prompt], folder: Path) -> Iterator[int]:
    with open_run(folder, {"benchmark": SCRIPT.name}) as run:
        for group in engine.complete(prompts):
            run.append(group)
            # What the run keeps of every answer is not the client's.
            run.completions.clear()
            yield len(group)


def engine_alone(engine: OpenAIEngine, prompts: Sequence[Prompt]) -> Iterator[int]:
    for group in engine.complete(prompts):
        yield sum(completion.error is None for completion in group)


def answers(side: str, options: Mapping[str, Any], rows: int, folder: Path) -> int:
    """How many answers came to so many rows."""
    if side == "run":
        request = GenerationRequest(
            output=folder / "run", data_root=str(folder / "data"), engine="openai", engine_options=options
        )
        outcome = generate_responses(request)
        return outcome.rows - len(outcome.failed)
    engine, prompts = prepare(EngineRequest(options=options)).load(), Prompts(rows)
    if side == "journaled":
        return sum(journaled(engine, prompts, folder / "run"))
    return sum(aiohttp_alone(engine, prompts) if side == "aiohttp" else engine_alone(engine, prompts))


def run_side(arguments: argparse.Namespace) -> int:
    """One turn of one side, in a process of its own, on one core."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    with tempfile.TemporaryDirectory() as temporary, stub(Path(temporary), cores[-1] if cores else None) as url:
        if cores:
            os.sched_setaffinity(0, {cores[0]})
        options = {"api_base": url, "model": MODEL, "concurrency": arguments.concurrency}
        came = []
        # The first for what comes once a process, such as imports.
        for name, rows in (("warm", WARM_ROWS), ("measured", arguments.rows)):
            folder = Path(temporary) / name
            if arguments.side == "run":
                write_data_root(folder / "data", rows)
            begun, burnt = time.perf_counter(), time.process_time()
            came.append(answers(arguments.side, options, rows, folder))
            figures = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - burnt}
    if came != [WARM_ROWS, arguments.rows]:
        raise UserError(f"{came[-1]} answers to {arguments.rows} rows", code=1)
    leave(Path(arguments.figures), {**figures, "rows": arguments.rows, "peak_memory": peak_memory()})
    return 0


def summary(turns: Sequence[Mapping[str, Any]], rows: int) -> dict[str, Any]:
    """Medians over the turns of each side, and requests per second by the clock and by the core's own time."""
    found = {figure: medians(turns, figure) for figure in FIGURES}
    sides = {
        side: {
            "seconds": round(found["seconds"][side], 3),
            "cpu_seconds": round(found["cpu_seconds"][side], 3),
            "requests_per_second": round(rows / found["seconds"][side], 1),
            "requests_per_cpu_second": round(rows / found["cpu_seconds"][side], 1),
            "peak_memory": int(found["peak_memory"][side]),
        }
        for side in found["seconds"]
    }
    base = sides.get(BASELINE)
    shares = {
        side: round(figures["requests_per_cpu_second"] / base["requests_per_cpu_second"], 3)
        for side, figures in sides.items()
        if base and side != BASELINE
    }
    return {"sides": sides, "share_of_the_floor": shares}


def memory_summary(turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For each side: peak memory in bytes by the number of rows, and bytes a row from the fewest rows to the most."""
    found: dict[str, Any] = {}
    for turn in turns:
        found.setdefault(turn["side"], {})[turn["rows"]] = int(turn["peak_memory"])
    summaries = {}
    for side, peaks in found.items():
        fewest, most = min(peaks), max(peaks)
        growth = (peaks[most] - peaks[fewest]) / (most - fewest) if most > fewest else None
        by_rows = {str(rows): peak for rows, peak in sorted(peaks.items())}
        summaries[side] = {"peak_memory": by_rows, "bytes_per_row": None if growth is None else round(growth, 1)}
    return summaries


def rounded(turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: round(value, 3) if isinstance(value, float) else value for name, value in turn.items()} for turn in turns
    ]


def result_table(result: dict[str, Any]) -> str:
    rows = [
        [
            SIDES[side],
            f"{figures['seconds']:.1f}",
            f"{figures['requests_per_second']:.0f}",
            f"{figures['requests_per_cpu_second']:.0f}",
            f"{figures['peak_memory'] / 2**20:.1f}",
        ]
        for side, figures in result["sides"].items()
    ]
    told = table(["", "seconds", "requests/s", "per CPU second", "peak MiB"], rows)
    if result["memory"]:
        counts = list(next(iter(result["memory"].values()))["peak_memory"])
        memory = [
            [SIDES[side], *(f"{figures['peak_memory'][count] / 2**20:.1f}" for count in counts)]
            for side, figures in result["memory"].items()
        ]
        told += "\n\n" + table(["peak MiB at rows", *counts], memory)
    turns = max(turn["turn"] for turn in result["turns"])
    return (
        f"{result['rows']} requests, {result['concurrency']} at once, {result['machine']['cpu']}, one core, "
        f"median of {turns}\n\n" + told
    )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Requests per second of the openai engine on one core.")
    parser.add_argument("--rows", type=positive, default=20_000, help="requests of a turn (default 20000)")
    parser.add_argument("--concurrency", type=positive, default=32, help="requests at once (default 32)")
    parser.add_argument("--repeats", type=positive, default=3, help="turns of each; medians are reported (default 3)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="who takes part (default: all)")
    parser.add_argument(
        "--memory_rows",
        nargs="*",
        type=positive,
        default=[1_000, 10_000, 50_000],
        help="numbers of rows at which memory is measured, a turn each (default 1000 10000 50000)",
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "openai-client-cpu.json", help="JSON file")
    # What a side's process is told.
    for name in ("--side", "--figures"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> int:
    if arguments.side is not None:
        return run_side(arguments)
    at_once = ["--concurrency", str(arguments.concurrency)]
    told = ["--rows", str(arguments.rows), *at_once]
    turns = take_turns(SCRIPT, arguments.sides, told, repeats=arguments.repeats, pythons={})
    memory_turns = [
        one_turn(SCRIPT, side, ["--rows", str(rows), *at_once])
        for side in MEMORY_SIDES
        for rows in arguments.memory_rows
    ]
    result = {
        "made": now(),
        "rows": arguments.rows,
        "concurrency": arguments.concurrency,
        **summary(turns, arguments.rows),
        "memory": memory_summary(memory_turns),
        "turns": rounded(turns),
        "memory_turns": rounded(memory_turns),
        # Every side is held to one core, whatever the machine has.
        "machine": {**machine(), "threads": 1},
        "versions": library_versions(("aiohttp",)),
        "environment": environment(),
    }
    publish(result, result_table(result), arguments.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(lambda: run(parse())))
