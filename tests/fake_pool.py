"""A pool as `imhi.engines.ray_pool.RayPool` is one, in this process: chunks are lost as the test says."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Generator, Sequence
from typing import Any

from imhi.engines.ray_pool import RayPool

# (pass, chunk) → how many parts come before its worker dies; None: it comes to its end.
Fate = Callable[[int, Any], "int | None"]


class FakePool(RayPool):
    """`RayPool.stream` with passes of its own: everything is pickled to and fro as it would be to a worker."""

    def __init__(self, workers: int = 2, *, fate: Fate = lambda number, chunk: None, unsent: Collection[int] = ()):
        self.version, self.workers, self.address, self.gpus, self.threads = "fake", workers, None, 0, 1
        self.passes = self.lost = 0
        self._running = []
        self.fate, self.unsent = fate, unsent
        self.sent: list[list[Any]] = []
        self.closed = False

    def facts(self) -> dict[str, Any]:
        return {"ray": self.version, "passes": self.passes, "chunks_lost": self.lost}

    def close(self) -> None:
        self.closed = True

    def _losses(self) -> tuple[type[Exception], ...]:
        return (ConnectionError,)

    def _pass(self, make: Callable[[], Any], chunks: Sequence[Any]) -> Generator[tuple[str, int, Any], None, None]:
        self.sent.append(list(chunks))
        work = None
        for at, chunk in enumerate(chunks):
            if self.passes == 1 and at in self.unsent:
                continue
            work = work or pickle.loads(pickle.dumps(make))()
            yield "begin", at, None
            parts = list(work(pickle.loads(pickle.dumps(chunk))))
            reached = self.fate(self.passes, chunk)
            for part in parts[:reached]:
                yield "part", at, pickle.loads(pickle.dumps(part))
            if reached is None:
                yield "end", at, None
        if self.unsent and self.passes == 1:
            raise ConnectionError("the node is gone")
