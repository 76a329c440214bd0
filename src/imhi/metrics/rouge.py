"""ROUGE-1, ROUGE-2 and ROUGE-L: F-measure per row, their plain mean for a corpus.

Definition: Lin, "ROUGE: a package for automatic evaluation of summaries", 2004, as computed by Google's rouge-score
package: lower-cased runs of a-z and 0-9, no stemming.  The published script called ``evaluate``'s "rouge", whose
value is the middle of an unseeded bootstrap around this mean (apart by up to 2e-3 from run to run).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

from imhi.metrics.base import Metric, Signature, Statistics

__all__ = ["Rouge"]

TYPES = ("rouge1", "rouge2", "rougeL")


class Rouge(Metric):
    """Mean F of ROUGE-1/2/L; 0 to 1, higher is better."""

    name = "rouge"
    empty_rule: ClassVar[str] = "0"

    @property
    def signature(self) -> Signature:
        options = {"types": "+".join(TYPES), "value": "f", "stem": "no", "aggregate": "mean"}
        return Signature.of(self.name, options, ["rouge-score"])

    @property
    def statistics_columns(self) -> tuple[str, ...]:
        return TYPES

    @cached_property
    def _scorer(self) -> Any:
        from rouge_score.rouge_scorer import RougeScorer

        return RougeScorer(list(TYPES), use_stemmer=False)

    def _statistics(self, pairs: Sequence[tuple[str, str]], advance: Callable[[int], object]) -> Statistics:
        rows: Statistics = []
        for generated, gold in pairs:
            found = self._scorer.score(gold, generated)
            rows.append(tuple(float(found[name].fmeasure) for name in TYPES))
            advance(1)
        return rows
