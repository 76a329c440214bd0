"""Answers written by hand, in the ways that models answer, with the label that each says: the classifiers' exam.

Written apart from the training sentences (``imhi/training/writing``), by people who had not seen them, and read by
no training code.  "unclear" marks an answer that says no label.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

__all__ = ["UNCLEAR", "Answer", "read_challenge"]

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
        for path in sorted(Path(__file__).parent.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return [answer for answer in found if dataset in (None, answer.dataset)]
