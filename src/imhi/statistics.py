"""Uncertainty and calibration of figures over rows.

Everything is vectorised over resamples and reproducible: equal inputs and seed give equal intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Interval",
    "Summed",
    "bootstrap_intervals",
    "draws",
    "expected_calibration_error",
    "fit_temperature",
    "fit_threshold",
    "label_figures",
    "mean_figures",
    "percentile_interval",
    "resampled",
    "softmax",
    "stacked",
    "sums_by",
]

# Drawn indices in memory at once: 32 MB.
DRAWN_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A figure with its percentile bootstrap interval, all in the figure's own unit."""

    value: float
    low: float
    high: float


def _confusion_figures(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracy, weighted F1 and macro F1 of confusion counts, shape (..., gold, predicted + 1), last axis unparsed.

    As scikit-learn over the labels seen in either gold or prediction; F1 of a class without gold and prediction is
    left out of the macro mean.
    """
    import numpy as np

    classes = confusion.shape[-2]
    hits = np.diagonal(confusion[..., :classes], axis1=-2, axis2=-1).astype(float)
    gold = confusion.sum(axis=-1).astype(float)
    predicted = confusion[..., :classes].sum(axis=-2).astype(float)
    total = gold.sum(axis=-1)
    both = gold + predicted
    f1 = np.divide(2 * hits, both, out=np.zeros_like(both), where=both > 0)
    seen = (both > 0).sum(axis=-1)
    return {
        "accuracy": hits.sum(axis=-1) / total,
        "weighted_f1": (f1 * gold).sum(axis=-1) / total,
        "macro_f1": f1.sum(axis=-1) / np.maximum(seen, 1),
    }


def bootstrap_intervals(
    gold: Sequence[int],
    predicted: Sequence[int],
    classes: int,
    *,
    groups: Sequence[str] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Accuracy, weighted F1 and macro F1 (0 to 1, higher is better) with percentile bootstrap intervals.

    Parameters
    ----------
    gold, predicted : class indices, shape (rows,); a prediction of `classes` stands for an unparsed answer.
    groups : what is resampled together, shape (rows,), such as the post that several rows ask about; None: each row.
    level : coverage of the interval.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile interval); with
    groups, the cluster bootstrap (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8).
    """
    import numpy as np

    if not len(gold) or len(gold) != len(predicted):
        raise ValueError(f"{len(gold)} gold labels and {len(predicted)} predictions; expected as many, and some")
    cells = np.asarray(gold) * (classes + 1) + np.asarray(predicted)
    unit = np.arange(len(cells)) if groups is None else _positions(groups)
    size = classes * (classes + 1)
    counts = np.zeros((int(unit.max()) + 1, size), dtype=np.int64)
    np.add.at(counts, (unit, cells), 1)
    shape = (classes, classes + 1)
    whole = _confusion_figures(counts.sum(axis=0).reshape(shape))
    # Units with equal counts are alike: how often each kind is drawn is multinomial.
    kinds, frequency = np.unique(counts, axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(counts), frequency / len(counts), size=resamples)
    sampled = _confusion_figures((draws @ kinds).reshape(resamples, *shape))
    tail = (1 - level) / 2
    return {
        name: Interval(float(value), *(float(bound) for bound in np.quantile(sampled[name], [tail, 1 - tail])))
        for name, value in whole.items()
    }


@dataclass(frozen=True)
class Summed:
    """Figures that follow from sums over rows; resampling them is a product of matrices.

    Attributes
    ----------
    rows : what is summed, shape (rows, numbers).
    of_sums : sums, shape (..., numbers) → figure name → values, shape (...).
    """

    rows: np.ndarray
    of_sums: Callable[[np.ndarray], dict[str, np.ndarray]]

    @property
    def values(self) -> dict[str, float]:
        """The figures of all rows."""
        return {name: float(value) for name, value in self.of_sums(self.rows.sum(axis=0)).items()}


def label_figures(gold: Sequence[int], predicted: Sequence[int], classes: int) -> Summed:
    """The figures "accuracy", "weighted_f1" and "macro_f1", 0 to 1, higher is better, as `imhi.metrics.correctness` has them.

    `gold`, `predicted` : class indices, shape (rows,); a prediction of `classes` stands for an unparsed answer.  The
    labels of the macro mean are those seen in the rows that are drawn.
    """
    import numpy as np

    truth, guess = np.asarray(gold), np.asarray(predicted)
    if not len(truth) or len(truth) != len(guess):
        raise ValueError(f"{len(truth)} gold labels and {len(guess)} predictions; expected as many, and some")
    names = np.arange(classes)
    is_gold, is_guess = truth[:, None] == names, guess[:, None] == names

    def of_sums(sums: np.ndarray) -> dict[str, np.ndarray]:
        hits, gold_rows, predicted_rows = (sums[..., at * classes : (at + 1) * classes] for at in range(3))
        both = gold_rows + predicted_rows
        f1 = np.divide(2 * hits, both, out=np.zeros_like(both), where=both > 0)
        total = gold_rows.sum(axis=-1)
        return {
            "accuracy": hits.sum(axis=-1) / total,
            "weighted_f1": (f1 * gold_rows).sum(axis=-1) / total,
            "macro_f1": f1.sum(axis=-1) / (both > 0).sum(axis=-1),
        }

    return Summed(np.concatenate([is_gold & is_guess, is_gold, is_guess], axis=1).astype(float), of_sums)


def mean_figures(columns: Mapping[str, Sequence[float]]) -> Summed:
    """Plain means of row values; each column has shape (rows,)."""
    import numpy as np

    values = np.array(list(columns.values()), dtype=float).T

    def of_sums(sums: np.ndarray) -> dict[str, np.ndarray]:
        return {name: sums[..., at] / sums[..., -1] for at, name in enumerate(columns)}

    return Summed(np.concatenate([values, np.ones((len(values), 1))], axis=1), of_sums)


def stacked(parts: Sequence[Summed]) -> Summed:
    """Figures of the same rows as one, so that they share their resamples."""
    import numpy as np

    ends = np.cumsum([part.rows.shape[1] for part in parts])[:-1]

    def of_sums(sums: np.ndarray) -> dict[str, np.ndarray]:
        split = np.split(sums, ends, axis=-1)
        return {
            name: values for part, own in zip(parts, split, strict=True) for name, values in part.of_sums(own).items()
        }

    return Summed(np.concatenate([part.rows for part in parts], axis=1), of_sums)


def _positions(groups: Sequence[str]) -> np.ndarray:
    """The number of each row's group, counted in order of appearance, shape (rows,).

    By a dict: an array of text would give every post the room of the longest.
    """
    import numpy as np

    number: dict[str, int] = {}
    return np.array([number.setdefault(group, len(number)) for group in groups])


def sums_by(rows: np.ndarray, groups: Sequence[str] | None) -> np.ndarray:
    """Sums over what is resampled together, shape (units, numbers); None: every row is a unit of its own."""
    import numpy as np

    if groups is None:
        return rows
    unit = _positions(groups)
    sums = np.zeros((int(unit.max()) + 1, rows.shape[1]))
    np.add.at(sums, unit, rows)
    return sums


def draws(units: int, resamples: int, seed: int | Sequence[int]) -> Iterator[np.ndarray]:
    """Positions drawn with replacement, in parts of shape (some resamples, units).

    Put together the draws of ``default_rng(seed).integers(0, units, (resamples, units))``, which are also those of
    ``scipy.stats.bootstrap``.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    at_once = max(1, DRAWN_AT_ONCE // units)
    for start in range(0, resamples, at_once):
        yield rng.integers(0, units, (min(at_once, resamples - start), units))


def resampled(
    summed: Summed, *, groups: Sequence[str] | None = None, resamples: int, seed: int | Sequence[int] = 0
) -> dict[str, np.ndarray]:
    """Bootstrap values of every figure, each of shape (resamples,); their standard deviation is its standard error.

    `groups`, shape (rows,), says what is drawn together (the cluster bootstrap, see `bootstrap_intervals`).
    """
    import numpy as np

    units = sums_by(summed.rows, groups)
    sums = []
    for drawn in draws(len(units), resamples, seed):
        cells = drawn + np.arange(len(drawn))[:, None] * len(units)
        counts = np.bincount(cells.ravel(), minlength=drawn.size).reshape(drawn.shape)
        sums.append(counts.astype(float) @ units)
    return summed.of_sums(np.concatenate(sums))


def percentile_interval(values: np.ndarray, level: float) -> tuple[float, float]:
    """The bounds between which the share `level` of bootstrap values lies, as much left out below as above."""
    import numpy as np

    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def softmax(logits: np.ndarray, temperature: float | np.ndarray = 1.0) -> np.ndarray:
    """Probabilities of logits, shape (rows, classes), divided by `temperature` first: a number, or shape (rows, 1)."""
    import numpy as np

    scaled = np.asarray(logits, dtype=np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def fit_temperature(logits: np.ndarray, classes: Sequence[int]) -> float:
    """The temperature, 0.05 to 20, that gives the right classes the highest likelihood; dividing by it calibrates.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.
    """
    import numpy as np
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(classes))

    def loss(log_temperature: float) -> float:
        chosen = softmax(logits, float(np.exp(log_temperature)))[rows, np.asarray(classes)]
        return float(-np.log(np.maximum(chosen, 1e-300)).mean())

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(found.x))


def expected_calibration_error(
    confidences: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray, *, bins: int = 10
) -> float:
    """Mean distance between confidence and accuracy over equally wide bins, weighted by rows; 0 to 1, lower is better.

    Source: Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015.
    """
    import numpy as np

    confidence, correct = np.asarray(confidences, dtype=float), np.asarray(right, dtype=float)
    at = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(confidence[at == bin_].sum() - correct[at == bin_].sum()) for bin_ in range(bins)]
    return float(sum(gaps) / len(confidence))


def fit_threshold(supported: Sequence[float], unsupported: Sequence[float], *, most_lost: float = 0.05) -> float:
    """The confidence under which an answer is called unclear.

    Of all thresholds that call at most `most_lost` of the answers that say a label (`supported`) unclear, the one with
    the highest balanced accuracy against the answers that say none (`unsupported`; Youden's J).
    """
    import numpy as np

    said, unsaid = np.sort(np.asarray(supported)), np.sort(np.asarray(unsupported))
    candidates = np.unique(np.concatenate([[0.0], said, unsaid]))
    lost = np.searchsorted(said, candidates, side="left") / len(said)
    caught = np.searchsorted(unsaid, candidates, side="left") / len(unsaid)
    allowed = lost <= most_lost
    gain = np.where(allowed, caught - lost, -np.inf)
    return float(candidates[int(gain.argmax())])
