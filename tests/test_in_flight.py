"""In-flight batching: the answers of plain ``generate``, whatever enters, leaves, fails or shares its beginning."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import answer_ids, load, run
from tiny import sample_texts, save_tokenizer

from imhi.checkpoints import Generator
from imhi.engines import Decoding, Prompt
from imhi.engines.in_flight import InFlight, Limits, Request, common_beginning, shared_prefixes, why_not_in_flight
from imhi.engines.limits import cache_bytes_per_token, plan_limits
from imhi.engines.transformers_engine import TransformersEngine
from imhi.errors import UserError

QUESTIONS = ("spiritual", "physical", "social", "emotional")


@pytest.fixture
def generator(tiny_llama: Path) -> Generator:
    return load(tiny_llama)


def prompts_with_shared_posts(posts: int) -> list[Prompt]:
    texts = sample_texts()[:posts]
    return [
        Prompt(f"{number}/{word}", f'Consider this post: "{text}" Question: Does the {word} dimension exist?')
        for number, text in enumerate(texts)
        for word in QUESTIONS[: 1 + number % len(QUESTIONS)]
    ]


def flight(generator: Generator, limits: Limits, decoding: Decoding | None = None) -> InFlight:
    ends = frozenset(generator.model.generation_config.eos_token_id)
    return InFlight(generator, decoding or Decoding(), limits, ends=ends)


def grouped(generator: Generator, prompts: list[Prompt], room: int) -> list[list[Request]]:
    encoded = [generator.tokenizer(prompt.text)["input_ids"] for prompt in prompts]
    return [
        [Request(at, encoded[at], room, prompts[at].id, prefix) for at in members]
        for members, prefix in shared_prefixes(encoded)
    ]


def answered(
    found: InFlight, groups: list[list[Request]], ends: set[int], beginning: list[int] | None = None
) -> dict[int, list[int]]:
    answers = [answer for part in found.complete(groups, beginning=beginning or []) for answer in part]
    assert len({answer.at for answer in answers}) == len(answers)
    assert all(answer.error is None for answer in answers)
    return {answer.at: [token for token in answer.ids if token not in ends] for answer in answers}


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=60), max_size=30))
def test_groups_cover_every_prompt_once_and_share_what_they_say(prompts):
    groups = shared_prefixes(prompts)
    assert sorted(at for members, _ in groups for at in members) == list(range(len(prompts)))
    longest = [max(len(prompts[at]) for at in members) for members, _ in groups]
    assert longest == sorted(longest, reverse=True)
    for members, prefix in groups:
        assert (prefix > 0) == (len(members) > 1)
        assert len({tuple(prompts[at][:prefix]) for at in members}) == 1
        assert all(prefix < len(prompts[at]) for at in members)


def test_questions_about_one_post_form_a_group():
    post = list(range(100))
    other = [7, *range(1, 90)]
    prompts = [[*post, 1, 2], other, [*post, 3], [*post, 1, 4, 5], [9] * 40]
    assert shared_prefixes(prompts) == [([3, 0, 2], 100), ([1], 0), ([4], 0)]
    assert [prefix for _, prefix in shared_prefixes([post, post])] == [99], "the last token is left to compute"
    crowd = shared_prefixes([[*post, number] for number in range(200, 250)])
    assert max(len(members) for members, _ in crowd) == 16, "a group waits for slots for all of it"


@pytest.mark.parametrize(
    "limits", [Limits(1, 4000, 1), Limits(3, 4000, 100), Limits(64, 9000, 1024), Limits(8, 700, 64, 4)]
)
def test_the_answers_are_those_of_plain_generate(generator, limits):
    prompts = prompts_with_shared_posts(14)
    expected = answer_ids(generator, prompts, 40)
    groups = grouped(generator, prompts, 40)
    assert any(len(group) > 2 and group[0].prefix > 20 for group in groups)
    found = flight(generator, limits)
    beginning = common_beginning([request.ids for group in groups for request in group])
    assert len(beginning) > 5
    ids = answered(found, groups, set(generator.model.generation_config.eos_token_id), beginning)
    assert {prompts[at].id: new for at, new in ids.items()} == expected
    assert len({len(new) for new in expected.values()}) > 3, "rows must end at different times"
    whole = sum(len(request.ids) for group in groups for request in group)
    whole -= len(beginning) * len(prompts)
    # In one slot nothing else is shared: every row reads all of its prompt.
    assert found.figures.prompt_tokens == whole if limits.slots == 1 else found.figures.prompt_tokens < 0.75 * whole


@pytest.mark.parametrize("texts", ["one post", "the same text"])
def test_what_a_group_shares_may_be_what_all_prompts_share(generator, texts):
    text = sample_texts()[0]
    questions = QUESTIONS if texts == "one post" else QUESTIONS[:1] * 3
    prompts = [Prompt(f"row {at}", f"{text} Question: {word}?") for at, word in enumerate(questions)]
    answers = run(TransformersEngine(generator, Decoding(max_new_tokens=12)), prompts)
    expected = answer_ids(generator, prompts, 12)
    assert not any(answer.error for answer in answers.values())
    assert {id: answer.new_tokens for id, answer in answers.items()} == {id: len(new) for id, new in expected.items()}


def test_fewer_slots_where_memory_has_no_room_for_all(generator, monkeypatch):
    from imhi.engines import flat_attention

    zeros = flat_attention._zeros

    def scarce_zeros(like, slots, tokens):
        if slots > 5:
            raise RuntimeError("CUDA out of memory.")
        return zeros(like, slots, tokens)

    monkeypatch.setattr(flat_attention, "_zeros", scarce_zeros)
    prompts = [Prompt("long", " ".join(sample_texts()[:8])), *prompts_with_shared_posts(9)]
    groups = grouped(generator, prompts, 20)
    found = flight(generator, Limits(16, 100_000, 256))
    ids = answered(found, groups, set(generator.model.generation_config.eos_token_id))
    assert {prompts[at].id: new for at, new in ids.items()} == answer_ids(generator, prompts, 20)
    assert found.figures.splits == [16, 8]
    # One slot at first, and no room for more when the long row is done.
    found = flight(generator, Limits(16, 1200, 256))
    assert answered(found, groups, set(generator.model.generation_config.eos_token_id)) == ids
    monkeypatch.setattr(flat_attention, "_zeros", lambda like, slots, tokens: scarce_zeros(like, slots + 5, tokens))
    with pytest.raises(UserError, match="do not fit into memory beside the model"):
        list(flight(generator, Limits(16, 1200, 256)).complete(groups))


def test_a_row_whose_logits_are_no_numbers_fails_alone_and_leaves_no_trace(generator, monkeypatch):
    prompts = prompts_with_shared_posts(9)
    expected = answer_ids(generator, prompts, 20)
    bad = prompts[3]
    place = len(generator.tokenizer(bad.text)["input_ids"]) + 2
    forward = generator.model.forward

    @functools.wraps(forward)
    def overflowing(position_ids, flat, input_ids, **options):
        found = forward(position_ids=position_ids, flat=flat, input_ids=input_ids, **options)
        for row, (position, token) in enumerate(zip(position_ids[0].tolist(), input_ids[0].tolist(), strict=True)):
            if row < flat.rows and position == place and token == expected[bad.id][2]:
                found.logits[0, row] = float("nan")
                for keys, values in flat.cache._layers.values():
                    keys[flat.slots[0] + row] = float("nan")
                    values[flat.slots[0] + row] = float("inf")
        return found

    engine = TransformersEngine(generator, Decoding(max_new_tokens=20), batch_size=3)
    monkeypatch.setattr(generator.model, "forward", overflowing)
    answers = run(engine, prompts)
    failed = [id for id, answer in answers.items() if answer.error]
    assert bad.id in failed and len(failed) <= 2
    assert "not finite" in answers[bad.id].error
    for prompt in prompts:
        if prompt.id not in failed:
            assert answers[prompt.id].new_tokens == len(expected[prompt.id]), prompt.id


def test_attention_is_given_back(generator):
    before = generator.model.config._attn_implementation
    answers = flight(generator, Limits(4, 4000, 100)).complete(grouped(generator, prompts_with_shared_posts(3), 4))
    next(answers)
    assert generator.model.config._attn_implementation != before
    answers.close()
    assert generator.model.config._attn_implementation == before


def test_slots_multiply_when_the_longest_rows_are_done(generator):
    prompts = [Prompt("long", " ".join(sample_texts()[:8])), *prompts_with_shared_posts(12)]
    groups = grouped(generator, prompts, 20)
    found = flight(generator, Limits(16, 1200, 256))
    ids = answered(found, groups, set(generator.model.generation_config.eos_token_id))
    assert {prompts[at].id: new for at, new in ids.items()} == answer_ids(generator, prompts, 20)
    assert found.figures.most_slots > 1200 // (len(groups[0][0].ids) + 20)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_packed_layers_an_answer_does_not_depend_on_its_neighbours(tiny_llama, dtype):
    from imhi.cpu import pack_linears

    generator = load(tiny_llama, dtype)
    if not pack_linears(generator.model):
        pytest.skip(f"oneDNN does not compute in {dtype} on this machine")
    prompts = prompts_with_shared_posts(14)
    groups = grouped(generator, prompts, 40)
    ends = set(generator.model.generation_config.eos_token_id)
    found = [
        answered(flight(generator, limits), groups, ends) for limits in (Limits(64, 9000, 1024), Limits(5, 9000, 60))
    ]
    assert found[0] == found[1]


def scarce(forward, most: int, log: list[int]):
    """A forward pass that has memory for `most` tokens."""

    @functools.wraps(forward)
    def limited(input_ids, **options):
        log.append(input_ids.shape[1])
        if input_ids.shape[1] > most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return forward(input_ids=input_ids, **options)

    return limited


def test_a_step_out_of_memory_is_split_and_the_run_recovers(generator, monkeypatch):
    prompts = prompts_with_shared_posts(20)
    groups = grouped(generator, prompts, 30)
    ends = set(generator.model.generation_config.eos_token_id)
    expected = answered(flight(generator, Limits(32, 40000, 1024)), groups, ends)
    longest = max(len(request.ids) for group in groups for request in group)
    log: list[int] = []
    told: list[int] = []
    monkeypatch.setattr(generator.model, "forward", scarce(generator.model.forward, longest + 20, log))
    found = flight(generator, Limits(32, 40000, 1024))
    found.on_split = told.append
    assert answered(found, groups, ends) == expected
    assert told and told == found.figures.splits
    assert max(log[log.index(max(log)) + 1 :]) > 64, "steps stay large after a split"
    found._steps_since_split, found._prompt_tokens = 10**6, 64
    assert answered(found, groups[:2], ends) == {
        at: expected[at] for group in groups[:2] for at in (r.at for r in group)
    }
    assert found._prompt_tokens > 64, "half a step's prompts, but not for ever"


@pytest.mark.parametrize("later", [False, True])
def test_a_failing_row_costs_no_other_row(generator, monkeypatch, later):
    """While its prompt is read, beside the rows of its own post, or in the middle of its answer."""
    prompts = prompts_with_shared_posts(12)
    expected = answer_ids(generator, prompts, 30)
    bad = next(prompt for prompt in prompts if prompt.id.endswith("physical") and len(expected[prompt.id]) > 9)
    ids = generator.tokenizer(bad.text)["input_ids"]
    forward = generator.model.forward
    sibling = generator.tokenizer(bad.text.replace("physical", "spiritual"))["input_ids"]
    tail = ids[next(at for at, pair in enumerate(zip(ids, sibling, strict=False)) if pair[0] != pair[1]) :]

    @functools.wraps(forward)
    def picky(input_ids, position_ids, flat, **options):
        line = input_ids[0].tolist()
        read = any(line[at : at + len(tail)] == tail for at in range(len(line)))
        place = len(ids) + 5
        mid = any(
            token == expected[bad.id][5] and position == place
            for token, position in zip(line[: flat.rows], position_ids[0].tolist(), strict=False)
        )
        if mid if later else read:
            raise RuntimeError("device-side assert\nsecond line")
        return forward(input_ids=input_ids, position_ids=position_ids, flat=flat, **options)

    # The check at the start calls the model without `flat`.
    engine = TransformersEngine(generator, Decoding(max_new_tokens=30), batch_size=16)
    monkeypatch.setattr(generator.model, "forward", picky)
    answers = run(engine, prompts)
    failed = [id for id, answer in answers.items() if answer.error]
    if later:
        assert bad.id in failed and len(failed) <= 2, "a token and a position may meet twice"
    else:
        # What follows the shared part is the same about every post.
        assert sorted(failed) == sorted(prompt.id for prompt in prompts if prompt.id.endswith("physical"))
    assert answers[bad.id].error == "RuntimeError: device-side assert"
    assert len(answers) == len(prompts)
    for prompt in prompts:
        if prompt.id not in failed:
            text = generator.tokenizer.decode(expected[prompt.id], skip_special_tokens=True).strip()
            assert answers[prompt.id].text == text


def test_draws_belong_to_the_row(generator):
    prompts = prompts_with_shared_posts(8)
    decoding = Decoding(max_new_tokens=12, do_sample=True, seed=3, temperature=1.3, top_k=50, top_p=0.9)
    groups = grouped(generator, prompts, 12)
    ends = set(generator.model.generation_config.eos_token_id)
    found = [
        answered(flight(generator, limits, decoding), groups, ends)
        for limits in (Limits(64, 9000, 1024), Limits(2, 9000, 60))
    ]
    assert found[0] == found[1]
    assert found[0] != answered(
        flight(generator, Limits(64, 9000, 1024), Decoding(do_sample=True, seed=4)), groups, ends
    )


def test_draws_follow_the_models_probabilities(generator):
    """8,000 first tokens of one prompt, drawn with top-k and temperature, against the softmax that they come from."""
    import torch

    prompt = sample_texts()[0]
    ids = generator.tokenizer(prompt)["input_ids"]
    with torch.inference_mode():
        logits = generator.model(input_ids=torch.tensor([ids])).logits[0, -1]
    kept = torch.topk(logits / 3.0, 8)
    expected = dict(zip(kept.indices.tolist(), kept.values.softmax(0).tolist(), strict=True))
    decoding = Decoding(do_sample=True, temperature=3.0, top_k=8, seed=1)
    requests = [[Request(at, ids, 1, f"row {at}")] for at in range(8000)]
    found = flight(generator, Limits(2000, 10**7, 10**6), decoding)
    drawn = Counter(answer.ids[0] for part in found.complete(requests) for answer in part)
    assert set(drawn) == set(expected)
    statistic = sum((drawn[token] - 8000 * share) ** 2 / (8000 * share) for token, share in expected.items())
    assert statistic < 24.3, "chi-square with 7 degrees of freedom, 0.1 %"


def small(kind: str, folder: Path) -> Generator:
    """A tiny model of another architecture, its attention window shorter than the prompts where it has one."""
    import torch
    import transformers

    save_tokenizer(folder, specials={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    shape = {"vocab_size": 640, "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.4}
    llama = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    own = {
        "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
        "OPT": {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "max_position_embeddings": 512, "init_std": 0.4, "pad_token_id": 1},
        "Mistral": {**llama, "num_key_value_heads": 2, "sliding_window": 24},
        "Qwen2": {**llama, "num_key_value_heads": 2},
        "Gemma3": {**llama, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 24,
                   "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        "GPTNeoX": llama,
        "Phi": llama,
        "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    }  # fmt: skip
    torch.manual_seed(0)
    config = {"Gemma3": "Gemma3TextConfig"}.get(kind, f"{kind}Config")
    model = {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM")
    made = getattr(transformers, model)(getattr(transformers, config)(**{**shape, **own[kind]}))
    made.save_pretrained(str(folder))
    return load(folder)


@pytest.mark.parametrize("kind", ["GPT2", "OPT", "Mistral", "Qwen2", "Gemma3", "GPTNeoX", "Phi"])
def test_other_architectures_answer_in_flight_as_generate_does(kind, tmp_path):
    generator = small(kind, tmp_path)
    assert why_not_in_flight(generator) is None
    prompts = prompts_with_shared_posts(6)
    assert max(len(generator.tokenizer(prompt.text)["input_ids"]) for prompt in prompts) > 60
    engine = TransformersEngine(generator, Decoding(max_new_tokens=30), batch_size=5)
    assert engine.batching == "in-flight"
    expected = answer_ids(generator, prompts, 30)
    answers = run(engine, prompts)
    for prompt in prompts:
        text = generator.tokenizer.decode(expected[prompt.id], skip_special_tokens=True).strip()
        assert (answers[prompt.id].text, answers[prompt.id].new_tokens) == (text, len(expected[prompt.id])), prompt.id


def test_what_cannot_answer_in_flight_says_so_and_answers_in_batches(tmp_path, capsys, tiny_bart):
    """BLOOM adds its positions to the scores, where another attention would lose them."""
    generator = small("Bloom", tmp_path)
    reason = why_not_in_flight(generator)
    assert reason is not None
    engine = TransformersEngine(generator, Decoding(max_new_tokens=8))
    assert engine.batching == "buckets"
    assert engine.describe()["batch_plan"]["batching"] == "buckets"
    assert reason in capsys.readouterr().err
    prompts = prompts_with_shared_posts(4)
    expected = answer_ids(generator, prompts, 8)
    answers = run(engine, prompts)
    assert {id: answer.new_tokens for id, answer in answers.items()} == {id: len(new) for id, new in expected.items()}
    with pytest.raises(UserError, match="--batching in-flight: this model cannot"):
        TransformersEngine(generator, Decoding(), batching="in-flight")
    TransformersEngine(load(tiny_bart), Decoding())
    assert not capsys.readouterr().err, "an encoder-decoder is as it should be"


def test_positions_that_turn_by_the_longest_row_are_refused(generator, monkeypatch):
    monkeypatch.setattr(generator.model.config, "rope_parameters", {"rope_type": "longrope"})
    assert "longest row" in why_not_in_flight(generator)


def test_a_window_that_attention_is_not_told_is_refused(generator, monkeypatch):
    monkeypatch.setattr(generator.model.config, "sliding_window", 24, raising=False)
    assert "window" in why_not_in_flight(generator)


def test_a_model_whose_attention_is_not_what_it_seems_is_found_out(generator, monkeypatch):
    from transformers.models.llama import modeling_llama

    attention = modeling_llama.LlamaAttention.forward

    def shifted(self, hidden_states, **options):
        if options.get("flat") is not None:
            hidden_states = hidden_states.roll(1, dims=1)
        return attention(self, hidden_states, **options)

    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", shifted)
    assert "logits come out differently" in why_not_in_flight(generator)


def test_limits_on_a_gpu_come_from_a_trial_with_the_longest_rows(generator, capsys):
    from dataclasses import replace

    on_gpu = replace(generator, device="cuda:0")
    prompts = [[1] * length for length in (50, 900, 700, 300)]
    per_token = cache_bytes_per_token(generator.model.config, 4)
    assert per_token == 2 * 2 * 2 * 8 * 4
    limits = plan_limits(on_gpu, prompts, free_memory=lambda: 10**6, peak_memory=lambda work: (per_token, 10**5))
    assert limits == Limits(256, int(0.9 * (10**6 - 1.25 * 10**5)) // per_token, 8192, 16, 4096)
    assert "cuda:0: up to 256 rows" in capsys.readouterr().err
    assert (
        plan_limits(on_gpu, prompts, batch_size=3, free_memory=lambda: 10**6, peak_memory=lambda work: (9, 0)).slots
        == 3
    )
    trials = []

    def too_small(work):
        trials.append(work)
        if len(trials) < 3:
            raise RuntimeError("CUDA out of memory.")
        return per_token, 0

    assert plan_limits(on_gpu, prompts, free_memory=lambda: 10**6, peak_memory=too_small).prompt_tokens == 2048

    def never(work):
        raise RuntimeError("CUDA out of memory.")

    with pytest.raises(UserError, match="cuda:0: not one prompt fits into memory"):
        plan_limits(on_gpu, prompts, free_memory=lambda: 10**6, peak_memory=never)


def test_the_trial_reads_what_it_is_given(generator):
    on_cpu = plan_limits(generator, [[1, 2]], free_memory=lambda: 10**12)
    assert on_cpu.free_slots == 1
    from imhi.engines.in_flight import read_only

    assert read_only(generator, [[5, 6, 7], [8, 9]]) == cache_bytes_per_token(generator.model.config, 4)


def test_few_tokens_fit_where_the_host_has_little_memory(generator):
    per_token = cache_bytes_per_token(generator.model.config, 4)
    assert plan_limits(generator, [[1]], free_memory=lambda: 40 * per_token).cache_tokens == 10


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=12))
def test_a_benchmark_may_set_the_length_of_each_answer(tiny_llama, lengths):
    generator = load(tiny_llama)
    prompts = [Prompt(f"DR/{at}", text) for at, text in enumerate(sample_texts()[: len(lengths)])]
    wanted = {prompt.id: length for prompt, length in zip(prompts, lengths, strict=True)}
    for batching in ("in-flight", "buckets"):
        engine = TransformersEngine(generator, Decoding(), batching=batching, answer_lengths=wanted)
        answers = run(engine, prompts)
        assert {id: answer.new_tokens for id, answer in answers.items()} == wanted
