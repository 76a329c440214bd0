"""Requests per second of the openai engine on one core, against a server that answers at once.

What is measured is the client: the server is ``tests/stub_server.py`` in a process and on a core of its own, and its
answers cost it next to nothing.  Sides take turns, each turn in a process of its own that is held to one core:

- ``aiohttp``: as many workers post the same requests and parse the answers, and nothing else: the floor.
- ``engine``: `OpenAIEngine.complete` alone, its groups thrown away.
- ``journaled``: the same, each group in the journal of a run folder, on disk before the next.

Prompts are made up, 200 words each, and made as they are taken, so that what grows with the rows is the engine's own:
peak memory is read after a tenth of the rows and at the end.
"""

from __future__ import annotations

import argparse
import asyncio
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

from measuring import RESULTS, leave, machine, medians, peak_memory, publish, take_turns

from imhi.commands import positive
from imhi.engines import EngineRequest, Prompt
from imhi.engines.openai_engine import OpenAIEngine, prepare
from imhi.errors import UserError, run_main
from imhi.provenance import environment, now
from imhi.runs import open_run
from imhi.talk import table

SCRIPT = Path(__file__)
STUB = SCRIPT.parents[1] / "tests" / "stub_server.py"
SIDES = {
    "aiohttp": "aiohttp alone",
    "engine": "openai engine",
    "journaled": "openai engine, journaled",
}
BASELINE = "aiohttp"
MODEL = "stub-model"
POST = " ".join(f"word{number}" for number in range(200))
FIGURES = ("seconds", "cpu_seconds", "memory_after_a_tenth", "peak_memory")


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
        return Prompt(
            f"DR/{at}", f"Consider this post: {POST}, day {at}. Question: Does the poster suffer from stress?"
        )


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


def answers(side: str, engine: OpenAIEngine, prompts: Sequence[Prompt], folder: Path) -> Iterator[int]:
    """Counts of answers as they come."""
    if side == "aiohttp":
        yield from aiohttp_alone(engine, prompts)
    elif side == "journaled":
        yield from journaled(engine, prompts, folder)
    else:
        for group in engine.complete(prompts):
            yield sum(completion.error is None for completion in group)


def run_side(arguments: argparse.Namespace) -> int:
    """One turn of one side, in a process of its own, on one core."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    with tempfile.TemporaryDirectory() as temporary, stub(Path(temporary), cores[-1] if cores else None) as url:
        if cores:
            os.sched_setaffinity(0, {cores[0]})
        options = {"api_base": url, "model": MODEL, "concurrency": arguments.concurrency}
        engine = prepare(EngineRequest(options=options)).load()
        # What comes once a process: imports, the first connections.
        warm = sum(answers(arguments.side, engine, Prompts(100), Path(temporary) / "warm"))
        begun, burnt, came, early = time.perf_counter(), time.process_time(), 0, None
        for count in answers(arguments.side, engine, Prompts(arguments.rows), Path(temporary) / "run"):
            came += count
            if early is None and came >= arguments.rows / 10:
                early = peak_memory()
        seconds, burnt = time.perf_counter() - begun, time.process_time() - burnt
    if (warm, came) != (100, arguments.rows):
        raise UserError(f"{came} answers to {arguments.rows} rows", code=1)
    figures = {"memory_after_a_tenth": early, "peak_memory": peak_memory()}
    leave(Path(arguments.figures), {"seconds": seconds, "cpu_seconds": burnt, **figures})
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
            "memory_after_a_tenth": int(found["memory_after_a_tenth"][side]),
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


def result_table(result: dict[str, Any]) -> str:
    rows = [
        [
            SIDES[side],
            f"{figures['seconds']:.1f}",
            f"{figures['requests_per_second']:.0f}",
            f"{figures['requests_per_cpu_second']:.0f}",
            f"{figures['memory_after_a_tenth'] / 2**20:.1f}",
            f"{figures['peak_memory'] / 2**20:.1f}",
        ]
        for side, figures in result["sides"].items()
    ]
    headers = ["", "seconds", "requests/s", "per CPU second", "MiB after 10 %", "peak MiB"]
    turns = max(turn["turn"] for turn in result["turns"])
    return (
        f"{result['rows']} requests, {result['concurrency']} at once, {result['machine']['cpu']}, one core, "
        f"median of {turns}\n\n" + table(headers, rows)
    )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Requests per second of the openai engine on one core.")
    parser.add_argument("--rows", type=positive, default=20_000, help="requests of a turn (default 20000)")
    parser.add_argument("--concurrency", type=positive, default=32, help="requests at once (default 32)")
    parser.add_argument("--repeats", type=positive, default=3, help="turns of each; medians are reported (default 3)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="who takes part (default: all)")
    parser.add_argument("--out", type=Path, default=RESULTS / "openai-client-cpu.json", help="JSON file")
    # What a side's process is told.
    for name in ("--side", "--figures"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> int:
    if arguments.side is not None:
        return run_side(arguments)
    told = ["--rows", str(arguments.rows), "--concurrency", str(arguments.concurrency)]
    turns = take_turns(SCRIPT, arguments.sides, told, repeats=arguments.repeats, pythons={})
    result = {
        "made": now(),
        "rows": arguments.rows,
        "concurrency": arguments.concurrency,
        **summary(turns, arguments.rows),
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
    raise SystemExit(run_main(lambda: run(parse())))
