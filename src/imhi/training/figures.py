"""How good a classifier is, on answers that it never learned from: the figures of its card.

Three sets of answers: gold explanations behind their label head (in both forms), the same without the head, and the
hand-written challenge set.  Each with accuracy, weighted and macro F1 and their intervals, the confusion matrix, the
calibration error before and after the temperature, and the share of answers called unclear.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imhi.benchmark import Dataset, gold_answer
from imhi.labelers.challenge import UNCLEAR, read_challenge
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

__all__ = ["Calibration", "calibrate", "figures_of", "gold_sets"]

Logits = Callable[[Sequence[str]], "np.ndarray"]


@dataclass(frozen=True)
class Calibration:
    """What turns logits into a confidence, and a low confidence into "unclear"; fitted on validation answers.

    Attributes
    ----------
    temperature : logits are divided by it.
    unclear_below : confidence under which an answer is taken to say no label.
    answers, undecided : validation answers that say a label, and that say none.
    """

    temperature: float
    unclear_below: float
    answers: int
    undecided: int


def calibrate(dataset: Dataset, logits: Logits, validation: Sequence[Lesson]) -> Calibration:
    """Fit temperature (on the answers that say a label) and threshold (on those and the ones that say none)."""
    import numpy as np

    scores = logits([lesson.text for lesson in validation])
    said = np.array([lesson.label is not None for lesson in validation])
    classes = [dataset.label_names.index(lesson.label) for lesson in validation if lesson.label is not None]
    temperature = fit_temperature(scores[said], classes)
    confidence = softmax(scores, temperature).max(axis=1)
    threshold = fit_threshold(confidence[said], confidence[~said])
    return Calibration(round(temperature, 4), round(threshold, 4), int(said.sum()), int((~said).sum()))


def gold_sets(dataset: Dataset, rows: Sequence[Explained]) -> dict[str, list[str]]:
    """Name of a set of answers → its texts, one a row."""
    heads = {
        f"gold, {form} head": [gold_answer(dataset.label_named(row.label), form, row.explanation) for row in rows]
        for form in ("instruction", "completion")
    }
    return {**heads, "gold, no head": [row.explanation for row in rows]}


def figures_of(
    dataset: Dataset,
    rows: Sequence[Explained],
    gold_logits: dict[str, np.ndarray],
    logits: Logits,
    calibration: Calibration,
) -> dict[str, Any]:
    """The card's figures: name of the set → figures, as plain values.

    Parameters
    ----------
    rows : gold rows that the classifier (or the one of their fold) never learned from; may be empty.
    gold_logits : per set of `gold_sets`, the logits of its texts.
    logits : of the shipped classifier, for the challenge set.
    """
    names = list(dataset.label_names)
    found: dict[str, Any] = {}
    posts = [row.post for row in rows]
    for name, scores in gold_logits.items():
        gold = [names.index(row.label) for row in rows]
        found[name] = _figures(dataset, gold, scores, calibration, posts)
    if rows:
        found["gold, no head"]["contradict_their_head"] = sum(row.label != row.says for row in rows)
    answers = read_challenge(dataset.name)
    said = [answer for answer in answers if answer.label != UNCLEAR]
    scores = logits([answer.text for answer in answers])
    keep = [index for index, answer in enumerate(answers) if answer.label != UNCLEAR]
    challenge = _figures(dataset, [names.index(answer.label) for answer in said], scores[keep], calibration, None)
    rest = [index for index in range(len(answers)) if index not in set(keep)]
    confidence = softmax(scores[rest], calibration.temperature).max(axis=1)
    challenge["says_no_label"] = len(rest)
    challenge["says_no_label_called_unclear"] = int((confidence < calibration.unclear_below).sum())
    predicted = scores[keep].argmax(axis=1)
    challenge["misses"] = [
        answer.id for answer, at in zip(said, predicted, strict=True) if names[int(at)] != answer.label
    ]
    found["challenge"] = challenge
    return found


def _figures(
    dataset: Dataset, gold: Sequence[int], logits: np.ndarray, calibration: Calibration, posts: Sequence[str] | None
) -> dict[str, Any]:
    import numpy as np

    predicted = logits.argmax(axis=1)
    right = predicted == np.asarray(gold)
    intervals = bootstrap_intervals(gold, predicted.tolist(), len(dataset.labels), groups=posts)
    confidence = softmax(logits, calibration.temperature).max(axis=1)
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
        "ece": round(expected_calibration_error(confidence, right), 4),
        "ece_before_temperature": round(expected_calibration_error(softmax(logits).max(axis=1), right), 4),
        "called_unclear": round(float((confidence < calibration.unclear_below).mean()), 4),
        "confusion": confusion,
    }
