"""BART-score against a formula written out a row and a token at a time, on a tiny random BART."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import save_bart

from imhi.commands import run_script
from imhi.data import write_table
from imhi.errors import UserError
from imhi.metrics import bartscore
from imhi.metrics.bartscore import BartScore, plan_pair_batches

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
    metric = BartScore(str(tiny_bart), token_budget=10**6)
    decoder, sizes = metric._model.model.decoder, []
    forward = decoder.forward

    def cramped(input_ids: Any, **inputs: Any) -> Any:
        sizes.append(len(input_ids))
        if sizes[-1] > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return forward(input_ids=input_ids, **inputs)

    monkeypatch.setattr(decoder, "forward", cramped)
    assert metric.score(GENERATED, GOLDS).row_values["bart_score"] == pytest.approx(published, abs=1e-5)
    assert sizes[0] == 7  # eight rows, two of them the same pair
    assert "7 pairs did not fit in memory; going on with 4" in capsys.readouterr().err


def test_another_error_is_not_swallowed(tiny_bart, monkeypatch):
    metric = BartScore(str(tiny_bart))

    def broken(**_: Any) -> Any:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(metric._model.model.encoder, "forward", broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        metric.score(["a"], ["b"])


def watched_shapes(metric: BartScore, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of what goes into the encoder, the decoder and the head, filled as the metric runs."""
    seen: dict[str, list[tuple[int, ...]]] = {"encoder": [], "decoder": [], "lm_head": []}

    def watch(name: str, module: Any) -> None:
        forward = module.forward

        def watching(*given: Any, **inputs: Any) -> Any:
            seen[name].append(tuple((given[0] if given else inputs["input_ids"]).shape))
            return forward(*given, **inputs)

        monkeypatch.setattr(module, "forward", watching)

    watch("encoder", metric._model.model.encoder)
    watch("decoder", metric._model.model.decoder)
    watch("lm_head", metric._model.lm_head)
    return seen


def test_longest_batch_first_and_repeated_pairs_once(tiny_bart, monkeypatch):
    metric = BartScore(str(tiny_bart), batch_size=2)
    seen = watched_shapes(metric, monkeypatch)
    advanced: list[int] = []
    metric.statistics(GENERATED, GOLDS, advanced.append)
    widths = [source[1] + target[1] for source, target in zip(seen["encoder"], seen["decoder"], strict=True)]
    assert widths == sorted(widths, reverse=True)
    assert max(rows for rows, _ in seen["decoder"]) == 2 and sum(rows for rows, _ in seen["decoder"]) == 7
    assert sum(advanced) == 8


@pytest.fixture(scope="module")
def one_by_one(tiny_bart: Path) -> dict[str, list[float]]:
    """Both directions of every row, each row a batch of its own."""
    return BartScore(str(tiny_bart), direction="both", batch_size=1).score(GENERATED, GOLDS).row_values


@pytest.mark.parametrize(
    "limits", [{}, {"batch_size": 3}, {"token_budget": 300}, {"token_budget": 10**6}, {"token_budget": 1}]
)
@pytest.mark.parametrize("direction", ["published", "reverse", "both"])
def test_values_do_not_depend_on_the_rows_beside_them(tiny_bart, one_by_one, direction, limits):
    """Nor on the order, on a repetition, on how often a text is read, or on the other direction, but for float32's ends.

    The attention's sums over padded rows end in other digits: 2e-7 of a value.
    """
    metric = BartScore(str(tiny_bart), direction=direction, **limits)
    # The last three pairs read the first's and the last's texts again, with other targets.
    generated = [*GENERATED[::-1], GENERATED[0], GENERATED[0], GOLDS[7]]
    golds = [*GOLDS[::-1], GOLDS[0], GOLDS[4], GENERATED[7]]
    found = metric.score(generated, golds).row_values
    for name, values in found.items():
        assert values[:8] == pytest.approx(one_by_one[name][::-1], rel=1e-6)
        assert values[8] == values[7]
    alone = BartScore(str(tiny_bart), direction=direction, batch_size=1).score(generated[9:], golds[9:]).row_values
    for name, values in found.items():
        assert values[9:] == pytest.approx(alone[name], rel=1e-6)


def test_a_batch_encodes_a_text_once(tiny_bart, monkeypatch):
    metric = BartScore(str(tiny_bart), direction="both", token_budget=10**6)
    seen = watched_shapes(metric, monkeypatch)
    # As sources: "a b c" four times and "d" twice one way; "d", "e" and "f" the other way, "d" known by then.
    found = metric.score(["a b c"] * 4 + ["d"] * 2, ["d", "e", "f", "d", "e", "f"])
    assert [rows for rows, _ in seen["encoder"]] == [2, 2]
    assert [rows for rows, _ in seen["decoder"]] == [5, 5]
    assert found.row_values["bart_score"][0] == found.row_values["bart_score"][3]


def test_the_head_is_computed_for_the_targets_tokens_alone_and_in_parts(tiny_bart, monkeypatch, published):
    metric = BartScore(str(tiny_bart), token_budget=10**6)
    seen = watched_shapes(metric, monkeypatch)
    monkeypatch.setattr(bartscore, "CPU_LOGITS", 4 * 600 * 50)
    assert metric.score(GENERATED, GOLDS).row_values["bart_score"] == pytest.approx(published, abs=1e-5)
    targets = {pair: metric._tokens([pair[1]])[pair[1]] for pair in zip(GENERATED, GOLDS, strict=True)}
    real = sum(len(ids) - ids.count(metric._tokenizer.pad_token_id) for ids in targets.values())
    assert sum(rows for rows, _ in seen["lm_head"]) == real
    assert max(rows for rows, _ in seen["lm_head"]) == 50
    ((rows, longest),) = seen["decoder"]
    assert real < rows * longest


def test_layers_are_packed_on_the_cpu_and_the_embedding_stays(tiny_bart):
    import torch

    model = BartScore(str(tiny_bart))._model
    linear = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear]
    packed = [name for name, module in model.named_modules() if type(module).__name__ == "PackedLinear"]
    # Two encoder layers of 6 linear layers, two decoder layers of 10, and the head; or none on other hardware.
    assert (len(linear), len(packed)) in {(0, 33), (33, 0)}
    assert model.model.shared.weight.shape == (600, 32)


def test_bfloat16_is_near(tiny_bart, published):
    metric = BartScore(str(tiny_bart), dtype="bfloat16")
    assert "dtype:bfloat16" in str(metric.signature)
    assert metric.score(GENERATED, GOLDS).row_values["bart_score"] == pytest.approx(published, abs=0.2)


def test_pairs_stand_beside_pairs_of_both_their_lengths():
    sources = [10, 100, 10, 100, 10, 100, 10, 100]
    targets = [100, 100, 10, 10, 100, 100, 10, 10]
    plan = plan_pair_batches(sources, targets, 400)
    assert [sorted(batch) for batch in plan] == [[1, 5], [0, 4], [3, 7], [2, 6]]
    assert plan_pair_batches(sources, targets, 1) == [[1], [5], [0], [3], [4], [7], [2], [6]]
    assert sorted(plan_pair_batches(sources, targets, 10**6)[0]) == list(range(8))
    assert plan_pair_batches([], [], 5) == []
    for wrong in ((0, None), (5, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            plan_pair_batches([1], [1], *wrong)


@given(
    st.lists(st.tuples(st.integers(2, 300), st.integers(2, 300)), max_size=60),
    st.integers(1, 3000),
    st.none() | st.integers(1, 9),
)
def test_every_pair_is_planned_once_and_within_the_limits(lengths, budget, batch_size):
    sources, targets = [one for one, _ in lengths], [other for _, other in lengths]
    plan = plan_pair_batches(sources, targets, budget, batch_size)
    assert sorted(at for batch in plan for at in batch) == list(range(len(lengths)))
    widths = [max(sources[at] for at in batch) + max(targets[at] for at in batch) for batch in plan]
    assert widths == sorted(widths, reverse=True)
    for batch, width in zip(plan, widths, strict=True):
        assert len(batch) == 1 or len(batch) * width <= budget
        assert batch_size is None or len(batch) <= batch_size


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
