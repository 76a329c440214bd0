"""A metric whose pairs are spread over a pool of Ray workers (`imhi.engines.ray_pool`); signature and values are the same."""

from __future__ import annotations

import copy
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from imhi.engines.ray_pool import RayPool, Work
from imhi.errors import UserError
from imhi.metrics import METRICS
from imhi.metrics.base import Metric, Statistics

__all__ = ["over_workers"]

# Pairs of a chunk: enough for full batches, and chunks enough that no worker waits long for the last.  A chunk's values
# come together, and Ray takes workers that send nothing for half an hour for stuck.
LEAST_PAIRS, MOST_PAIRS, CHUNKS_A_WORKER = 256, 1024, 4

Pairs = Sequence[tuple[str, str]]
# (index of each pair, pairs)
Chunk = tuple[tuple[int, ...], Pairs]


def over_workers(metric: Metric, options: Mapping[str, Any], pool: RayPool) -> Metric:
    """The same metric, which computes in the pool's workers: they start anew for every list of pairs.

    Parameters
    ----------
    metric : made by ``METRICS[metric.name](**options)``, as every worker makes its own; where one has another
        signature, scoring ends with a UserError.
    """
    spread = copy.copy(metric)
    make = partial(_open, metric.name, dict(options), str(metric.signature))
    # Everything but the statistics of pairs is computed here, from them.
    spread._statistics = partial(_spread_statistics, make, pool)  # type: ignore[method-assign]
    return spread


def _spread_statistics(
    make: Callable[[], Work], pool: RayPool, pairs: Pairs, advance: Callable[[int], object]
) -> Statistics:
    order = sorted(range(len(pairs)), key=lambda at: -sum(map(len, pairs[at])))
    most = min(MOST_PAIRS, max(LEAST_PAIRS, -(-len(pairs) // (CHUNKS_A_WORKER * pool.workers))))
    parts = [tuple(order[start : start + most]) for start in range(0, len(order), most)]
    chunks: list[Chunk] = [(rows, tuple(pairs[row] for row in rows)) for rows in parts]
    found: dict[int, tuple[float, ...]] = {}

    def again(chunk: Chunk, begun: bool) -> list[Chunk]:
        # A worker may die between its result and its word that this was all.
        return [] if chunk[0][0] in found else [chunk]

    for rows, statistics in pool.stream(make, chunks, again):
        found.update(zip(rows, statistics, strict=True))
        advance(len(rows))
    if len(found) < len(pairs):
        lost = len(pairs) - len(found)
        raise UserError(f"--engine ray: {lost} of {len(pairs)} pairs did not come back; score again", code=1)
    return [found[at] for at in range(len(pairs))]


def _open(name: str, options: Mapping[str, Any], expected: str) -> Work:
    """In a worker: the metric as a function of chunks."""
    metric = METRICS[name](**options)
    if str(metric.signature) != expected:
        raise UserError(
            f"--engine ray: {platform.node()} would score with {metric.signature}, and this machine with {expected}; "
            "every machine needs the same libraries and the same model files"
        )
    return partial(_compute, metric)


def _compute(metric: Metric, chunk: Chunk) -> Iterator[tuple[tuple[int, ...], Statistics]]:
    rows, pairs = chunk
    yield rows, metric._statistics(pairs, lambda done: None)
