"""Compute what training a responder takes of memory, and write the tables of docs/training.md between its markers.

    python tools/training_memory.py          # after a formula here has changed
    python tools/training_memory.py --check  # exit 1 where the document says something else
    python tools/training_memory.py --show   # print the tables only

It is arithmetic, nothing is measured; GB are 10^9 bytes.  The table of the mixture is made of the released rows' counts by
`imhi.training.responder.mixture`.  In the formulas d is the hidden size, f the feed-forward's inner
size, k the width of keys and of values (d without grouped queries), a the heads, L the layers, V the vocabulary, N the
GPUs, P the parameters, r the LoRA rank.

Parameters of a LLaMA: V d (embedding) + V d (head, unless tied) + L (2 d^2 + 2 d k + 3 d f + 2 d) + d.

States (Rajbhandari et al., "ZeRO", SC 2020, section 3.1, for float32 weights instead of half-precision ones with float32
copies): 4 B weight + 4 B gradient + 8 B AdamW = 16 B for each trained parameter, divided by N under FSDP (ZeRO's stage 3).
A frozen base is 2 B a parameter in bfloat16; in NF4 with double quantisation its linear layers are 4 bits + 8/64 bits
+ 32/(64 * 256) bits = 4.127 bits a parameter (Dettmers et al., "QLoRA", NeurIPS 2023, section 3), while PEFT keeps
embedding, head and norms of such a base in float32.  LoRA on every linear layer: r (4 d + 2 (d + k) + 3 (d + f)) a layer.

Gathered under FSDP: 2 B weight + 2 B gradient (its mixed precision is bfloat16 for both) of two layers, one computing and
one prefetched, and of embedding and head.  For NF4: one matrix unpacked to bfloat16, 2 d f.

Activations a token, counted as in Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models",
2022 (MLSys 2023), section 4, but for LLaMA's block (RMSNorm computed in float32, SwiGLU, no dropout) and an attention
that keeps no matrix of scores: a block keeps 18 d + 2 (d + 2 k) + 8 f + 4 a bytes where its weights are trained.  Frozen
products keep no input, but each LoRA matrix does: 14 d + 2 (d + 2 k) + 8 f + 4 a + 14 r, and 22 d in place of 14 d where the
inputs are cast for each matrix (behind a float32 embedding, and in the recomputation of checkpointing).
With checkpointing: the residual stream between blocks (2 B an element, 4 B behind NF4's float32 embedding), L d, the
inside of one block, and 6 f + 4 d for the gradients of its widest tensors.  Logits stand at the answer's columns alone:
12 B an element at the worst moment of the cross entropy (float32 logits, log-probabilities, gradient).

On top of it 2 GB for the CUDA context, NCCL's buffers and what the allocator cannot use.  "Fits" means at most 85 % of the
card, "tight" at most 95 %.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from imhi.data import write_text_atomically
from imhi.errors import UserError, run_main
from imhi.talk import say, show
from imhi.training.card import markdown_table
from imhi.training.responder.mixture import rows_per_epoch

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "training.md"

TRAINED = 16  # bytes a trained parameter
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
LOGIT = 12  # bytes a logit
OVERHEAD = 2e9
FITS, TIGHT = 0.85, 0.95
RANK = 16
# Rows at the limit of `--max_tokens` come first in a training; the longest gold answer has 349 tokens of SmolLM2.
ROW_TOKENS, ANSWER_TOKENS = 1024, 448

# Rows of the released instruction files (those of the completion form are as many) that `read_training_rows` gives, and
# those that it leaves out because their post or explanation stands in a test or expert file.
RELEASED = {"DR": 1003, "dreaddit": 2817, "SAD": 5530, "MultiWD": 648, "Irf": 581}
HELD_OUT = {"DR": 0, "dreaddit": 37, "SAD": 3, "MultiWD": 708, "Irf": 338}
REPEATED = {"DR": 1, "dreaddit": 19, "SAD": 18, "MultiWD": 0, "Irf": 0}
TEMPERATURES = (1.0, 2.0, 4.0, float("inf"))


@dataclass(frozen=True)
class Llama:
    """Shape of a LLaMA; the names of the formulas above."""

    name: str
    L: int
    d: int
    f: int
    a: int
    V: int = 32_000
    kv_heads: int | None = None
    tied: bool = False

    @property
    def k(self) -> int:
        return self.d // self.a * (self.kv_heads or self.a)

    @property
    def linear(self) -> int:
        """Parameters of one layer's seven matrices."""
        return 2 * self.d**2 + 2 * self.d * self.k + 3 * self.d * self.f

    @property
    def layer(self) -> int:
        return self.linear + 2 * self.d

    @property
    def ends(self) -> int:
        """Parameters of embedding, head and last norm."""
        return (1 if self.tied else 2) * self.V * self.d + self.d

    @property
    def parameters(self) -> int:
        return self.L * self.layer + self.ends

    def lora(self, rank: int) -> int:
        """Parameters of LoRA matrices on every linear layer but the head."""
        return self.L * rank * (4 * self.d + 2 * (self.d + self.k) + 3 * (self.d + self.f))


SMOLLM2 = Llama("SmolLM2-135M", 30, 576, 1536, 9, V=49_152, kv_heads=3, tied=True)
LLAMA_7B = Llama("Llama-2 7B", 32, 4096, 11_008, 32)
LLAMA_13B = Llama("Llama-2 13B", 40, 5120, 13_824, 40)
LLAMA_33B = Llama("vicuna-33b-v1.3", 60, 6656, 17_920, 52)
SHAPES = (SMOLLM2, LLAMA_7B, LLAMA_13B, LLAMA_33B)


def bart_parameters(*, layers: int, d: int, f: int, vocabulary: int = 50_265, positions: int = 1_026) -> int:
    """Parameters of a BART of `layers` encoder and as many decoder layers, its embedding shared by all three uses."""
    attention, feed_forward, norm = 4 * (d**2 + d), 2 * d * f + f + d, 2 * d
    encoder = attention + feed_forward + 2 * norm
    decoder = 2 * attention + feed_forward + 3 * norm
    return vocabulary * d + 2 * (positions * d + norm) + layers * (encoder + decoder)


@dataclass(frozen=True)
class SetUp:
    """A training of one model: `way` is "full", "LoRA" (a bfloat16 base) or "QLoRA" (an NF4 base).

    rows : rows that one GPU computes at once.
    """

    model: Llama
    way: str
    gpus: int
    rows: int
    checkpointing: bool = True

    @property
    def trained(self) -> int:
        return self.model.parameters if self.way == "full" else self.model.lora(RANK)

    def states(self) -> float:
        """Bytes a GPU of the frozen base, and of what is trained with its gradients and optimizer states."""
        model = self.model
        if self.way == "full":
            return TRAINED * model.parameters / self.gpus
        base = 2.0 * model.parameters
        if self.way == "QLoRA":
            norms = model.L * 2 * model.d
            base = NF4_BITS / 8 * model.L * model.linear + 4.0 * (model.ends + norms)
        return base + TRAINED * self.trained

    def gathered(self) -> float:
        """Bytes that hold whole weights and gradients for the time of their use."""
        model = self.model
        if self.way == "QLoRA":
            return 2.0 * model.d * model.f
        if self.way == "LoRA" or self.gpus == 1:
            return 0.0
        return 4.0 * (2 * model.layer + model.ends)

    def inside(self) -> float:
        """Bytes a token that one block keeps for its backward pass."""
        model = self.model
        kept = 2 * (model.d + 2 * model.k) + 8 * model.f + 4 * model.a
        if self.way == "full":
            return kept + 18 * model.d
        cast = self.way == "QLoRA" or self.checkpointing
        return kept + (22 if cast else 14) * model.d + 14 * RANK

    def activations(self) -> float:
        model, tokens = self.model, self.rows * ROW_TOKENS
        if not self.checkpointing:
            return tokens * model.L * self.inside()
        residual = 4 if self.way == "QLoRA" else 2
        return tokens * (residual * model.L * model.d + self.inside() + 6 * model.f + 4 * model.d)

    def logits(self) -> float:
        return float(LOGIT * self.rows * ANSWER_TOKENS * self.model.V)

    def total(self) -> float:
        return self.states() + self.gathered() + self.activations() + self.logits() + OVERHEAD


def verdict(total: float, card: float) -> str:
    share = total / (card * 1e9)
    return f"{'fits' if share <= FITS else 'tight' if share <= TIGHT else 'no'} ({100 * share:.0f} %)"


def gb(count: float) -> str:
    return f"{count / 1e9:.1f}"


def shapes() -> str:
    rows = [
        [
            one.name,
            f"{one.L} / {one.d} / {one.f} / {one.a}",
            f"{one.parameters / 1e9:.3f}e9",
            gb(2 * one.parameters),
            gb(TRAINED * one.parameters),
            f"{one.lora(RANK) / 1e6:.1f}e6",
            f"{TRAINED * one.lora(RANK) / 1e9:.2f}",
        ]
        for one in SHAPES
    ]
    bart = bart_parameters(layers=12, d=1024, f=4096)
    rows.insert(
        1, ["BART-large", "12 + 12 / 1024 / 4096 / 16", f"{bart / 1e9:.3f}e9", gb(2 * bart), gb(TRAINED * bart), "", ""]
    )
    headers = ["model", "L / d / f / a", "P", "2 B × P", "16 B × P", f"LoRA, rank {RANK}", "16 B × LoRA"]
    return markdown_table(headers, rows)


def full() -> str:
    rows = []
    for model in (LLAMA_7B, LLAMA_13B, LLAMA_33B):
        for gpus in (4, 8):
            one = SetUp(model, "full", gpus, rows=2)
            parts = (one.states(), one.gathered(), one.activations(), one.logits(), one.total())
            verdicts = verdict(one.total(), 40), verdict(one.total(), 80)
            rows.append([f"{model.name}, {gpus} GPUs", *map(gb, parts), *verdicts])
    headers = ["full, FSDP", "states", "gathered", "activations", "logits", "sum a GPU", "40 GB", "80 GB"]
    return markdown_table(headers, rows)


def host() -> str:
    rows = [
        [
            model.name,
            gb(4 * 8 * model.parameters),
            gb(TRAINED * model.parameters),
            gb((3 * TRAINED + 2 * 4) * model.parameters),
            gb(4 * model.parameters),
        ]
        for model in (LLAMA_7B, LLAMA_13B)
    ]
    headers = [
        "full, 8 processes",
        "host memory while loading",
        "one checkpoint",
        "OUT at its largest",
        "OUT at the end",
    ]
    return markdown_table(headers, rows)


def adapters() -> str:
    rows = []
    for model, way, count, checkpointing in (
        (SMOLLM2, "LoRA", 16, False),
        (LLAMA_7B, "LoRA", 4, True),
        (LLAMA_7B, "LoRA", 4, False),
        (LLAMA_13B, "LoRA", 4, True),
        (LLAMA_33B, "LoRA", 1, True),
        (LLAMA_33B, "QLoRA", 1, True),
        (LLAMA_33B, "QLoRA", 4, True),
        (LLAMA_33B, "QLoRA", 1, False),
    ):
        one = SetUp(model, way, 1, count, checkpointing=checkpointing)
        parts = (one.states(), one.gathered(), one.activations(), one.logits(), one.total())
        cards = (verdict(one.total(), card) for card in (24, 48, 80))
        rows.append([f"{model.name}, {way}", str(count), "yes" if checkpointing else "no", *map(gb, parts), *cards])
    headers = ["one GPU", "rows at once", "checkpointing", "states", "unpacked", "activations", "logits", "sum"]
    return markdown_table([*headers, "24 GB", "48 GB", "80 GB"], rows)


def mixture() -> str:
    total = sum(RELEASED.values())
    drawn = [rows_per_epoch(RELEASED, temperature) for temperature in TEMPERATURES]
    rows = [
        [name, str(HELD_OUT[name]), str(REPEATED[name]), str(size)]
        + [f"{shares[name]} ({100 * shares[name] / total:.0f} %, × {shares[name] / size:.2f})" for shares in drawn]
        for name, size in RELEASED.items()
    ]
    headers = ["dataset", "left out: test posts", "repeated", "rows", *(f"T = {one:g}" for one in TEMPERATURES)]
    return markdown_table(headers, rows)


TABLES = {"mixture": mixture, "shapes": shapes, "full": full, "host": host, "adapters": adapters}


def filled(text: str) -> str:
    """The document with each marked table computed anew."""

    def table(found: re.Match[str]) -> str:
        name = found["name"]
        if name not in TABLES:
            raise UserError(f"{DOCUMENT.name}: no table is called {name}; there are {', '.join(TABLES)}")
        return f"<!-- {name}: tools/training_memory.py -->\n{TABLES[name]()}\n<!-- end of {name} -->"

    pattern = r"<!-- (?P<name>[\w-]+): tools/training_memory\.py -->\n.*?<!-- end of (?P=name) -->"
    return re.sub(pattern, table, text, flags=re.DOTALL)


def run(arguments: argparse.Namespace) -> int:
    if arguments.show:
        show("\n\n".join(f"{name}\n\n{table()}" for name, table in TABLES.items()))
        return 0
    before = DOCUMENT.read_text(encoding="utf-8")
    after = filled(before)
    if arguments.check:
        if after != before:
            raise UserError(f"{DOCUMENT.name} differs from the arithmetic; run {Path(__file__).name}", code=1)
        return 0
    write_text_atomically(DOCUMENT, after)
    say(f"written to {DOCUMENT}")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="exit 1 where the document says something else")
    what.add_argument("--show", action="store_true", help="print the tables, and write nothing")
    sys.exit(run_main(lambda: run(parser.parse_args())))
