"""Published results to stand beside ours, as data; each row names its source.

The values are secondary copies: they were taken from a table that repeats the paper's, not from the paper itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["CITATION", "NOTE", "PUBLISHED", "PublishedRow"]

SOURCE = "Yang et al. 2024, MentaLLaMA; secondary copy"
CITATION = (
    "Yang et al., “MentaLLaMA: Interpretable Mental Health Analysis on Social Media with Large Language Models”, WWW 2024, "
    "table of weighted F1 on the test sets, taken from a secondary copy without CLP"
)


@dataclass(frozen=True)
class PublishedRow:
    """Weighted F1 of one published system on the IMHI test sets, in per cent; CLP is missing in the source."""

    system: str
    source: str
    weighted_f1: Mapping[str, float]


_DATASETS = ("CAMS", "DR", "dreaddit", "Irf", "loneliness", "MultiWD", "SAD", "swmh", "t-sid")


def _row(system: str, values: tuple[float, ...]) -> PublishedRow:
    return PublishedRow(system, SOURCE, dict(zip(_DATASETS, values, strict=True)))


PUBLISHED = (
    _row("ChatGPT, zero-shot", (33.85, 82.41, 71.79, 41.33, 58.40, 62.72, 54.05, 49.32, 33.30)),
    _row("best fine-tuned encoder", (47.62, 95.11, 81.76, 76.73, 85.33, 76.69, 68.44, 72.16, 89.01)),
    _row("MentaLLaMA-chat-13B", (45.52, 85.68, 75.79, 76.49, 85.10, 75.11, 63.62, 71.70, 75.31)),
)

NOTE = (
    "Context, not a comparison. An encoder predicts its label directly; of generated answers the published tools read "
    "the label by a substring rule, which gives an unreadable answer a class with credit, or by ten classifiers, and our "
    "copy of the table does not say which. Rows, prompts and decoding may differ too. What compares two models is a run of "
    "each under one setting."
)
