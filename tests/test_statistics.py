import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from imhi.statistics import (
    bootstrap_intervals,
    expected_calibration_error,
    fit_temperature,
    fit_threshold,
    softmax,
)


def sample(rows=300, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, classes, rows)
    predicted = np.where(rng.random(rows) < 0.7, gold, rng.integers(0, classes, rows))
    return gold, predicted


def test_figures_are_scikit_learns():
    gold, predicted = sample()
    found = bootstrap_intervals(gold, predicted, 4)
    assert found["accuracy"].value == pytest.approx(accuracy_score(gold, predicted))
    assert found["weighted_f1"].value == pytest.approx(f1_score(gold, predicted, average="weighted"))
    assert found["macro_f1"].value == pytest.approx(f1_score(gold, predicted, average="macro"))


def test_a_class_nobody_names_is_not_in_the_macro_mean_and_unparsed_is_a_miss():
    gold, predicted = [0, 0, 1, 1], [0, 3, 1, 0]  # 3 = unparsed of three classes
    found = bootstrap_intervals(gold, predicted, 3)
    assert found["accuracy"].value == 0.5
    expected = f1_score(gold, predicted, labels=[0, 1], average="macro")
    assert found["macro_f1"].value == pytest.approx(expected)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    truth, hits = 0.8, 0
    rng = np.random.default_rng(5)
    for trial in range(200):
        right = rng.random(150) < truth
        found = bootstrap_intervals(np.zeros(150, int), np.where(right, 0, 1), 2, resamples=400, seed=trial)
        hits += found["accuracy"].low <= truth <= found["accuracy"].high
    assert 0.89 <= hits / 200 <= 0.99


def test_rows_of_one_post_are_drawn_together():
    gold = np.zeros(300, int)
    predicted = np.repeat(np.arange(50) % 2, 6)
    alone = bootstrap_intervals(gold, predicted, 2)["accuracy"]
    together = bootstrap_intervals(gold, predicted, 2, groups=[str(n) for n in np.repeat(np.arange(50), 6)])["accuracy"]
    assert (together.high - together.low) > 2 * (alone.high - alone.low)


def test_nothing_to_resample_is_an_error():
    with pytest.raises(ValueError, match="expected as many"):
        bootstrap_intervals([0], [], 2)


def test_the_temperature_is_found_again():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(4000, 3)) * 2
    classes = [rng.choice(3, p=p) for p in softmax(logits)]
    assert fit_temperature(3 * logits, classes) == pytest.approx(3, rel=0.1)


def test_calibration_error_by_hand():
    # One bin of 0.9: half right; one of 0.6: all right.
    assert expected_calibration_error([0.9, 0.9, 0.6, 0.6], [True, False, True, True]) == pytest.approx(0.4)
    assert expected_calibration_error([1.0, 1.0], [True, True]) == 0


def test_the_threshold_loses_at_most_what_it_may():
    said, unsaid = np.linspace(0.5, 1, 100), np.linspace(0.3, 0.7, 50)
    threshold = fit_threshold(said, unsaid, most_lost=0.1)
    assert np.mean(said < threshold) <= 0.1
    assert np.mean(unsaid < threshold) > 0.6
    assert fit_threshold([0.9, 0.95], [0.2], most_lost=0.0) <= 0.9
