"""Checkpoints as users bring them: traps guarded, wrong ones refused in one line, adapters that must matter."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
from tiny import save_bart, save_classifier, save_llama, save_tokenizer

from imhi.checkpoints import (
    check_tokenizer,
    convert_gguf,
    fingerprint,
    load_generator,
    load_tokenizer,
    locate,
    locate_generator,
    read_config,
    weight_files,
)
from imhi.errors import UserError

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def load(folder: Path | str, **options):
    import torch

    return load_generator(locate_generator(str(folder), **options), device="cpu", dtype=torch.float32)


def answer(generator, text: str, tokens: int = 16) -> list[int]:
    import torch

    inputs = generator.tokenizer(text, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        output = generator.model.generate(**inputs, max_new_tokens=tokens)
    return output[0, inputs["input_ids"].shape[1] :].tolist()


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_use_cache_false_and_null_pad_token_are_mended_and_recorded(tmp_path):
    folder = save_llama(tmp_path, use_cache=False)
    assert json.loads((folder / "config.json").read_text())["use_cache"] is False
    generator = load(folder)
    assert generator.model.config.use_cache is True
    assert generator.model.generation_config.use_cache is True
    assert generator.tokenizer.pad_token_id is not None
    assert generator.tokenizer.padding_side == "left"
    assert any("use_cache" in guard for guard in generator.facts["guards"])
    assert any("pad token" in guard for guard in generator.facts["guards"])


def test_bin_shards_load_as_safetensors_do_and_no_other_pickle_is_opened(tmp_path):
    import torch
    from safetensors.torch import load_file

    plain = save_llama(tmp_path / "plain")
    sharded = tmp_path / "bin"
    shutil.copytree(plain, sharded)
    weights = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    names = sorted(weights)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        name = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({key: weights[key] for key in part}, sharded / name)
        index.update(dict.fromkeys(part, name))
    (sharded / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))

    class Trap:
        def __reduce__(self):
            return (exec, ("raise SystemExit('a pickle was opened')",))

    (sharded / "training_args.bin").write_bytes(pickle.dumps(Trap()))
    assert [path.name for path in weight_files(sharded)] == [
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
    ]
    assert "training_args.bin" not in fingerprint(sharded)
    assert answer(load(sharded), "a quiet evening") == answer(load(plain), "a quiet evening")


def test_weights_that_would_run_code_are_refused(tmp_path):
    folder = save_llama(tmp_path)
    (folder / "model.safetensors").unlink()

    class Trap:
        def __reduce__(self):
            return (exec, ("raise SystemExit('a pickle was opened')",))

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="does not load"):
        load(folder)


def test_sharded_safetensors_load(tmp_path):
    folder = save_llama(tmp_path / "shards", shard=True)
    assert len(weight_files(folder)) > 1
    assert answer(load(folder), "hello") == answer(load(save_llama(tmp_path / "one")), "hello")


def test_a_missing_weight_stops_the_run(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save_llama(tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.self_attn.q_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights .*would be random"):
        load(folder)


def test_an_empty_tokenizer_is_refused(tmp_path):
    folder = save_llama(tmp_path)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text("{}")
    (folder / "merges.txt").write_text("")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    with pytest.raises(UserError, match="tokenizer"):
        load(folder)


def test_the_space_dropping_tokenizer_class_is_bypassed(tmp_path, monkeypatch, capsys):
    """A LlamaTokenizer over a byte-level tokenizer.json loses every space; early transformers 5 chose it so."""
    from transformers import AutoTokenizer, LlamaTokenizer

    folder = save_llama(tmp_path)
    text = "one two three"
    monkeypatch.setattr(
        AutoTokenizer, "from_pretrained", lambda name, trust_remote_code: LlamaTokenizer.from_pretrained(name)
    )
    trapped = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    assert trapped.decode(trapped(text, add_special_tokens=False)["input_ids"]) != text
    tokenizer = load(folder).tokenizer
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert "LlamaTokenizer does not fit its tokenizer.json" in capsys.readouterr().err
    monkeypatch.undo()
    check = load_tokenizer(folder)
    assert check.decode(check(text, add_special_tokens=False)["input_ids"]) == text


def test_a_tokenizer_that_loses_spaces_for_good_is_refused(tmp_path):
    """SentencePiece conversions gone wrong have no plain tokenizer.json to fall back to."""
    from transformers import LlamaTokenizer

    folder = save_llama(tmp_path)
    with pytest.raises(UserError, match="loses the spaces between words"):
        check_tokenizer(LlamaTokenizer.from_pretrained(str(folder)), folder)


def test_what_is_not_a_generator_is_named(tmp_path, tiny_llama):
    classifier = save_classifier(tmp_path / "classifier")
    with pytest.raises(UserError, match=r"holds BertForSequenceClassification; expected a model that generates text"):
        locate_generator(str(classifier))
    encoder = tmp_path / "encoder"
    shutil.copytree(classifier, encoder)
    edit_config(encoder, architectures=["BertModel"])
    with pytest.raises(UserError, match="holds BertModel"):
        locate_generator(str(encoder))
    with pytest.raises(UserError, match=r"has no config\.json"):
        locate_generator(str(tmp_path))
    with pytest.raises(UserError, match="did you mean"):
        locate_generator(str(tiny_llama.parent))


def test_llama_flag_requires_llama(tiny_bart, tiny_llama):
    assert locate_generator(str(tiny_llama), llama=True).kind == "causal"
    with pytest.raises(UserError, match="'bart' checkpoint, not LLaMA"):
        locate_generator(str(tiny_bart), llama=True)


def test_missing_parts_of_a_checkpoint_are_named(tmp_path):
    folder = save_llama(tmp_path)
    (folder / "tokenizer.json").rename(tmp_path / "aside")
    with pytest.raises(UserError, match="has no tokenizer"):
        locate_generator(str(folder))
    (tmp_path / "aside").rename(folder / "tokenizer.json")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no weights"):
        locate_generator(str(folder))


def test_fingerprint_tells_models_apart_wherever_they_lie(tmp_path):
    first, again, other = (save_llama(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert fingerprint(first) == fingerprint(again)
    assert fingerprint(first)["model.safetensors"] != fingerprint(other)["model.safetensors"]


def test_a_trained_adapter_changes_the_answer_of_the_real_model(tmp_path, smollm2):
    """LoRA on SmolLM2, a few steps on one made-up row; merged, it answers otherwise than the base."""
    import torch
    from peft import LoraConfig, get_peft_model

    base = load("embedded:smollm2")
    torch.manual_seed(0)
    model = get_peft_model(base.model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_alpha=16))
    prompt, wanted = "Question: Does the poster suffer from stress?", " Yes, the poster suffers from stress."
    ids = base.tokenizer(prompt + wanted, return_tensors="pt")["input_ids"]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(12):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    model.save_pretrained(str(tmp_path / "adapter"))
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "embedded:smollm2"}))
    # The base comes from the adapter's own config.
    adapted = load_generator(
        locate_generator(None, lora_path=str(tmp_path / "adapter")), device="cpu", dtype=torch.float32
    )
    text = adapted.tokenizer.decode(answer(adapted, prompt, 9))
    assert text.startswith(wanted)
    assert smollm2.tokenizer.decode(answer(smollm2, prompt, 9)) != text


def test_an_adapter_that_changes_nothing_is_refused(tmp_path, tiny_llama):
    from peft import LoraConfig, get_peft_model

    untrained = get_peft_model(load(tiny_llama).model, LoraConfig(r=2, target_modules=["q_proj"]))
    untrained.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(UserError, match="does not change the model's logits"):
        load(tiny_llama, lora_path=str(tmp_path / "adapter"))


def test_an_adapter_of_another_model_is_refused(tmp_path, tiny_llama, tiny_bart):
    from peft import LoraConfig, get_peft_model

    adapter = get_peft_model(
        load(tiny_llama).model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    adapter.save_pretrained(str(tmp_path / "adapter"))
    wide = save_llama(tmp_path / "wide", hidden_size=64)
    with pytest.raises(UserError, match="does not fit the base model"):
        load(wide, lora_path=str(tmp_path / "adapter"))
    config = tmp_path / "adapter/adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": None}))
    with pytest.raises(UserError, match=r"--model_path: .*adapter is a LoRA adapter that names no base model"):
        locate_generator(str(tmp_path / "adapter"))
    with pytest.raises(UserError, match="holds a model checkpoint; expected a PEFT adapter"):
        locate_generator(str(tiny_llama), lora_path=str(tiny_bart))


def test_an_adapter_for_an_encoder_decoder_is_merged(tmp_path):
    from peft import LoraConfig, get_peft_model

    folder = save_bart(tmp_path / "bart")
    adapter = get_peft_model(load(folder).model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapter.save_pretrained(str(tmp_path / "adapter"))
    assert load(folder, lora_path=str(tmp_path / "adapter")).facts["class"] == "BartForConditionalGeneration"


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    folder = save_llama(tmp_path, vocab_size=400)
    with pytest.raises(UserError, match="they do not belong together"):
        load(folder)


def test_embedded_and_gguf_are_located(tmp_path, smollm2):
    gguf = locate("embedded:smollm2")
    assert gguf.suffix == ".gguf"
    converted = convert_gguf(gguf)
    assert (converted / "model.safetensors").exists()
    assert locate_generator(str(gguf)).folder == converted, "converted once, then found"
    assert read_config(converted)["architectures"] == ["LlamaForCausalLM"]
    with pytest.raises(UserError, match="no embedded model 'embedded:nothing'"):
        locate("embedded:nothing")
    (tmp_path / "weights.txt").write_text("x")
    with pytest.raises(UserError, match=r"expected a checkpoint folder or a \.gguf file"):
        locate_generator(str(tmp_path / "weights.txt"))
    assert smollm2.model.config.model_type == "llama"


def test_a_broken_gguf_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("IMHI_CACHE", str(tmp_path / "cache"))
    broken = tmp_path / "model.gguf"
    broken.write_bytes(b"GGUF but not really")
    with pytest.raises(UserError, match="does not load as GGUF"):
        locate_generator(str(broken))


def test_save_tokenizer_is_what_the_other_tests_think_it_is(tmp_path):
    save_tokenizer(tmp_path, specials=SPECIALS, template="<s> $A")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path))
    assert tokenizer("hello there")["input_ids"][0] == 0
    assert tokenizer.decode(tokenizer("hello there", add_special_tokens=False)["input_ids"]) == "hello there"


def test_a_hub_snapshot_in_part_is_completed(tmp_path, monkeypatch, capsys):
    """An interrupted download leaves a snapshot without its weights; the next run must not take it for whole."""
    import huggingface_hub

    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    asked = []

    def download(name, *, local_files_only=False, ignore_patterns):
        asked.append(local_files_only)
        assert "training_args.bin" in ignore_patterns
        if not local_files_only:
            save_llama(snapshot, shard=True)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    (snapshot / "config.json").write_text("{}")
    assert locate("owner/model") == snapshot
    assert asked == [True, False]
    assert "in part; downloading the rest" in capsys.readouterr().err
    asked.clear()
    assert locate("owner/model") == snapshot
    assert asked == [True], "whole now: no network"
    weight_files(snapshot)[0].unlink()
    asked.clear()
    locate("owner/model")
    assert asked == [True, False], "a shard of the index is missing"


def test_a_mistyped_folder_is_not_looked_up_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no file or folder models/mentallama"):
        locate("models/mentallama")
