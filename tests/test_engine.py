"""The transformers engine: real SmolLM2 on real rows, tiny BART and T5, batch independence, limits, failures."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from tiny import sample_texts, save_bart, save_llama

from imhi.checkpoints import Generator, load_generator, locate_generator
from imhi.commands import run_script
from imhi.data import load_suite, resolve_data_root, samples_root
from imhi.engines import ENGINES, Completion, Decoding, Prompt
from imhi.engines.transformers_engine import TransformersEngine
from imhi.errors import UserError


def load(folder: Path, dtype: str = "float32") -> Generator:
    import torch

    return load_generator(locate_generator(str(folder)), device="cpu", dtype=getattr(torch, dtype))


def made_up_prompts(count: int) -> list[Prompt]:
    return [Prompt(f"DR/{index}", text) for index, text in enumerate(sample_texts()[:count])]


def run(engine: TransformersEngine, prompts: list[Prompt], done: frozenset[str] = frozenset()) -> dict[str, Completion]:
    return {completion.id: completion for group in engine.complete(prompts, done=done) for completion in group}


def answer_ids(generator: Generator, prompts: list[Prompt], limit: int) -> dict[str, list[int]]:
    """New token ids by plain ``generate``, one row at a time, no padding: what batching must reproduce."""
    import torch

    ids = {}
    for prompt in prompts:
        inputs = generator.tokenizer(prompt.text, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            output = generator.model.generate(**inputs, max_new_tokens=limit)[0].tolist()
        new = output[inputs["input_ids"].shape[1] :] if generator.kind == "causal" else output[1:]
        ends = generator.model.generation_config.eos_token_id
        ids[prompt.id] = new[: next((at for at, token in enumerate(new) if token in ends), len(new))]
    return ids


class DecodeSpy:
    """Keeps the token ids that the engine decodes, in order."""

    def __init__(self, generator: Generator, monkeypatch: pytest.MonkeyPatch):
        self.seen: list[list[int]] = []
        decode = generator.tokenizer.decode

        def spy(ids, **options):
            self.seen.append(list(ids))
            return decode(ids, **options)

        monkeypatch.setattr(generator.tokenizer, "decode", spy)


def ids_by_row(
    engine: TransformersEngine, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> dict[str, list[int]]:
    with monkeypatch.context() as patch:
        spy = DecodeSpy(engine.generator, patch)
        ids = {}
        for group in engine.complete(prompts):
            ids.update(zip((completion.id for completion in group), spy.seen[-len(group) :], strict=True))
    return ids


def test_smollm2_answers_real_rows_the_same_at_any_batch_size(smollm2, real_data, monkeypatch):
    suite = load_suite(resolve_data_root(real_data), "IMHI", limit=1)
    prompts = [Prompt(row.id, row.query) for row in suite.rows]
    assert len(prompts) == 8
    expected = answer_ids(smollm2, prompts, 24)
    for batch_size in (1, 3, 8):
        engine = TransformersEngine(smollm2, Decoding(max_new_tokens=24), batch_size=batch_size)
        assert ids_by_row(engine, prompts, monkeypatch) == expected, batch_size
    assert len({tuple(ids) for ids in expected.values()}) > 3


@pytest.mark.parametrize("batching", [None, "buckets"])
@pytest.mark.parametrize("model", ["tiny_llama", "tiny_bart", "tiny_t5"])
def test_tiny_models_answer_as_plain_generate_does(model, batching, request, monkeypatch):
    generator = load(request.getfixturevalue(model))
    prompts = made_up_prompts(20)
    expected = answer_ids(generator, prompts, 50)
    # Longer than generate's default of 20 tokens, or this would not show an answer that is cut.
    assert max(len(ids) for ids in expected.values()) == 50
    for batch_size in (1, 3, None):
        engine = TransformersEngine(generator, Decoding(max_new_tokens=50), batch_size=batch_size, batching=batching)
        assert ids_by_row(engine, prompts, monkeypatch) == expected, (model, batch_size)


@pytest.mark.parametrize("model", ["tiny_bart", "tiny_t5"])
def test_encoder_decoders_answer_200_real_rows_as_plain_generate_does(model, request, real_data, monkeypatch):
    generator = load(request.getfixturevalue(model))
    suite = load_suite(resolve_data_root(real_data), "IMHI-completion", limit=60)
    fitting = [row for row in suite.rows if len(generator.tokenizer(row.query)["input_ids"]) <= 256]
    prompts = [Prompt(row.id, row.query) for row in fitting[:: max(1, len(fitting) // 200)]][:200]
    assert len(prompts) == 200
    engine = TransformersEngine(generator, Decoding(max_new_tokens=16))
    assert engine.batching == "buckets"
    assert ids_by_row(engine, prompts, monkeypatch) == answer_ids(generator, prompts, 16)


def test_decoding_settings_of_the_checkpoint_do_not_bend_the_greedy_answer(tmp_path):
    """bart-large-cnn carries beams, a minimal length and an n-gram ban; the answer stays the arg-max one."""
    import torch

    generator = load(save_bart(tmp_path))
    prompt = made_up_prompts(1)[0]
    completion = run(TransformersEngine(generator, Decoding(max_new_tokens=30), batch_size=1), [prompt])[prompt.id]
    source = generator.tokenizer(prompt.text, return_tensors="pt")["input_ids"]
    decoded = torch.tensor([[2]])
    with torch.inference_mode():
        for _ in range(30):
            logits = generator.model(input_ids=source, decoder_input_ids=decoded).logits
            decoded = torch.cat([decoded, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    new = decoded[0, 1:].tolist()
    new = new[: next((at for at, token in enumerate(new) if token == 2), len(new))]
    assert completion.text == generator.tokenizer.decode(new, skip_special_tokens=True).strip()
    assert completion.new_tokens == len(new)


def test_long_prompts_are_cut_and_counted_for_encoder_decoders(tiny_bart, tiny_t5):
    prompts = [Prompt("DR/0", "nobody asked me how the week went " * 80), Prompt("DR/1", "fine")]
    cut = run(TransformersEngine(load(tiny_bart), Decoding(max_new_tokens=4), batch_size=2), prompts)
    assert (cut["DR/0"].prompt_truncated, cut["DR/0"].prompt_tokens) == (True, 256)
    assert not cut["DR/1"].prompt_truncated
    assert cut["DR/0"].error is None
    engine = TransformersEngine(load(tiny_bart), Decoding(), batch_size=2)
    ids, _ = engine._fit(engine.prompt_token_ids(prompts[0]))
    assert ids[-1] == 2, "the closing token is kept"
    whole = run(TransformersEngine(load(tiny_t5), Decoding(max_new_tokens=4), batch_size=2), prompts)
    assert not whole["DR/0"].prompt_truncated
    assert whole["DR/0"].prompt_tokens > 512


def test_a_prompt_without_room_fails_alone(tiny_llama):
    prompts = [Prompt("DR/0", "nobody asked me how the week went " * 200), Prompt("DR/1", "a quiet evening")]
    answers = run(TransformersEngine(load(tiny_llama), Decoding(max_new_tokens=4), batch_size=2), prompts)
    assert answers["DR/0"].finish_reason == "no_room"
    assert "leave no room" in answers["DR/0"].error
    assert "context 1024" in answers["DR/0"].error
    assert answers["DR/1"].error is None


def test_max_length_bounds_prompt_and_answer(tiny_llama):
    generator = load(tiny_llama)
    prompts = made_up_prompts(12)
    lengths = {p.id: len(generator.tokenizer(p.text)["input_ids"]) for p in prompts}
    limit = max(lengths.values()) + 5
    answers = run(TransformersEngine(generator, Decoding(max_new_tokens=40, max_length=limit), batch_size=4), prompts)
    unbounded = run(TransformersEngine(generator, Decoding(max_new_tokens=40), batch_size=4), prompts)
    for id, answer in answers.items():
        assert answer.prompt_tokens + answer.new_tokens <= limit
        if unbounded[id].finish_reason == "stop" and lengths[id] + unbounded[id].new_tokens < limit:
            assert answer == unbounded[id]
    assert any(answer.finish_reason == "length" for answer in answers.values())


def test_a_batch_out_of_memory_is_split_and_gives_the_same_answers(tiny_llama, monkeypatch):
    generator = load(tiny_llama)
    prompts = made_up_prompts(10)
    expected = run(TransformersEngine(generator, Decoding(max_new_tokens=8), batch_size=1), prompts)
    generate = generator.model.generate

    def scarce(input_ids, **options):
        if input_ids.shape[0] > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return generate(input_ids=input_ids, **options)

    monkeypatch.setattr(generator.model, "generate", scarce)
    engine = TransformersEngine(generator, Decoding(max_new_tokens=8), batch_size=8, batching="buckets")
    assert run(engine, prompts) == expected
    assert engine.describe()["batch_plan"]["split_on_memory"] == [8, 4, 4]


def test_a_failing_row_is_recorded_and_costs_no_other_row(tiny_llama, monkeypatch):
    generator = load(tiny_llama)
    prompts = made_up_prompts(8)
    bad = generator.tokenizer(prompts[3].text)["input_ids"][-6:]
    generate = generator.model.generate

    def picky(input_ids, **options):
        if any(row[-6:] == bad for row in input_ids.tolist()):
            raise RuntimeError("device-side assert\nsecond line")
        return generate(input_ids=input_ids, **options)

    monkeypatch.setattr(generator.model, "generate", picky)
    engine = TransformersEngine(generator, Decoding(max_new_tokens=8), batch_size=8, batching="buckets")
    answers = run(engine, prompts)
    assert [id for id, answer in answers.items() if answer.error] == [prompts[3].id]
    assert answers[prompts[3].id].error == "RuntimeError: device-side assert"
    assert len(answers) == 8


@pytest.mark.parametrize("batching", ["in-flight", "buckets"])
def test_done_rows_are_not_generated_again_and_the_rest_is_unchanged(tiny_llama, batching):
    prompts = made_up_prompts(12)
    generator = load(tiny_llama, "bfloat16")

    def engine() -> TransformersEngine:
        return TransformersEngine(generator, Decoding(max_new_tokens=16), batch_size=5, batching=batching)

    whole = run(engine(), prompts)
    done = frozenset(list(whole)[:7])
    rest = run(engine(), prompts, done)
    assert set(rest) == set(whole) - done
    assert all(rest[id] == whole[id] for id in rest)


@pytest.mark.parametrize("batching", ["in-flight", "buckets"])
def test_sampling_is_seeded(tiny_llama, batching):
    prompts = made_up_prompts(6)
    generator = load(tiny_llama)

    def engine(seed: int) -> TransformersEngine:
        decoding = Decoding(max_new_tokens=12, do_sample=True, seed=seed)
        return TransformersEngine(generator, decoding, batch_size=3, batching=batching)

    sampled = [run(engine(seed), prompts) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1]
    assert sampled[0] != sampled[2]
    done = frozenset(list(sampled[0])[:2])
    rest = run(engine(1), prompts, done)
    assert all(rest[id] == sampled[0][id] for id in rest)
    assert len(rest) == 4


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_t5"])
def test_deterministic_takes_every_row_by_itself(model, request, monkeypatch):
    generator = load(request.getfixturevalue(model), "bfloat16")
    prompts = made_up_prompts(9)
    sizes = []
    forward = generator.model.forward

    @functools.wraps(forward)
    def spy(*positional, **options):
        sizes.append(options["flat"].rows + len(options["flat"].segments) if "flat" in options else 1)
        if "encoder_outputs" in options:
            sizes.append(options["encoder_outputs"][0].shape[0])
        return forward(*positional, **options)

    engine = TransformersEngine(generator, Decoding(max_new_tokens=20), deterministic=True)
    monkeypatch.setattr(generator.model, "forward", spy)
    whole = run(engine, prompts)
    # A row alone is computed twice over, so that no product has a single row.
    assert max(sizes) <= 2
    assert run(engine, prompts[::-1]) == whole
    assert engine.describe()["batch_plan"]["deterministic"] is True
    for prompt in prompts:
        alone = TransformersEngine(generator, Decoding(max_new_tokens=20), deterministic=True)
        assert run(alone, [prompt]) == {prompt.id: whole[prompt.id]}


def test_chat_template_is_applied_once_and_only_when_asked(smollm2, tiny_llama):
    prompt = Prompt("DR/0", "hello there")
    raw = TransformersEngine(smollm2, Decoding(), batch_size=1).prompt_token_ids(prompt)
    assert smollm2.tokenizer.decode(raw) == "hello there"
    chat = TransformersEngine(smollm2, Decoding(chat_template=True), batch_size=1).prompt_token_ids(prompt)
    text = smollm2.tokenizer.decode(chat)
    assert text.count("<|im_start|>user\nhello there<|im_end|>") == 1
    assert text.endswith("<|im_start|>assistant\n")
    with pytest.raises(UserError, match="no chat template"):
        TransformersEngine(load(tiny_llama), Decoding(chat_template=True), batch_size=1)


def test_doubled_bos_is_dropped(tmp_path):
    from tiny import save_tokenizer

    folder = save_llama(tmp_path)
    save_tokenizer(
        folder, specials={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, template="<s> <s> $A </s>"
    )
    engine = TransformersEngine(load(folder), Decoding(), batch_size=1)
    ids = engine.prompt_token_ids(Prompt("DR/0", "hello there"))
    assert ids.count(0) == 1
    assert ids[-1] != 1, "a closing token would tell the model that the prompt is over"


@pytest.mark.parametrize("batching", ["in-flight", "buckets"])
def test_a_table_of_positions_is_not_overrun(tmp_path, batching):
    """GPT-2 looks positions up in a table: a row near its end must not be carried past it by its neighbours."""
    import torch
    from tiny import save_tokenizer
    from transformers import GPT2Config, GPT2LMHeadModel

    save_tokenizer(tmp_path, specials={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=600,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=256,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.4,
    )
    GPT2LMHeadModel(config).save_pretrained(str(tmp_path))
    generator = load(tmp_path)
    assert generator.learned_positions and generator.context == 256
    prompts = made_up_prompts(30)
    expected = {
        prompt.id: ids
        for prompt in prompts
        if (room := 256 - len(generator.tokenizer(prompt.text)["input_ids"])) > 0
        for ids in answer_ids(generator, [prompt], min(room, 100)).values()
    }
    engine = TransformersEngine(generator, Decoding(max_new_tokens=100), batch_size=8, batching=batching)
    answers = run(engine, prompts)
    assert {id for id, answer in answers.items() if answer.error is None} == set(expected)
    assert any(answer.prompt_tokens > 156 for answer in answers.values()), "some row must come near the end"
    for id, ids in expected.items():
        assert answers[id].new_tokens == len(ids), id
        assert answers[id].text == generator.tokenizer.decode(ids, skip_special_tokens=True).strip()


# --- the contract -----------------------------------------------------------------------------------------------------


def made_up_engine() -> ModuleType:
    """A module with all that an engine has to have: it says each prompt's length, in whatever order."""

    def prepare(request):
        volume = request.options.get("volume", 1)

        def complete(prompts, *, done=(), on_step=None):
            for prompt in reversed([prompt for prompt in prompts if prompt.id not in done]):
                text = f"{volume} {len(prompt.text)}"
                failed = volume == 2 and prompt.id.endswith("/1")
                error = {"finish_reason": "error", "error": "hoarse"} if failed else {"finish_reason": "stop"}
                yield [Completion(prompt.id, "" if failed else text, 5, 2, **error)]

        engine = SimpleNamespace(
            name="made_up",
            describe=lambda: {"made_up": "1.2.3"},
            prompt_token_ids=lambda prompt: None,
            check=lambda prompts: None,
            complete=complete,
            close=lambda: None,
        )
        return SimpleNamespace(
            model="a-voice",
            adapter=None,
            configuration=lambda: {"volume": volume},
            session=dict,
            caution=lambda form: None,
            load=lambda: engine,
        )

    module = ModuleType("made_up_engine")
    module.add_arguments = lambda parser: parser.add_argument("--volume", type=int, default=argparse.SUPPRESS)
    module.prepare = prepare
    return module


def test_an_engine_is_one_module_and_a_line_in_the_table_of_names(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "made_up_engine", made_up_engine())
    monkeypatch.setitem(ENGINES, "made_up", "made_up_engine")
    asked = ["--data_root", str(samples_root()), "--datasets", "DR", "--limit", "3", "--model_output_path"]

    def generate(name: str, *more: str) -> int:
        return run_script("generate", [*asked, str(tmp_path / name), *more])

    assert generate("run", "--engine", "made_up") == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "responses.jsonl").read_text().splitlines()]
    assert [record["id"] for record in records] == ["DR/2", "DR/1", "DR/0"]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["configuration"]["engine"] == "made_up"
    assert manifest["sessions"][0]["engine"] == {"made_up": "1.2.3"}

    assert generate("run", "--engine", "made_up", "--volume", "3") == 2
    assert "volume: 1 there, 3 here" in capsys.readouterr().err
    assert generate("other", "--volume", "3") == 2
    assert "--volume is a flag of --engine made_up" in capsys.readouterr().err
    assert generate("hoarse", "--engine", "made_up", "--volume", "2") == 1
    assert "1 of 3 rows failed" in capsys.readouterr().err
