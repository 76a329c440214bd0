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
