"""Log-probabilities of a causal model's tokens: batches, memory, adapters, and who waits for what."""

from __future__ import annotations

import pytest
import torch

from imhi.metrics.causal import CausalScorer, Tally


def nats_of(scorer: CausalScorer, sequences, **options) -> list[float]:
    found: dict[int, float] = {}
    scorer.run(sequences, batch_size=None, on_value=found.__setitem__, **options)
    return [found[at] for at in range(len(sequences))]


@pytest.fixture
def scorer(tiny_llama):
    return CausalScorer(str(tiny_llama), metric="test", device="cpu", dtype="float32")


SEQUENCES = [([0, 5, 6], [7, 8]), ([0], [9]), ([0, 30, 31, 32, 33], []), ([0, 2], [40] * 70), ([0, 5, 6], [7])]


def test_nats_are_the_model_s_own(scorer):
    expected = []
    for read, told in SEQUENCES:
        with torch.inference_mode():
            logits = scorer.generator.model(torch.tensor([[*read, *told]])).logits[0].double().log_softmax(-1)
        expected.append(-sum(logits[len(read) - 1 + n, token].item() for n, token in enumerate(told)))
    assert nats_of(scorer, SEQUENCES) == pytest.approx(expected, abs=1e-4)
    assert nats_of(scorer, [([0], [])]) == [0.0]


def test_logits_are_normalised_in_parts_that_fit(scorer, monkeypatch):
    expected = nats_of(scorer, SEQUENCES)
    monkeypatch.setattr("imhi.metrics.causal.CPU_LOGITS", 1)
    assert nats_of(scorer, SEQUENCES) == expected


def test_a_model_without_an_output_layer_to_spare_gives_the_same(scorer, monkeypatch):
    expected = nats_of(scorer, SEQUENCES)
    monkeypatch.setattr(scorer.generator.model, "get_output_embeddings", lambda: None)
    assert nats_of(scorer, SEQUENCES) == pytest.approx(expected, abs=1e-5)


def test_the_model_is_left_as_it_was(scorer):
    nats_of(scorer, SEQUENCES)
    assert not scorer.generator.model.get_output_embeddings()._forward_pre_hooks


def test_a_batch_that_does_not_fit_is_split(scorer, monkeypatch, capsys):
    expected, inner = nats_of(scorer, SEQUENCES), scorer._nats

    def fits_two(sequences):
        if len(sequences) > 2:
            raise RuntimeError("CUDA out of memory")
        return inner(sequences)

    monkeypatch.setattr(scorer, "_nats", fits_two)
    assert nats_of(scorer, SEQUENCES) == pytest.approx(expected, abs=1e-5)
    assert "test: 5 sequences did not fit in memory; going on with 3" in capsys.readouterr().err


def test_adapters_of_one_base_are_told_apart(tiny_llama, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    digests, names = set(), set()
    for name in ("first", "second"):
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(str(tiny_llama)),
            LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False),
        )
        model.peft_config["default"].base_model_name_or_path = str(tiny_llama)
        model.save_pretrained(str(tmp_path / name))
        scorer = CausalScorer(str(tmp_path / name), metric="test", device="cpu", dtype="float32")
        digests.add(scorer.digest)
        names.add(scorer.model_name)
    base = CausalScorer(str(tiny_llama), metric="test", device="cpu", dtype="float32")
    assert len(digests | {base.digest}) == 3 and names == {"first", "second"}


def test_a_pair_is_told_of_once_all_its_cases_are_there():
    told: list[int] = []
    tally = Tally({"one": ["a", "b"], "two": ["b"], "none": []}, told.append)
    assert told == [1]
    tally.finished("a")
    assert told == [1]
    tally.finished("b")
    tally.finished("b")
    assert told == [1, 1, 1]
