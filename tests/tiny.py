"""Tiny random checkpoints, saved as real ones are: config, weights, tokenizer files.

The tokenizers are trained on the made-up sample rows, so that ordinary text comes back from them.
"""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]


def sample_texts() -> list[str]:
    rows = [json.loads(line) for line in (ROOT / "tools/samples/test.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["post"] for row in rows] + [row["explanation"] for row in rows]


def save_tokenizer(
    folder: Path, *, specials: dict[str, str], template: str | None = None, vocabulary: int = 600
) -> None:
    """A byte-level BPE tokenizer saved as tokenizer.json; `template` as in tokenizers' TemplateProcessing."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = list(dict.fromkeys(specials.values()))
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample_texts(), trainer)
    if template:
        used = [(name, tokenizer.token_to_id(name)) for name in names if name in template.split()]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials).save_pretrained(str(folder))


def save_llama(folder: Path, *, seed: int = 0, shard: bool = False, **config: object) -> Path:
    """A two-layer LLaMA whose weights are spread wide enough that greedy answers differ from row to row."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    specials = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    save_tokenizer(folder, specials=specials, template="<s> $A")
    torch.manual_seed(seed)
    settings = {
        "vocab_size": 600,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.4,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **config}))
    model.save_pretrained(str(folder), **({"max_shard_size": "60KB"} if shard else {}))
    return folder


def save_bart(folder: Path, *, seed: int = 0, **config: object) -> Path:
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    specials = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    save_tokenizer(folder, specials=specials, template="<s> $A </s>")
    torch.manual_seed(seed)
    settings = {
        "vocab_size": 600,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 256,
        "init_std": 0.4,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": 2,
    }
    model = BartForConditionalGeneration(BartConfig(**{**settings, **config}))
    # What bart-large-cnn carries: settings that would cut or bend a greedy answer if they were obeyed.
    model.generation_config.update(num_beams=4, min_length=8, no_repeat_ngram_size=3, early_stopping=True)
    model.save_pretrained(str(folder))
    return folder


def save_t5(folder: Path, *, seed: int = 0, **config: object) -> Path:
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    specials = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    save_tokenizer(folder, specials=specials, template="$A </s>")
    torch.manual_seed(seed)
    settings = {
        "vocab_size": 600,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "initializer_factor": 3.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }
    T5ForConditionalGeneration(T5Config(**{**settings, **config})).save_pretrained(str(folder))
    return folder


def save_classifier(folder: Path, *, labels: int = 2) -> Path:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    specials = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    save_tokenizer(folder, specials=specials, template="[CLS] $A [SEP]")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=600,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=labels,
    )
    BertForSequenceClassification(config).save_pretrained(str(folder))
    return folder
