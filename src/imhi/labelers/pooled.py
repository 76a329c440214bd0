"""Labelers whose texts are spread over a pool of Ray workers (`imhi.engines.ray_pool`); labels are the same.

One pass of the pool serves all datasets that are to be labelled: its workers start once.
"""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from imhi.benchmark import DATASETS, Dataset
from imhi.engines.ray_pool import RayPool, Work
from imhi.errors import UserError
from imhi.labelers import Labeler, LabelResult
from imhi.talk import progress_bar

__all__ = ["over_workers"]

# Rows of a chunk: enough for full batches, and chunks enough that no worker waits long.  A chunk's labels come together,
# and Ray takes workers that send nothing for half an hour for stuck.
LEAST_ROWS, MOST_ROWS, CHUNKS_A_WORKER = 512, 2048, 4


@dataclass(frozen=True)
class Chunk:
    """Responses of one dataset, and where they stand among all of its responses.  Equal texts share a chunk."""

    dataset: str
    rows: tuple[int, ...]
    texts: tuple[str, ...]


# Labelers by dataset name, opened where this is called.
Open = Callable[[], Mapping[str, Labeler]]


def over_workers(
    labelers: Mapping[str, Labeler], open_: Open, texts: Mapping[str, Sequence[str]], pool: RayPool
) -> dict[str, Labeler]:
    """The same labelers, which compute in the pool's workers.

    Parameters
    ----------
    labelers : by dataset name, with nothing loaded.
    open_ : opens the same ones in a worker; picklable.  Where a worker finds others, labelling ends with a UserError.
    texts : the responses of every dataset that will be labelled, in the order in which that will be asked for; only
        these can be labelled.
    """
    shared = _Shared(partial(_labelling, open_, {name: labelers[name].identity() for name in texts}), texts, pool)
    return {name: _PooledLabeler(labelers[name], shared) for name in texts}


class _Shared:
    """What comes back of all datasets' chunks, as far as it has been fetched."""

    def __init__(self, make: Callable[[], Work], texts: Mapping[str, Sequence[str]], pool: RayPool):
        self.texts = texts
        chunks = [chunk for name, given in texts.items() for chunk in cut(name, given, pool.workers)]
        self._stream = pool.stream(make, chunks, self._again)
        self._left = set(texts)
        self._came: set[tuple[str, tuple[int, ...]]] = set()
        self._results: dict[str, list[tuple[tuple[int, ...], LabelResult]]] = defaultdict(list)

    def _again(self, chunk: Chunk, begun: bool) -> list[Chunk]:
        # A worker may die between its result and its word that this was all.
        return [] if (chunk.dataset, chunk.rows) in self._came else [chunk]

    def results(self, name: str) -> Iterator[tuple[tuple[int, ...], LabelResult]]:
        """(rows, their labels) of a dataset, until all of its rows have come."""
        found = self._results.pop(name, [])
        left = len(self.texts[name])
        while left:
            while not found:
                part = next(self._stream, None)
                if part is None:
                    raise UserError(f"--engine ray: {left} rows of {name} did not come back; label again", code=1)
                dataset, rows, result = part
                self._came.add((dataset, rows))
                (found if dataset == name else self._results[dataset]).append((rows, result))
            rows, result = found.pop()
            left -= len(rows)
            yield rows, result
        self._left.discard(name)
        if not self._left:
            # To its end: a worker's word that this was all is still under way.
            for _ in self._stream:
                pass


@dataclass(frozen=True)
class _PooledLabeler:
    labeler: Labeler
    shared: _Shared

    def identity(self) -> dict[str, Any]:
        """The labeler's own: where it computes decides nothing."""
        return self.labeler.identity()

    def label(self, dataset: Dataset, texts: Sequence[str]) -> LabelResult:
        """Label the responses that `over_workers` was given for this dataset, shape (rows,)."""
        if list(texts) != list(self.shared.texts[dataset.name]):
            raise ValueError(f"other responses of {dataset.name} than the pool was given")
        labels: list[str | None] = [None] * len(texts)
        confidences: list[float] = [0.0] * len(texts)
        clear = [False] * len(texts)
        counts: dict[str, int] = defaultdict(int)
        sure = judged = True
        with progress_bar(len(texts), dataset.name) as bar:
            for rows, result in self.shared.results(dataset.name):
                sure, judged = result.confidences is not None, result.clear is not None
                for at, row in enumerate(rows):
                    labels[row] = result.labels[at]
                    if result.confidences is not None:
                        confidences[row] = result.confidences[at]
                    if result.clear is not None:
                        clear[row] = result.clear[at]
                # No text stands in two chunks, so that distinct texts add up too.
                for name, count in result.counts.items():
                    counts[name] += count
                bar.update(len(rows))
        return LabelResult(labels, confidences if sure else None, dict(counts), clear if judged else None)


def cut(name: str, texts: Sequence[str], workers: int) -> list[Chunk]:
    """The responses of a dataset in chunks: equal texts together, those of similar length too, longest first."""
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, text in enumerate(texts):
        rows_of[text].append(row)
    most = min(MOST_ROWS, max(LEAST_ROWS, -(-len(texts) // (CHUNKS_A_WORKER * workers))))
    chunks: list[list[int]] = [[]]
    for text in sorted(rows_of, key=lambda text: -len(text)):
        if len(chunks[-1]) >= most:
            chunks.append([])
        chunks[-1] += rows_of[text]
    return [Chunk(name, tuple(rows), tuple(texts[row] for row in rows)) for rows in chunks if rows]


def _labelling(open_: Open, expected: Mapping[str, Mapping[str, Any]]) -> Work:
    """In a worker: the labelers as a function of chunks; UserError where they are not those of the driver."""
    labelers = open_()
    differing = [name for name, identity in expected.items() if labelers[name].identity() != identity]
    if differing:
        raise UserError(
            f"--engine ray: {platform.node()} has other classifiers of {', '.join(differing)} than this machine; every "
            "machine needs the same toolkit and the same model files"
        )
    return partial(_label, labelers)


def _label(labelers: Mapping[str, Labeler], chunk: Chunk) -> Iterator[tuple[str, tuple[int, ...], LabelResult]]:
    yield chunk.dataset, chunk.rows, labelers[chunk.dataset].label(DATASETS[chunk.dataset], chunk.texts)
