"""Coverage against its definition spelled out on the encoder's own states, and what it must not depend on."""

from __future__ import annotations

import re

import pytest
import torch

from imhi.checkpoints import locate
from imhi.metrics import METRICS
from imhi.metrics.coverage import FUNCTION_WORDS, Coverage, _is_function_word

POST = "I can't sleep and I cry every night. Nobody at work has noticed; I feel empty."
GOOD = "Yes. The poster reports insomnia, nightly crying, emptiness, and that nobody at work notices."
POOR = "No. The poster is looking forward to the summer and is fond of gardening."


@pytest.fixture(scope="module")
def metric():
    return Coverage()


def spelled_out(explanation: str, reference: str) -> float:
    """The definition with transformers alone, for texts of one window."""
    from transformers import AutoModel, AutoTokenizer

    folder = str(locate("embedded:minilm"))
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    sides = []
    for text in (explanation, reference):
        encoded = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
        spans = encoded.pop("offset_mapping")[0].tolist()
        with torch.inference_mode():
            states = model(**encoded, output_hidden_states=True).hidden_states[5][0]
        kinds = []
        for start, end in spans:
            words = [word for word in re.finditer(r"[^\W_]+('\w+)*", text) if word.start() <= start < end <= word.end()]
            said = words[0].group().lower() if words else ""
            closed = said.split("'")[0] in FUNCTION_WORDS or said.endswith("n't")
            kinds.append(0 if not words else 1 if closed else 2)
        sides.append((torch.nn.functional.normalize(states, dim=-1), torch.tensor(kinds)))
    (told, told_kinds), (said, said_kinds) = sides
    cosines = said[said_kinds == 2] @ told[told_kinds > 0].T
    return cosines.max(dim=1).values.mean().item()


@pytest.mark.parametrize("pair", [(GOOD, POST), (POOR, POST), (POST, GOOD)])
def test_coverage_is_its_definition(metric, pair):
    assert metric.statistics([pair[0]], [pair[1]])[0][0] == pytest.approx(spelled_out(*pair), abs=1e-5)


def test_an_explanation_that_takes_up_the_post_covers_more(metric):
    good, poor, same = (row[0] for row in metric.statistics([GOOD, POOR, POST], [POST] * 3))
    assert poor + 0.1 < good < same
    assert same == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("explanation", "reference"), [("", POST), (GOOD, ""), ("?! ...", POST), (GOOD, " \n"), ("", "")]
)
def test_without_words_nothing_is_covered(metric, explanation, reference):
    assert metric.statistics([explanation], [reference]) == [(0.0,)]


def test_a_reference_of_function_words_alone_is_still_compared(metric):
    assert 0 < metric.statistics([GOOD], ["what about you and me"])[0][0] < 1


@pytest.mark.parametrize(
    ("word", "closed"),
    [
        ("I'll", True),
        ("don’t", True),
        ("Isn't", True),
        ("dont", True),
        ("mother's", False),
        ("ill", False),
        ("won", False),
    ],
)
def test_contractions_are_function_words_and_possessives_are_not(word, closed):
    assert _is_function_word(word) is closed


def test_words_that_tell_of_depression_are_content():
    told = {"alone", "cry", "empty", "interest", "nothing", "never", "anymore", "sleep", "hopeless", "die", "hate"}
    assert not told & FUNCTION_WORDS


def test_the_end_of_a_long_post_counts(metric):
    filler = "The train was late and the coffee at the station was cold that morning. " * 60
    ending = "Since the divorce my insomnia has been terrible and I weep constantly."
    assert len(metric._windows(filler + ending)) > 1
    covered, left_out = (
        row[0]
        for row in metric.statistics([ending, "Since the vote my opponent has been gracious."], [filler + ending] * 2)
    )
    short = metric.statistics([ending], [filler])[0][0]
    assert covered > max(left_out, short)


def test_values_do_not_depend_on_the_batch(metric):
    pairs = [(GOOD, POST), (POOR, POST), (POST, GOOD), (GOOD * 3, POOR)]
    together = metric.statistics(*zip(*pairs, strict=True))
    alone = Coverage(batch_size=1).statistics(*zip(*pairs, strict=True))
    assert [row[0] for row in together] == pytest.approx([row[0] for row in alone], abs=1e-5)


def test_every_row_is_told_once(metric):
    told = []
    metric.statistics([GOOD, GOOD, POOR], [POST] * 3, told.append)
    assert sum(told) == 3


def test_the_signature_names_encoder_layer_and_words(metric):
    text = str(metric.signature)
    assert text.startswith("coverage|model:embedded:minilm|weights:")
    assert "|layer:5|" in text and f"|words:content-{len(FUNCTION_WORDS)}" in text
    assert isinstance(METRICS["coverage"](), Coverage)
