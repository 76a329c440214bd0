"""Every number of a report, dataset by dataset, as plain dataclasses; pages and tables only lay them out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imhi.measures import LABEL_FIGURES, label_key, measures_of, summed_figures
from imhi.results import RULE, Column, DatasetResults, Labels, RunResults
from imhi.statistics import Interval, expected_calibration_error, percentile_interval, resampled

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Bin",
    "Counts",
    "DatasetFigures",
    "LabelFigures",
    "Lengths",
    "Reliability",
    "RunFigures",
    "ScoreFigures",
    "figures_of",
    "reliability",
    "round_steps",
    "run_names",
]

BINS = 10
LENGTH_BINS = 28
FEW_ROWS = 30


@dataclass(frozen=True)
class Counts:
    """Rows by what happened to them; None where the folder does not tell.

    Attributes
    ----------
    empty : answers without text, failed rows left out.
    truncated : answers that a length limit ended.
    failed : rows without an answer.
    """

    rows: int
    empty: int
    truncated: int | None
    failed: int | None


@dataclass(frozen=True)
class Bin:
    """Answers whose confidence lies in [`low`, `high`); the last bin includes 1.

    `share` is how many of them are right, 0 to 1, with its 95 % Wilson interval; None without rows.
    """

    low: float
    high: float
    rows: int
    confidence: float | None
    share: float | None
    share_low: float | None
    share_high: float | None


@dataclass(frozen=True)
class Reliability:
    """Confidence against one notion of right, over `rows` answers.

    `error` is the expected calibration error over ten equally wide bins, 0 to 1, lower is better (Naeini et al., 2015).
    """

    rows: int
    error: float
    bins: list[Bin]


@dataclass(frozen=True)
class LabelFigures:
    """One labeller's labels against gold.

    Attributes
    ----------
    unparsed : answers without a readable label, all counted wrong.
    unclear : answers that the labeller says support no label (they keep one and are counted with it); None where it
        does not say.
    accuracy, weighted_f1, macro_f1 : 0 to 1, higher is better, with 95 % intervals.
    confusion : rows by gold and read label, shape (labels, labels + 1), the last column unparsed.
    label_f1 : F1 of each label, shape (labels,); None where it occurs in neither gold nor answers.
    reading : confidence against the rule's reading, over the answers that the rule can read: whether a confidence of
        0.9 means that 9 of 10 answers say that label.
    against_gold : confidence against the gold label.  Not what the confidence claims: it is about what the answer says.
    """

    source: str
    unparsed: int
    unclear: int | None
    accuracy: Interval
    weighted_f1: Interval
    macro_f1: Interval
    confusion: list[list[int]]
    label_f1: list[float | None]
    reading: Reliability | None = None
    against_gold: Reliability | None = None


@dataclass(frozen=True)
class ScoreFigures:
    """One score over a dataset; higher is better."""

    name: str
    metric: str
    target: str
    value: Interval
    signature: str
    note: str
    lowest: float | None
    highest: float | None


@dataclass(frozen=True)
class Lengths:
    """Lengths in words (by white space) of answers and golds, and in the model's tokens where the run tells.

    `edges` has one number more than `answers` and `golds`, the rows per bin; the last bin holds all that
    is longer.
    Each of the triples is median, 95th percentile, maximum.
    """

    edges: list[int]
    answers: list[int]
    golds: list[int]
    answer_words: tuple[float, float, float]
    gold_words: tuple[float, float, float]
    answer_tokens: tuple[float, float, float] | None


@dataclass(frozen=True)
class DatasetFigures:
    """One dataset of one run.

    `resampled` says what the intervals resample: "posts" (all rows about one post together) or "rows"; `units` how many
    there are.
    """

    name: str
    task: str
    labels: tuple[str, ...]
    counts: Counts
    resampled: str
    units: int
    by_source: dict[str, LabelFigures]
    scores: dict[str, ScoreFigures]
    lengths: Lengths
    published_rows: int
    released_rows: int | None

    @property
    def few_rows(self) -> bool:
        """Whether a percentile interval says little: under 30 resampled units it is too narrow."""
        return self.units < FEW_ROWS


@dataclass(frozen=True)
class RunFigures:
    """One run; `name` is unique within the report."""

    name: str
    folder: str
    datasets: dict[str, DatasetFigures]
    resamples: int
    dropped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(figures.counts.rows for figures in self.datasets.values())

    @property
    def sources(self) -> list[str]:
        """Labellers with labels of any dataset, the rule first."""
        return list(dict.fromkeys(source for figures in self.datasets.values() for source in figures.by_source))


def run_names(runs: Sequence[RunResults]) -> list[str]:
    """A name for each run: its folder's, with as much of the path before it as tells the runs apart."""
    parts = [run.folder.resolve().parts for run in runs]
    names = []
    for at, own in enumerate(parts):
        others = [other for position, other in enumerate(parts) if position != at and other != own]
        length = next(
            (size for size in range(1, len(own)) if all(other[-size:] != own[-size:] for other in others)), len(own)
        )
        name = "/".join(own[-length:])
        twins = sum(earlier == own for earlier in parts[:at])
        names.append(f"{name} ({twins + 1})" if twins else name)
    return names


def figures_of(
    run: RunResults,
    name: str | None = None,
    *,
    resamples: int = 2000,
    dropped: Mapping[str, Mapping[str, int]] | None = None,
) -> RunFigures:
    """The figures of a run.

    Parameters
    ----------
    name : in the report; None: the folder's name.
    resamples : bootstrap resamples behind every interval.
    dropped : what was left out before (reason → dataset → rows), to be told beside the figures.
    """
    datasets = {each: _dataset_figures(results, resamples) for each, results in run.datasets.items()}
    return RunFigures(name or run.name, str(run.folder), datasets, resamples, dropped or {})


def _dataset_figures(results: DatasetResults, resamples: int) -> DatasetFigures:
    dataset, posts = results.dataset, results.posts
    values = _intervals(results, resamples)
    return DatasetFigures(
        name=dataset.name,
        task=dataset.task,
        labels=dataset.label_names,
        counts=_counts(results),
        resampled="rows" if posts is None else "posts",
        units=len(results) if posts is None else len(set(posts)),
        by_source={source: _label_figures(results, labels, values) for source, labels in results.labels.items()},
        scores={column.name: _score_figures(column, values[column.name]) for column in results.scores.values()},
        lengths=_lengths(results),
        published_rows=dataset.published_test_rows,
        released_rows=dataset.released_test_rows,
    )


def _intervals(results: DatasetResults, resamples: int) -> dict[str, Interval]:
    """Key of `imhi.measures` → value with its 95 % percentile bootstrap interval, all on the same resamples."""
    summed = summed_figures(results, list(measures_of(results)))
    sampled = resampled(summed, groups=results.posts, resamples=resamples)
    return {key: Interval(value, *percentile_interval(sampled[key], 0.95)) for key, value in summed.values.items()}


def _counts(results: DatasetResults) -> Counts:
    finish = results.finish
    failed = [reason == "error" for reason in finish] if finish is not None else [False] * len(results)
    return Counts(
        rows=len(results),
        empty=sum(not words and not lost for words, lost in zip(results.answer_words, failed, strict=True)),
        truncated=None if finish is None else finish.count("length"),
        failed=None if finish is None else sum(failed),
    )


def _label_figures(results: DatasetResults, labels: Labels, intervals: dict[str, Interval]) -> LabelFigures:
    import numpy as np

    classes = len(results.dataset.labels)
    gold, predicted = results.coded(labels.source)
    confusion = np.zeros((classes, classes + 1), dtype=np.int64)
    np.add.at(confusion, (gold, predicted), 1)
    both = confusion.sum(axis=1) + confusion[:, :classes].sum(axis=0)
    reading = against_gold = None
    if labels.confidence is not None:
        against_gold = reliability(
            labels.confidence, [true == said for true, said in zip(gold, predicted, strict=True)]
        )
        by_rule = results.labels[RULE].predicted
        readable = [at for at, label in enumerate(by_rule) if label is not None]
        if readable:
            agrees = [labels.predicted[at] == by_rule[at] for at in readable]
            reading = reliability([labels.confidence[at] for at in readable], agrees)
    return LabelFigures(
        source=labels.source,
        unparsed=sum(label is None for label in labels.predicted),
        unclear=None if labels.clear is None else labels.clear.count(False),
        **{figure: intervals[label_key(figure, labels.source)] for figure in LABEL_FIGURES},
        confusion=confusion.tolist(),
        label_f1=[2 * int(confusion[at, at]) / int(total) if total else None for at, total in enumerate(both)],
        reading=reading,
        against_gold=against_gold,
    )


def reliability(confidence: Sequence[float], right: Sequence[bool]) -> Reliability:
    """How often answers are right by confidence, in ten equally wide bins; both arguments have shape (rows,)."""
    import numpy as np
    from scipy.stats import binomtest

    values, hits = np.asarray(confidence, dtype=float), np.asarray(right, dtype=bool)
    at = np.minimum((values * BINS).astype(int), BINS - 1)
    bins = []
    for number in range(BINS):
        inside = at == number
        rows, good = int(inside.sum()), int(hits[inside].sum())
        low, high = number / BINS, (number + 1) / BINS
        if not rows:
            bins.append(Bin(low, high, 0, None, None, None, None))
            continue
        around = binomtest(good, rows).proportion_ci(0.95, method="wilson")
        mean = float(values[inside].mean())
        bins.append(Bin(low, high, rows, mean, good / rows, float(around.low), float(around.high)))
    return Reliability(len(values), expected_calibration_error(values, hits, bins=BINS), bins)


def _score_figures(column: Column, value: Interval) -> ScoreFigures:
    return ScoreFigures(
        column.name,
        column.metric,
        column.target,
        value,
        column.signature,
        column.note,
        column.lowest,
        column.highest,
    )


def _lengths(results: DatasetResults) -> Lengths:
    import numpy as np

    answers, golds = np.asarray(results.answer_words), np.asarray(results.gold_words)
    # A few endless answers must not squeeze all others into one bar.
    longest = max(float(np.quantile(answers, 0.99)), float(golds.max()), 10.0)
    step = next(size for size in round_steps() if size * LENGTH_BINS >= longest)
    bins = int(longest // step) + 1
    # One bin more for what is longer, if anything is.
    edges = np.arange(0, bins + 1 + int(answers.max() >= bins * step)) * step
    binned = [
        np.bincount(np.minimum(words // step, len(edges) - 2), minlength=len(edges) - 1) for words in (answers, golds)
    ]
    return Lengths(
        edges=edges.tolist(),
        answers=binned[0].tolist(),
        golds=binned[1].tolist(),
        answer_words=_triple(answers),
        gold_words=_triple(golds),
        answer_tokens=None if results.new_tokens is None else _triple(np.asarray(results.new_tokens)),
    )


def round_steps() -> Iterator[int]:
    """1, 2, 5, 10, 20, 50, ...: steps that a reader counts in."""
    power = 1
    while True:
        yield from (power, 2 * power, 5 * power)
        power *= 10


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    import numpy as np

    median, high = np.quantile(values, [0.5, 0.95])
    return float(median), float(high), float(values.max())
