"""How well each column agrees with the annotators: correlations, what length explains of them, tests, the ceiling.

Pooled figures are taken within files: each file's correlation by itself, then their mean by Fisher's z
(`imhi.agreement.fisher_mean`).  Over all rows at once, a metric would be credited for telling a good model's file from
a bad one's, which length does as well.  Resamples draw posts, with all their rows in all files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from imhi.agreement import (
    CORRELATIONS,
    fisher_mean,
    interval_of,
    krippendorff_alpha,
    partial_pearson,
    pearson,
    resampled_weights,
    sign_p,
    williams,
)
from imhi.humans.columns import LENGTH, Columns, Sample
from imhi.humans.crossval import FEWEST_POSTS, out_of_fold
from imhi.pairing import holm
from imhi.statistics import Interval

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "ALL_CV",
    "FEWEST_ROWS",
    "LENGTHS_CV",
    "POOLED",
    "RIVALS",
    "Resampling",
    "agreement_figures",
    "rater_figures",
]

POOLED = "pooled"
# A file with fewer rows of a reference is left out: Fisher's z weighs rows - 3.
FEWEST_ROWS = 5
# Cross-validated combinations: of all lengths, and of everything.
LENGTHS_CV, ALL_CV = "lengths_cv", "all_cv"
# What every metric is tested against: the explanation's length, ROUGE-1 against the post (as published), all lengths.
RIVALS = (LENGTH, "rouge1_post", LENGTHS_CV)

Figure = dict[str, Any]


@dataclass(frozen=True)
class Resampling:
    """The bootstrap over posts: how many resamples, from which seed, and the intervals' coverage."""

    resamples: int = 2000
    seed: int = 0
    level: float = 0.95


def _plain(interval: Interval | None) -> Figure | None:
    """An interval as JSON; None for what is not defined."""
    if interval is None:
        return None
    numbers = {"value": interval.value, "low": interval.low, "high": interval.high}
    return {name: None if math.isnan(number) else round(number, 4) for name, number in numbers.items()}


# --- raters ---------------------------------------------------------------------------------------------------------


def rater_figures(ratings: Mapping[str, np.ndarray], keys: Sequence[str], setting: Resampling) -> dict[str, Figure]:
    """Aspect → how far the annotators of one file agree, the ceiling of any metric.

    ``alpha_ordinal``, ``alpha_interval``: Krippendorff's.  ``pairwise``: mean Pearson of two annotators.
    ``leave_one_out``: mean Pearson of one with the mean of the others.  ``reliability``: of the mean of the three by
    the Spearman-Brown formula from ``pairwise``, and ``attainable`` its square root, the correlation with that mean
    that a perfect measure of what the annotators share would have (Spearman, "The proof and measurement of
    association between two things", American Journal of Psychology 1904); None where ``pairwise`` is not above 0.
    ``mean``, ``at_top``: of all ratings, and the share of 3.
    """
    weights = resampled_weights(keys, setting.resamples, setting.seed)
    level = setting.level
    found = {}
    for aspect, given in ratings.items():
        alphas = {
            f"alpha_{kind}": _plain(interval_of(krippendorff_alpha(given, kind, weights), level=level))
            for kind in ("ordinal", "interval")
        }
        raters = given.shape[1]
        pairs = [pearson(given[:, i], given[:, j], weights) for i, j in combinations(range(raters), 2)]
        others = [
            pearson(given[:, i], given[:, [j for j in range(raters) if j != i]].mean(axis=1), weights)
            for i in range(raters)
        ]
        pairwise = interval_of(_mean_defined(pairs), level=level)
        reliability = None
        if pairwise is not None and pairwise.value > 0:
            reliability = raters * pairwise.value / (1 + (raters - 1) * pairwise.value)
        found[aspect] = {
            **alphas,
            "pairwise": _plain(pairwise),
            "leave_one_out": _plain(interval_of(_mean_defined(others), level=level)),
            "reliability": None if reliability is None else round(reliability, 4),
            "attainable": None if reliability is None else round(math.sqrt(reliability), 4),
            "mean": round(float(given.mean()), 4),
            "at_top": round(float((given == 3).mean()), 4),
        }
    return found


def _mean_defined(correlations: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of the correlations that are defined, per resample; NaN where none is."""
    import numpy as np

    stacked = np.stack(correlations)
    defined = ~np.isnan(stacked)
    total = np.where(defined, stacked, 0).sum(axis=0)
    return np.where(defined.any(axis=0), total / np.maximum(defined.sum(axis=0), 1), np.nan)


# --- columns --------------------------------------------------------------------------------------------------------


def agreement_figures(
    sample: Sample,
    columns: Columns,
    *,
    published: np.ndarray | None,
    setting: Resampling,
    advance: Callable[[int], object] = lambda done: None,
) -> dict[str, Any]:
    """Scope (each file, "pooled") → column → aspect → figures.

    Figures: ``pearson``, ``spearman``, ``kendall`` with intervals; ``given_length`` and ``given_lengths``: Pearson's r
    when the explanation's words, or all lengths, are taken away; ``against``: per rival, ``williams`` (t, degrees, p;
    of one file), ``difference`` of Pearson's r with interval and bootstrap ``p``, and ``p_holm``: the p value
    (Williams's, else the bootstrap's) adjusted over the columns of this aspect.

    Parameters
    ----------
    published : ROUGE-1 against the post, shape (rows,), the rival named so; None where ROUGE was not computed.
    """
    import numpy as np

    files = {name: rows for name, rows in sample.files.items() if len(rows) >= FEWEST_ROWS}
    if not files:
        return {}
    published_column = {} if published is None else {"rouge1_post": published}
    shown = published_column if sample.reference != "post" else {}
    targets = {aspect: ratings.mean(axis=1) for aspect, ratings in sample.ratings.items()}
    combined = {aspect: _combined(sample, columns, target, setting.seed) for aspect, target in targets.items()}
    lengths = list(columns.lengths.values())
    level = setting.level
    found: dict[str, Any] = {}
    for scope in [*files, POOLED]:
        parts = list(files.values()) if scope == POOLED else [files[scope]]
        rows = np.concatenate(parts)
        weights = np.zeros((setting.resamples + 1, len(sample.keys)))
        weights[:, rows] = resampled_weights([sample.keys[at] for at in rows], setting.resamples, setting.seed)

        def within(correlation: Callable[..., np.ndarray], x: np.ndarray, y: np.ndarray, *more: Any) -> np.ndarray:
            """The scope's correlation, shape (resamples + 1,)."""
            each = [
                correlation(x[part], y[part], *([control[part] for control in some] for some in more), weights[:, part])  # noqa: B023
                for part in parts  # noqa: B023
            ]
            return fisher_mean(each, [len(part) for part in parts])  # noqa: B023

        scoped: dict[str, dict[str, Figure]] = {}
        for aspect, target in targets.items():
            rivals = {LENGTH: columns.lengths[LENGTH], **published_column, **combined[aspect]}
            rivals.pop(ALL_CV, None)
            rival_r = {name: within(pearson, values, target) for name, values in rivals.items()}
            for name, values in {**columns.lengths, **columns.values, **shown, **combined[aspect]}.items():
                own = {kind: within(of, values, target) for kind, of in CORRELATIONS.items()}
                figures: Figure = {kind: _plain(interval_of(resampled, level=level)) for kind, resampled in own.items()}
                for given, controls in (("given_length", [columns.lengths[LENGTH]]), ("given_lengths", lengths)):
                    # A prediction for a row is the lower the more the row itself adds to the fit of all rows: what
                    # would be left of it, given its own ingredients, is an artefact.
                    is_made_of_them = name in combined[aspect]
                    partial = None if is_made_of_them else within(partial_pearson, values, target, controls)
                    figures[given] = None if partial is None else _plain(interval_of(partial, level=level))
                figures["against"] = {
                    rival: _against(own["pearson"], rival_r[rival], within(pearson, values, other), parts, level)
                    for rival, other in rivals.items()
                    # A length's sign is arbitrary; its difference to another correlation says nothing.
                    if name not in columns.lengths and not np.array_equal(values, other)
                }
                scoped.setdefault(name, {})[aspect] = figures
                advance(1)
            _adjust({name: of[aspect] for name, of in scoped.items()})
        found[scope] = scoped
    return found


def _combined(sample: Sample, columns: Columns, target: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """The cross-validated columns; {} where there are too few posts."""
    import numpy as np

    if len(set(sample.keys)) < FEWEST_POSTS:
        return {}
    sets = {LENGTHS_CV: columns.lengths, ALL_CV: {**columns.lengths, **columns.values}}
    files = list(sample.files.values())
    return {
        name: out_of_fold(np.column_stack(list(some.values())), target, posts=sample.keys, files=files, seed=seed)
        for name, some in sets.items()
    }


def _against(
    own: np.ndarray, rival: np.ndarray, between: np.ndarray, parts: Sequence[np.ndarray], level: float
) -> Figure | None:
    """The tests of one column against a rival; None where either has no correlation."""
    difference = own - rival
    interval = interval_of(difference, level=level)
    if interval is None:
        return None
    figure: Figure = {"difference": _plain(interval), "p": round(sign_p(difference), 5), "williams": None}
    if len(parts) == 1:
        test = williams(float(own[0]), float(rival[0]), float(between[0]), len(parts[0]))
        if test is not None:
            figure["williams"] = {"t": round(test.t, 3), "degrees": test.degrees, "p": round(test.p, 6)}
    return figure


def _adjust(figures: Mapping[str, Figure]) -> None:
    """Put Holm's p values beside the tests of all columns of one aspect, in place."""
    for rival in RIVALS:
        tests = [test for one in figures.values() if (test := one["against"].get(rival)) is not None]
        adjusted = holm([test["williams"]["p"] if test["williams"] else test["p"] for test in tests])
        for test, p in zip(tests, adjusted, strict=True):
            test["p_holm"] = round(p, 6)
