"""Paired comparison of two sets of answers to the same rows: tests, intervals of differences, effect sizes.

A difference is always "second minus first".  Everything is vectorised over resamples and reproducible: equal inputs
and seed give equal numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imhi.statistics import DRAWN_AT_ONCE, Summed, percentile_interval, resampled, stacked, sums_by

if TYPE_CHECKING:
    import numpy as np

__all__ = ["McNemar", "PairedFigure", "holm", "mcnemar", "mean_of_pairs", "paired_figures", "randomization_p"]

# Values that differ by less are equal: what summing in another order changes.
ROUNDING = 1e-12


@dataclass(frozen=True)
class McNemar:
    """McNemar's test of two accuracies on the same rows.

    Attributes
    ----------
    gained, lost : rows that only the second has right, rows that only the first has right.
    p : exact, two-sided.  mid_p : less conservative, two-sided.
    odds_ratio : gained / lost; None where no row was lost.
    cohens_g : gained / (gained + lost) - 0.5, -0.5 to 0.5; .05 is small, .15 medium, .25 large; 0 without flips.
    """

    gained: int
    lost: int
    p: float
    mid_p: float
    odds_ratio: float | None
    cohens_g: float


def mcnemar(first_right: Sequence[bool] | np.ndarray, second_right: Sequence[bool] | np.ndarray) -> McNemar:
    """Compare two accuracies on the same, independent rows; both inputs have shape (rows,).

    Sources: McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 1947; exact form and mid-p: Fagerland, Lydersen and Laake, "The McNemar test for binary
    matched-pairs data", BMC Medical Research Methodology 2013; g: Cohen, "Statistical Power Analysis for the
    Behavioral Sciences", 1988, chapter 5.
    """
    import numpy as np
    from scipy.stats import binom

    first, second = np.asarray(first_right, dtype=bool), np.asarray(second_right, dtype=bool)
    if first.shape != second.shape:
        raise ValueError(f"{len(first)} rows and {len(second)} rows; a pair needs both")
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    flips, fewer = gained + lost, min(gained, lost)
    exact = min(1.0, float(2 * binom.cdf(fewer, flips, 0.5)))
    middle = float(binom.pmf(fewer, flips, 0.5)) if flips else 0.0
    return McNemar(
        gained=gained,
        lost=lost,
        p=exact,
        mid_p=exact - (middle / 2 if gained == lost else middle),
        odds_ratio=gained / lost if lost else None,
        cohens_g=gained / flips - 0.5 if flips else 0.0,
    )


@dataclass(frozen=True)
class PairedFigure:
    """One figure of two sets of answers to the same rows.

    Attributes
    ----------
    first, second, difference : the figure of each, and second minus first.
    low, high : percentile bootstrap interval of the difference.
    standard_error : of the difference, standard deviation of its bootstrap values.
    bootstrap_p : two-sided, from the bootstrap shifted to no difference.
    randomization_p : two-sided, from exchanging the two sets' answers at random.
    effect : the difference over the standard deviation of what each unit adds to it (jackknife pseudo-values; for a
        mean of rows exactly Cohen's d_z, mean over standard deviation of the rows' differences).  None where no unit
        differs from another.
    differences, exchanged : the values of the difference behind interval and test, shape (resamples,).
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    standard_error: float
    bootstrap_p: float
    randomization_p: float
    effect: float | None
    differences: np.ndarray = field(repr=False, compare=False)
    exchanged: np.ndarray = field(repr=False, compare=False)


def paired_figures(
    first: Summed,
    second: Summed,
    *,
    groups: Sequence[str] | None = None,
    resamples: int = 10_000,
    seed: int | Sequence[int] = 0,
    level: float = 0.95,
) -> dict[str, PairedFigure]:
    """Compare every figure of two sets of answers to the same rows; all figures share their resamples.

    Parameters
    ----------
    first, second : the same figures of the same rows, in the same order.
    groups : what is drawn and exchanged together, shape (rows,), such as the post that several rows ask about; None:
        each row by itself.
    level : coverage of the interval.

    Sources: paired bootstrap: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 13 and 16;
    Koehn, "Statistical significance tests for machine translation evaluation", EMNLP 2004.  Approximate
    randomization: Noreen, "Computer-Intensive Methods for Testing Hypotheses", 1989; Riezler and Maxwell, "On some
    pitfalls in automatic evaluation and significance testing for MT", 2005, whose shifted bootstrap is `bootstrap_p`.
    """
    import numpy as np

    if first.rows.shape != second.rows.shape:
        raise ValueError(f"rows of shape {first.rows.shape} and {second.rows.shape}; a pair needs the same rows")
    both = stacked([_named(first, "first "), _named(second, "second ")])
    sampled = resampled(both, groups=groups, resamples=resamples, seed=seed)
    one, other = sums_by(first.rows, groups), sums_by(second.rows, groups)
    exchanged = _exchanged(one, other, first, resamples, seed)
    influence = _pseudo_differences(one, other, first)
    first_values, second_values = first.values, second.values
    figures = {}
    for name, value in first_values.items():
        difference = second_values[name] - value
        differences = sampled[f"second {name}"] - sampled[f"first {name}"]
        low, high = percentile_interval(differences, level)
        spread = float(np.std(influence[name], ddof=1)) if len(one) > 1 else 0.0
        figures[name] = PairedFigure(
            first=value,
            second=second_values[name],
            difference=difference,
            low=low,
            high=high,
            standard_error=float(np.std(differences, ddof=1)),
            bootstrap_p=randomization_p(difference, differences - difference),
            randomization_p=randomization_p(difference, exchanged[name]),
            effect=difference / spread if spread > ROUNDING else None,
            differences=differences,
            exchanged=exchanged[name],
        )
    return figures


def _named(summed: Summed, prefix: str) -> Summed:
    return Summed(
        summed.rows, lambda sums: {f"{prefix}{name}": values for name, values in summed.of_sums(sums).items()}
    )


def _exchanged(
    one: np.ndarray, other: np.ndarray, figures: Summed, resamples: int, seed: int | Sequence[int]
) -> dict[str, np.ndarray]:
    """Differences after each unit's two sets of answers changed sides with probability one half."""
    import numpy as np

    rng = np.random.default_rng(seed)
    half_sum = (one.sum(axis=0) + other.sum(axis=0)) / 2
    half_gap = (other - one) / 2
    half_gap = half_gap[(half_gap != 0).any(axis=1)]  # equal answers do not move anything by changing sides
    at_once = max(1, DRAWN_AT_ONCE // max(1, len(half_gap)))
    moved = []
    for start in range(0, resamples, at_once):
        signs = rng.integers(0, 2, (min(at_once, resamples - start), len(half_gap)), dtype=np.int8) * 2.0 - 1.0
        moved.append(signs @ half_gap)
    shift = np.concatenate(moved)
    second, first = figures.of_sums(half_sum + shift), figures.of_sums(half_sum - shift)
    return {name: second[name] - first[name] for name in first}


def _pseudo_differences(one: np.ndarray, other: np.ndarray, figures: Summed) -> dict[str, np.ndarray]:
    """What each unit adds to each difference: pseudo-values of the jackknife, shape (units,).

    Source: Tukey, "Bias and confidence in not quite large samples", 1958.
    """
    units = len(one)
    if units < 2:
        return dict.fromkeys(figures.of_sums(one.sum(axis=0)), one[:, 0])
    values = []
    for sums in (one, other):
        total = sums.sum(axis=0)
        whole, without = figures.of_sums(total), figures.of_sums(total - sums)
        values.append({name: units * whole[name] - (units - 1) * without[name] for name in whole})
    return {name: values[1][name] - values[0][name] for name in values[0]}


def randomization_p(difference: float, under_no_difference: np.ndarray) -> float:
    """Two-sided p: how often chance alone gives a difference as large, the observed one counted with them.

    Source: Noreen 1989 (see `paired_figures`), which never gives 0.
    """
    import numpy as np

    as_large = np.abs(under_no_difference) >= abs(difference) - ROUNDING
    return float((as_large.sum() + 1) / (len(under_no_difference) + 1))


def mean_of_pairs(figures: Sequence[PairedFigure], *, level: float = 0.95) -> PairedFigure:
    """The plain mean of one figure over independent sets of rows, with interval and tests of its difference.

    The sets must have been resampled with different seeds and as often.  `effect` is None: sets have no common unit.
    """
    import numpy as np

    differences = np.mean([figure.differences for figure in figures], axis=0)
    exchanged = np.mean([figure.exchanged for figure in figures], axis=0)
    first, second, difference = (
        float(np.mean([getattr(figure, name) for figure in figures])) for name in ("first", "second", "difference")
    )
    low, high = percentile_interval(differences, level)
    return PairedFigure(
        first=first,
        second=second,
        difference=difference,
        low=low,
        high=high,
        standard_error=float(np.std(differences, ddof=1)),
        bootstrap_p=randomization_p(difference, differences - difference),
        randomization_p=randomization_p(difference, exchanged),
        effect=None,
        differences=differences,
        exchanged=exchanged,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for being several, in their order; below alpha where the family-wise error is.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = highest
    return adjusted
