"""Uncertainty and calibration of figures over rows.

Everything is vectorised over resamples and reproducible: equal inputs and seed give equal intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Interval",
    "bootstrap_intervals",
    "expected_calibration_error",
    "fit_temperature",
    "fit_threshold",
    "softmax",
]


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
    unit = np.arange(len(cells)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
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
