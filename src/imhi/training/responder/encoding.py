"""A training row as token ids: the prompt exactly as generation will give it, and the answer that is learned.

The loss stands on the answer alone, its end token included.  The label is a handful of the answer's hundred tokens, so
the tokens of its head (what stands before ``Reasoning:``) may weigh more than the explanation's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from imhi.benchmark import head_of
from imhi.engines import Prompt
from imhi.engines.transformers_engine import TransformersEngine
from imhi.training.responder.rows import TrainingRow

__all__ = ["IGNORED", "Encoded", "collate", "encode"]

# What torch's cross entropy leaves out.
IGNORED = -100


@dataclass(frozen=True)
class Encoded:
    """Token ids of one row; `head` of the answer's tokens spell the label; `cut` tokens of the post were left out."""

    prompt: list[int]
    answer: list[int]
    head: int
    cut: int = 0

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def encode(row: TrainingRow, engine: TransformersEngine, *, max_tokens: int) -> Encoded:
    """The row's token ids; a row above `max_tokens` loses the middle of its prompt, so that post and question remain."""
    generator, tokenizer = engine.generator, engine.generator.tokenizer
    prompt = engine.prompt_token_ids(Prompt("", row.query))
    if generator.kind == "seq2seq":
        answer = list(tokenizer(text_target=row.answer)["input_ids"])
        head = len(tokenizer(text_target=head_of(row.answer).strip(), add_special_tokens=False)["input_ids"])
        # A decoder that is begun with a token of its own (BART's <s>) spells the head one later.
        head += int(bool(answer) and answer[0] == tokenizer.bos_token_id)
    else:
        lead = "" if engine.decoding.chat_template or row.query[-1:].isspace() else " "
        answer = _continuation(tokenizer, row.query, prompt, lead + row.answer, chat=engine.decoding.chat_template)
        head = len(tokenizer(lead + head_of(row.answer).strip(), add_special_tokens=False)["input_ids"])
    room = max(max_tokens - len(answer), 2) if generator.kind == "causal" else max_tokens
    cut = max(0, len(prompt) - room)
    if cut:
        tail = min(room // 2, len(prompt))
        prompt = prompt[: room - tail] + prompt[len(prompt) - tail :]
    return Encoded(prompt, answer, min(head, len(answer)), cut)


def _continuation(tokenizer: Any, query: str, prompt: list[int], answer: str, *, chat: bool) -> list[int]:
    """Ids of the answer behind the prompt's, as the tokenizer would write both in one go where that keeps the prompt."""
    alone = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if not chat:
        whole = tokenizer(query + answer)["input_ids"]
        while len(whole) > 1 and whole[0] == whole[1] == tokenizer.bos_token_id:
            whole = whole[1:]
        if whole[-1] == tokenizer.eos_token_id:
            whole = whole[:-1]
        if whole[: len(prompt)] == prompt:
            alone = whole[len(prompt) :]
    return [*alone, tokenizer.eos_token_id]


def collate(rows: Sequence[Encoded], *, pad: int, kind: str, head_weight: float) -> dict[str, Any]:
    """A batch: ``input_ids``, ``attention_mask``, ``labels`` and ``weights`` of the labels, shape (rows, tokens).

    Causal rows are padded on the left, so that all answers end in the last column and logits are computed for the last
    columns alone; an encoder-decoder's prompts and labels are padded on the right.
    """
    import torch

    causal = kind == "causal"
    widest = max(len(row) if causal else len(row.prompt) for row in rows)
    answers = max(len(row.answer) for row in rows)
    ids = torch.full((len(rows), widest), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), widest), dtype=torch.long)
    labels = torch.full((len(rows), answers), IGNORED, dtype=torch.long)
    weights = torch.zeros((len(rows), answers))
    for at, row in enumerate(rows):
        given = [*row.prompt, *row.answer] if causal else row.prompt
        columns = slice(widest - len(given), widest) if causal else slice(0, len(given))
        ids[at, columns] = torch.tensor(given)
        mask[at, columns] = 1
        start = answers - len(row.answer) if causal else 0
        labels[at, start : start + len(row.answer)] = torch.tensor(row.answer)
        weights[at, start : start + row.head] = head_weight
        weights[at, start + row.head : start + len(row.answer)] = 1.0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "weights": weights}
