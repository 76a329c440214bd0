"""Labels read from the template ``[label] Reasoning: [explanation]`` by rule.

`label_by_rule` is strict: it reads an answer only where the answer is *stated*, because a wrong label is worse than
none: unparsed answers are counted, wrong ones would pass for the model's.  `published_rule` is the substring rule of
the published script, kept so that old figures can be reproduced to the last digit.
"""

from __future__ import annotations

import re
from functools import cache

from imhi.benchmark import DATASETS, Dataset, Mention, find_mentions, head_of, split_reasoning

__all__ = ["label_by_rule", "published_rule"]

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)]*\s+|\n+")
_QUOTED_QUESTION = re.compile(r"[\"“'‘][^\"”\n]*\?[\"”'’]")
_OPTION = re.compile(r"^\s*(?:\(?[a-j]|\d)[).:]\s", re.MULTILINE | re.IGNORECASE)

# What may stand before a stated answer: "Sure!" is a sentence of its own, "Based on the post, yes" is not.
_LEAD_IN = (
    r"(?:(?:sure|okay|ok|well|so|therefore|thus|hence|overall|in conclusion|based on [^,]*|according to [^,]*)[,:]? )?"
)
_ANSWER_IS = (
    r"(?:(?:(?:the|my|your|final|correct|appropriate|best|most) )*(?:answer|label|response|prediction|output|classification)"
    r"(?: (?:to|for) [^.!?\n]*?)?(?: is| would be| should be)?:? ?)?"
)
_EXPLICIT = re.compile(
    rf"^\W*{_LEAD_IN}\W*{_ANSWER_IS}(?:is )?\W*(yes|no)\b(?=\s*(?:$|[^\w\s/])|\s+(?:the|this|it|there|i|they|he|she|based)\b)"
)

# "No, wait, yes", "yes, well, no".
_TAKEN_BACK = {"no": re.compile(r"\byes\b"), "yes": re.compile(r"\bno\b\s*(?:$|[,.;:])")}

_SUBJECT = r"(?:the |this )?(?:poster|author|user|writer|person|individual|speaker|post)"
_SURELY = r"(?:(?:likely|most likely|clearly|probably|indeed|definitely|certainly|also) )*"
_NOT = r"(?:does not|doesn['’]t|do not|don['’]t|did not|didn['’]t|is not|isn['’]t)"

_NEGATION = re.compile(
    r"\b(?:not(?! only)|no(?! doubt| question| wonder)|never|without|neither|nor|none|nothing|rather than|instead of"
    r"|except|excluding|other than|unlikely|hardly|barely|little|few|lacks?|lacking|absence|fails? to|den(?:y|ies)"
    r"|rules? out)\b|n['’]t\b"
)
_CLAUSE_END = re.compile(r"[,;:()]|\bbut\b|\bhowever\b|\byet\b|\band\b(?! not)")
_NEGATED_BEHIND = re.compile(r"^\W*(?:is|are|was|were|does|do)(?: not|n['’]t)\b")
# A sentence that leaves the matter open states no label.
_OPEN = re.compile(
    r"\b(?:whether|if|unless|unclear|uncertain|unsure|not (?:clear|sure|certain|possible|enough|uncommon)|cannot|unable"
    r"|impossible|insufficient|difficult to|may|might|could|possible|possibly|perhaps|maybe|not know|not mean"
    r"|not necessarily)\b|\bcan['’]t\b"
)

# A label counts where it is given as the label: behind "related to", "is", "shows" and the like, or alone.
_FILLER = (
    r"(?:(?:the|an?|any|mainly|mostly|primarily|most|likely|probably|clearly|possibly|also|only|both|either|label|option"
    r"|category|class|stress cause|cause|disorder|signs? of|symptoms? of)\s+)*"
)
_GIVEN = re.compile(
    r"(?:^\W*|[:–—]\s*|\b(?:related to|relates to|relate to|due to|caused by|because of|stress(?:ed)? from|suffers? from"
    r"|suffering from|(?:symptoms?|signs?|evidence|causes?|category|label|tendency) of|is|are|be|as|under|shows?|showing"
    r"|indicates?|suggests?|exhibits?|does|do|not|rather than|instead of|other than|but|anything)\s+)"
    + _FILLER
    + r"[\"“‘'(*]*$"
)
_JOINED = re.compile(
    r"^[\"”’')*]*\s*(?:,|/|;|and|or|nor|but|&|\+|as well as|not|rather than|also|instead of|\s)*\s*"
    + _FILLER
    + r"[\"“‘'(*]*$"
)
_CLOSED = re.compile(
    r"^[\"”’')*]*\s*(?:$|[.,;:!?()/–—-]|(?:and|or|but|nor|rather|instead|because|since|as|due|in|for|with|according|based"
    r"|stress|issues?|causes?|symptoms?|symptom|disorders?|reasoning|which|category|label)\b"
    r"|(?:is|are|was|were)(?: not|n['’]t)? (?:the|a|an)\b)"
)


def label_by_rule(dataset: Dataset, text: str) -> str | None:
    """The label that an answer states, or None where it states none, several, or contradicts itself.

    Read is the head, the text before the first ``Reasoning:`` (any case, Markdown aside): an answer that begins with
    it has an empty head and no label.  Without the marker the whole text is read, sentence by sentence.  Questions,
    also quoted ones, and sentences that leave the matter open (``unclear whether``, ``may``) state nothing.

    - yes/no sets: "yes" or "no" as the answer, that is at the start of a sentence or behind "the answer is"; failing
      that, a sentence that opens with the poster (or post) and states or denies the condition in the words of the
      table's ``claims``.  ``Yes, the poster does not suffer ...`` contradicts itself.
    - other sets: the one label that is given as one (alone, behind "related to", "is", "shows" ...) and not negated:
      ``not work but health issues`` is health issues, ``make their relationship work`` is nothing.  In a head several
      labels are none; without the marker the first sentence that gives a label decides, unless options are listed.
    """
    head, _, marked = split_reasoning(text)
    sentences = _sentences(head)
    if dataset.is_yes_no:
        return _only([_explicit_answer(dataset, s) for s in sentences]) or _only(
            [_claim(dataset, s) for s in sentences]
        )
    if not marked and len(_OPTION.findall(head)) > 1:
        return None
    given = [labels for labels in (_given_labels(dataset, sentence) for sentence in sentences) if labels]
    named = set().union(*given) if marked else given[0] if given else set()
    return named.pop() if len(named) == 1 else None


def published_rule(dataset: Dataset, text: str) -> tuple[str, bool]:
    """(label, whether it is the default): the first substring of the published order found before ``Reasoning:``.

    A text that matches nothing gets the default class, which the published figures credit where the gold agrees.
    """
    head = head_of(text).lower()
    for substring, label in dataset.published_rule:
        if substring in head:
            return label, False
    return dataset.published_default, True


def _sentences(head: str) -> list[str]:
    """Sentences in lower case without Markdown emphasis; questions are left out."""
    plain = re.sub(r"[*_`#]+", "", head).lower()
    # An echoed question is no statement; "the answer to that is no" stays readable.
    plain = _QUOTED_QUESTION.sub(lambda quoted: "that" if plain[: quoted.start()].strip() else "", plain)
    return [
        sentence for part in _SENTENCE_END.split(plain) if (sentence := part.strip()) and not sentence.endswith("?")
    ]


def _only(answers: list[set[str]]) -> str | None:
    found = set().union(*answers) if answers else set()
    return found.pop() if len(found) == 1 else None


def _explicit_answer(dataset: Dataset, sentence: str) -> set[str]:
    """{"yes"} or {"no"} where the sentence gives that as the answer; both where it takes it back at once."""
    match = _EXPLICIT.match(sentence)
    if match is None:
        return set()
    answer = match.group(1)
    rest = sentence[match.end() :]
    taken_back = _TAKEN_BACK[answer].search(rest)
    claimed = _claim(dataset, rest.lstrip(" ,.;:!-–—"))
    return {"yes", "no"} if taken_back or claimed - {answer} else {answer}


def _claim(dataset: Dataset, sentence: str) -> set[str]:
    affirmed, denied = _claims(dataset.name)
    if denied.match(sentence):
        return {"no"}
    return {"yes"} if affirmed.match(sentence) else set()


@cache
def _claims(name: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """(stated, denied): a sentence that opens with its subject and one of the table's claims."""
    stated = "|".join(claim for claim, _ in DATASETS[name].claims)
    base = "|".join(base for _, base in DATASETS[name].claims)
    subjects = "|".join(DATASETS[name].subjects) or _SUBJECT
    denied = (
        rf"^(?:{subjects}) {_SURELY}(?:{_NOT} {_SURELY}(?:(?:seem|appear) to )?(?:{base})|shows? no (?:{base})|has no (?:{base}))"
        rf"|^(?:there (?:is|are) )?no (?:(?:clear|explicit|specific|direct|obvious|strong) )*(?:{base})"
        rf"|^there (?:is|are) no (?:evidence|indications?|signs?) that (?:{subjects}) {_SURELY}(?:{stated})"
    )
    return re.compile(rf"^(?:{subjects}) {_SURELY}(?:{stated})\b"), re.compile(rf"(?:{denied})\b")


def _given_labels(dataset: Dataset, sentence: str) -> set[str]:
    """Labels that the sentence gives as labels and does not negate."""
    if _OPEN.search(sentence):
        return set()
    given: set[str] = set()
    previous: Mention | None = None
    for mention in find_mentions(dataset, sentence):
        before, behind = sentence[: mention.start], sentence[mention.end :]
        joined = previous is not None and _JOINED.match(sentence[previous.end : mention.start])
        if not (joined or _GIVEN.search(before)) or not _CLOSED.match(behind):
            continue
        previous = mention
        if not _negated(sentence, mention.start) and not _NEGATED_BEHIND.match(behind):
            given.add(mention.label.name)
    return given


def _negated(sentence: str, start: int) -> bool:
    """Whether a negation stands before `start` in its clause."""
    clause_start = 0
    for boundary in _CLAUSE_END.finditer(sentence, 0, start):
        clause_start = boundary.end()
    return _NEGATION.search(sentence, clause_start, start) is not None
