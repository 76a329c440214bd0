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

_BEFORE_CLAIM = re.compile(rf"^\W*(?:(?:because|since|however)\b\W*|{_LEAD_IN})(?:there is no doubt that )?")
# What may follow a claim: "suffers from depression alone", "... only if", "exists in neither" are other claims.
_CLAIM_END = (
    r"(?=\s*(?:$|[.,;:!)\"”’]|(?:in|by)\b(?! (?:no|neither))"
    r"|(?:of|because|as|due|and|based|since|according|at|with|from|that|which|but)\b))"
)

_NEGATION = re.compile(
    r"\b(?:not(?! only)|no(?! doubt| question| wonder)|never|without|neither|nor|none|nothing|rather than|instead of"
    r"|except|excluding|other than|unlikely|hardly|barely|little|few|lacks?|lacking|absence|fails? to|den(?:y|ies)"
    r"|rules? out|anything but)\b|n['’]t\b"
)
_CLAUSE_END = re.compile(r"[,;:()]|(?<!anything )\bbut\b|\bhowever\b|\byet\b|\band\b(?! not)")
_NEGATED_BEHIND = re.compile(r"^\W*(?:is|are|was|were|does|do)(?: not|n['’]t)\b|^\s*:\s*(?:no|not|absent|false)\b")
# A sentence that leaves the matter open states no label.
_OPEN = re.compile(
    r"\b(?:whether|if|unless|unclear|uncertain|unsure|not (?:clear|sure|certain|possible|enough|uncommon)|cannot|unable"
    r"|impossible|insufficient|difficult to|may|might|could|possible|possibly|perhaps|maybe|not know|not mean"
    r"|not necessarily)\b|\bcan['’]t\b"
)

# A label counts where it is given as the label: at the start of a sentence or behind "answer:"; behind "related to"; as
# what the post or poster shows, is or has; or as what the cause, label or disorder is. All else may be told of anybody.
_FILLER = (
    r"(?:(?:the|an?|any|mainly|mostly|primarily|most|likely|probably|clearly|also|only|both|either|severe|mild|major"
    r"|label|option|category|class|(?:mental )?disorders?(?: symptoms?)?(?: of| related to)?|stress cause|(?:stress )?causes? of"
    r"|signs? of|symptoms? of|related to|tendency of)\s+)*"
)
_ADVERB = r"(?:(?:does|do|is|clearly|likely|also|most|probably|indeed|explicitly|not|only|mainly)\s+)*"
_NOUN = r"(?:causes?|stressor|labels?|answer|category|class|option|disorder|symptoms?|reason|factor|prediction|output|response)"
_GIVEN = re.compile(
    r"(?:^\W*(?:not\s+)?"
    rf"|\b{_NOUN}\b[^:,;]*:\s*"
    r"|\b(?:related|relates?) to\s+"
    rf"|(?:^|[;,]|\b(?:and|but)\b)\W*(?:the |this )?(?:post|poster|author|user|writer|text|message|it|this|that)\s+{_ADVERB}"
    r"(?:is|shows?|indicates?|suggests?|exhibits?|displays?|has|have|falls? under|suffers? from|points? to|expresses)\s+"
    rf"|\b{_NOUN}\b(?![’'])[^:,;]*?\b(?:is|are|be|of)\s+(?:not\s+)?"
    r"|\b(?:stress|depression|distress)\b[^:,;]*?\b(?:caused by|due to|because of|stems? from|from)\s+"
    r"|^\W*(?:the |this )?(?:post|poster|author|user|writer|text|message|it|this|that)\s+(?:does|do)\s+"
    r"|\b(?:categori[sz]ed|classified|label+ed) as\s+"
    r"|\b(?:rather than|instead of|other than|anything but)\s+)" + _FILLER + r"[\"“‘'(*]*$"
)
_JOINED = re.compile(
    r"^[\"”’')*]*\s*(?:,|/|;|and|or|nor|but|&|\+|as well as|not|rather than|also|instead of|\s)*\s*"
    + _FILLER
    + r"[\"“‘'(*]*$"
)
_CLOSED = re.compile(
    r"^[\"”’')*]*\s*(?:$|[.,;:!?()/–—]|-(?!\w)|(?:and|or|but|nor|rather|instead|because|since|as|due|in|for|with|according|based"
    r"|stress|issues?|causes?|symptoms?|symptom|disorders?|reasoning|which|category|label)\b"
    r"|(?:is|are|was|were)(?: not|n['’]t)? (?:the|a|an)\b)"
)


def label_by_rule(dataset: Dataset, text: str) -> str | None:
    """The label that an answer states, or None where it states none, several, or contradicts itself.

    Read is the head, the text before the first ``Reasoning:`` (any case, Markdown aside): an answer that begins with
    it has an empty head and no label.  Without the marker the whole text is read, sentence by sentence.  Questions,
    also quoted ones, and sentences that leave the matter open (``unclear whether``, ``may``) state nothing.

    - yes/no sets: "yes" or "no" as the answer, that is at the start of a sentence or behind "the answer is", and
      sentences that open with the poster (or post) and state or deny the condition in the words of the table's
      ``claims``.  ``Yes, the poster does not suffer ...`` contradicts itself.
    - other sets: the one label that is given as one (alone, behind "related to", "is", "shows" ...) and not negated:
      ``not work but health issues`` is health issues, ``make their relationship work`` is nothing.

    Several labels, also of different sentences, are none.
    """
    head, _, marked = split_reasoning(text)
    sentences = _sentences(head)
    if dataset.is_yes_no:
        stated = [_explicit_answer(dataset, sentence) | _claim(dataset, sentence) for sentence in sentences]
    elif not marked and len(_OPTION.findall(head)) > 1:
        return None
    else:
        stated = [_given_labels(dataset, sentence) for sentence in sentences]
    labels = set().union(*stated)
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


def _sentences(head: str) -> list[str]:
    """Sentences in lower case without Markdown emphasis; questions are left out."""
    plain = re.sub(r"[*_`#]+", "", head).lower()
    # An echoed question is no statement; "the answer to that is no" stays readable.
    plain = _QUOTED_QUESTION.sub(lambda quoted: "that" if plain[: quoted.start()].strip() else "", plain)
    return [
        sentence for part in _SENTENCE_END.split(plain) if (sentence := part.strip()) and not sentence.endswith("?")
    ]


def _explicit_answer(dataset: Dataset, sentence: str) -> set[str]:
    """{"yes"} or {"no"} where the sentence gives that as the answer; both where it takes it back."""
    match = _EXPLICIT.match(sentence)
    if match is None:
        return set()
    answer = match.group(1)
    rest = sentence[match.end() :]
    taken_back = _TAKEN_BACK[answer].search(rest)
    claimed = _claim(
        dataset, re.sub(r"^\W*(?:(?:because|since|as|however)\b\W*)?(?:i|he|she|they)\b", "the poster", rest)
    )
    return {"yes", "no"} if taken_back or claimed - {answer} else {answer}


def _claim(dataset: Dataset, sentence: str) -> set[str]:
    opened = _BEFORE_CLAIM.sub("", sentence)
    affirmed, denied = _claims(dataset.name)
    if denied.match(opened):
        return {"no"}
    return {"yes"} if affirmed.match(opened) else set()


@cache
def _claims(name: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """(stated, denied): a sentence that opens with its subject and one of the table's claims, and goes no further."""
    stated = "|".join(claim for claim, _ in DATASETS[name].claims)
    base = "|".join(base for _, base in DATASETS[name].claims)
    subjects = "|".join(DATASETS[name].subjects) or _SUBJECT
    clear = r"(?:(?:clear|explicit|specific|direct|obvious|strong) )*"
    affirmed = (
        rf"(?:{subjects}) {_SURELY}(?:{stated})|there (?:is|are) {clear}(?:evidence|indications?|signs?) that "
        rf"(?:{subjects}) {_SURELY}(?:{stated})|there (?:is|are) {clear}(?:{base})"
    )
    denied = (
        rf"(?:{subjects}) {_SURELY}(?:{_NOT} {_SURELY}(?:(?:seem|appear) to )?(?:{base})|shows? no (?:{base})|has no (?:{base}))"
        rf"|(?:there (?:is|are) )?no {clear}(?:{base})"
        rf"|there (?:is|are) no {clear}(?:evidence|indications?|signs?) that (?:{subjects}) {_SURELY}(?:{stated})"
    )
    return re.compile(rf"(?:{affirmed}){_CLAIM_END}"), re.compile(rf"(?:{denied}){_CLAIM_END}")


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
