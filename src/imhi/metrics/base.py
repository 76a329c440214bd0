"""What every metric shares: `Signature`, `Score` and `Metric` (after sacrebleu's classes of these names).

A metric turns each (generated, gold) pair into a few numbers first, its *statistics*; corpus values and per-row
values are computed from them.  Resampling rows for an interval therefore costs no model call.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

__all__ = ["Metric", "Score", "Signature", "Statistics", "digest_of", "mean"]

# One tuple of numbers a row; what they mean is the metric's `statistics_columns`.
Statistics = list[tuple[float, ...]]


@dataclass(frozen=True)
class Signature:
    """What a value depends on beside the texts: ``metric|option:value|...|library:version``.

    Two values may be compared only where their signatures are equal.
    """

    metric: str
    fields: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, metric: str, options: Mapping[str, object], libraries: Iterable[str] = ()) -> Signature:
        """A signature with the toolkit's version and those of the named packages at its end."""
        from imhi import __version__
        from imhi.provenance import library_versions

        versions = {**library_versions(tuple(libraries)), "imhi": __version__}
        return cls(metric, tuple((key, str(value)) for key, value in {**options, **versions}.items()))

    def __str__(self) -> str:
        return "|".join([self.metric, *(f"{key}:{value}" for key, value in self.fields)])


@dataclass(frozen=True)
class Score:
    """The result of one metric on one list of pairs.

    Attributes
    ----------
    values : value name → corpus value, the main value first.
    row_values : value name → values per row, shape (rows,); not for every metric is the corpus value their mean.
    rows : number of pairs, duplicates included.
    """

    metric: str
    values: dict[str, float]
    row_values: dict[str, list[float]]
    rows: int
    signature: Signature

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {value:.4f}" for name, value in self.values.items())
        return f"{shown} [{self.signature}]"


class Metric(ABC):
    """Pairs of texts in, statistics per row out; values from statistics.

    Attributes
    ----------
    name : as in ``--score_method``.
    lowest, highest : range of the values; None: no limit.  Higher is better in every metric here.
    empty_rule : what an empty answer scores, in words.
    note : a caution to print beside the values, "" for none.
    """

    name: ClassVar[str]
    lowest: float | None = 0.0
    highest: float | None = 1.0
    empty_rule: ClassVar[str]
    note: str = ""

    @property
    @abstractmethod
    def signature(self) -> Signature:
        """What the values depend on beside the texts."""

    @property
    def run_facts(self) -> dict[str, object]:
        """How it ran, recorded beside the values: what should not change them (device, batch size)."""
        return {}

    @property
    @abstractmethod
    def statistics_columns(self) -> tuple[str, ...]:
        """Names of a row's statistics."""

    @abstractmethod
    def _statistics(self, pairs: Sequence[tuple[str, str]], advance: Callable[[int], object]) -> Statistics:
        """Statistics of distinct (generated, gold) pairs, in their order; ``advance(n)`` after every n pairs."""

    def statistics(
        self, generated: Sequence[str], golds: Sequence[str], advance: Callable[[int], object] | None = None
    ) -> Statistics:
        """Statistics per row, shape (rows, len(statistics_columns)).  A pair that repeats is computed once.

        Parameters
        ----------
        generated, golds : texts, shape (rows,).
        advance : told how many rows were finished, for a progress bar; the numbers add up to the rows.

        Raises
        ------
        ValueError
            On different lengths and on no rows.
        """
        if len(generated) != len(golds):
            raise ValueError(f"{len(generated)} generated texts but {len(golds)} gold texts")
        if not golds:
            raise ValueError("no rows to score")
        told = advance or (lambda rows: None)
        position: dict[tuple[str, str], int] = {}
        row_to_pair = [position.setdefault(pair, len(position)) for pair in zip(generated, golds, strict=True)]
        told(len(golds) - len(position))
        found = self._statistics(list(position), told)
        return [found[pair] for pair in row_to_pair]

    def row_values(self, statistics: Statistics) -> dict[str, list[float]]:
        """Value name → values per row, shape (rows,).  Here: the statistics themselves."""
        return {name: [row[at] for row in statistics] for at, name in enumerate(self.statistics_columns)}

    def values(self, statistics: Statistics) -> dict[str, float]:
        """Value name → corpus value.  Here: the plain mean of the row values."""
        return {name: mean(column) for name, column in self.row_values(statistics).items()}

    def score(self, generated: Sequence[str], golds: Sequence[str]) -> Score:
        """Statistics, values and signature in one call."""
        statistics = self.statistics(generated, golds)
        return Score(self.name, self.values(statistics), self.row_values(statistics), len(statistics), self.signature)


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean, correctly rounded: it does not depend on the order of the rows."""
    return math.fsum(values) / len(values)


def digest_of(value: Any) -> str:
    """SHA-256 of a value's JSON form."""
    text = json.dumps(value, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
