"""Known failures of a responder's answers, counted: label bias, invented quotations, symptoms that the post does not
tell of, copying, repetition, contradiction, and how answers end.

Every count about texts is made of the gold answers of the same rows too.  Gold explanations were written by a language
model and paraphrase, so that their count is what a measure finds in texts that are taken for right: the yardstick.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from imhi.audit import post_of, repaired
from imhi.benchmark import Dataset
from imhi.errors import UserError
from imhi.labelers.rules import label_by_rule
from imhi.metrics.base import mean
from imhi.rows import RULE, DatasetResults, RunResults
from imhi.scoring import explanation_of
from imhi.talk import progress_bar

__all__ = ["SYMPTOMS", "Symptom", "count_failures", "invented_quotations", "unfounded_symptoms", "verbatim_share"]

FORMAT = "imhi-failures-1"
TABLE = "symptoms.json"

# Words of a quotation that is looked up; shorter ones are single terms as often as quotations.
LEAST_QUOTED = 3
# Words of a run of the post that is copied, and of runs that the copied share is made of.
LONG_RUN, SHORT_RUN = 12, 8
# Shorter explanations are equal by chance.
LEAST_REPEATED = 5
LEAST_SENTENCE = 3
# Share of one label among parsed answers from which a set has "one label only".
ONE_LABEL = 0.95

_NON_ASCII = re.compile(r"[^\x00-\x7f]+")
_APOSTROPHE = re.compile(r"['’‘`´ʼ]")
_HYPHEN = re.compile(r"[-‐‑–—]")
_WORD = re.compile(r"[^\W_]+")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)]*\s+|\n+")
_QUOTATION = re.compile(r"(?<!\w)[\"“](?=\S)([^\"“”]*?)(?<=\S)[\"”](?!\w)")
# What a writer marks as left out of a quotation, or as put into it.
_ELISION = re.compile(r"\.\.+|…|\[[^\]]*\]")


# --- one text ---------------------------------------------------------------------------------------------------------


def _repaired(text: str) -> str:
    """`text` with every run of mojibake restored, also where others are beyond repair."""
    return _NON_ASCII.sub(lambda run: repaired(run.group()), text)


def _plain(text: str) -> str:
    """`text` in lower case, mojibake repaired, without apostrophes; hyphens are spaces."""
    return _HYPHEN.sub(" ", _APOSTROPHE.sub("", _repaired(text).casefold()))


def _words(text: str) -> list[str]:
    return _WORD.findall(_plain(text))


def _sentences(text: str) -> list[str]:
    return [part for part in _SENTENCE_END.split(text) if part.strip()]


def invented_quotations(explanation: str, post: str, terms: Sequence[str] = ()) -> tuple[int, int]:
    """(quotations, those that do not stand in the post) of an explanation.

    A quotation stands between straight or curly double quotation marks and has at least three words.  Letter case,
    punctuation, spacing and mojibake are folded; of a quotation with ``...`` or ``[...]`` in it every part is looked up
    by itself.  Not counted are one that is never closed, and one that stands in one of `terms`: the question and the
    spellings of the labels, which are the task's words and not the post's.
    """

    def stands(words: Sequence[str], where: str) -> bool:
        return f" {' '.join(words)} " in where

    there, *others = (f" {' '.join(_words(text))} " for text in (post, *terms))
    quoted = invented = 0
    for found in _QUOTATION.finditer(_repaired(explanation)):
        parts = [words for part in _ELISION.split(found.group(1)) if (words := _words(part))]
        said = [word for words in parts for word in words]
        if len(said) >= LEAST_QUOTED and not any(stands(said, other) for other in others):
            quoted += 1
            invented += not all(stands(words, there) for words in parts)
    return quoted, invented


def verbatim_share(explanation: str, post: str) -> tuple[int, float]:
    """(words of the longest run of the post in the explanation, share of its words in runs of at least eight).

    What stands between quotation marks is in no run, but among the words.  Share from 0 to 1; 0 for no words.
    """
    theirs = _words(post)
    longest = covered = 0
    pieces = [_words(piece) for piece in _QUOTATION.sub("\0", _repaired(explanation)).split("\0")]
    starts: dict[tuple[str, ...], list[int]] = {}
    for at in range(len(theirs) - SHORT_RUN + 1):
        starts.setdefault(tuple(theirs[at : at + SHORT_RUN]), []).append(at)
    for ours in pieces:
        inside = 0  # the piece's words before this place are counted
        for at in range(len(ours) - SHORT_RUN + 1):
            for start in starts.get(tuple(ours[at : at + SHORT_RUN]), ()):
                run = SHORT_RUN
                while at + run < len(ours) and start + run < len(theirs) and ours[at + run] == theirs[start + run]:
                    run += 1
                longest = max(longest, run)
                covered += max(0, at + run - max(inside, at))
                inside = max(inside, at + run)
    every = len(_words(explanation))
    return longest, covered / every if every else 0.0


def _loops(explanation: str) -> bool:
    """Whether a sentence of at least three words stands twice in the explanation."""
    seen = Counter(tuple(_words(sentence)) for sentence in _sentences(explanation))
    return any(count > 1 for words, count in seen.items() if len(words) >= LEAST_SENTENCE)


def _contradicts(dataset: Dataset, label: str | None, explanation: str) -> bool | None:
    """Whether the explanation's first or last sentence states another label; None where neither states one."""
    sentences = _sentences(explanation)
    if label is None or not sentences:
        return None
    stated = {label_by_rule(dataset, sentence) for sentence in (sentences[0], sentences[-1])} - {None}
    return bool(stated - {label}) if stated else None


# --- symptoms ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Symptom:
    """A group of symptoms.

    Attributes
    ----------
    asserted : what an explanation says where it tells of the symptom.
    hinted : what a post may say where it is about that, in a wide sense; whatever `asserted` matches is a hint too.
    """

    name: str
    asserted: re.Pattern[str]
    hinted: re.Pattern[str]


def _pattern(phrases: str) -> re.Pattern[str]:
    """Of phrases between commas: ``sleep*`` is a stem, ``a/b`` a choice, ``with?`` a word that may be missing."""

    def word(written: str) -> str:
        choice = "|".join(re.escape(each).replace(r"\*", r"\w*") for each in written.rstrip("?").split("/"))
        return f"(?:(?:{choice}) )?" if written.endswith("?") else f"(?:{choice}) "

    found = ["".join(map(word, phrase.split())).removesuffix(" ") for phrase in phrases.split(",")]
    return re.compile(rf"\b(?:{'|'.join(found)})\b")


@cache
def _symptoms() -> tuple[Symptom, ...]:
    table = json.loads(files("imhi").joinpath(TABLE).read_text(encoding="utf-8"))
    return tuple(Symptom(name, _pattern(of["asserted"]), _pattern(of["hinted"])) for name, of in table.items())


SYMPTOMS: tuple[Symptom, ...] = _symptoms()

# "There is no mention of", "the post does not show": deny all that is listed behind them, up to a turn.
_DENIAL = re.compile(
    r"\b(?:no|not any|without(?: any)?|lack of|lacks|lacking|absence of|little)(?: \w+){0,3} (?:evidence|mentions?|indications?"
    r"|indicators?|signs?|references?|symptoms?|information|hints?|details?|expressions?)\b"
    r"|\b(?:not|never|cannot|neither|(?:do|does|did|is|has|have|ca|could)nt)(?: \w+){0,2}? (?:mention|show|indicat|suggest"
    r"|express|exhibit|describ|contain|provid|display|discuss|impl|reveal|report|explicit|specific|direct|demonstrat|convey|refer"
    r"|address|experienc|suffer|includ|involv|relat|necessarily|evidence|appear|seem|align|meet)\w*"
    r"|\bneither\b|\bwithout\b|\babsence of\b|\bno (?:clear|explicit|specific|direct|obvious)\b"
)
_TURN = re.compile(r"[;:]|\b(?:but|however|although|though|yet|while|whereas|except|instead|because)\b")
# Any other negation denies what follows in its clause.
_NEGATION = re.compile(
    r"\b(?:not(?! only)|no(?! doubt| one\b)|never|nor|none|cannot|unlikely|hardly|rather than|instead of|free of|den(?:y|ies)"
    r"|(?:do|does|did|is|are|was|were|has|have|had|ca|wo|would|could|should)nt)\b"
)
_CLAUSE_END = re.compile(
    r"[,;:()]|\b(?:but|however|although|though|yet|while|whereas|and|because|due to|as|since|which|that|leading|causing"
    r"|making)\b"
)


def _denied(sentence: str, start: int) -> bool:
    """Whether what stands at `start` of a sentence is denied before it."""
    reaches = ((_DENIAL, _TURN), (_NEGATION, _CLAUSE_END))
    return any(
        denial.search(sentence, max((found.end() for found in end.finditer(sentence, 0, start)), default=0), start)
        for denial, end in reaches
    )


def unfounded_symptoms(explanation: str, post: str) -> tuple[frozenset[str], frozenset[str]]:
    """(groups of symptoms that the explanation asserts, those of which the post has no hint).

    A group is asserted where one of its expressions stands in the explanation and is not denied: by a negation before
    it in its clause ("not anxious"), or by a denial of evidence before it in its sentence, up to a "but" or the like
    ("no mention of panic, anger or despair").  A hint is any of a wide set of words; a hint says nothing about whether
    the assertion is right.  This is a proxy: it misses what words do not tell, it takes general remarks for assertions,
    and a post may tell of a symptom in other words than the table's.
    """
    told = " ".join(_plain(post).split())
    asserted = set()
    for written in _sentences(explanation):
        sentence = " ".join(_plain(written).split())
        for symptom in SYMPTOMS:
            if any(not _denied(sentence, found.start()) for found in symptom.asserted.finditer(sentence)):
                asserted.add(symptom.name)
    known = {symptom.name for symptom in SYMPTOMS if symptom.name in asserted and _hinted(symptom, told)}
    return frozenset(asserted), frozenset(asserted - known)


def _hinted(symptom: Symptom, told: str) -> bool:
    return symptom.hinted.search(told) is not None or symptom.asserted.search(told) is not None


# --- one dataset ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Text:
    """What is found in one answer or gold text."""

    words: int
    empty: bool
    marked: bool
    quoted: int
    invented: int
    asserted: frozenset[str]
    unfounded: frozenset[str]
    longest_run: int
    copied_share: float
    loops: bool
    contradicts: bool | None
    repeated: bool = False


def _examined(dataset: Dataset, text: str, label: str | None, query: str) -> _Text:
    explanation, marked = explanation_of(text)
    post = post_of(_repaired(query))
    question = query.rpartition("Question:")[2]
    spelled = [text for each in dataset.labels for text in (each.name, each.instruction, each.completion)]
    asserted, unfounded = unfounded_symptoms(explanation, post)
    return _Text(
        len(_words(explanation)),
        not text.strip(),
        marked,
        *invented_quotations(explanation, post, [question, *spelled]),
        asserted,
        unfounded,
        *verbatim_share(explanation, post),
        _loops(explanation),
        # Without the marker, label and explanation are one text.
        _contradicts(dataset, label, explanation) if marked else None,
    )


def _all_examined(results: DatasetResults, texts: Sequence[str], labels: Sequence[str | None]) -> list[_Text]:
    queries, posts = results.queries or [], results.posts or []
    found = [
        _examined(results.dataset, text, label, query)
        for text, label, query in zip(texts, labels, queries, strict=True)
    ]
    keys = [tuple(_words(explanation_of(text)[0])) for text in texts]
    about: dict[tuple[str, ...], set[str]] = {}
    for key, post in zip(keys, posts, strict=True):
        about.setdefault(key, set()).add(post)
    return [
        replace(one, repeated=len(key) >= LEAST_REPEATED and len(about[key]) > 1)
        for one, key in zip(found, keys, strict=True)
    ]


def _counts(found: Sequence[_Text]) -> dict[str, Any]:
    explained = [one for one in found if one.words]
    read = [one.contradicts for one in found if one.contradicts is not None]

    def by_group(groups: Iterable[frozenset[str]]) -> dict[str, int]:
        counted = Counter(name for names in groups for name in names)
        return {symptom.name: counted[symptom.name] for symptom in SYMPTOMS}

    return {
        "rows": len(found),
        "explanations": len(explained),
        "quotations": sum(one.quoted for one in found),
        "quotations_invented": sum(one.invented for one in found),
        "with_quotation": sum(one.quoted > 0 for one in found),
        "with_invented_quotation": sum(one.invented > 0 for one in found),
        "with_symptom": sum(bool(one.asserted) for one in found),
        "with_unfounded_symptom": sum(bool(one.unfounded) for one in found),
        "symptoms": by_group(one.asserted for one in found),
        "symptoms_unfounded": by_group(one.unfounded for one in found),
        "copying": sum(one.longest_run >= LONG_RUN for one in found),
        "copied_share": round(mean([one.copied_share for one in explained]), 6) if explained else None,
        "repeated": sum(one.repeated for one in found),
        "looping": sum(one.loops for one in found),
        "explanation_labels": len(read),
        "contradictions": sum(read),
        "empty": sum(one.empty for one in found),
        "without_reasoning": sum(not (one.marked or one.empty) for one in found),
    }


def _label_bias(results: DatasetResults) -> dict[str, Any]:
    predicted = [label for label in results.labels[RULE].predicted if label is not None]
    gold = {name: results.gold.count(name) for name in results.dataset.label_names}
    given = {name: predicted.count(name) for name in results.dataset.label_names}
    distance = only = None
    if predicted:
        distance = sum(abs(gold[name] / len(results) - given[name] / len(predicted)) for name in gold) / 2
        most = max(given, key=lambda name: given[name])
        only = most if given[most] >= ONE_LABEL * len(predicted) else None
    return {
        "gold": gold,
        "parsed": given,
        "unparsed": len(results) - len(predicted),
        "distance": None if distance is None else round(distance, 6),
        "one_label_only": only,
    }


def _ended(results: Iterable[DatasetResults], how: str) -> int | None:
    """Answers that ended so; None where that is not recorded of all of them."""
    ends = [one.finish for one in results]
    return None if None in ends else sum(finish.count(how) for finish in ends if finish is not None)


def count_failures(results: RunResults) -> dict[str, Any]:
    """Counts of known failures of a run, by dataset and over all; for JSON.

    Returns ``{"format", "datasets": {name: counts}, "all": counts}`` where the counts of a dataset are

    - ``labels``: rows by gold label and answers by label by rule (``gold``, ``parsed``, ``unparsed``), and the total
      variation distance between both distributions, half the sum of absolute differences of shares, 0 (equal) to 1;
      ``one_label_only`` names the label that at least 95 % of the parsed answers give, None for none.  Over all sets:
      the mean ``distance``, and the sets with one label only.
    - ``answers`` and ``golds``: the same counts of the answers and, as the yardstick, of the gold texts of the same
      rows.  All are numbers of texts but where said otherwise; lower is better for all but ``rows``,
      ``explanations``, ``with_quotation``, ``with_symptom`` and ``explanation_labels``, which are what the others are of:

      - ``explanations``: with a word behind ``Reasoning:`` (the whole text where that is missing);
      - ``quotations``, ``quotations_invented``: quotations, not texts (`invented_quotations`); ``with_quotation``,
        ``with_invented_quotation``: texts with at least one;
      - ``with_symptom``, ``with_unfounded_symptom``: texts that assert a group of symptoms, and one of which the post has
        no hint (`unfounded_symptoms`, a proxy); ``symptoms``, ``symptoms_unfounded``: the same by group;
      - ``copying``: with a run of at least 12 words of the post outside quotation marks; ``copied_share``: the mean over
        explanations of the share of their words in runs of at least 8 (`verbatim_share`), 0 to 1;
      - ``repeated``: whose explanation, of at least 5 words, stands word for word in another row of the dataset about
        another post; ``looping``: in whose explanation a sentence of at least 3 words stands twice;
      - ``explanation_labels``: with ``Reasoning:`` and a label before it, where the strict rule reads a label from the
        first or the last sentence of the explanation alone; ``contradictions``: one that differs from that before it;
      - ``empty``: without text; ``without_reasoning``: not empty and without ``Reasoning:``.
    - ``cut_off``, ``failed``: answers ended by the length limit, and by an error; None where that is not recorded.

    Raises
    ------
    UserError
        A run that was kept without texts; one whose posts are not known.
    """
    for name, one in results.datasets.items():
        one.texts("counting failures reads")
        if one.queries is None:
            raise UserError(
                f"{results.folder}: the posts of {name} are not known; give the data root that it was generated from with "
                "--data_root"
            )
    datasets: dict[str, Any] = {}
    every: dict[str, list[_Text]] = {"answers": [], "golds": []}
    with progress_bar(results.rows, "failures") as bar:
        for name, one in results.datasets.items():
            answers, golds = one.texts("counting failures reads")
            found = {
                "answers": _all_examined(one, answers, one.labels[RULE].predicted),
                "golds": _all_examined(one, golds, one.gold),
            }
            datasets[name] = {
                "labels": _label_bias(one),
                **{kind: _counts(texts) for kind, texts in found.items()},
                "cut_off": _ended([one], "length"),
                "failed": _ended([one], "error"),
            }
            for kind, texts in found.items():
                every[kind] += texts
            bar.update(len(one))
    return {
        "format": FORMAT,
        "datasets": datasets,
        "all": {
            "labels": _bias_of_all({name: counts["labels"] for name, counts in datasets.items()}),
            **{kind: _counts(texts) for kind, texts in every.items()},
            "cut_off": _ended(results.datasets.values(), "length"),
            "failed": _ended(results.datasets.values(), "error"),
        },
    }


def _bias_of_all(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    distances = [bias["distance"] for bias in found.values() if bias["distance"] is not None]
    return {
        "distance": round(mean(distances), 6) if distances else None,
        "one_label_only": [name for name, bias in found.items() if bias["one_label_only"] is not None],
    }
