"""GPT-score against log-probabilities taken token by token, one text at a time; its directions, templates and rules."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch

from imhi.commands import run_script
from imhi.commands.score import chosen_metrics
from imhi.data import write_table
from imhi.errors import UserError
from imhi.metrics import METRICS
from imhi.metrics.gpt_templates import TEMPLATES, Template
from imhi.metrics.gptscore import DIRECTIONS, GptScore, parse_direction
from imhi.scoring import read_row_values, read_scores, score_folder

GENERATED = [
    "Yes. Reasoning: They cannot sleep and see no way out.",
    "No. Reasoning: A recipe for soup",
    "\N{CRYING FACE} sad",
    "Yes. " + "They feel empty and alone. " * 9,
    "I do not know",
]
GOLDS = [
    "Yes. Reasoning: The poster cannot sleep and sees no way out.",
    "No. Reasoning: The post shares a recipe.",
    "\N{CRYING FACE}\N{LOUDLY CRYING FACE} it\N{RIGHT SINGLE QUOTATION MARK}s a cry for help",
    "Yes.",
    "work. Reasoning: The manager adds shifts. " * 3,
]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads of a tiny model only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def one_by_one(metric: GptScore, before: str, scored: str) -> tuple[float, int]:
    """log P(scored | before) / tokens, from the model's own logits, without batches, padding and selection."""
    generator = metric._scorer.generator
    encoded = generator.tokenizer(before + scored, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    total, tokens = 0.0, 0
    for at in range(1, len(ids)):
        if offsets[at][1] > len(before):
            with torch.inference_mode():
                logits = generator.model(torch.tensor([ids[:at]])).logits[0, -1]
            total += logits.double().log_softmax(-1)[ids[at]].item()
            tokens += 1
    return total / tokens, tokens


@pytest.mark.parametrize("template", ["plain", "coverage", "d2t-quality"])
@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_values_are_those_of_one_text_at_a_time(tiny_llama, direction, template):
    metric = GptScore(str(tiny_llama), direction=direction, template=template)
    found = metric.row_values(metric.statistics(GENERATED, GOLDS))
    before = TEMPLATES[template].before
    expected = {
        "gpt_score": [one_by_one(metric, before(read), told)[0] for read, told in zip(GENERATED, GOLDS, strict=True)],
        "gpt_score_reverse": [
            one_by_one(metric, before(read), told)[0] for read, told in zip(GOLDS, GENERATED, strict=True)
        ],
    }
    names = {"hypo-to-ref": ["gpt_score"], "ref-to-hypo": ["gpt_score_reverse"], "both": list(expected)}[direction]
    for name in names:
        assert found[name] == pytest.approx(expected[name], abs=1e-5)
    if direction == "both":
        means = [sum(row) / 2 for row in zip(*expected.values(), strict=True)]
        assert found.pop("gpt_score_mean") == pytest.approx(means, abs=1e-5)
    assert list(found) == names


def test_values_depend_neither_on_the_batch_nor_on_the_order(tiny_llama):
    draw = random.Random(3)
    pairs = [(" ".join(draw.choices(GENERATED, k=draw.randint(0, 4))), gold) for gold in GOLDS * 8]
    alone = GptScore(str(tiny_llama), batch_size=1)
    expected = alone.row_values(alone.statistics(*map(list, zip(*pairs, strict=True))))["gpt_score"]
    together = GptScore(str(tiny_llama))
    order = draw.sample(range(len(pairs)), len(pairs))
    shuffled = [pairs[at] for at in order]
    found = together.row_values(together.statistics(*map(list, zip(*shuffled, strict=True))))["gpt_score"]
    assert found == pytest.approx([expected[at] for at in order], abs=1e-5)


@pytest.mark.parametrize(("direction", "computed"), [("hypo-to-ref", 2), ("both", 3)])
def test_what_repeats_is_computed_once(tiny_llama, monkeypatch, direction, computed):
    metric = GptScore(str(tiny_llama), direction=direction)
    inner, seen, told = metric._scorer._nats, [], []
    monkeypatch.setattr(metric._scorer, "_nats", lambda sequences: (seen.extend(sequences), inner(sequences))[1])
    # The second pair, turned round, is the third, and the last is equal on both sides.
    rows = [("a b", "c d"), ("a b", "c d"), ("same", "same")]
    metric.statistics(*map(list, zip(*rows, strict=True)), told.append)
    assert len(seen) == computed and sum(told) == len(rows)


def test_the_output_layer_sees_only_what_is_needed(tiny_llama):
    metric = GptScore(str(tiny_llama), template="factuality")
    model, seen = metric._scorer.generator.model, []
    # Behind the scorer's own hook, which narrows what comes in.
    hook = model.get_output_embeddings().register_forward_hook(lambda _, given, out: seen.append(out.shape[:2]))
    statistics = metric.statistics(GENERATED, GOLDS)
    hook.remove()
    assert sum(rows * positions for rows, positions in seen) == sum(tokens for _, tokens in statistics)


def straddling(metric: GptScore) -> tuple[str, str]:
    """A word cut where the tokenizer does not cut it, as two texts."""
    tokenizer = metric._scorer.generator.tokenizer
    for word, at in itertools.product(["They cannot sleep", "The poster feels", "Reasoning"], range(1, 17)):
        offsets = tokenizer(word, return_offsets_mapping=True)["offset_mapping"]
        if any(start < at < end for start, end in offsets) and at < len(word):
            return word[:at], word[at:]
    raise AssertionError("the tiny tokenizer keeps every letter apart")


def test_a_token_across_the_boundary_counts_and_none_before_it(tiny_llama):
    """The published code counts the token before the boundary and leaves the last one out."""
    metric = GptScore(str(tiny_llama))
    read, told = straddling(metric)
    tokenizer = metric._scorer.generator.tokenizer
    offsets = tokenizer(read + told, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    ((nats, tokens),) = metric.statistics([read], [told])
    assert tokens == sum(end > len(read) for _, end in offsets)
    value, counted = one_by_one(metric, read, told)
    assert (-nats / tokens, tokens) == (pytest.approx(value, abs=1e-5), counted)
    # Where words end at the boundary, the tokens are those of the scored text by itself.
    ((_, apart),) = metric.statistics(["No."], [" Yes. Reasoning: They cannot sleep."])
    assert apart == len(tokenizer(" Yes. Reasoning: They cannot sleep.", add_special_tokens=False)["input_ids"])


def test_an_empty_text_that_is_read_and_an_empty_gold_that_is_scored(tiny_llama):
    metric = GptScore(str(tiny_llama))
    rows = metric.statistics(["", "words", ""], ["words", "", ""])
    value, counted = one_by_one(metric, "", "words")
    assert rows == [(pytest.approx(-value * counted, abs=1e-4), counted), (0.0, 0), (0.0, 0)]
    assert metric.row_values(rows)["gpt_score"] == [pytest.approx(value, abs=1e-5), 0.0, 0.0]


@pytest.mark.parametrize("direction", ["ref-to-hypo", "both"])
@pytest.mark.parametrize("answer", ["", " \n"])
def test_an_answer_without_text_is_scored_as_the_published_script_reads_it(tiny_llama, direction, answer):
    """Of no tokens the mean would be 0, the best value there is."""
    metric = GptScore(str(tiny_llama), direction=direction)
    found = metric.row_values(metric.statistics([answer], GOLDS[:1]))
    expected = one_by_one(metric, GOLDS[0], "nan")[0]
    assert found["gpt_score_reverse"] == [pytest.approx(expected, abs=1e-5)]
    if direction == "both":
        read = one_by_one(metric, answer, GOLDS[0])[0]
        assert found["gpt_score"] == [pytest.approx(read, abs=1e-5)]


def test_by_a_server_an_answer_without_text_scores_what_it_scores_here(tiny_llama):
    from completions_stub import CompletionsStub, metric_of

    here = GptScore(str(tiny_llama), direction="both").statistics(["", "\n"], GOLDS[:2])
    with CompletionsStub(tiny_llama).running() as url:
        there = metric_of(url, direction="both").statistics(["", "\n"], GOLDS[:2])
    for row, expected in zip(there, here, strict=True):
        assert row == pytest.approx(expected, abs=1e-4)


def test_without_a_token_before_a_text_the_first_one_does_not_count(tmp_path):
    from tiny import save_llama, save_tokenizer

    folder = save_llama(tmp_path / "model")
    save_tokenizer(folder, specials={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    metric = GptScore(str(folder))
    ((nats, tokens),) = metric.statistics([""], ["They cannot sleep"])
    assert tokens == len(metric._scorer.generator.tokenizer("They cannot sleep")["input_ids"]) - 1
    assert -nats / tokens == pytest.approx(one_by_one(metric, "", "They cannot sleep")[0], abs=1e-5)


def test_tokens_that_the_tokenizer_puts_behind_a_text_do_not_count(tmp_path, tiny_llama):
    from tiny import save_llama, save_tokenizer

    folder = save_llama(tmp_path / "model")
    specials = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    save_tokenizer(folder, specials=specials, template="<s> $A </s>")
    rows = GptScore(str(folder)).statistics(GENERATED, GOLDS)
    for row, expected in zip(rows, GptScore(str(tiny_llama)).statistics(GENERATED, GOLDS), strict=True):
        assert row == pytest.approx(expected, abs=1e-4)


def test_what_is_too_long_loses_the_beginning_of_what_is_read(tmp_path, capsys):
    from tiny import save_llama

    folder = save_llama(tmp_path / "model", max_position_embeddings=64)
    metric = GptScore(str(folder), template="coverage")
    long = "Nothing. " * 60 + "They cannot sleep."
    (cut, whole) = metric.statistics([long, "They cannot sleep."], [GOLDS[1]] * 2)
    assert cut[1] == whole[1]
    assert "gpt_score: 1 of 2 texts were longer than the model takes" in metric.note
    assert metric.note in capsys.readouterr().err
    # What is left of it: the instruction, the end of the text, the words after it.
    ((before, scored),), found = metric._encode([(long, GOLDS[1])])
    assert (len(before) + len(scored), found) == (64, 1)
    read = metric._scorer.generator.tokenizer.decode(list(before))
    words = "<s>Rewrite the following text with the same semantics."
    assert read.startswith(words) and read.endswith("cannot sleep. In other words,") and "N" not in read
    # A scored text that is too long by itself is cut at its end; the next dataset's note is its own.
    ((_, tokens),) = GptScore(str(folder)).statistics(["a"], [long])
    assert tokens == 63
    metric.statistics(["a"], ["b"])
    assert metric.note == ""


def test_directions_as_people_write_them():
    assert {parse_direction(text) for text in ("ref|hypo", "hypo->ref", "hypo-to-ref")} == {"hypo-to-ref"}
    assert {parse_direction(text) for text in ("hypo|ref", "ref->hypo", "ref-to-hypo")} == {"ref-to-hypo"}
    with pytest.raises(UserError, match="src->hypo: a response file has no source text"):
        parse_direction("src->hypo")
    with pytest.raises(UserError, match="'forwards' is not hypo-to-ref, ref-to-hypo, both"):
        parse_direction("forwards")


def test_every_template_ends_with_the_scored_text_and_says_where_it_is_from():
    assert TEMPLATES["plain"].before("x") == "x"
    assert TEMPLATES["coverage"].before("x") == "Rewrite the following text with the same semantics. x In other words, "
    assert len({template.digest for template in TEMPLATES.values()}) == len(TEMPLATES)
    assert all(template.source for template in TEMPLATES.values())
    for text in ("{given}", "{scored}{given}", "{given}{scored}.", "{given}{given}{scored}", "{scored}{given}{scored}"):
        with pytest.raises(ValueError, match="needs"):
            Template.of(text, "")


def test_the_signature_holds_all_that_the_values_depend_on(tiny_llama):
    one = str(GptScore(str(tiny_llama), template="coverage").signature)
    assert one.startswith(f"gpt_score|model:{tiny_llama.name}|weights:")
    assert (
        f"|direction:gold-given-generated|template:coverage|words:{TEMPLATES['coverage'].digest}|dtype:float32" in one
    )
    others = [
        GptScore(str(tiny_llama)),
        GptScore(str(tiny_llama), template="coverage", direction="hypo|ref"),
        GptScore(str(tiny_llama), template="coverage", dtype="bfloat16"),
    ]
    assert len({one, *(str(other.signature) for other in others)}) == 4
    assert str(GptScore(str(tiny_llama), template="coverage", batch_size=3).signature) == one
    # The rule for answers without text stands where it matters, and nowhere else.
    assert "|empty_answer:nan|" in str(others[1].signature) and "empty_answer" not in one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "/nowhere/model"}, "--gpt_model: no file or folder /nowhere/model"),
        ({"template": "other"}, "--gpt_template: no template 'other'; there are plain"),
        ({"api_base": "http://127.0.0.1:1/v1"}, "--gpt_api_base needs --gpt_api_model"),
        ({"api_base": "http://127.0.0.1:1/v1", "api_model": "m", "model": "x"}, "leave one out"),
        ({"api_model": "m"}, "--gpt_api_model has no effect without --gpt_api_base"),
        ({"api_key_env": "KEY"}, "--gpt_api_key_env has no effect without --gpt_api_base"),
        ({"allow_remote": True}, "--gpt_allow_remote has no effect without --gpt_api_base"),
        ({"api_base": "http://192.0.2.7/v1", "api_model": "m"}, "every answer and every gold text will be sent to 192"),
        (
            {"api_base": "http://127.0.0.1:1/v1", "api_model": "m", "api_key_env": "IMHI_NO_SUCH_KEY"},
            "--gpt_api_key_env: the environment variable that it names is not set",
        ),
    ],
)
def test_mistakes_are_one_line_before_any_work(options, message):
    with pytest.raises(UserError, match=message) as raised:
        GptScore(**options)
    assert "\n" not in str(raised.value)


def test_models_that_cannot_score_are_refused(tiny_llama, tiny_bart, monkeypatch):
    with pytest.raises(UserError, match=r"gpt_score: .* is an encoder-decoder; give a causal model"):
        GptScore(str(tiny_bart))
    metric = GptScore(str(tiny_llama))
    monkeypatch.setattr(type(metric._scorer.generator.tokenizer), "is_fast", False)
    with pytest.raises(UserError, match="does not tell where its tokens stand"):
        metric.statistics(["a"], ["b"])


# --- folders and the command line -------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    write_table(folder / "DR.csv", ["goldens", "generated_text"], list(zip(GOLDS[:3], GENERATED[:3], strict=True)))
    write_table(folder / "SAD.csv", ["goldens", "generated_text"], list(zip(GOLDS[3:], GENERATED[3:], strict=True)))
    return folder


def test_a_dataset_s_value_is_the_mean_of_its_own_rows(run, tiny_llama):
    """The published means were taken over all rows so far."""
    results = score_folder(run, [GptScore(str(tiny_llama))])
    alone = GptScore(str(tiny_llama))
    for name, rows in (("DR", slice(0, 3)), ("SAD", slice(3, 5))):
        expected = [one_by_one(alone, read, told)[0] for read, told in zip(GENERATED[rows], GOLDS[rows], strict=True)]
        assert results[name]["gpt_score"]["values"]["gpt_score"] == pytest.approx(
            sum(expected) / len(expected), abs=1e-5
        )
        assert read_row_values(run, name)["gpt_score"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("method", ["GPT3_score", "gpt_score"])
def test_the_command_scores_under_both_names(run, tiny_llama, capsys, method):
    arguments = ["--gpt_model", str(tiny_llama), "--gpt_template", "fluency", "--gpt_direction", "ref|hypo"]
    assert run_script("score", ["--gen_dir_name", str(run), "--score_method", method, *arguments]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["dataset", "rows", "empty", "gpt_score"]
    assert "|direction:gold-given-generated|template:fluency|" in out
    assert list(read_scores(run)["response"]["DR"]) == ["gpt_score"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--score_method", "bleu", "--gpt_template", "plain"], "--gpt_template has no effect on --score_method bleu"),
        (["--score_method", "GPT3_score", "--gpt_direction", "src->hypo"], "has no source text"),
        (["--score_method", "GPT3_score", "--gpt_model", "/nowhere/m"], "--gpt_model: no file or folder /nowhere/m"),
        (["--score_method", "GPT3_score", "--allow_remote"], "--gpt_allow_remote has no effect without"),
        (
            ["--score_method", "GPT3_score", "--gpt_api_base", "http://127.0.0.1:1/v1", "--dtype", "float32"],
            "--dtype has no effect with --gpt_api_base",
        ),
    ],
)
def test_mistaken_flags_end_with_status_2_and_one_line(run, capsys, arguments, message):
    assert run_script("score", ["--gen_dir_name", str(run), *arguments]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and message in errors[0]
    assert not (run / "scores.json").exists()


def test_all_stays_the_published_four():
    assert chosen_metrics(["all"]) == ["bart_score", "bert_score", "bleu", "rouge"]
    assert chosen_metrics(["GPT3_score", "bleu", "gpt_score", "all"]) == [
        *("gpt_score", "bleu", "bart_score", "bert_score", "rouge")
    ]


def test_a_real_model_prefers_an_explanation_of_the_same_post():
    metric = METRICS["gpt_score"](template="paragraphs")
    gold = "Yes. Reasoning: The poster skips meals because the landlord raised the rent."
    about = "Yes. Reasoning: They write that the rent went up and that they no longer eat every day."
    apart = "No. Reasoning: The post is about a football match of last weekend."
    found = metric.row_values(metric.statistics([about, apart, gold], [gold] * 3))["gpt_score"]
    assert found[1] < found[0] < found[2] < 0
    assert str(metric.signature).startswith("gpt_score|model:embedded:smollm2|weights:")


def test_to_a_real_model_no_answer_is_worse_than_any():
    golds = [
        "Yes. Reasoning: The poster skips meals because the landlord raised the rent.",
        "No. Reasoning: The post is about a football match of last weekend.",
    ]
    answers = ["Yes. Reasoning: They write that the rent went up.", "no", "Wallpaper banana? 17", "maybe so :("]
    metric = METRICS["gpt_score"](direction="ref-to-hypo")
    for gold in golds:
        *given, none = metric.row_values(metric.statistics([*answers, ""], [gold] * 5))["gpt_score_reverse"]
        assert none < min(given)
