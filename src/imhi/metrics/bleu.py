"""BLEU-4 of a corpus and of each row: "13a" tokens, no smoothing.

Formula: Papineni, Roukos, Ward, Zhu, "BLEU: a method for automatic evaluation of machine translation", ACL 2002,
section 2.3.  Tokens: NIST's mteval-v13a.pl as ported by sacrebleu (``tokenizers/tokenizer_13a.py``, Apache-2.0);
the same as ``evaluate``'s "bleu", which the published script called.  Equal to
``sacrebleu.BLEU(smooth_method="none")`` up to sacrebleu's factor 100.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from imhi.metrics.base import Metric, Signature, Statistics
from imhi.metrics.ngrams import WordIds, matching_ngrams

__all__ = ["Bleu", "bleu_from_counts", "tokenize_13a"]

ORDER = 4

# mteval-v13a.pl, NormalizeText, the part for Western languages; ASCII only, the ranges as they stand there.
_RULES = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),  # punctuation except . , - '
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),  # period and comma unless preceded by a digit
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),  # period and comma unless followed by a digit
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),  # dash preceded by a digit
)
_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))


def tokenize_13a(text: str) -> list[str]:
    """Tokens of mteval-v13a: case kept, punctuation split off, line-end hyphens joined."""
    return [token for word in _line(text).split() for token in _split(word)]


def _line(text: str) -> str:
    """The text as one line, entities resolved."""
    line = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in _ENTITIES:
        line = line.replace(entity, character)
    return line


def _split(word: str) -> list[str]:
    """Tokens of a word: no rule looks past white space, and none tells one kind of it from another."""
    if word.isalnum():
        return [word]  # most words: no rule applies
    word = f" {word} "
    for pattern, replacement in _RULES:
        word = pattern.sub(replacement, word)
    return word.split()


def _row_counts(ids: Sequence[int], gold_ids: Sequence[int]) -> tuple[float, ...]:
    """Lengths of generated and gold, then matching n-grams and generated n-grams for n = 1 to 4."""
    matches = [0] * ORDER
    for order in range(1, ORDER + 1):
        matches[order - 1] = matching_ngrams(ids, gold_ids, order)
        if not matches[order - 1]:
            break  # longer ones contain these
    totals = [max(len(ids) - order, 0) for order in range(ORDER)]
    return (len(ids), len(gold_ids), *matches, *totals)


def bleu_from_counts(counts: Sequence[float]) -> float:
    """BLEU, 0 to 1, higher is better, of one row's statistics or of the sum of many.

    Exactly 0 where any n-gram order has no match (no smoothing).
    """
    length, gold_length, matches, totals = counts[0], counts[1], counts[2 : 2 + ORDER], counts[2 + ORDER :]
    if not all(matches):
        return 0.0
    brevity = 1.0 if length >= gold_length else math.exp(1 - gold_length / length)
    logs = [math.log(match / total) for match, total in zip(matches, totals, strict=True)]
    return brevity * math.exp(math.fsum(logs) / ORDER)


class Bleu(Metric):
    """Corpus BLEU-4; 0 to 1, higher is better.  Row values are sentence BLEU by the same formula, unsmoothed."""

    name = "bleu"
    empty_rule: ClassVar[str] = "0 for the row; its gold's tokens count in the brevity penalty"

    @property
    def signature(self) -> Signature:
        return Signature.of(
            self.name, {"level": "corpus", "order": ORDER, "tok": "13a", "case": "mixed", "smooth": "none", "nrefs": 1}
        )

    @property
    def statistics_columns(self) -> tuple[str, ...]:
        orders = range(1, ORDER + 1)
        return ("length", "gold_length", *(f"matches{n}" for n in orders), *(f"ngrams{n}" for n in orders))

    def _statistics(self, pairs: Sequence[tuple[str, str]], advance: Callable[[int], object]) -> Statistics:
        words = WordIds(_split)
        ids = {text: words.of(_line(text)) for text in dict.fromkeys(text for pair in pairs for text in pair)}
        rows = []
        for generated, gold in pairs:
            rows.append(_row_counts(ids[generated], ids[gold]))
            advance(1)
        return rows

    def row_values(self, statistics: Statistics) -> dict[str, list[float]]:
        return {"bleu": [bleu_from_counts(row) for row in statistics]}

    def values(self, statistics: Statistics) -> dict[str, float]:
        return {"bleu": bleu_from_counts([sum(column) for column in zip(*statistics, strict=True)])}

    @staticmethod
    def values_of_sums(sums: Any) -> Any:
        """Corpus BLEU from sums of statistics, shape (samples, statistics) → (samples,): for resampling."""
        import numpy as np

        counts = np.asarray(sums, dtype=float)
        length, gold_length = counts[..., 0], counts[..., 1]
        matches, totals = counts[..., 2 : 2 + ORDER], counts[..., 2 + ORDER :]
        some = (matches > 0).all(axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            brevity = np.where(length >= gold_length, 1.0, np.exp(1 - gold_length / length))
            geometric = np.exp(np.log(matches / totals).mean(axis=-1))
        return np.where(some, brevity * geometric, 0.0)
