"""The benchmark of Ray workers: what it makes of its turns, and the plan in docs/cluster.md."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("ray_workers")


def turn(side: str, seconds: float, startup: float, rows: int = 100, **more) -> dict:
    answers = {f"DR/{at}": f"{side}, {at}" if at < 5 else "Yes." for at in range(rows)} if side != "relay" else {}
    return {
        "turn": 1,
        "side": side,
        "rows": rows,
        "seconds": seconds,
        "startup_seconds": startup,
        "answers": answers,
        "peak_memory": 10**9,
        **more,
    }


RELAY = {"journal_bytes_per_row": 700.0, "memory_per_prompt": 900.0, "memory_per_answer": 1100.0}


def test_ratios_are_of_the_medians_with_and_without_start_up(benchmark):
    turns = [
        *(turn("one", seconds, 10) for seconds in (40, 50, 90)),
        *(turn("ray", seconds, 30) for seconds in (60, 50, 10)),
        turn("relay", 0.5, 20, rows=5000, **RELAY),
    ]
    found = benchmark.summary(turns)
    assert found["sides"]["one"]["rows_per_second"] == 2
    assert found["ratios"] == {"steady": 1, "with_startup": 0.75}
    assert found["sides"]["relay"]["rows_per_second"] == 10_000
    assert found["sides"]["relay"]["memory_per_answer"] == 1100
    assert benchmark.equal_answers(turns) == 0.95
    assert benchmark.summary(turns[:1])["ratios"] == {}
    assert benchmark.equal_answers(turns[:1]) is None


def test_passages_are_many_and_as_long_as_asked(benchmark):
    found = {benchmark.passage(at, 565) for at in range(2000)}
    assert len(found) == 2000
    assert {len(text.encode()) for text in found} == {565}


def test_the_plan_reckons_with_what_was_measured(benchmark, tmp_path):
    for path in RESULTS.glob("*-cpu.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    turns = [turn("one", 50, 10), turn("ray", 50, 30), turn("relay", 0.5, 20, rows=5000, **RELAY)]
    result = {
        "made": "2026-11-23T09:00:00+00:00",
        "ray": "2.60.0",
        "packed_bytes_per_prompt": 300.4,
        "machine": {"cpu": "a CPU", "cores": 2},
        **benchmark.summary(turns),
    }
    (tmp_path / "ray-cpu.json").write_text(json.dumps(result))
    told = benchmark.plan(tmp_path)
    assert "| prompts in the object store, packed | 300 bytes | 0.30 GB | ray-cpu.json |" in told
    assert "| memory of the driver: prompts and answers | 2000 bytes | 2.00 GB | ray-cpu.json |" in told
    assert "| driver, with workers that answer at once | 10000 rows/s | 1.7 min | ray-cpu.json |" in told
    assert "625 rows/s for each of 16 workers" in told
    guide = tmp_path / "guide.md"
    guide.write_text(f"before\n{benchmark.BEGIN}\nold\n{benchmark.END}\nbehind\n")
    benchmark.write_plan(guide, tmp_path)
    assert guide.read_text() == f"before\n{benchmark.BEGIN}\n{told}\n{benchmark.END}\nbehind\n"


@pytest.mark.skipif(not (RESULTS / "ray-cpu.json").exists(), reason="benchmarks/ray_workers.py has not been run")
def test_the_guide_tells_the_plan_of_the_results(benchmark):
    text = benchmark.GUIDE.read_text(encoding="utf-8")
    assert f"{benchmark.BEGIN}\n{benchmark.plan()}\n{benchmark.END}" in text
