"""Accuracy and F1 of predicted labels against gold labels, as the published scripts print them.

A prediction that could not be read (None) is counted wrong: it is a miss of its gold label and a hit of none.
The published scripts gave such a row the first class instead, with credit where the gold agreed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["UNPARSED", "Correctness", "correctness"]

UNPARSED = "unparsed"


@dataclass(frozen=True)
class Correctness:
    """Correctness of the predictions on one dataset.

    Attributes
    ----------
    n : rows counted.
    unparsed : rows without a readable prediction, all of them counted wrong.
    accuracy, weighted_f1, micro_f1, macro_f1 : 0 to 1, higher is better.
    confusion : gold label → predicted label (or ``"unparsed"``) → rows; cells of zero rows are left out.
    """

    n: int
    unparsed: int
    accuracy: float
    weighted_f1: float
    micro_f1: float
    macro_f1: float
    confusion: dict[str, dict[str, int]]

    def published_line(self, dataset_name: str, ood: int | None = None) -> str:
        """The line the published scripts print: per cent, two decimals, no trailing zero.

        `ood` is the count of answers that match no rule; the generator's line has it, the label script's has not.
        """
        accuracy, weighted, micro, macro = (
            round(value * 100, 2) for value in (self.accuracy, self.weighted_f1, self.micro_f1, self.macro_f1)
        )
        line = (
            f"Dataset: {dataset_name}, average acc:{accuracy}, weighted F1 {weighted}, "
            f"micro F1 {micro}, macro F1 {macro}"
        )
        return line if ood is None else f"{line}, OOD count: {ood}"

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        return asdict(self)


def correctness(gold: Sequence[str], predicted: Sequence[str | None]) -> Correctness:
    """Compare predictions with gold labels.

    Weighted and macro F1 run over the labels seen in `gold` or `predicted` (scikit-learn's default), "unparsed" not
    among them: an unparsed row is a miss of its gold label.  Micro-F1 pools all rows, "unparsed" as a label of its
    own, so that it equals accuracy, as it does wherever every row has one label.

    Parameters
    ----------
    gold : labels, shape (rows,).
    predicted : labels or None (unparsed), shape (rows,).

    Raises
    ------
    ValueError
        On different lengths and on no rows.
    """
    if len(gold) != len(predicted):
        raise ValueError(f"{len(gold)} gold labels but {len(predicted)} predictions")
    if not gold:
        raise ValueError("no rows to compare")
    from sklearn.metrics import f1_score

    # Integers in the sorted order of the labels, in which scikit-learn sums: the same floats, far faster than text.
    labels = sorted({*gold, *(label for label in predicted if label is not None)})
    number = {label: at for at, label in enumerate(labels)}
    truth = [number[label] for label in gold]
    guess = [len(labels) if label is None else number[label] for label in predicted]
    weighted, macro = (
        float(f1_score(truth, guess, labels=range(len(labels)), average=average)) for average in ("weighted", "macro")
    )
    micro = float(f1_score(truth, guess, average="micro"))
    confusion: dict[str, dict[str, int]] = {label: {} for label in sorted(set(gold))}
    for true, said in zip(gold, predicted, strict=True):
        cell = UNPARSED if said is None else said
        confusion[true][cell] = confusion[true].get(cell, 0) + 1
    hits = sum(true == said for true, said in zip(gold, predicted, strict=True))
    return Correctness(
        n=len(gold),
        unparsed=sum(label is None for label in predicted),
        accuracy=hits / len(gold),
        weighted_f1=weighted,
        micro_f1=micro,
        macro_f1=macro,
        confusion=confusion,
    )
