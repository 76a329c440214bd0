"""Correlations against scipy, their resamples, Williams's test and Krippendorff's alpha against published examples."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

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

SCIPY = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}

# Four observers, twelve units: Krippendorff, "Computing Krippendorff's alpha-reliability", 2011, section C.
_ = np.nan
FOUR = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
        [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
    ]
).T
# Three observers, fifteen units: the computational example of the encyclopaedia's article.
THREE = np.array(
    [
        [_, _, _, _, _, 3, 4, 1, 2, 1, 1, 3, 3, _, 3],
        [1, _, 2, 1, 3, 3, 4, 3, _, _, _, _, _, _, _],
        [_, _, 2, 1, 3, 4, 4, _, 2, 1, 1, 3, 3, _, 4],
    ]
).T


def sample(rows=60, seed=0, *, tied=True):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows)
    y = 0.6 * x + rng.normal(size=rows)
    return (np.round(x, 1), np.round(y * 2) / 2) if tied else (x, y)


@pytest.mark.parametrize("name", CORRELATIONS)
@pytest.mark.parametrize("tied", [True, False])
def test_correlations_are_scipys(name, tied):
    x, y = sample(tied=tied)
    assert CORRELATIONS[name](x, y, np.ones((1, len(x))))[0] == pytest.approx(SCIPY[name](x, y)[0], abs=1e-12)


@pytest.mark.parametrize("name", CORRELATIONS)
def test_every_resample_has_the_correlation_of_its_rows(name):
    x, y = sample()
    groups = [str(n // 3) for n in range(len(x))]
    weights = resampled_weights(groups, 40, seed=3)
    found = CORRELATIONS[name](x, y, weights)
    for line, value in zip(weights.astype(int), found, strict=True):
        rows = np.repeat(np.arange(len(x)), line)
        assert value == pytest.approx(SCIPY[name](x[rows], y[rows])[0], abs=1e-12)


def test_rows_of_one_post_are_drawn_together():
    weights = resampled_weights(["a", "b", "a", "c"], 200, seed=1)
    assert (weights[0] == 1).all()
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert (weights[:, 0] != weights[:, 1]).any()


def test_large_numbers_lose_no_digits():
    x, y = sample(tied=False)
    assert pearson(1e9 + x, 1e-9 * y, np.ones((1, 60)))[0] == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-6)


@pytest.mark.parametrize("name", CORRELATIONS)
def test_without_variation_there_is_no_correlation(name):
    found = CORRELATIONS[name](np.full(5, 0.1), np.arange(5.0), np.ones((1, 5)))
    assert np.isnan(found).all()
    assert interval_of(found) is None


@pytest.mark.parametrize("name", CORRELATIONS)
def test_intervals_cover_the_truth_about_as_often_as_they_say(name):
    truth = {"pearson": 0.6, "spearman": 6 / np.pi * np.arcsin(0.3), "kendall": 2 / np.pi * np.arcsin(0.6)}[name]
    rng = np.random.default_rng(8)
    hits = 0
    for trial in range(200):
        x, y = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=120).T
        weights = resampled_weights([str(n) for n in range(120)], 300, seed=trial)
        found = interval_of(CORRELATIONS[name](x, y, weights))
        hits += found.low <= truth <= found.high
    assert 0.89 <= hits / 200 <= 0.99


def test_bounds_are_not_given_where_many_resamples_have_none():
    found = interval_of(np.array([0.5, np.nan, np.nan, 0.4, 0.6]))
    assert found.value == 0.5
    assert np.isnan([found.low, found.high]).all()


def test_partial_correlation_is_that_of_the_residuals():
    rng = np.random.default_rng(4)
    controls = rng.normal(size=(2, 80))
    x, y = controls.sum(axis=0) + rng.normal(size=80), controls[0] - controls[1] + rng.normal(size=80)
    design = np.column_stack([np.ones(80), *controls])
    left = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (x, y)]
    found = partial_pearson(x, y, list(controls), np.ones((1, 80)))[0]
    assert found == pytest.approx(stats.pearsonr(*left)[0], abs=1e-10)
    assert partial_pearson(x, y, [], np.ones((1, 80)))[0] == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-12)


def test_nothing_is_left_of_a_metric_that_is_its_control():
    x, y = sample(tied=False)
    assert np.isnan(partial_pearson(3 * x + 1, y, [x], np.ones((1, 60)))[0])


def test_files_of_different_quality_do_not_correlate_by_themselves():
    rng = np.random.default_rng(2)
    parts = [(rng.normal(size=50) + shift, rng.normal(size=50) + shift) for shift in (0, 10)]
    together = pearson(*(np.concatenate(side) for side in zip(*parts, strict=True)), np.ones((1, 100)))
    within = fisher_mean([pearson(x, y, np.ones((1, 50))) for x, y in parts], [50, 50])
    assert together[0] > 0.9
    assert abs(within[0]) < 0.3


def test_the_mean_of_correlations_is_that_of_their_z_by_rows():
    found = fisher_mean([np.array([0.9, 0.5]), np.array([0.1, np.nan])], [53, 13])
    z = (50 * np.arctanh(0.9) + 10 * np.arctanh(0.1)) / 60
    assert found == pytest.approx([np.tanh(z), 0.5])


def test_williams_on_steigers_example():
    # Steiger 1980, also in R's psych::r.test: n = 103, .5 and .4 with one variable, .1 with each other.
    found = williams(0.5, 0.4, 0.1, 103)
    assert (round(found.t, 2), round(found.p, 2), found.degrees) == (0.89, 0.37, 100)
    assert williams(0.4, 0.5, 0.1, 103).t == pytest.approx(-found.t)


def test_williams_errs_as_often_as_it_says():
    rng = np.random.default_rng(6)
    covariance = [[1, 0.5, 0.4], [0.5, 1, 0.4], [0.4, 0.4, 1]]
    wrong = 0
    for _trial in range(1000):
        r = np.corrcoef(rng.multivariate_normal([0, 0, 0], covariance, size=60).T)
        wrong += williams(r[0, 2], r[1, 2], r[0, 1], 60).p < 0.05
    assert 0.03 <= wrong / 1000 <= 0.07


def test_williams_of_a_variable_with_itself_is_not_defined():
    assert williams(0.4, 0.4, 1.0, 50) is None
    assert williams(0.4, 0.3, 0.2, 3) is None


def test_a_difference_of_one_sign_has_a_small_p_and_never_none():
    assert sign_p(np.array([0.2, *np.full(999, 0.1)])) == pytest.approx(0.002)
    assert sign_p(np.array([0.0, -1.0, 1.0])) == 1.0


@pytest.mark.parametrize(("level", "expected"), [("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_krippendorffs_four_observers(level, expected):
    assert krippendorff_alpha(FOUR, level)[0] == pytest.approx(expected, abs=5e-4)


def test_alpha_of_the_three_observers():
    assert krippendorff_alpha(THREE, "interval")[0] == pytest.approx(0.811, abs=5e-4)


@pytest.mark.parametrize("level", ["ordinal", "interval"])
def test_alpha_of_a_resample_is_that_of_its_units(level):
    ratings = np.random.default_rng(1).integers(0, 4, size=(30, 3)).astype(float)
    weights = resampled_weights([str(n) for n in range(30)], 20)
    found = krippendorff_alpha(ratings, level, weights)
    for line, value in zip(weights.astype(int), found, strict=True):
        assert value == pytest.approx(krippendorff_alpha(np.repeat(ratings, line, axis=0), level)[0], abs=1e-12)


def test_alpha_is_one_in_agreement_and_not_defined_without_variation():
    same = np.repeat(np.arange(4.0)[:, None], 3, axis=1)
    assert krippendorff_alpha(same)[0] == 1.0
    assert np.isnan(krippendorff_alpha(np.full((5, 3), 2.0))[0])
    with pytest.raises(ValueError, match="ordinal or interval"):
        krippendorff_alpha(same, "nominal")
