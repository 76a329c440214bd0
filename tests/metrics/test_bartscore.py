"""BART-score against a formula written out a row and a token at a time, on a tiny random BART."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import save_bart

from imhi.commands import run_script
from imhi.data import write_table
from imhi.errors import UserError
from imhi.metrics.bartscore import BartScore

GENERATED = [
    "Yes, the poster suffers from stress. Reasoning: the rent is due.",
    "No.",
    "",
    " ",
    "Zoë can’t sleep 😢",
    "No.",
    "again and again " * 200,
    "a text that spells </s> and <pad> out",
]
GOLDS = [
    "Yes. Reasoning: The poster worries about rent and sleeps badly, night after night.",
    "No, the post does not show this risk.",
    "The post shows loneliness.",
    "x",
    "Zoë reports that she cannot sleep.",
    "No, the post does not show this risk.",
    "The poster repeats it. " * 100,
    "it spells <pad> too",
]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads of a tiny model only wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def expected(folder: Path, sources: list[str], targets: list[str], state: Path | None = None) -> list[float]:
    """log P(target | source) / tokens of the target: plain softmax, one row at a time, no padding."""
    import torch
    from transformers import AutoTokenizer, BartForConditionalGeneration

    model = BartForConditionalGeneration.from_pretrained(str(folder)).eval()
    if state is not None:
        model.load_state_dict(torch.load(state, weights_only=True))
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    limit = min(1024, model.config.max_position_embeddings)
    found = []
    for source, target in zip(sources, targets, strict=True):
        read, said = (tokenizer(text, truncation=True, max_length=limit)["input_ids"] for text in (source, target))
        assert said[0] == tokenizer.bos_token_id and said[-1] == tokenizer.eos_token_id
        with torch.no_grad():
            logits = model(torch.tensor([read]), decoder_input_ids=torch.tensor([[2, *said[:-1]]])).logits[0]
        probabilities = torch.softmax(logits.double(), dim=-1)
        total = sum(
            math.log(probabilities[at, token]) for at, token in enumerate(said) if token != tokenizer.pad_token_id
        )
        found.append(total / len(said))
    return found


@pytest.fixture(scope="module")
def published(tiny_bart: Path) -> list[float]:
    return expected(tiny_bart, GENERATED, GOLDS)


@pytest.fixture(scope="module")
def reverse(tiny_bart: Path) -> list[float]:
    return expected(tiny_bart, GOLDS, GENERATED)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_published_direction_equals_the_formula(tiny_bart, published, batch_size):
    score = BartScore(str(tiny_bart), batch_size=batch_size).score(GENERATED, GOLDS)
    assert score.row_values["bart_score"] == pytest.approx(published, abs=1e-5)
    assert score.values == {"bart_score": pytest.approx(sum(published) / len(published), abs=1e-5)}


def test_reverse_and_both_directions(tiny_bart, published, reverse):
    both = BartScore(str(tiny_bart), direction="both").score(GENERATED, GOLDS)
    assert both.row_values["bart_score"] == pytest.approx(published, abs=1e-5)
    assert both.row_values["bart_score_reverse"] == pytest.approx(reverse, abs=1e-5)
    middle = [(a + b) / 2 for a, b in zip(published, reverse, strict=True)]
    assert both.row_values["bart_score_mean"] == pytest.approx(middle, abs=1e-5)
    assert both.values["bart_score_mean"] == pytest.approx(sum(middle) / len(middle), abs=1e-5)
    alone = BartScore(str(tiny_bart), direction="reverse").score(GENERATED, GOLDS)
    assert alone.row_values == {"bart_score_reverse": pytest.approx(reverse, abs=1e-5)}
    assert max(abs(a - b) for a, b in zip(published, reverse, strict=True)) > 0.01


def test_equals_the_models_own_loss(tiny_bart, published):
    """The paper's code goes through ``labels``; for one row, that is the model's loss with its sign turned."""
    import torch
    from transformers import AutoTokenizer, BartForConditionalGeneration

    model = BartForConditionalGeneration.from_pretrained(str(tiny_bart)).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_bart))
    with torch.no_grad():
        source, target = (tokenizer(text, return_tensors="pt")["input_ids"] for text in (GENERATED[0], GOLDS[0]))
        assert -model(source, labels=target).loss.item() == pytest.approx(published[0], abs=1e-5)


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state dict of another BART of the same shape, as ``bart_score.pth`` is."""
    import torch
    from transformers import BartForConditionalGeneration

    folder = tmp_path_factory.mktemp("other")
    model = BartForConditionalGeneration.from_pretrained(str(save_bart(folder, seed=7)))
    torch.save(model.state_dict(), folder / "bart_score.pth")
    return folder / "bart_score.pth"


def test_a_state_dict_replaces_the_weights(tiny_bart, published, other_weights):
    metric = BartScore(str(tiny_bart), weights=other_weights)
    values = metric.score(GENERATED[:3], GOLDS[:3]).row_values["bart_score"]
    assert values == pytest.approx(expected(tiny_bart, GENERATED[:3], GOLDS[:3], other_weights), abs=1e-5)
    assert values != pytest.approx(published[:3], abs=1e-3)
    assert "state_dict:none" not in str(metric.signature)
    assert metric.note == "" and "--bart_weights" in BartScore(str(tiny_bart)).note


def test_a_state_dict_that_does_not_fit_is_refused(tiny_bart, other_weights, tmp_path):
    import torch

    state = torch.load(other_weights, weights_only=True)

    def refused(content: Any, message: str) -> None:
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(UserError, match=message) as raised:
            BartScore(str(tiny_bart), weights=tmp_path / "w.pth").score(["a"], ["b"])
        assert "\n" not in str(raised.value) and "--bart_weights" in str(raised.value)

    refused({key: value for key, value in state.items() if "fc1" not in key}, "weights missing")
    refused({**state, "another.weight": torch.zeros(2)}, "unknown, another.weight")
    refused({**state, "final_logits_bias": torch.zeros(1, 5)}, "size mismatch")
    refused([1, 2], "something else")
    refused(Path("pickled object"), "not a state dict of tensors")
    # Of the names of one tied weight any will do; old files carry two keys that BART never used.
    shared = {key: value for key, value in state.items() if "embed_tokens" not in key and key != "lm_head.weight"}
    torch.save({**shared, "model.encoder.version": torch.tensor([3.0])}, tmp_path / "w.pth")
    BartScore(str(tiny_bart), weights=tmp_path / "w.pth").score(["a"], ["b"])


def test_out_of_memory_splits_the_batch(tiny_bart, published, capsys, monkeypatch):
    metric = BartScore(str(tiny_bart), batch_size=8)
    real, sizes = metric._model, []

    class Cramped:
        config = real.config

        def __call__(self, **inputs: Any) -> Any:
            sizes.append(len(inputs["input_ids"]))
            if sizes[-1] > 2:
                raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return real(**inputs)

    monkeypatch.setitem(metric.__dict__, "_model", Cramped())
    assert metric.score(GENERATED, GOLDS).row_values["bart_score"] == pytest.approx(published, abs=1e-5)
    assert sizes[0] == 7  # eight rows, two of them the same pair
    assert "7 pairs did not fit in memory; going on with 4" in capsys.readouterr().err


def test_another_error_is_not_swallowed(tiny_bart, monkeypatch):
    metric = BartScore(str(tiny_bart))

    class Broken:
        config = metric._model.config

        def __call__(self, **_: Any) -> Any:
            raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setitem(metric.__dict__, "_model", Broken())
    with pytest.raises(RuntimeError, match="device-side assert"):
        metric.score(["a"], ["b"])


def test_longest_batch_first_and_repeated_pairs_once(tiny_bart, monkeypatch):
    metric = BartScore(str(tiny_bart), batch_size=2)
    real, widths = metric._mean_log_probabilities, []

    def watched(sources: list[list[int]], targets: list[list[int]]) -> list[float]:
        widths.extend(len(a) + len(b) for a, b in zip(sources, targets, strict=True))
        return real(sources, targets)

    monkeypatch.setattr(metric, "_mean_log_probabilities", watched)
    advanced: list[int] = []
    metric.statistics(GENERATED, GOLDS, advanced.append)
    assert widths == sorted(widths, reverse=True) and len(widths) == 7
    assert sum(advanced) == 8


def test_mistakes_are_one_line(tiny_bart, tiny_t5, tmp_path):
    for make, message in (
        (lambda: BartScore(str(tiny_t5)), "'t5' checkpoint; expected a BART"),
        (lambda: BartScore(str(tmp_path / "none")), "--bart_model: no file or folder"),
        (lambda: BartScore(str(tiny_bart), weights=tmp_path / "no.pth"), "--bart_weights: no file"),
    ):
        with pytest.raises(UserError, match=message):
            make()
    torn = tmp_path / "torn"
    shutil.copytree(tiny_bart, torn)
    (torn / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="does not load"):
        BartScore(str(torn)).score(["a"], ["b"])
    bare = tmp_path / "bare"
    shutil.copytree(tiny_bart, bare)
    described = json.loads((bare / "tokenizer.json").read_text())
    described["post_processor"] = None
    (bare / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="does not put <s> and </s>"):
        BartScore(str(bare)).score(["a"], ["b"])


def test_all_methods_by_the_command(tiny_bart, tmp_path, monkeypatch, capsys):
    """The published default stops before any work where its checkpoint is missing; with tiny models all four run."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty_cache"))
    run = tmp_path / "run"
    run.mkdir()
    rows = [("Yes. Reasoning: a b c d.", "Yes. Reasoning: a b c d e."), ("No. Reasoning: x", "")]
    write_table(run / "DR.csv", ["goldens", "generated_text"], rows)
    command = ["--gen_dir_name", str(run), "--score_method", "all", "--num_layers", "2"]
    command += ["--bert_model", str(Path(__file__).parents[1] / "fixtures" / "tiny_bert")]
    assert run_script("score", command) == 2
    told = capsys.readouterr()
    assert told.err.splitlines()[-1].startswith("error: --bart_model: 'facebook/bart-large-cnn'") and told.out == ""
    assert [path.name for path in run.iterdir()] == ["DR.csv"]
    assert run_script("score", [*command, "--bart_model", str(tiny_bart), "--bart_direction", "both"]) == 0
    scores = json.loads((run / "scores.json").read_text())["scores"]["response"]["DR"]
    assert list(scores) == ["bleu", "rouge", "bert_score", "bart_score"]
    assert list(scores["bart_score"]["values"]) == ["bart_score", "bart_score_reverse", "bart_score_mean"]
    shown = capsys.readouterr().out
    assert "bart_score_mean" in shown and "rouge-score:" in shown and "bart_score: an empty answer scores" in shown
