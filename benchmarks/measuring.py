"""What the benchmarks share: sides that take turns, each in a process of its own, medians, the machine.

A side is one way to do the same work: the published loop, a reference package, the toolkit.  Each turn of each side is
a fresh process, so that its peak memory is its own and no side profits from what another has warmed up; it loads, then
takes the time of the work alone, and leaves its figures in a JSON file.  Sides take turns, so that a change of the
machine's mood meets them all.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imhi.data import write_text_atomically
from imhi.errors import UserError
from imhi.talk import say, show

RESULTS = Path(__file__).parent / "results"


def machine(device: str = "cpu") -> dict[str, Any]:
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


def peak_memory(device: str = "cpu") -> int:
    """Bytes: the most that this process held at once, on the GPU for CUDA, else resident on the host."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(torch.device(device)))
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage's figure outlives exec: a small child would report its parent's.
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def leave(file: Path, figures: Mapping[str, Any]) -> None:
    """What a side's process calls at its end."""
    file.write_text(json.dumps(figures), encoding="utf-8")


def one_turn(script: Path, side: str, arguments: Sequence[str], *, python: str = sys.executable) -> dict[str, Any]:
    """Run ``python script --side SIDE --figures FILE arguments`` and read what it leaves; UserError if it fails."""
    with tempfile.TemporaryDirectory() as temporary:
        figures = Path(temporary) / "figures.json"
        busy = load_average()
        command = [python, str(script), "--side", side, "--figures", str(figures), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not figures.exists():
            raise UserError(f"{side}: {' '.join(command)} failed:\n{done.stderr[-3000:]}", code=1)
        return {"side": side, "load_average_before": busy, **json.loads(figures.read_text(encoding="utf-8"))}


def take_turns(
    script: Path, sides: Sequence[str], arguments: Sequence[str], *, repeats: int, pythons: Mapping[str, str]
) -> list[dict[str, Any]]:
    """`repeats` turns of every side, in turn; `pythons` names another interpreter for a side that needs one."""
    turns = []
    for number in range(repeats):
        for side in sides:
            turn = one_turn(script, side, arguments, python=pythons.get(side, sys.executable))
            turns.append({"turn": number + 1, **turn})
            say(f"turn {number + 1} of {repeats}: {side} {turn['seconds']:.1f} s")
    return turns


def medians(turns: Sequence[Mapping[str, Any]], figure: str = "seconds") -> dict[str, float]:
    """Median of a figure for each side."""
    sides = dict.fromkeys(str(turn["side"]) for turn in turns)
    return {side: statistics.median(turn[figure] for turn in turns if turn["side"] == side) for side in sides}


def publish(result: Mapping[str, Any], told: str, out: Path) -> None:
    """Keep a result as JSON, and show its table."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(out, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    show(told)
    say(f"written to {out}")
