"""ROUGE against the rouge-score package, bit for bit and row by row, and the plain mean of the rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from importlib.metadata import version

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from imhi import __version__
from imhi.data import load_suite, read_query_rows, resolve_data_root
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


WORDS = ["the", "The", "poster", "poster's", "no", "24", "7", "a1b2", "ÉTÉ", "İ", "ß", "東京", "—", "...", "😢", "x_y"]
SPACES = [" ", "\n", "\t", "\u00a0", "\u2028", "", ", "]
TEXT = st.one_of(
    st.text(max_size=40),
    st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(SPACES)), max_size=40).map(
        lambda parts: "".join(word + space for word, space in parts)
    ),
)


def assert_equals_rouge_score(pairs: Sequence[tuple[str, str]]) -> None:
    """Every bit of every row's values, and their mean."""
    score = Rouge().score(*map(list, zip(*pairs, strict=True)))
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    for row, (text, gold) in enumerate(pairs):
        expected = scorer.score(target=gold, prediction=text)
        assert {name: values[row] for name, values in score.row_values.items()} == {
            name: found.fmeasure for name, found in expected.items()
        }, (text, gold)
    for name, values in score.row_values.items():
        assert all(type(value) is float for value in values)
        assert score.values[name] == pytest.approx(sum(values) / len(values), abs=1e-12)


def test_equals_rouge_score_on_made_up_rows():
    assert_equals_rouge_score(PAIRS)


def test_equals_rouge_score_on_long_and_on_repeated_words():
    words = [f"w{number % 61}" for number in range(700)]
    shuffled = words.copy()
    random.Random(0).shuffle(shuffled)
    texts = [" ".join(words), " ".join(shuffled), "no " * 500, "no yes " * 150, "no", "x" * 20000]
    assert_equals_rouge_score([(text, gold) for text in texts for gold in texts])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
def test_equals_rouge_score_on_any_text(pairs):
    assert_equals_rouge_score(pairs)


def test_equals_rouge_score_on_the_sample_rows():
    assert_equals_rouge_score(shifted([row.gold for row in load_suite(resolve_data_root(None), "IMHI").rows]))


def test_equals_rouge_score_on_real_rows(real_data):
    folder = real_data / "test_data" / "test_instruction"
    golds = [gold for name in ("DR", "SAD", "CAMS") for _, gold in read_query_rows(folder / f"{name}.csv")[:100]]
    assert len(golds) == 300
    assert_equals_rouge_score(shifted(golds))


def shifted(golds: list[str]) -> list[tuple[str, str]]:
    """Each gold text beside another one, and every third beside its own first half."""
    others = golds[1:] + golds[:1]
    return [
        (gold[: len(gold) // 2] if at % 3 == 0 else other, gold)
        for at, (other, gold) in enumerate(zip(others, golds, strict=True))
    ]


def test_empty_answers_score_zero_and_identical_texts_one():
    score = Rouge().score(["", "a b c"], ["a b c", "a b c"])
    assert score.row_values == {"rouge1": [0.0, 1.0], "rouge2": [0.0, 1.0], "rougeL": [0.0, 1.0]}
    assert score.values == {"rouge1": 0.5, "rouge2": 0.5, "rougeL": 0.5}


def test_no_stemming():
    assert Rouge().score(["worries"], ["worried"]).values["rouge1"] == 0.0


def test_signature_names_the_definition_that_these_tests_judge():
    signature = str(Rouge().signature)
    judge = f"rouge-score:{version('rouge-score')}"
    assert signature == f"rouge|types:rouge1+rouge2+rougeL|value:f|stem:no|aggregate:mean|{judge}|imhi:{__version__}"
