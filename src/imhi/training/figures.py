"""How good a classifier is, on answers that it never learned from: the figures of its card.

Three sets of answers: gold explanations behind their label head (in both forms), the same without the head, and the
hand-written challenge set.  Each with accuracy, weighted and macro F1 and their intervals, the confusion matrix, the
calibration error before and after the temperature, and the share of answers called unclear.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imhi.benchmark import Dataset, gold_answer
from imhi.labelers.challenge import CHALLENGE, UNCLEAR, read_challenge
from imhi.statistics import (
    bootstrap_intervals,
    expected_calibration_error,
    fit_temperature,
    fit_threshold,
    softmax,
)
from imhi.training.corpus import Explained
from imhi.training.lessons import Lesson

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Calibration", "Judged", "calibrate", "challenge_digest", "figures_of", "gold_sets"]

Logits = Callable[[Sequence[str]], "np.ndarray"]


@dataclass(frozen=True)
class Calibration:
    """What turns logits into a confidence, and a low confidence into "unclear"; fitted on validation answers.

    Attributes
    ----------
    temperature : logits are divided by it.
    unclear_below : confidence under which an answer is taken to say no label.
    """

    temperature: float
    unclear_below: float


@dataclass
class Judged:
    """What classifiers make of some answers; each row may have had a classifier of its own.

    Attributes
    ----------
    logits : before the temperature, shape (rows, classes).
    temperature, unclear_below : of the row's classifier, shape (rows,).
    """

    logits: np.ndarray
    temperature: np.ndarray
    unclear_below: np.ndarray

    @classmethod
    def by(cls, calibration: Calibration, logits: np.ndarray) -> Judged:
        """All rows judged by one classifier."""
        import numpy as np

        rows = len(logits)
        return cls(logits, np.full(rows, calibration.temperature), np.full(rows, calibration.unclear_below))

    @classmethod
    def nothing(cls, rows: int, classes: int) -> Judged:
        """Rows still to be `put`; NaN until then, so that one left out shows."""
        import numpy as np

        return cls(np.full((rows, classes), np.nan), np.full(rows, np.nan), np.full(rows, np.nan))

    def put(self, at: Sequence[int], part: Judged) -> None:
        """Set the rows `at`."""
        self.logits[at], self.temperature[at], self.unclear_below[at] = (
            part.logits,
            part.temperature,
            part.unclear_below,
        )

    def of(self, at: Sequence[int]) -> Judged:
        """The rows `at` alone."""
        return Judged(self.logits[at], self.temperature[at], self.unclear_below[at])

    @property
    def predicted(self) -> np.ndarray:
        """Class index per row."""
        return self.logits.argmax(axis=1)

    @property
    def confidence(self) -> np.ndarray:
        """Probability of the predicted class, per row."""
        return softmax(self.logits, self.temperature[:, None]).max(axis=1)

    @property
    def unclear(self) -> np.ndarray:
        """Whether each answer is taken to say no label."""
        return self.confidence < self.unclear_below


def calibrate(dataset: Dataset, logits: Logits, validation: Sequence[Lesson]) -> Calibration:
    """Fit temperature (on the answers that say a label) and threshold (on those and the ones that say none)."""
    import numpy as np

    scores = logits([lesson.text for lesson in validation])
    said = np.array([lesson.label is not None for lesson in validation])
    classes = [dataset.label_names.index(lesson.label) for lesson in validation if lesson.label is not None]
    temperature = round(fit_temperature(scores[said], classes), 4)
    confidence = softmax(scores, temperature).max(axis=1)
    # Rounded down: rounded up, it would call an answer unclear that was to be kept.
    threshold = math.floor(1e4 * fit_threshold(confidence[said], confidence[~said])) / 1e4
    return Calibration(temperature, threshold)


def challenge_digest() -> str:
    """What the challenge figures depend on: SHA-256 of its files."""
    digest = hashlib.sha256()
    for path in sorted(CHALLENGE.glob("*.jsonl")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def gold_sets(dataset: Dataset, rows: Sequence[Explained]) -> dict[str, list[str]]:
    """Name of a set of answers → its texts, one a row."""
    heads = {
        f"gold, {form} head": [gold_answer(dataset.label_named(row.label), form, row.explanation) for row in rows]
        for form in ("instruction", "completion")
    }
    return {**heads, "gold, no head": [row.explanation for row in rows]}


def figures_of(
    dataset: Dataset, rows: Sequence[Explained], gold: Mapping[str, Judged], logits: Logits, shipped: Calibration
) -> dict[str, Any]:
    """The card's figures: name of the set → figures, as plain values.

    Parameters
    ----------
    rows : gold rows that the classifier (or the one of their fold) never learned from; may be empty.
    gold : per set of `gold_sets`, what was made of its texts.
    logits, shipped : the shipped classifier and its calibration, for the challenge set.
    """
    names = list(dataset.label_names)
    posts = [row.post for row in rows]
    truth = [names.index(row.label) for row in rows]
    found = {kind: _figures(dataset, truth, judged, posts) for kind, judged in gold.items() if rows}
    if rows:
        found["gold, no head"]["contradict_their_head"] = sum(row.label != row.says for row in rows)
    answers = read_challenge(dataset.name)
    judged = Judged.by(shipped, logits([answer.text for answer in answers]))
    said = [index for index, answer in enumerate(answers) if answer.label != UNCLEAR]
    rest = [index for index, answer in enumerate(answers) if answer.label == UNCLEAR]
    challenge = _figures(dataset, [names.index(answers[index].label) for index in said], judged.of(said), None)
    challenge["says_no_label"] = len(rest)
    challenge["says_no_label_called_unclear"] = int(judged.of(rest).unclear.sum())
    challenge["misses"] = [answers[at].id for at in said if names[int(judged.predicted[at])] != answers[at].label]
    found["challenge"] = challenge
    return found


def _figures(dataset: Dataset, gold: Sequence[int], judged: Judged, posts: Sequence[str] | None) -> dict[str, Any]:
    import numpy as np

    predicted = judged.predicted
    right = predicted == np.asarray(gold)
    intervals = bootstrap_intervals(gold, predicted.tolist(), len(dataset.labels), groups=posts)
    confusion: dict[str, dict[str, int]] = {}
    for truth, given in zip(gold, predicted.tolist(), strict=True):
        row = confusion.setdefault(dataset.label_names[truth], {})
        row[dataset.label_names[given]] = row.get(dataset.label_names[given], 0) + 1
    return {
        "answers": len(gold),
        **{
            name: {"value": round(found.value, 4), "low": round(found.low, 4), "high": round(found.high, 4)}
            for name, found in intervals.items()
        },
        "ece": round(expected_calibration_error(judged.confidence, right), 4),
        "ece_before_temperature": round(expected_calibration_error(softmax(judged.logits).max(axis=1), right), 4),
        "called_unclear": round(float(judged.unclear.mean()), 4),
        "confusion": confusion,
    }
