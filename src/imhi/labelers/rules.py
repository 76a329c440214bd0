"""Labels read from the template ``[label] Reasoning: [explanation]`` by rule.

`label_by_rule` is strict: whole words, negation aware, one label or none.  `published_rule` is the substring rule
of the published script, kept so that old figures can be reproduced to the last digit.
"""

from __future__ import annotations

import re
from functools import cache

from imhi.benchmark import DATASETS, Dataset, find_mentions, head_of

__all__ = ["label_by_rule", "published_rule"]

_MARKER = re.compile(r"reasoning\s*:", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_CLAUSE_END = re.compile(r"[,;:()]|\bbut\b|\bhowever\b|\byet\b")
_NEGATION = re.compile(
    r"\b(?:not(?! only)|no(?! doubt| question| wonder)|never|without|neither|nor|none"
    r"|rather than|instead of|except|excluding|other than)\b|n['’]t\b"
)
# A sentence that leaves the answer open states no label.
_OPEN = re.compile(
    r"\b(?:whether|unclear|uncertain|unsure|not (?:clear|sure|certain|possible|enough)|cannot|unable|impossible"
    r"|insufficient|difficult to)\b|can['’]t"
)
_LEADING_ANSWER = re.compile(
    r"^\W*(?:(?:the |my |final |correct )*(?:answer|label|prediction|response|output)\b[^.?!\n]*?(?:\bis\b|:)|is\b)?"
    r"\W*(yes|no)\b(?! (?:doubt|question|wonder|longer|one)\b)"
)
_EITHER = re.compile(r"\byes\s*(?:or|/|and)\s*no\b|\bno\s*(?:or|/|and)\s*yes\b")


def label_by_rule(dataset: Dataset, text: str) -> str | None:
    """The label that an answer states, or None where it states none or several.

    Read is the head: the text before the first ``Reasoning:`` (any case), or the first sentence where that marker
    is missing.  An answer that begins with ``Reasoning:`` has an empty head and therefore no label.

    - yes/no sets: a sentence that opens with (or gives as "the answer") yes or no, or that states or denies the
      condition in the words of the table's ``claims``; contradictions (``Yes, ... does not suffer``) are no label.
    - other sets: the one label that the head names and does not negate (``not work but health issues`` is
      health issues).
    - a question, or a sentence that leaves the matter open (``unclear whether``), states nothing.
    """
    marker = _MARKER.search(text)
    sentences = [
        sentence for sentence in _SENTENCE_END.split(_plain(text[: marker.start()] if marker else text)) if sentence
    ]
    if marker is None:
        sentences = sentences[:1]
    stated = _stated_yes_no if dataset.is_yes_no else _stated_labels
    labels: set[str] = set()
    for sentence in sentences:
        if not sentence.endswith("?") and not _OPEN.search(sentence):
            labels |= stated(dataset, sentence)
    return labels.pop() if len(labels) == 1 else None


def published_rule(dataset: Dataset, text: str) -> tuple[str, bool]:
    """(label, whether it is the default): the first substring of the published order found before ``Reasoning:``.

    A text that matches nothing gets the default class, which the published figures credit where the gold agrees.
    """
    head = head_of(text).lower()
    for substring, label in dataset.published_rule:
        if substring in head:
            return label, False
    return dataset.published_default, True


def _plain(text: str) -> str:
    """Lower case without Markdown emphasis; line breaks are kept, they end sentences."""
    return re.sub(r"[*_`#]+", "", text).lower().strip()


def _stated_yes_no(dataset: Dataset, sentence: str) -> set[str]:
    if _EITHER.search(sentence):
        return {"yes", "no"}
    stated = set()
    leading = _LEADING_ANSWER.match(sentence)
    if leading:
        stated.add(leading.group(1))
    for claim in _claims(dataset.name).finditer(sentence):
        stated.add(
            "no" if _negated(sentence, claim.start(), claim.end(), after=leading.end() if leading else 0) else "yes"
        )
    return stated


def _stated_labels(dataset: Dataset, sentence: str) -> set[str]:
    return {
        mention.label.name
        for mention in find_mentions(dataset, sentence)
        if not _negated(sentence, mention.start, mention.start)
    }


@cache
def _claims(name: str) -> re.Pattern[str]:
    return re.compile(r"\b(?:" + "|".join(DATASETS[name].claims) + r")\b")


def _negated(sentence: str, start: int, end: int, *, after: int = 0) -> bool:
    """Whether a negation stands in the clause of ``sentence[start:end]``, before its end and from `after` on."""
    clause_start = after
    for boundary in _CLAUSE_END.finditer(sentence, after, start):
        clause_start = boundary.end()
    return _NEGATION.search(sentence, clause_start, end) is not None
