"""Labelers: responses in, labels out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from imhi.benchmark import Dataset

__all__ = ["LabelResult", "Labeler"]


@dataclass(frozen=True)
class LabelResult:
    """Labels of one dataset's responses.

    Attributes
    ----------
    labels : canonical label names, shape (rows,); None where the response could not be read (unparsed).
    confidences : probability of the chosen class, shape (rows,), 0 to 1; None where the labeler has none.
    counts : what the reader of a score should know about the rows (empty, truncated, unclear, ...).
    clear : whether the response supports its label, shape (rows,); None where the labeler does not judge that.
    """

    labels: list[str | None]
    confidences: list[float] | None = None
    counts: dict[str, int] = field(default_factory=dict)
    clear: list[bool] | None = None


class Labeler(Protocol):
    """What turns the responses of a dataset into labels."""

    def identity(self) -> dict[str, Any]:
        """What the labels depend on, as JSON; a rerun with an equal identity keeps the labels it finds."""

    def label(self, dataset: Dataset, texts: Sequence[str]) -> LabelResult:
        """Label the responses, shape (rows,), in their order."""
