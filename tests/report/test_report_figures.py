"""The numbers of a report: equal to scikit-learn's on the same resamples, counts and bins as defined."""

from __future__ import annotations

import numpy as np
import pytest
from report_runs import Row, random_rows, save_run
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from imhi.data import DataRoot, write_table
from imhi.report.figures import figures_of, reliability, run_names
from imhi.results import read_results
from imhi.statistics import draws

RESAMPLES = 40


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    rows = {"SAD": random_rows("SAD", 60), "Irf": random_rows("Irf", 80, rows_a_post=2)}
    save_run(folder / "run", rows, root=folder / "root")
    return read_results(folder / "run", data_root=DataRoot(folder / "root", "given"))


@pytest.fixture(scope="module")
def figures(run):
    return figures_of(run, resamples=RESAMPLES)


def sklearn_figures(gold, said, labels):
    return {
        "accuracy": accuracy_score(gold, said),
        "weighted_f1": f1_score(gold, said, labels=labels, average="weighted", zero_division=0),
        "macro_f1": f1_score(gold, said, labels=labels, average="macro", zero_division=0),
    }


@pytest.mark.parametrize("source", ["rule", "classifier"])
def test_values_and_intervals_are_scikit_learns_on_the_same_resamples(run, figures, source):
    results = run.datasets["SAD"]
    gold = np.array(results.gold)
    said = np.array(["unparsed" if label is None else label for label in results.labels[source].predicted])
    (drawn,) = draws(len(gold), RESAMPLES, 0)
    sampled = []
    for rows in drawn:
        seen = sorted({*gold[rows], *said[rows]} - {"unparsed"})
        sampled.append(sklearn_figures(gold[rows], said[rows], seen))
    seen = sorted({*gold, *said} - {"unparsed"})
    for name, value in sklearn_figures(gold, said, seen).items():
        found = getattr(figures.datasets["SAD"].by_source[source], name)
        assert found.value == pytest.approx(value, abs=1e-9)
        low, high = np.quantile([each[name] for each in sampled], [0.025, 0.975])
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)


def test_rows_about_one_post_are_resampled_together(run, figures):
    results = run.datasets["Irf"]
    assert (figures.datasets["Irf"].resampled, figures.datasets["Irf"].units) == ("posts", 40)
    posts = np.array([list(dict.fromkeys(results.posts)).index(post) for post in results.posts])
    right = np.array([gold == said for gold, said in zip(results.gold, results.labels["rule"].predicted, strict=True)])
    (drawn,) = draws(40, RESAMPLES, 0)
    sampled = [np.concatenate([right[posts == post] for post in posts_drawn]).mean() for posts_drawn in drawn]
    interval = figures.datasets["Irf"].by_source["rule"].accuracy
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(sampled, [0.025, 0.975])), abs=1e-9)


def test_a_scores_value_is_that_of_the_scores_file_with_an_interval_around_it(run, figures):
    for name, column in run.datasets["SAD"].scores.items():
        value = figures.datasets["SAD"].scores[name].value
        assert value.value == pytest.approx(column.value, abs=1e-12)
        assert value.low < value.value < value.high
        assert figures.datasets["SAD"].scores[name].signature == column.signature


def test_confusion_and_counts(run, figures):
    results, found = run.datasets["SAD"], figures.datasets["SAD"]
    names = [*results.dataset.label_names, "unparsed"]
    said = [label or "unparsed" for label in results.labels["rule"].predicted]
    expected = confusion_matrix(results.gold, said, labels=names)[:-1]
    assert found.by_source["rule"].confusion == expected.tolist()
    assert found.by_source["rule"].unparsed == said.count("unparsed") > 0
    assert found.by_source["classifier"].unparsed == 0
    assert found.by_source["classifier"].unclear == results.labels["classifier"].clear.count(False) > 0
    ends = results.finish
    assert found.counts.truncated == ends.count("length") > 0
    assert found.counts.failed == ends.count("error") > 0
    # A failed row has no answer; it is not an empty one.
    assert found.counts.empty == sum(not text for text in results.answers) - ends.count("error") > 0


def test_label_f1_is_scikit_learns(run, figures):
    results, labels = run.datasets["SAD"], figures.datasets["SAD"].by_source["classifier"]
    names = results.dataset.label_names
    expected = f1_score(results.gold, results.labels["classifier"].predicted, labels=names, average=None)
    assert labels.label_f1 == pytest.approx(expected.tolist())


def test_a_folder_of_anybodys_tells_no_ends(tmp_path):
    write_table(tmp_path / "DR.csv", ["goldens", "generated_text"], [("Yes. Reasoning: a.", "Yes. Reasoning: b.")] * 3)
    found = figures_of(read_results(tmp_path), resamples=10).datasets["DR"]
    assert (found.counts.truncated, found.counts.failed, found.counts.empty) == (None, None, 0)
    assert (found.resampled, found.units, found.few_rows) == ("rows", 3, True)
    assert (list(found.by_source), found.scores) == (["rule"], {})
    # "no" stands in neither gold nor answers: it has no F1.
    assert found.by_source["rule"].label_f1 == [None, 1.0]


def test_reliability_by_bins():
    found = reliability([0.95, 0.91, 1.0, 0.55, 0.52], [True, True, False, False, True])
    assert [each.rows for each in found.bins] == [0, 0, 0, 0, 0, 2, 0, 0, 0, 3]
    assert found.bins[9].share == pytest.approx(2 / 3)
    assert found.bins[9].confidence == pytest.approx((0.95 + 0.91 + 1) / 3)
    assert found.error == pytest.approx((abs(2.86 - 2) + abs(1.07 - 1)) / 5)
    # Wilson 1927, by the closed form.
    z, share, rows = 1.959963984540054, 2 / 3, 3
    centre = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * np.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    assert (found.bins[9].share_low, found.bins[9].share_high) == pytest.approx((centre - half, centre + half))


def test_the_rules_reading_is_a_yardstick_only_where_there_is_one(run, figures):
    readable = [label for label in run.datasets["SAD"].labels["rule"].predicted if label is not None]
    labels = figures.datasets["SAD"].by_source["classifier"]
    assert labels.reading.rows == len(readable) < labels.against_gold.rows == 60
    assert figures.datasets["SAD"].by_source["rule"].reading is None


def test_an_endless_answer_does_not_stretch_the_lengths(tmp_path):
    gold = "Yes. Reasoning: " + "word " * 18
    rows = [Row(gold, "Yes. Reasoning: " + "word " * 20) for _ in range(200)] + [Row(gold, "Yes. " + "word " * 5000)]
    save_run(tmp_path / "run", {"DR": rows}, score=False)
    lengths = figures_of(read_results(tmp_path / "run"), resamples=10).datasets["DR"].lengths
    assert sum(lengths.answers) == sum(lengths.golds) == 201
    assert lengths.edges[-1] < 40
    assert lengths.answers[-1] == 1
    assert lengths.answer_words == (22, 22, 5001)


def test_runs_of_one_name_are_told_apart(tmp_path):
    for parent in ("a", "b"):
        folder = tmp_path / parent / "run"
        folder.mkdir(parents=True)
        write_table(folder / "DR.csv", ["goldens", "generated_text"], [("Yes. Reasoning: a.", "Yes.")])
    one, other = (read_results(tmp_path / parent / "run") for parent in ("a", "b"))
    assert run_names([one]) == ["run"]
    assert run_names([one, other]) == ["a/run", "b/run"]
    assert len(set(run_names([one, one]))) == 2
