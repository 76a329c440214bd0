"""Workers that fail in one way or another, on a real pool; for tests/test_ray_engine.py, which reads the last line."""

from __future__ import annotations

import os
import sys
import tempfile
from functools import partial
from pathlib import Path

from imhi.engines.ray_pool import RayPool
from imhi.errors import UserError, run_main
from imhi.talk import show


def working(what: str):
    if what == "mistake":
        raise UserError("no such model")
    if what == "never":
        os._exit(1)
    return partial(doubled, what)


def doubled(what: str, chunk: list[int]):
    for number in chunk:
        if number == 3 and what == "deadly":
            os.kill(os.getpid(), 9)
        if number == 3 and what == "broken" and not Path(os.environ["IMHI_FAILED_ONCE"]).exists():
            Path(os.environ["IMHI_FAILED_ONCE"]).touch()
            raise RuntimeError("device-side assert")
        yield 2 * number


def main() -> None:
    # Not this file as __main__: workers import what they are sent by its name.
    from ray_failures import working

    with tempfile.TemporaryDirectory() as folder:
        os.environ["IMHI_FAILED_ONCE"] = f"{folder}/once"
        what = sys.argv[1]
        given_up: list[int] = []
        got: list[int] = []

        def again(chunk: list[int], begun: bool) -> list[list[int]]:
            left = [number for number in chunk if 2 * number not in got]
            if what == "never":
                return [chunk]
            if len(chunk) == 1 and chunk == left and begun:
                given_up.extend(left)
                return []
            return [[number] for number in left]

        with RayPool(2) as pool:
            for part in pool.stream(partial(working, what), [[1, 2], [3, 4], [5, 6]], again):
                got.append(part)
        show(f"{sorted(got)}" + (f" without {given_up}" if given_up else ""))


if __name__ == "__main__":
    raise SystemExit(run_main(main))
