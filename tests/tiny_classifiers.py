"""Tiny random BERT classifiers, saved as the published ones are: vocab.txt, generic class names, training_args.bin."""

from __future__ import annotations

import json
import os
import pickle
import string
from pathlib import Path

from imhi.benchmark import DATASETS

WORDS = ["yes", "no", "the", "poster", "does", "not", "suffer", "from", "stress", "work", "school", "reasoning", "post"]


class Bomb:
    """Unpickled, it leaves a file behind: the proof that somebody opened the pickle."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return (os.mkdir, (str(self.proof),))


def save_vocabulary(folder: Path) -> int:
    """A WordPiece vocabulary that spells every ASCII word; returns its size."""
    letters = string.ascii_lowercase + string.digits
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *string.punctuation]
    entries += [f"##{letter}" for letter in letters] + WORDS
    (folder / "vocab.txt").write_text("\n".join(entries) + "\n", encoding="utf-8")
    settings = {"do_lower_case": True, "model_max_length": 512, "tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return len(entries)


def save_bert_classifier(folder: Path, dataset: str, *, seed: int = 0, weights: str = "safetensors") -> Path:
    """A two-layer BERT with random weights, spread wide enough that texts get different labels."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=save_vocabulary(folder),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=1.0,
        num_labels=len(DATASETS[dataset].labels),
    )
    model = BertForSequenceClassification(config)
    model.save_pretrained(str(folder))
    if weights == "bin":
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    (folder / "training_args.bin").write_bytes(pickle.dumps(Bomb(folder / "exploded")))
    return folder


def change_config(folder: Path, **changes: object) -> Path:
    """Set (or, with None, remove) entries of config.json."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}), encoding="utf-8")
    return folder


def save_bert_base(folder: Path, *, seed: int = 0, layers: int = 3, head: bool = False, pooler: bool = True) -> Path:
    """A tiny BERT for adapters to stand on, without a head as encoders are published."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=save_vocabulary(folder),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.3,
    )
    model = BertForSequenceClassification(config) if head else BertModel(config, add_pooling_layer=pooler)
    model.save_pretrained(str(folder))
    return folder


def save_adapter(
    folder: Path,
    dataset: str,
    base: Path | str,
    *,
    seed: int = 10,
    layers: tuple[int, ...] | None = (0, 2),
    **settings: object,
) -> Path:
    """A LoRA adapter with random weights as training saves them: bfloat16, and labeler.json unless `settings` say so.

    `settings` change entries of labeler.json; ``labeler=False`` leaves the file out, as a foreign adapter does.
    """
    import torch
    from peft import LoraConfig, PeftModelForSequenceClassification, get_peft_model_state_dict
    from safetensors.torch import save_file
    from transformers import BertForSequenceClassification

    from imhi.checkpoints import fingerprint, locate
    from imhi.labelers.forward import keep_layers

    names = [label.classifier for label in DATASETS[dataset].labels]
    place = locate(base)
    model = BertForSequenceClassification.from_pretrained(
        str(place), num_labels=len(names), ignore_mismatched_sizes=True
    )
    if layers is not None:
        keep_layers(model, layers, place)
    torch.manual_seed(seed)
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=4,
        lora_alpha=8,
        target_modules=["query", "key", "value", "dense"],
        modules_to_save=["classifier"],
        init_lora_weights=False,
        base_model_name_or_path=str(base),
    )
    adapted = PeftModelForSequenceClassification(model, config)
    tensors = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    for name, tensor in tensors.items():
        torch.nn.init.normal_(tensor, std=0.1 if "lora" in name else 0.5)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    stored = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}
    save_file(stored, str(folder / "adapter_model.safetensors"), {"format": "pt"})
    (folder / "README.md").write_text("a model card\n", encoding="utf-8")
    if settings.pop("labeler", True):
        content = {
            "format": 1,
            "dataset": dataset,
            "base": str(base),
            "base_files": fingerprint(place),
            "layers": None if layers is None else list(layers),
            "classes": names,
            "max_tokens": 512,
            "temperature": 1.4,
            "unclear_below": 0.35,
            "training": {"seed": seed},
            **settings,
        }
        (folder / "labeler.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
