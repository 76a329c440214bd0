"""Information gain against log-probabilities taken one pair at a time, and on a real small model."""

from __future__ import annotations

import pytest
import torch

from imhi.errors import UserError
from imhi.metrics import METRICS
from imhi.metrics.information import JOINT, InformationGain

TEXTS = ["The poster cannot sleep.", "No sign of it.", "", "Yes. " + "They feel empty and alone. " * 9]
REFERENCES = ["I lie awake all night.", "What a day!", "I lie awake all night.", "Nothing is left of me. " * 12]


@pytest.fixture(scope="module")
def metric(tiny_llama):
    return InformationGain(str(tiny_llama))


def one_by_one(metric: InformationGain, read: str | None, told: str) -> float:
    """-log P(told | read), from the model's own logits, without batches and padding."""
    generator = metric._generator
    tokenizer = generator.tokenizer
    before = [tokenizer.bos_token_id]
    if read is not None:
        for part in (read, JOINT):
            before += tokenizer(part, add_special_tokens=False)["input_ids"]
    after = tokenizer(told, add_special_tokens=False)["input_ids"]
    total = 0.0
    for at in range(len(after)):
        with torch.inference_mode():
            logits = generator.model(torch.tensor([before + after[:at]])).logits[0, -1]
        total -= logits.double().log_softmax(-1)[after[at]].item()
    return total


def test_information_is_that_of_one_pair_at_a_time(metric):
    found = metric.statistics(TEXTS, REFERENCES)
    for (alone, given, tokens), text, reference in zip(found, TEXTS, REFERENCES, strict=True):
        assert alone == pytest.approx(one_by_one(metric, None, reference), rel=1e-4)
        assert given == pytest.approx(one_by_one(metric, text, reference), rel=1e-4)
        assert tokens == len(metric._generator.tokenizer(reference, add_special_tokens=False)["input_ids"])


def test_values_follow_from_the_statistics(metric):
    values = metric.row_values([(10.0, 8.0, 4.0), (10.0, 12.0, 5.0), (0.0, 0.0, 0.0)])
    assert values["info_gain"] == pytest.approx([0.2, -0.2, 0.0])
    assert values["info_loglik"] == pytest.approx([-2.0, -2.4, 0.0])


def test_an_empty_reference_scores_nothing(metric):
    statistics = metric.statistics(["a text", ""], ["", ""])
    assert metric.row_values(statistics) == {"info_gain": [0.0, 0.0], "info_loglik": [0.0, 0.0]}


def test_every_row_is_told_once(metric):
    told = []
    metric.statistics(TEXTS * 2, REFERENCES * 2, told.append)
    assert sum(told) == 8


def test_an_encoder_decoder_is_refused(tiny_bart):
    with pytest.raises(UserError, match="give a causal model"):
        InformationGain(str(tiny_bart))


def test_a_real_model_gains_from_what_the_post_says():
    metric = METRICS["info_gain"]()
    post = "My landlord raised the rent again and I have been skipping meals to pay for it."
    about = "Yes. The poster skips meals because the landlord raised the rent, which is a financial problem."
    apart = "Yes. The poster describes a quarrel with a colleague about the football results of last weekend."
    gains = metric.row_values(metric.statistics([about, apart, post], [post] * 3))["info_gain"]
    assert gains[1] < gains[0] < gains[2] < 1
    assert gains[2] > 0.6
    assert str(metric.signature).startswith("info_gain|model:embedded:smollm2|weights:")
