"""How far two sets of numbers agree: correlations, their difference, and agreement between raters.

Everything takes *weights*, how often each row counts: a matrix of ones is the sample as it is, a matrix of
counts that `resampled_weights` drew is its bootstrap.  So every resample of a figure comes from a few products of
matrices, and Spearman's and Kendall's ties are those of the resample.

Shapes: x and y (rows,), weights (resamples, rows), figures (resamples,).  A figure that is not defined (nothing
varies) is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imhi.statistics import Interval, percentile_interval

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "CORRELATIONS",
    "Williams",
    "fisher_mean",
    "interval_of",
    "kendall",
    "krippendorff_alpha",
    "partial_pearson",
    "pearson",
    "resampled_weights",
    "sign_p",
    "spearman",
    "williams",
]

# A variance below this share of the mean square is rounding, not variation.
NOTHING = 1e-12
# The largest correlation whose Fisher z is taken; 1 itself has none.
ALMOST_ONE = 1 - 1e-9


# --- correlations ---------------------------------------------------------------------------------------------------


def pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's r, -1 to 1."""
    return _correlation(_covariances([x, y], weights), 0, 1)


def spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman's rho, -1 to 1: Pearson's r of the ranks, ties at their mean rank; ranked anew in every resample."""
    import numpy as np

    ranks = [_weighted_ranks(values, weights) for values in (x, y)]
    total = np.maximum(weights.sum(axis=1), 1)
    means = [(weights * rank).sum(axis=1) / total for rank in ranks]
    centred = [rank - mean[:, None] for rank, mean in zip(ranks, means, strict=True)]
    moments = np.empty((len(weights), 2, 2))
    for i in range(2):
        for j in range(2):
            moments[:, i, j] = (weights * centred[i] * centred[j]).sum(axis=1)
    return _correlation(moments, 0, 1)


def _weighted_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean rank of each row's value among all drawn rows, shape (resamples, rows)."""
    import numpy as np

    distinct, at = np.unique(values, return_inverse=True)
    held = np.zeros((len(distinct), len(values)))
    held[at, np.arange(len(values))] = 1
    counts = weights @ held.T
    return (np.cumsum(counts, axis=1) - counts + (counts + 1) / 2)[:, at]


def kendall(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Kendall's tau-b, -1 to 1.  Takes memory for rows x rows; a row that is drawn twice is tied with itself.

    Source: Kendall, "The treatment of ties in ranking problems", Biometrika 1945.
    """
    import numpy as np

    signs = [np.sign(values[:, None] - values[None, :]) for values in (x, y)]

    def pairs(matrix: np.ndarray) -> np.ndarray:
        return ((weights @ matrix) * weights).sum(axis=1)

    agreeing = pairs(signs[0] * signs[1])
    untied = pairs(np.abs(signs[0])) * pairs(np.abs(signs[1]))
    return np.divide(agreeing, np.sqrt(untied), out=np.full(len(weights), np.nan), where=untied > 0)


def partial_pearson(x: np.ndarray, y: np.ndarray, controls: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Pearson's r of x and y when what the controls say of either, linearly, is taken away; -1 to 1.

    NaN where the controls determine x or y.  Without controls it is `pearson`.
    """
    import numpy as np

    covariances = _covariances([x, y, *controls], weights)
    inner, outer, across = covariances[:, 2:, 2:], covariances[:, :2, :2], covariances[:, :2, 2:]
    left = outer - across @ np.linalg.pinv(inner, hermitian=True) @ across.transpose(0, 2, 1) if controls else outer
    kept = np.diagonal(left, axis1=1, axis2=2) > 1e-9 * np.diagonal(outer, axis1=1, axis2=2)
    return np.where(kept.all(axis=1), _correlation(left, 0, 1), np.nan)


def _covariances(columns: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Sums of products around the means, each column in units of its own spread; shape (resamples, columns, columns)."""
    import numpy as np

    table = np.stack([np.asarray(column, dtype=float) for column in columns], axis=1)
    table = table - table.mean(axis=0)
    spread = np.sqrt((table**2).mean(axis=0))
    table = table / np.where(spread > 0, spread, 1)
    total = np.maximum(weights.sum(axis=1), 1)  # a file of which a resample drew no row has no correlation
    means = weights @ table / total[:, None]
    products = (table[:, :, None] * table[:, None, :]).reshape(len(table), -1)
    second = (weights @ products).reshape(len(weights), table.shape[1], table.shape[1])
    return second - total[:, None, None] * means[:, :, None] * means[:, None, :]


def _correlation(moments: np.ndarray, i: int, j: int) -> np.ndarray:
    """The correlation of two columns from sums of products around the means; NaN where one does not vary."""
    import numpy as np

    varies = (moments[:, i, i] > NOTHING) & (moments[:, j, j] > NOTHING)
    scale = np.sqrt(np.where(varies, moments[:, i, i] * moments[:, j, j], 1.0))
    return np.where(varies, np.clip(moments[:, i, j] / scale, -1.0, 1.0), np.nan)


Correlation = Callable[["np.ndarray", "np.ndarray", "np.ndarray"], "np.ndarray"]
CORRELATIONS: dict[str, Correlation] = {"pearson": pearson, "spearman": spearman, "kendall": kendall}


def fisher_mean(correlations: Sequence[np.ndarray], rows: Sequence[int]) -> np.ndarray:
    """Correlations of several samples as one: the mean of their Fisher z, weighted by rows - 3, turned back.

    Only what varies *within* a sample counts, so that two models of different quality do not correlate by themselves.
    A sample whose correlation is not defined is left out; NaN where none is.  Applied to Spearman's and Kendall's
    coefficients too, where the weights are those of Pearson's.

    Parameters
    ----------
    correlations : per sample, shape (resamples,).
    rows : per sample, its number of rows, 4 or more.

    Source: Hedges and Olkin, "Statistical Methods for Meta-Analysis", 1985, section 11.B.
    """
    import numpy as np

    z = np.arctanh(np.clip(np.stack(correlations), -ALMOST_ONE, ALMOST_ONE))
    weights = np.where(np.isnan(z), 0.0, np.array([count - 3 for count in rows], dtype=float)[:, None])
    total = weights.sum(axis=0)
    mean = (weights * np.nan_to_num(z)).sum(axis=0) / np.where(total > 0, total, 1)
    return np.where(total > 0, np.tanh(mean), np.nan)


# --- uncertainty ----------------------------------------------------------------------------------------------------


def resampled_weights(groups: Sequence[str], resamples: int, seed: int = 0) -> np.ndarray:
    """How often each row is drawn, shape (resamples + 1, rows): the first line is all ones, the sample itself.

    What is drawn with replacement are groups of rows (posts), each with all its rows.

    Source: Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8.
    """
    import numpy as np

    units, unit_of_row = np.unique(np.asarray(groups), return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(len(units), np.full(len(units), 1 / len(units)), size=resamples)
    return np.concatenate([np.ones((1, len(unit_of_row))), drawn[:, unit_of_row]]).astype(float)


def interval_of(figures: np.ndarray, *, level: float = 0.95) -> Interval | None:
    """The figure of the sample (the first of `figures`) with the percentile interval of the resamples (the rest).

    None where the sample's own is not defined.  Resamples in which it is not defined are left out; the bounds are
    NaN where these are more than one in twenty.
    """
    import numpy as np

    value, drawn = float(figures[0]), figures[1:]
    if math.isnan(value):
        return None
    defined = drawn[~np.isnan(drawn)]
    if len(defined) < 0.95 * len(drawn) or not len(defined):
        return Interval(value, math.nan, math.nan)
    return Interval(value, *percentile_interval(defined, level))


def sign_p(differences: np.ndarray) -> float:
    """Two-sided bootstrap p value that a difference is 0, from its resamples (the first entry, the sample, left out).

    Source: Davison and Hinkley, 1997, section 4.4 (percentile form), with the one added that keeps it above 0.
    """
    import numpy as np

    drawn = differences[1:][~np.isnan(differences[1:])]
    fewer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (fewer + 1) / (len(drawn) + 1))


@dataclass(frozen=True)
class Williams:
    """A test of two correlations with one variable in common.

    Attributes
    ----------
    t : above 0 where the first correlation is the larger.
    degrees : of freedom, rows - 3.
    p : two-sided.
    """

    t: float
    degrees: int
    p: float


def williams(first: float, second: float, between: float, rows: int) -> Williams | None:
    """Williams's test that two Pearson correlations of one sample are equal: r(y, first) and r(y, second).

    Parameters
    ----------
    first, second : correlation of either variable with the common one.
    between : correlation of the two variables.
    rows : independent rows.

    Returns None where it is not defined: fewer than four rows, or two variables that are one.

    Source: Williams, "The comparison of regression variables", JRSS B 1959; in the form of Steiger, "Tests for
    comparing elements of a correlation matrix", Psychological Bulletin 1980, equation 7.
    """
    from scipy.stats import t as student

    if rows < 4 or abs(between) > 1 - NOTHING:
        return None
    determinant = 1 - first**2 - second**2 - between**2 + 2 * first * second * between
    mean = (first + second) / 2
    under = 2 * (rows - 1) / (rows - 3) * max(determinant, 0.0) + mean**2 * (1 - between) ** 3
    if under <= 0:
        return None
    t = (first - second) * math.sqrt((rows - 1) * (1 + between) / under)
    return Williams(t, rows - 3, float(2 * student.sf(abs(t), rows - 3)))


# --- raters ---------------------------------------------------------------------------------------------------------


def krippendorff_alpha(ratings: np.ndarray, level: str = "ordinal", weights: np.ndarray | None = None) -> np.ndarray:
    """Krippendorff's alpha between raters: 1 is agreement, 0 what chance gives, below 0 is systematic disagreement.

    Parameters
    ----------
    ratings : numbers, shape (units, raters); NaN where a rater gave none.
    level : "ordinal" or "interval".
    weights : how often each unit counts, shape (resamples, units); None: once.

    Returns
    -------
    alpha, shape (resamples,); NaN where all ratings are equal.

    Source: Krippendorff, "Computing Krippendorff's alpha-reliability", 2011 (with missing ratings: section E).
    """
    import numpy as np

    if level not in ("ordinal", "interval"):
        raise ValueError(f"level must be ordinal or interval, got {level!r}")
    ratings = np.asarray(ratings, dtype=float)
    weights = np.ones((1, len(ratings))) if weights is None else weights
    values = np.unique(ratings[~np.isnan(ratings)])
    # Per unit, how many raters gave each value; units with a single rating tell nothing of agreement.
    counts = (ratings[:, :, None] == values).sum(axis=1).astype(float)
    raters = counts.sum(axis=1)
    counts, raters, weights = counts[raters > 1], raters[raters > 1], weights[:, raters > 1]
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(len(values))
    by_unit = (pairs / (raters - 1)[:, None, None]).reshape(len(counts), -1)
    observed = (weights @ by_unit).reshape(len(weights), len(values), len(values))
    totals = observed.sum(axis=2)
    if level == "interval":
        distance = np.broadcast_to((values[:, None] - values[None, :]) ** 2, observed.shape)
    else:
        # Ratings between two values, half of those at either: the rank distance.
        middle = np.cumsum(totals, axis=1) - totals / 2
        distance = (middle[:, :, None] - middle[:, None, :]) ** 2
    number = totals.sum(axis=1)
    expected = (totals[:, :, None] * totals[:, None, :] * distance).sum(axis=(1, 2))
    disagreement = (number - 1) * (observed * distance).sum(axis=(1, 2))
    return 1 - np.divide(disagreement, expected, out=np.full(len(weights), np.nan), where=expected > 0)
