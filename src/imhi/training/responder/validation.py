"""Asking a responder in training: answers to validation rows, judged by the toolkit's own rule and ROUGE."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from imhi.benchmark import DATASETS
from imhi.engines import Prompt
from imhi.engines.transformers_engine import TransformersEngine
from imhi.labelers.rules import label_by_rule
from imhi.metrics import METRICS
from imhi.metrics.base import mean
from imhi.metrics.correctness import correctness
from imhi.training.responder.rows import TrainingRow

__all__ = ["ask_rows", "judge", "validation_sample"]


def validation_sample(rows: Mapping[str, Sequence[TrainingRow]], each: int, seed: int) -> list[TrainingRow]:
    """At most `each` validation rows a dataset, drawn by the seed."""
    chosen: list[TrainingRow] = []
    for name, found in rows.items():
        chosen += random.Random(f"{seed} {name}").sample(list(found), min(each, len(found)))
    return chosen


def ask_rows(engine: TransformersEngine, rows: Sequence[TrainingRow]) -> list[str]:
    """The model's answers, in the order of `rows`."""
    prompts = [Prompt(str(at), row.query) for at, row in enumerate(rows)]
    answers = dict.fromkeys(range(len(rows)), "")
    for group in engine.complete(prompts):
        answers |= {int(completion.id): completion.text for completion in group}
    return [answers[at] for at in range(len(rows))]


def judge(rows: Sequence[TrainingRow], answers: Sequence[str]) -> dict[str, Any]:
    """Figures of answers to validation rows: over all, and weighted F1 of each dataset; shares from 0 to 1.

    ``weighted_f1`` is the mean over datasets, by the strict rule; ``unparsed`` the share of answers that it reads no
    label from; ``rougeL`` the mean over rows.  Higher is better but for ``unparsed``.
    """
    by_dataset: dict[str, list[int]] = {}
    for at, row in enumerate(rows):
        by_dataset.setdefault(row.dataset, []).append(at)
    figures: dict[str, Any] = {}
    unparsed = 0
    for name, places in by_dataset.items():
        predicted = [label_by_rule(DATASETS[name], answers[at]) for at in places]
        unparsed += predicted.count(None)
        figures[f"weighted_f1_{name}"] = correctness([rows[at].label for at in places], predicted).weighted_f1
    rouge = METRICS["rouge"]()
    scored = rouge.score([answers[at] for at in range(len(rows))], [row.answer for row in rows])
    return {
        "weighted_f1": mean([figures[f"weighted_f1_{name}"] for name in by_dataset]),
        "unparsed": unparsed / len(rows),
        "rougeL": scored.values["rougeL"],
        **figures,
    }
