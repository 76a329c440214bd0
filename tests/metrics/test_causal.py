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


def save_gpt2(folder, tiny_llama):
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_llama))
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=256, n_embd=64, n_layer=4, n_head=4)
    GPT2LMHeadModel(config).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_half_precision_adds_up_in_float32(kind, dtype, tiny_llama, tmp_path):
    """What layers add to, norms and logits are float32; matrices are held, and multiplied, in half precision."""
    folder = str(tiny_llama if kind == "llama" else save_gpt2(tmp_path / "gpt2", tiny_llama))
    sequences = [([0, at], [(at * step) % 90 for step in range(1, 60)]) for at in range(1, 21)]
    exact = nats_of(CausalScorer(folder, metric="test", device="cpu", dtype="float32"), sequences)
    mixed = CausalScorer(folder, metric="test", device="cpu", dtype=dtype)
    model = mixed.generator.model
    last_norm = model.model.norm if kind == "llama" else model.transformer.ln_f
    matrix = model.model.layers[0].mlp.up_proj if kind == "llama" else model.transformer.h[0].mlp.c_fc
    seen = set()
    last_norm.register_forward_hook(lambda _, given, out: seen.update({("norm", given[0].dtype), ("norm", out.dtype)}))
    matrix.register_forward_hook(lambda _, given, out: seen.add(("matrix", out.dtype)))
    model.get_output_embeddings().register_forward_hook(lambda _, given, out: seen.add(("head", out.dtype)))
    assert nats_of(mixed, sequences) == pytest.approx(exact, rel=5e-3)
    half = getattr(torch, dtype)
    assert seen == {("norm", torch.float32), ("matrix", half), ("head", torch.float32)}
    assert matrix.weight.dtype == half and mixed.precision == f"{dtype}+float32"
