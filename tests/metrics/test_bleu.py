"""BLEU against sacrebleu: every count and every value, on made-up texts and on real ones."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imhi.data import read_query_rows
from imhi.metrics.bleu import Bleu, tokenize_13a
from imhi.metrics.ngrams import matching_ngrams

sacrebleu = pytest.importorskip("sacrebleu")

MADE_UP = [
    (
        "Yes, the poster suffers from stress. Reasoning: rent is due.",
        "Yes, the poster suffers from stress, since rent is due.",
    ),
    ("the the the the the the the", "the cat is on the mat"),
    (
        "It costs 1,234.56 dollars (no-one knows) &amp; 5-6 pills.",
        "It costs 1,234.56 dollars (no one knows) & 5 - 6 pills.",
    ),
    ("a line-\nend hyphen\nand <skipped> words", "a lineend hyphen and words"),
    ("short", "a longer gold text than that"),
    ("", "an empty answer"),
    ("  \t ", "a blank answer"),
    ("“curly” café — naïve…", '"curly" cafe - naive...'),
    ("&lt;b&gt; &quot;x&quot; &amp;lt;", '<b> "x" &lt;'),
    ("ends with a period .", "ends with a period."),
    ("the text ends with a dash-\n", "the text ends with a dash-"),
]


def reference() -> sacrebleu.BLEU:
    return sacrebleu.BLEU(tokenize="13a", smooth_method="none", effective_order=False, force=True)


def real_rows(root: Path) -> list[tuple[str, str]]:
    folder = root / "test_data" / "test_instruction"
    golds = [gold for name in ("DR", "SAD", "CAMS") for _, gold in read_query_rows(folder / f"{name}.csv")[:100]]
    shuffled = golds[1:] + golds[:1]
    # Gold texts of other rows as answers, and every third one cut or changed a little.
    random.Random(0).shuffle(shuffled)
    return [
        (gold[: len(gold) // 2] if at % 3 == 0 else other, gold)
        for at, (other, gold) in enumerate(zip(shuffled, golds, strict=True))
    ]


def assert_equals_sacrebleu(pairs: list[tuple[str, str]]) -> None:
    generated, golds = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    score = Bleu().score(generated, golds)
    expected = reference().corpus_score(generated, [golds])
    assert score.values["bleu"] * 100 == pytest.approx(expected.score, abs=1e-9)
    for row, (text, gold) in enumerate(pairs):
        sentence = reference().sentence_score(text, [gold])
        counts = Bleu().statistics([text], [gold])[0]
        assert counts == (sentence.sys_len, sentence.ref_len, *sentence.counts, *sentence.totals), (text, gold)
        assert score.row_values["bleu"][row] * 100 == pytest.approx(sentence.score, abs=1e-9), (text, gold)


def test_equals_sacrebleu_on_made_up_rows():
    assert_equals_sacrebleu(MADE_UP)


def test_equals_sacrebleu_on_real_rows(real_data):
    pairs = real_rows(real_data)
    assert len(pairs) == 300
    assert_equals_sacrebleu(pairs)
    assert 0.05 < Bleu().score(*map(list, zip(*pairs, strict=True))).values["bleu"] < 0.95


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
def test_tokens_equal_sacrebleus(text):
    assert tokenize_13a(text) == reference().tokenizer(text.rstrip()).split()


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet="aé1².,-'&;\"<>|_ \t\r\n\x1c\x85\u00a0\u2028", max_size=30))
def test_tokens_equal_sacrebleus_where_punctuation_meets_spaces_and_digits(text):
    assert tokenize_13a(text) == reference().tokenizer(text.rstrip()).split()


@settings(max_examples=200, deadline=None)
@given(*[st.lists(st.integers(0, 3), max_size=20)] * 2, st.integers(1, 5))
def test_matching_ngrams_are_the_intersection_of_the_counts(ids, others, order):
    counts = [Counter(tuple(row[at : at + order]) for at in range(len(row) - order + 1)) for row in (ids, others)]
    assert matching_ngrams(ids, others, order) == (counts[0] & counts[1]).total()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.text(alphabet="ab .,1-", max_size=25)] * 2), min_size=1, max_size=6))
def test_equals_sacrebleu_on_any_text(pairs):
    assert_equals_sacrebleu(pairs)


@pytest.mark.parametrize(
    "generated",
    [["nothing shared here at all"], [""], ["the cat"], ["cat the mat the on"], ["", " "]],
    ids=["no word", "empty", "too short for a 4-gram", "no 4-gram", "all empty"],
)
def test_no_match_of_an_order_is_exactly_zero(generated):
    golds = ["the cat is on the mat"] * len(generated)
    score = Bleu().score(generated, golds)
    assert score.values == {"bleu": 0.0}
    assert score.row_values == {"bleu": [0.0] * len(generated)}


def test_an_empty_answer_costs_brevity():
    gold = "the poster cannot sleep at night"
    alone = Bleu().score([gold], [gold]).values["bleu"]
    with_empty = Bleu().score([gold, ""], [gold, gold]).values["bleu"]
    assert alone == 1.0
    assert with_empty == pytest.approx(2.718281828 ** (1 - 12 / 6))


def test_statistics_of_repeated_pairs_are_those_of_each():
    generated, golds = ["a b c d e", "x", "a b c d e"], ["a b c d e f", "x y", "a b c d e f"]
    advanced: list[int] = []
    rows = Bleu().statistics(generated, golds, advanced.append)
    assert rows == [Bleu().statistics([a], [b])[0] for a, b in zip(generated, golds, strict=True)]
    assert sum(advanced) == 3


def test_signature_and_refusals():
    assert str(Bleu().signature).startswith("bleu|level:corpus|order:4|tok:13a|case:mixed|smooth:none|nrefs:1|imhi:")
    with pytest.raises(ValueError, match="2 generated texts but 1 gold"):
        Bleu().statistics(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="no rows"):
        Bleu().score([], [])
