"""ROUGE against the rouge-score package, row by row, and the plain mean of the rows."""

from __future__ import annotations

import pytest
from rouge_score.rouge_scorer import RougeScorer

from imhi.metrics.rouge import Rouge

PAIRS = [
    ("The poster worries about rent.", "The poster is worried about the rent."),
    ("the gunman kills police", "police killed the gunman"),
    ("", "an empty answer"),
    (" \n", "a blank answer"),
    ("¡¿—…!", "no letter that counts"),
    ("Größe naïve 東京", "grosse naive tokyo"),
    ("same words", "same words"),
    ("same words", "same words"),
    ("no", "Yes, the post shows this risk."),
]


def test_equals_rouge_score_row_by_row():
    generated, golds = map(list, zip(*PAIRS, strict=True))
    score = Rouge().score(generated, golds)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    for row, (text, gold) in enumerate(PAIRS):
        expected = scorer.score(target=gold, prediction=text)
        assert {name: values[row] for name, values in score.row_values.items()} == {
            name: found.fmeasure for name, found in expected.items()
        }
    for name, values in score.row_values.items():
        assert score.values[name] == pytest.approx(sum(values) / len(values), abs=1e-12)


def test_empty_answers_score_zero_and_identical_texts_one():
    score = Rouge().score(["", "a b c"], ["a b c", "a b c"])
    assert score.row_values == {"rouge1": [0.0, 1.0], "rouge2": [0.0, 1.0], "rougeL": [0.0, 1.0]}
    assert score.values == {"rouge1": 0.5, "rouge2": 0.5, "rougeL": 0.5}


def test_no_stemming():
    assert Rouge().score(["worries"], ["worried"]).values["rouge1"] == 0.0


def test_signature_names_package_and_aggregate():
    signature = str(Rouge().signature)
    assert "stem:no" in signature and "aggregate:mean" in signature and "rouge-score:0." in signature
