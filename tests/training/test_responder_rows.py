"""Which rows a responder learns from, how they are mixed, and how they become token ids."""

import csv
import math
from dataclasses import replace

import pytest

from imhi.benchmark import DATASETS, FORMS, gold_answer, query, question
from imhi.checkpoints import load_generator, locate_generator
from imhi.data import DataRoot, samples_root
from imhi.engines import Decoding, Prompt
from imhi.engines.transformers_engine import TransformersEngine
from imhi.errors import UserError
from imhi.training.responder.encoding import IGNORED, Encoded, collate, encode
from imhi.training.responder.mixture import plan_batches, rows_per_epoch
from imhi.training.responder.rows import TrainingRow, in_test_form, read_training_rows


def write(path, rows, columns=("query", "gpt-3.5-turbo")):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(columns)
        writer.writerows(rows)


def row(name, label, post, explanation="The poster says so.", form="instruction", aspect=None):
    dataset = DATASETS[name]
    asked = query(dataset, form, post, dataset.aspects[0] if aspect is None else aspect)
    return asked, gold_answer(dataset.label_named(label), form, explanation)


def a_root(folder, train, test=(), name="SAD", form="instruction", val=()):
    below = {"instruction": "instruction_data", "completion": "complete_data"}[form]
    if train:
        write(folder / f"train_data/{below}/{name}/train.csv", train)
    if val:
        write(folder / f"train_data/{below}/{name}/val.csv", val)
    if test:
        write(folder / f"test_data/test_instruction/{name}.csv", test)
    return DataRoot(folder, "test")


# --- rows -----------------------------------------------------------------------------------------------------------


def test_posts_and_explanations_of_test_files_are_not_learned_from(tmp_path):
    root = a_root(
        tmp_path,
        [
            row("SAD", "work", "the shift plan changed again"),
            row("SAD", "work", "The shift plan, changed AGAIN!!", "Another reading of it."),
            row("SAD", "school", "exam on monday", "The exam is what weighs on them."),
            row("SAD", "school", "a new post about an essay", "An essay is due."),
        ],
        test=[
            row("SAD", "work", "the shift plan changed again", "Held out."),
            row("SAD", "school", "nothing alike", "The exam is  what weighs on THEM."),
        ],
    )
    rows = read_training_rows(root, "instruction")
    kept = [*rows.training.get("SAD", []), *rows.validation.get("SAD", [])]
    assert [one.label for one in kept] == ["school"]
    assert rows.left_out == {"leaked": {"SAD": 2}, "explained": {"SAD": 1}}


def test_a_post_that_is_asked_twice_counts_once_and_other_aspects_are_other_questions(tmp_path):
    write(
        tmp_path / "train_data/instruction_data/MultiWD/train.csv",
        [
            row("MultiWD", "yes", "we sang in the old chapel", "One.", aspect="spiritual"),
            row("MultiWD", "no", "We sang in the old chapel.", "Two.", aspect="spiritual"),
            row("MultiWD", "no", "we sang in the old chapel", "Three.", aspect="physical"),
        ],
    )
    write(
        tmp_path / "train_data/instruction_data/MultiWD/val.csv",
        [
            row("MultiWD", "no", "we sang in the old chapel", "Four.", aspect="social"),
            row("MultiWD", "no", "a walk along the canal", "Five.", aspect="social"),
        ],
    )
    rows = read_training_rows(DataRoot(tmp_path, "test"), "instruction")
    assert [one.aspect for one in rows.training["MultiWD"]] == ["spiritual", "physical"]
    assert [one.query for one in rows.validation["MultiWD"]] == [
        query(DATASETS["MultiWD"], "instruction", "a walk along the canal", "social")
    ]
    assert rows.left_out == {"repeated": {"MultiWD": 1}, "in training": {"MultiWD": 1}}


def test_a_set_with_one_file_alone_gives_a_tenth_of_its_posts_for_validation(tmp_path):
    rows_of = [row("SAD", "work", f"post number {at} about the job", f"Because {at}.") for at in range(300)]
    write(tmp_path / "train_data/instruction_data/SAD/val.csv", rows_of)
    rows = read_training_rows(DataRoot(tmp_path, "test"), "instruction")
    assert len(rows.training["SAD"]) + len(rows.validation["SAD"]) == 300
    assert 10 <= len(rows.validation["SAD"]) <= 60


def test_completion_prompts_are_spaced_as_the_test_files_have_them(tmp_path):
    dataset = DATASETS["DR"]
    stem = question(dataset, "completion")
    write(
        tmp_path / "train_data/complete_data/DR/reddit_train.csv",
        [("Post: i sleep all day", f" Question: {stem.strip()}", "yes. Reasoning: Sleeping all day points to it.")],
        columns=("post", "question", "response"),
    )
    rows = read_training_rows(DataRoot(tmp_path, "test"), "completion")
    assert rows.training["DR"][0].query == FORMS["completion"].format(post="i sleep all day", question=stem)
    assert "  Question:" in rows.training["DR"][0].query and rows.training["DR"][0].query.endswith("is ")


def test_untidy_heads_are_spelled_as_in_the_table_and_mojibake_is_repaired(tmp_path):
    broken = "It’s plain".encode().decode("mac_roman")
    write(
        tmp_path / "train_data/complete_data/Irf/train.csv",
        [
            (
                "Post: nobody would mind",
                " Question: " + question(DATASETS["Irf"], "completion", DATASETS["Irf"].aspects[0]),
                f"yes, the post does show the risk. Reasoning: {broken}.",
            )
        ],
        columns=("post", "question", "response"),
    )
    (only,) = read_training_rows(DataRoot(tmp_path, "test"), "completion").training["Irf"]
    assert only.answer == gold_answer(DATASETS["Irf"].label_named("yes"), "completion", "It’s plain.")


def test_a_query_of_another_form_is_refused_with_file_and_row(tmp_path):
    path = tmp_path / "train_data/instruction_data/SAD/train.csv"
    write(path, [row("SAD", "work", "a post"), ("Tell me about work.", row("SAD", "work", "x")[1])])
    with pytest.raises(UserError, match=r"train\.csv, row 2: the query is not of the instruction form of SAD"):
        read_training_rows(DataRoot(tmp_path, "test"), "instruction")


def test_made_up_rows_stand_in_only_where_the_root_has_no_training_file(tmp_path):
    root = a_root(tmp_path, [row("SAD", "work", f"the job, part {at}", f"Because {at}.") for at in range(5)])
    rows = read_training_rows(
        root, "instruction", datasets=["SAD", "CAMS"], made_up=DataRoot(samples_root(), "samples")
    )
    assert {name: found[0].made_up for name, found in rows.training.items()} == {"SAD": False, "CAMS": True}
    assert any(path.startswith("made-up/") for path in rows.files)
    assert "CAMS" not in read_training_rows(root, "instruction").training


def test_a_root_without_training_files_is_refused(tmp_path):
    with pytest.raises(UserError, match="no training rows of DR"):
        read_training_rows(DataRoot(tmp_path, "test"), "instruction", datasets=["DR"])


def test_every_released_training_row_is_in_the_published_form(real_data):
    for form in FORMS:
        rows = read_training_rows(DataRoot(real_data, "test"), form)
        assert set(rows.training) == {"DR", "dreaddit", "SAD", "MultiWD", "Irf"}
        assert rows.left_out["leaked"]["MultiWD"] > 400
        for found in rows.training.values():
            for one in found:
                assert in_test_form(DATASETS[one.dataset], form, one.query) == (one.aspect, one.query)


# --- the mixture ----------------------------------------------------------------------------------------------------


def test_temperature_draws_by_a_root_of_the_sizes():
    sizes = {"a": 900, "b": 100}
    assert rows_per_epoch(sizes, 1) == sizes
    assert rows_per_epoch(sizes, 2) == {"a": 750, "b": 250}
    assert rows_per_epoch(sizes, math.inf, 10) == {"a": 5, "b": 5}
    assert sum(rows_per_epoch({"a": 7, "b": 5, "c": 3}, 3.3, 1001).values()) == 1001


def test_at_temperature_one_every_row_comes_once_an_epoch():
    lengths = {"a": list(range(1, 41)), "b": [50] * 8}
    batches = plan_batches(lengths, batch_size=8, epochs=3, temperature=1, seed=0)
    assert [len(batch) for batch in batches] == [8] * 18
    for epoch in range(3):
        drawn = [one for batch in batches[6 * epoch : 6 * epoch + 6] for one in batch]
        assert sorted(drawn) == [("a", at) for at in range(40)] + [("b", at) for at in range(8)]


def test_thinned_and_repeated_sets_go_on_where_they_stopped():
    batches = plan_batches(
        {"large": [9] * 900, "small": [9] * 10}, batch_size=10, epochs=2, temperature=math.inf, seed=1, rows=100
    )
    large = [row for batch in batches for name, row in batch if name == "large"]
    small = [row for batch in batches for name, row in batch if name == "small"]
    assert len(set(large)) == len(large) == 100
    assert all(small.count(row) == 10 for row in range(10))


def test_the_plan_is_a_function_of_the_seed_and_begins_with_the_longest_batch():
    lengths = {"a": [(at * 37) % 500 + 1 for at in range(200)]}
    plans = [plan_batches(lengths, batch_size=4, epochs=1, temperature=1, seed=seed) for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]
    tokens = [[lengths[name][row] for name, row in batch] for batch in plans[0]]
    assert max(tokens[0]) == max(map(max, tokens))
    assert max(max(batch) - min(batch) for batch in tokens) < 60  # of like lengths


# --- token ids ------------------------------------------------------------------------------------------------------


def engine_of(folder, **decoding):
    import torch

    generator = load_generator(locate_generator(str(folder)), device="cpu", dtype=torch.float32)
    return TransformersEngine(generator, Decoding(**decoding), batching="buckets")


def a_training_row(form="instruction", name="DR"):
    asked, answer = row(name, "yes", "i can't get up \\ at all", 'It\'s the "heaviness".', form)
    return TrainingRow(name, "", asked, answer, "yes")


@pytest.mark.parametrize("form", FORMS)
def test_prompt_and_answer_are_what_generation_gives_and_gets(smollm2, form):
    """Real SmolLM2: the prompt's ids are generation's own, and the answer's ids decode to the answer."""
    engine = TransformersEngine(smollm2, Decoding(), batching="buckets")
    learned = encode(a_training_row(form), engine, max_tokens=1024)
    assert learned.prompt == engine.prompt_token_ids(Prompt("", a_training_row(form).query))
    assert learned.answer[-1] == smollm2.tokenizer.eos_token_id
    text = smollm2.tokenizer.decode(learned.answer, skip_special_tokens=True)
    assert text.strip() == a_training_row(form).answer
    head = smollm2.tokenizer.decode(learned.answer[: learned.head]).strip()
    assert head == a_training_row(form).answer.partition(" Reasoning:")[0]


def test_in_the_chat_template_the_answer_is_the_assistants_turn(smollm2):
    engine = TransformersEngine(smollm2, Decoding(chat_template=True), batching="buckets")
    one = a_training_row()
    learned = encode(one, engine, max_tokens=1024)
    turns = [{"role": "user", "content": one.query}, {"role": "assistant", "content": one.answer}]
    whole = smollm2.tokenizer.apply_chat_template(turns, tokenize=False)
    ids = smollm2.tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert ids[: len(learned)] == learned.prompt + learned.answer


def test_encoder_decoder_heads_begin_behind_the_decoders_own_token(tiny_bart, tiny_t5):
    for folder, lead in ((tiny_bart, 1), (tiny_t5, 0)):
        engine = engine_of(folder)
        learned = encode(a_training_row("completion"), engine, max_tokens=512)
        tokenizer = engine.generator.tokenizer
        assert tokenizer.decode(learned.answer[lead : learned.head]).strip() == "yes."
        assert learned.answer[-1] == tokenizer.eos_token_id


def test_a_long_prompt_loses_its_middle_and_keeps_post_and_question(smollm2):
    engine = TransformersEngine(smollm2, Decoding(), batching="buckets")
    one = a_training_row()
    long = replace(one, query=query(DATASETS["DR"], "instruction", "so tired " * 300))
    learned = encode(long, engine, max_tokens=200)
    assert len(learned) == 200 and learned.cut > 300
    text = smollm2.tokenizer.decode(learned.prompt)
    assert text.startswith('Consider this post: "so tired') and text.endswith("Does the poster suffer from depression?")


def test_batches_put_causal_answers_in_the_last_columns():
    rows = [Encoded([5, 6, 7], [8, 9], 1), Encoded([5], [8, 9, 3, 2], 2)]
    batch = collate(rows, pad=0, kind="causal", head_weight=4.0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [5, 8, 9, 3, 2]]
    assert batch["labels"].tolist() == [[IGNORED, IGNORED, 8, 9], [8, 9, 3, 2]]
    assert batch["weights"].tolist() == [[0, 0, 4, 1], [4, 4, 1, 1]]
    batch = collate(rows, pad=0, kind="seq2seq", head_weight=4.0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [5, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[8, 9, IGNORED, IGNORED], [8, 9, 3, 2]]


def test_the_loss_is_the_weighted_mean_that_transformers_computes_row_by_row(smollm2):
    import torch

    from imhi.training.responder.loss import answer_logits, answer_loss

    engine = TransformersEngine(smollm2, Decoding(), batching="buckets")
    rows = [
        encode(a_training_row(), engine, max_tokens=512),
        encode(a_training_row(name="dreaddit"), engine, max_tokens=512),
    ]
    rows[1] = Encoded(rows[1].prompt[:20], rows[1].answer[:9], 4)
    batch = collate(rows, pad=0, kind="causal", head_weight=3.0)
    with torch.no_grad():
        together = answer_loss(answer_logits(smollm2.model, batch, kind="causal"), batch["labels"], batch["weights"])
        total = weight = 0.0
        for one in rows:
            ids = torch.tensor([[*one.prompt, *one.answer]])
            logits = smollm2.model(input_ids=ids).logits[0, len(one.prompt) - 1 : -1]
            losses = torch.nn.functional.cross_entropy(logits, torch.tensor(one.answer), reduction="none")
            weights = torch.tensor([3.0] * one.head + [1.0] * (len(one.answer) - one.head))
            total, weight = total + float((losses * weights).sum()), weight + float(weights.sum())
    assert float(together) == pytest.approx(total / weight, rel=1e-5)
