"""ROUGE-1, ROUGE-2 and ROUGE-L: F-measure per row, their plain mean for a corpus.

Definition: Lin, "ROUGE: a package for automatic evaluation of summaries", 2004, as computed by Google's rouge-score
package: lower-cased runs of a-z and 0-9, no stemming.  N-grams are counted here and the longest common subsequence
by rapidfuzz, not by a table in Python; the values are rouge-score's bit for bit.  The published script called
``evaluate``'s "rouge", whose value is the middle of an unseeded bootstrap around this mean (apart by up to 2e-3 from
run to run).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import ClassVar

from imhi.metrics.base import Metric, Signature, Statistics
from imhi.metrics.ngrams import WordIds, matching_ngrams

__all__ = ["Rouge"]

TYPES = ("rouge1", "rouge2", "rougeL")

# The version whose values these are, judged by tests/metrics/test_rouge.py; the package itself is not called.
DEFINITION = {"rouge-score": "0.1.2"}

_TOKEN = re.compile("[a-z0-9]+")


class Rouge(Metric):
    """Mean F of ROUGE-1/2/L; 0 to 1, higher is better."""

    name = "rouge"
    empty_rule: ClassVar[str] = "0"

    @property
    def signature(self) -> Signature:
        options = {"types": "+".join(TYPES), "value": "f", "stem": "no", "aggregate": "mean"}
        return Signature.of(self.name, {**options, **DEFINITION})

    @property
    def statistics_columns(self) -> tuple[str, ...]:
        return TYPES

    def _statistics(self, pairs: Sequence[tuple[str, str]], advance: Callable[[int], object]) -> Statistics:
        from rapidfuzz.distance import LCSseq

        words = WordIds(_TOKEN.findall)
        ids = {text: words.of(text.lower()) for text in dict.fromkeys(text for pair in pairs for text in pair)}
        rows: Statistics = []
        for generated, gold in pairs:
            found, wanted = ids[generated], ids[gold]
            rows.append(
                (
                    _f(matching_ngrams(found, wanted, 1), len(found), len(wanted)),
                    _f(matching_ngrams(found, wanted, 2), len(found) - 1, len(wanted) - 1),
                    _f(LCSseq.similarity(found, wanted), len(found), len(wanted)),
                )
            )
            advance(1)
        return rows


def _f(matches: int, generated: int, gold: int) -> float:
    """The harmonic mean of matches/generated and matches/gold, in rouge-score's order of operations; 0 without any."""
    precision, recall = matches / max(generated, 1), matches / max(gold, 1)
    return 2 * precision * recall / (precision + recall) if matches else 0.0
