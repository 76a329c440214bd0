"""What a classifier sees in training: composed answers with the label that they say, drawn by seed and step."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from imhi.benchmark import DATASETS
from imhi.training.answers import AnswerWriter
from imhi.training.corpus import Explained

__all__ = ["Lesson", "Lessons"]

# Labels are drawn by the square root of their rows, as if each had this many more: the rare ones are seen often.
HEAD_START = 30
# Of the answers of a label with gold explanations, how many are written around one.
GOLD_SHARE = 0.75
# Of all answers, how many say no label.
UNDECIDED_SHARE = 0.12


@dataclass(frozen=True)
class Lesson:
    """One answer and the label it says; None: it says none."""

    dataset: str
    text: str
    label: str | None


class Lessons:
    """Draws lessons for some datasets.

    Parameters
    ----------
    rows : dataset → rows to write around; a dataset without rows gets our own explanations alone.
    part : "training" or "validation", see `AnswerWriter`.
    seed : together with the name of a draw, what it depends on.
    """

    def __init__(self, rows: Mapping[str, Sequence[Explained]], *, part: str = "training", seed: int = 0):
        self.part, self.seed = part, seed
        self.writers = {name: AnswerWriter(DATASETS[name], part) for name in rows}
        # Where an explanation contradicts its own head, what an answer around it says is nobody's to tell.
        self.rows = {
            name: {
                label: [row for row in given if row.label == row.says == label] for label in DATASETS[name].label_names
            }
            for name, given in rows.items()
        }

    def draw(self, name: str, count: int) -> list[Lesson]:
        """`count` lessons, datasets with many labels somewhat more often; a pure function of rows, part, seed and `name`."""
        rng = random.Random(f"{self.seed} {self.part} {name}")
        names = list(self.rows)
        weights = [len(DATASETS[name].labels) ** 0.25 for name in names]
        return [self._one(rng, rng.choices(names, weights)[0]) for _ in range(count)]

    def _one(self, rng: random.Random, name: str) -> Lesson:
        writer, by_label = self.writers[name], self.rows[name]
        if rng.random() < UNDECIDED_SHARE:
            return Lesson(name, writer.undecided(rng), None)
        labels = list(by_label)
        label = rng.choices(labels, [math.sqrt(len(by_label[label]) + HEAD_START) for label in labels])[0]
        around = by_label[label] and rng.random() < GOLD_SHARE
        explanation = rng.choice(by_label[label]).explanation if around else None
        return Lesson(name, writer.answer(rng, label, explanation), label)
