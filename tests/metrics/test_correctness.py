import json
import random
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from imhi.benchmark import DATASETS
from imhi.metrics.correctness import UNPARSED, Correctness, correctness

LABELS = DATASETS["SAD"].label_names
AVERAGES = ("weighted", "micro", "macro")


def published(gold, predicted):
    """What the published scripts compute and print, straight from scikit-learn."""
    figures = [accuracy_score(gold, predicted)] + [f1_score(gold, predicted, average=a) for a in AVERAGES]
    return [round(figure * 100, 2) for figure in figures]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=60))
def test_equals_scikit_learn_when_everything_is_parsed(pairs):
    gold, predicted = [list(side) for side in zip(*pairs, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = correctness(gold, predicted)
    assert ours.accuracy == accuracy_score(gold, predicted)
    assert [ours.weighted_f1, ours.micro_f1, ours.macro_f1] == [
        f1_score(gold, predicted, average=average) for average in AVERAGES
    ]
    assert ours.unparsed == 0
    assert ours.n == len(pairs)
    labels = sorted({*gold, *predicted})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns where one label is all there is
        matrix = confusion_matrix(gold, predicted, labels=labels)
    for at, true in enumerate(labels):
        assert [ours.confusion.get(true, {}).get(said, 0) for said in labels] == matrix[at].tolist()
    values = published(gold, predicted)
    assert ours.published_line("SAD") == (
        "Dataset: SAD, average acc:{}, weighted F1 {}, micro F1 {}, macro F1 {}".format(*values)
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(LABELS), st.one_of(st.none(), st.sampled_from(LABELS))), min_size=1, max_size=60)
)
def test_unparsed_is_a_miss_and_never_a_label(pairs):
    gold = [true for true, _ in pairs]
    predicted = [said for _, said in pairs]
    ours = correctness(gold, predicted)
    hits = sum(true == said for true, said in pairs)
    parsed = [said for said in predicted if said is not None]
    assert ours.accuracy == hits / len(pairs)
    assert ours.unparsed == len(pairs) - len(parsed)
    # Written out from the definition: hits, misses and false alarms per label.
    f1 = {}
    for label in {*gold, *parsed}:
        hit = sum(true == said == label for true, said in pairs)
        f1[label] = 2 * hit / (gold.count(label) + parsed.count(label))
    assert ours.macro_f1 == pytest.approx(sum(f1.values()) / len(f1))
    assert ours.weighted_f1 == pytest.approx(sum(f1[true] for true in gold) / len(gold))
    assert ours.micro_f1 == pytest.approx(ours.accuracy)
    assert sum(count for row in ours.confusion.values() for count in row.values()) == ours.n
    assert sum(row.get(UNPARSED, 0) for row in ours.confusion.values()) == ours.unparsed


def test_worked_example():
    ours = correctness(["yes", "yes", "no", "no"], ["yes", None, "no", "yes"])
    assert ours == Correctness(
        n=4,
        unparsed=1,
        accuracy=0.5,
        weighted_f1=pytest.approx((0.5 + 2 / 3) / 2),
        micro_f1=pytest.approx(0.5),
        macro_f1=pytest.approx((0.5 + 2 / 3) / 2),
        confusion={"no": {"no": 1, "yes": 1}, "yes": {"yes": 1, UNPARSED: 1}},
    )
    assert json.loads(json.dumps(ours.as_dict()))["confusion"]["yes"] == {"yes": 1, "unparsed": 1}


def test_nothing_parsed_scores_zero():
    ours = correctness(["yes", "no"], [None, None])
    assert (ours.accuracy, ours.weighted_f1, ours.micro_f1, ours.macro_f1) == (0, 0, 0, 0)
    assert ours.unparsed == 2


def test_published_line_has_no_trailing_zero_and_takes_the_ood_count():
    line = correctness(["yes"] * 200, ["yes"] * 171 + ["no"] * 29).published_line("DR")
    assert line.startswith("Dataset: DR, average acc:85.5, weighted F1 ")
    assert correctness(["yes"], ["yes"]).published_line("DR", 3) == (
        "Dataset: DR, average acc:100.0, weighted F1 100.0, micro F1 100.0, macro F1 100.0, OOD count: 3"
    )
    assert correctness(["yes"], ["yes"]).published_line("DR", ood=0).endswith(", OOD count: 0")


def test_benchmark_size_equals_scikit_learn():
    random.seed(0)
    gold = random.choices(LABELS, k=10882)
    predicted = [label if random.random() < 0.6 else random.choice(LABELS) for label in gold]
    ours = correctness(gold, predicted)
    assert ours.published_line("swmh") == (
        "Dataset: swmh, average acc:{}, weighted F1 {}, micro F1 {}, macro F1 {}".format(*published(gold, predicted))
    )


@pytest.mark.parametrize(("gold", "predicted", "message"), [(["yes"], [], "1 gold labels but 0"), ([], [], "no rows")])
def test_bad_input(gold, predicted, message):
    with pytest.raises(ValueError, match=message):
        correctness(gold, predicted)
