"""Where a server's tokens stand in a text, however it writes them; what an answer lacks."""

from __future__ import annotations

from typing import Any

import pytest

from imhi.metrics.echoed import Echo, Unusable, token_spans

CRY, SOB = "\N{CRYING FACE}", "\N{LOUDLY CRYING FACE}"
QUOTE = "\N{RIGHT SINGLE QUOTATION MARK}"
PART = "\N{REPLACEMENT CHARACTER}"


def answer(tokens: list[str], values: list[float | None], text: str, **more: Any) -> dict[str, Any]:
    return {"choices": [{"text": text, "logprobs": {"tokens": tokens, "token_logprobs": values, **more}}]}


@pytest.mark.parametrize(
    ("tokens", "offsets", "text", "expected"),
    [
        # As OpenAI writes it.
        (["The", " rent"], [0, 3], "The rent", [(0, 3), (3, 8)]),
        (["a", "bytes: \\xf0\\x9f", "bytes:\\x98\\xa2", "b"], [0, 1, 3, 3], f"a {CRY}b", [(0, 1), (1, 3), (3, 3), (3, 4)]),
        # No offsets, or such as do not fit: the texts are followed.
        (["The", " rent"], None, "The rent", [(0, 3), (3, 8)]),
        (["The", " rent"], [0, 4], "The rent", [(0, 3), (3, 8)]),
        (["<s>", "The", " rent"], [0, 3, 6], "The rent", [(0, 0), (0, 3), (3, 8)]),
        (["The", " rent", "</s>"], None, "The rent", [(0, 3), (3, 8), (8, 8)]),
        # SentencePiece pieces decoded one by one lose the space before them; the first may have one too many.
        (["The", "rent", ".", "", "Yes"], None, "The rent.  Yes", [(0, 3), (3, 8), (8, 9), (9, 9), (9, 14)]),
        ([" The", " rent"], None, "The rent", [(0, 3), (3, 8)]),
        ([" ", "The"], None, "The", [(0, 0), (0, 3)]),
        # Parts of characters: vLLM gives the last part the whole, others give each a replacement character.
        (["a", "", "", CRY, "b"], [0, 1, 1, 1, 2], f"a{CRY}b", [(0, 1), (1, 1), (1, 1), (1, 2), (2, 3)]),
        (["a", f" {PART}", PART, " b"], None, f"a {CRY} b", [(0, 1), (1, 3), (2, 3), (3, 5)]),
        ([PART] * 4 + ["x"], [0, 1, 2, 3, 4], f"{CRY}{SOB}x", [(0, 1), (0, 1), (1, 2), (1, 2), (2, 3)]),
        (["a", PART, PART, PART], None, f"a{CRY}", [(0, 1), (1, 2), (1, 2), (1, 2)]),
        (["a", PART, PART, "\n"], None, f"a{CRY}\n", [(0, 1), (1, 2), (1, 2), (2, 3)]),
        (["<s>", PART, PART, QUOTE], None, f"{CRY}{QUOTE}", [(0, 0), (0, 1), (0, 1), (1, 2)]),
        # A replacement character may also stand in the text itself.
        (["a", PART, "b"], None, f"a{PART}b", [(0, 1), (1, 2), (2, 3)]),
    ],
)  # fmt: skip
def test_spans(tokens, offsets, text, expected):
    assert token_spans(tokens, offsets, text) == expected


@pytest.mark.parametrize(
    ("tokens", "text"),
    [(["The", " rent"], "The rents"), (["The", " car"], "The rent"), (["a", PART, "c"], "a b c"), (["a", PART], "ab")],
)
def test_tokens_of_another_text_have_no_spans(tokens, text):
    assert token_spans(tokens, None, text) is None
    with pytest.raises(Unusable, match="do not add up"):
        Echo.of(answer(tokens, [None, *[-1.0] * (len(tokens) - 1)], text), text)


def test_a_long_text_of_parts_takes_no_time():
    """Linear in the text: no search over all ways to divide it."""
    text = (CRY * 30 + "a" + SOB) * 40
    tokens = ([PART] * 90 + ["a"] + [PART] * 3) * 40
    spans = token_spans(tokens, None, text)
    assert spans is not None and spans[-1] == (len(text) - 1, len(text))


def test_the_scored_part_begins_with_the_token_that_ends_behind_the_boundary():
    text = "They feel fine"
    echo = Echo.of(answer(["They", " feel", " f", "ine"], [None, -1.0, -2.0, -4.0], text), text)
    assert echo.nats(len("They feel ")) == (6.0, 2)  # " f" stands across the boundary
    assert echo.nats(len("They feel")) == (6.0, 2)
    assert echo.nats(0) == (7.0, 3)  # the first token has no value
    assert echo.nats(len(text)) == (0.0, 0)


def test_new_tokens_do_not_count_whether_they_are_listed_or_not():
    tokens, values = ["a", " b"], [None, -1.0]
    for listed, text in (([], "a b"), ([" c"], "a b c"), (["</s>"], "a b"), ([""], f"a b{PART}")):
        echo = Echo.of(answer([*tokens, *listed], [*values, *[-9.0] * len(listed)], text), "a b", 1)
        assert echo.tokens == tokens and echo.nats(1) == (1.0, 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "not that of a /v1/completions"),
        ({"choices": []}, "not that of a /v1/completions"),
        ({"choices": [{"text": "a b"}]}, "no log-probabilities"),
        ({"choices": [{"text": "a b", "logprobs": {"content": []}}]}, "no log-probabilities"),
        (answer(["a"], [None, -1.0], "a b"), "no log-probabilities"),
        (answer(["a", " b"], [None, "-1"], "a b"), "no numbers"),
        (answer(["a", " b"], [None, float("nan")], "a b"), "no numbers"),
        (answer([" c"], [-1.0], " c"), "ignores echo"),
        (answer([], [], "a b"), "new tokens only"),
    ],
)
def test_what_an_answer_lacks_is_named(given, message):
    with pytest.raises(Unusable, match=message):
        Echo.of(given, "a b")


def test_a_token_without_a_value_is_not_passed_over():
    echo = Echo.of(answer(["a", " b", " c"], [None, None, -1.0], "a b c"), "a b c")
    with pytest.raises(Unusable, match="no log-probability for some tokens"):
        echo.nats(1)
    assert echo.nats(3) == (1.0, 1)
