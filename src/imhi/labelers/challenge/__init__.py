"""Answers written by hand, in the ways that models answer, with the label that each says: the classifiers' exam.

Written one by one by language-model assistants of the toolkit's authors, who had seen neither the training sentences
(``imhi/training/writing``) nor the posts of the benchmark.  Classifiers are measured on it and never trained on it, nor
does it choose their weights; how far it steered the recipe, docs/label-classifiers.md says.  "unclear" marks an answer
that says no label.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CHALLENGE", "UNCLEAR", "Answer", "read_challenge"]

CHALLENGE = Path(__file__).parent
UNCLEAR = "unclear"


@dataclass(frozen=True)
class Answer:
    """One answer: its style ("hedged", "options-first", ...) and the canonical name of its label, or "unclear"."""

    id: str
    dataset: str
    style: str
    label: str
    text: str


def read_challenge(dataset: str | None = None) -> list[Answer]:
    """All answers, or those to the question of one dataset."""
    found = [
        Answer(**json.loads(line))
        for path in sorted(CHALLENGE.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return [answer for answer in found if dataset in (None, answer.dataset)]
