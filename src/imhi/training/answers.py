"""Answers of language models, written by code: what the label classifiers are trained on.

A classifier judges what models say, and models do not say it the way the gold texts do.  `AnswerWriter` composes,
from a label and (where there is one) a gold explanation, answers in the shapes that models give: both official heads,
none at all, ``Reasoning:`` or ``Answer:`` first, options quoted before the choice, bare labels, long, rambling,
hedged, cut off, misspelt.  Explanations of our own stand beside the gold ones, and alone for the sets that have none.
The sentences are in ``writing/``, written by hand; the composition is a pure function of the random generator.

The label is what the answer says, never what the post deserves.  Answers that say no label (refused, undecided,
off-topic) come from `AnswerWriter.undecided`.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from imhi.benchmark import DATASETS, Dataset, Label, head_of, question

__all__ = ["AnswerWriter", "read_writing", "sentences_of", "writing_digests"]

WRITING = Path(__file__).parent / "writing"
# Of answers around a gold explanation, how many get one of ours instead.
OWN_SHARE = 0.2

_SENTENCE = re.compile(r"(?<=[.!?])[\"'”’)]*\s+")


@cache
def read_writing(name: str) -> dict[str, Any]:
    """The sentences of ``writing/NAME.json``."""
    content: dict[str, Any] = json.loads((WRITING / f"{name}.json").read_text(encoding="utf-8"))
    return content


def _writing_of(dataset: Dataset) -> str:
    """Sets of one family share their sentences; a family of one has those of its set."""
    names = [other.name for other in DATASETS.values() if dataset.family and other.family == dataset.family]
    return dataset.family if len(names) > 1 else dataset.name


def _part(content: Any, part: str) -> Any:
    """The lists in `content` without the sentences of the other part."""
    if isinstance(content, dict):
        return {name: _part(inner, part) for name, inner in content.items()}
    kept = [item for index, item in enumerate(content) if (index % 7 == 3) == (part == "validation")]
    return kept or content


def writing_digests() -> dict[str, str]:
    """File name → SHA-256 of every file of sentences, for the manifest."""
    from imhi.data import sha256_of

    return {path.name: sha256_of(path) for path in sorted(WRITING.glob("*.json"))}


def sentences_of(text: str) -> list[str]:
    """A text cut behind its sentence ends; joined with spaces it reads as before."""
    return [sentence for sentence in _SENTENCE.split(text.strip()) if sentence]


class AnswerWriter:
    """Writes answers to the question of one dataset.

    Every method takes a `random.Random` and draws from it alone, so that equal generators give equal answers.
    """

    def __init__(self, dataset: Dataset, part: str = "training"):
        """`part` is "training" or "validation": every seventh sentence of a list is written in validation answers only."""
        self.dataset = dataset
        self.bank = _part(read_writing(_writing_of(dataset)), part)
        self.common = _part(read_writing("common"), part)
        missing = set(dataset.label_names) ^ set(self.bank["labels"])
        if missing:
            raise ValueError(f"the sentences for {dataset.name} and its labels differ in {sorted(missing)}")

    # --- the two kinds of answer ------------------------------------------------------------------------------------

    def answer(self, rng: random.Random, label_name: str, explanation: str | None = None) -> str:
        """An answer that says `label_name`, around a gold `explanation` of that label or around our own sentences."""
        label = self.dataset.label_named(label_name)
        aspect = rng.choice(self.dataset.aspects)
        if explanation is None or rng.random() < OWN_SHARE:
            body = self._own_explanation(rng, label, aspect)
            own = True
        else:
            body, own = explanation, False
        shape = rng.choices(_SHAPES, _WEIGHTS)[0]
        text = shape(self, rng, label, aspect, body, own)
        return self._worn(rng, text, label, aspect, least=_LEAST.get(shape, 0.8))

    def undecided(self, rng: random.Random) -> str:
        """An answer that says no label: refused, undecided, off-topic, or broken off before it says anything."""
        aspect = rng.choice(self.dataset.aspects)
        common, kind = self.common, rng.random()
        if kind < 0.42:
            text = self._filled(rng.choice(self.bank["undecided"]), aspect)
        elif kind < 0.60:
            text = rng.choice(common["refusals"])
        elif kind < 0.72:
            text = rng.choice(common["idle"])
        elif kind < 0.84:
            first, second = rng.sample([self._phrase(rng, label) for label in self.dataset.labels], 2)
            text = rng.choice(common["torn"]).replace("{a}", first).replace("{b}", second)
        elif kind < 0.94:
            text = self._options(rng, [self._phrase(rng, label) for label in self.dataset.labels])
        else:
            text = question(self.dataset, rng.choice(["instruction", "completion"]), aspect)
        before = [rng.choice(common[name]) for name in ("openers", "disclaimers") if rng.random() < 0.2]
        behind = [rng.choice(common[name]) for name in ("advice", "idle", "ramble", "refusals") if rng.random() < 0.18]
        text = self._joined(rng, [*before, text, *behind]).replace("{question}", self._question(rng, aspect))
        if rng.random() < 0.2:
            text = f"{rng.choice(common['reasons'])} {text}"
        return self._scribbled(rng, text)

    # --- explanations of our own ------------------------------------------------------------------------------------

    def _own_explanation(self, rng: random.Random, label: Label, aspect: str) -> str:
        bank = self.bank["labels"][label.name]
        evidence = bank["evidence"][aspect] if aspect else bank["evidence"]
        parts = rng.sample(evidence, min(len(evidence), rng.choice([1, 1, 2, 2, 3, 4])))
        if rng.random() < 0.35:
            parts.insert(rng.randint(0, len(parts)), rng.choice(bank["contrasts"]))
        if rng.random() < 0.85 or len(parts) < 2:
            conclusion = rng.choice(bank["conclusions"])
            parts.insert(0 if rng.random() < 0.15 else len(parts), conclusion)
        return " ".join(self._ended(self._filled(part, aspect)) for part in parts)

    # --- ways to name a label ---------------------------------------------------------------------------------------

    def _phrase(self, rng: random.Random, label: Label) -> str:
        """The label as a word or noun phrase."""
        spoken = head_of(label.completion).strip().rstrip(".")
        phrase = rng.choice([spoken, spoken, label.name, label.name, *self._names(label)])
        return rng.choice(
            [phrase, phrase, phrase.capitalize(), phrase.title(), phrase.upper() if len(phrase) < 6 else phrase]
        )

    def _names(self, label: Label) -> list[str]:
        """Other names, where the table's last words are the label's ("... related to emotion turmoil.")."""
        _, mark, tail = label.instruction.rpartition("related to ")
        return [tail.rstrip(".")] if mark else []

    def _sentence(self, label: Label, aspect: str) -> str:
        """The official head as a clause: "the poster suffers from stress"."""
        clause = label.instruction.rstrip(".")
        if self.dataset.is_yes_no:
            clause = clause.partition(", ")[2]
        return clause[0].lower() + clause[1:]

    def _statement(self, rng: random.Random, label: Label, aspect: str) -> str:
        """One sentence that gives the label as the answer."""
        common, kind = self.common, rng.random()
        if kind < 0.16:
            return label.instruction
        if kind < 0.36:
            return self._pick(rng, label, aspect)
        if kind < 0.52:
            return self._upper(f"{rng.choice(common['leads'])} {self._sentence(label, aspect)}.")
        if kind < 0.62:
            return self._upper(f"{rng.choice(common['hedges'])} {self._sentence(label, aspect)}.")
        if kind < 0.72:
            return self._filled(rng.choice(self.bank["labels"][label.name]["conclusions"]), aspect)
        statement = self._filled(rng.choice(self.bank["labels"][label.name]["statements"]), aspect)
        if rng.random() < 0.2 and statement[0].isupper() and not statement.startswith(("I ", "I'")):
            lead = rng.choice([*common["hedges"], *common["leads"]])
            if lead.endswith((",", "but")):
                statement = f"{lead} {statement[0].lower()}{statement[1:]}"
        return statement

    def _pick(self, rng: random.Random, label: Label, aspect: str) -> str:
        return self._upper(self._named(rng, rng.choice(self.common["picks"]), label, aspect))

    def _tag(self, rng: random.Random, label: Label, aspect: str) -> str:
        return self._named(rng, rng.choice(self.common["tags"]), label, aspect)

    def _named(self, rng: random.Random, template: str, label: Label, aspect: str) -> str:
        return template.replace("{label}", self._phrase(rng, label)).replace("{question}", self._question(rng, aspect))

    def _question(self, rng: random.Random, aspect: str) -> str:
        return question(self.dataset, rng.choice(["instruction", "instruction", "completion"]), aspect).strip()

    def _options(self, rng: random.Random, phrases: Sequence[str]) -> str:
        phrases = list(phrases)
        rng.shuffle(phrases)
        bullet = rng.choice(
            [
                lambda n: "- ",
                lambda n: f"{n + 1}. ",
                lambda n: f"({chr(97 + n)}) ",
                lambda n: "* ",
                lambda n: f"{chr(65 + n)}) ",
            ]
        )
        listed = "\n".join(f"{bullet(number)}{phrase}" for number, phrase in enumerate(phrases))
        joined = ", ".join(phrases[:-1]) + rng.choice([", ", " or ", " and "]) + phrases[-1]
        return rng.choice(self.common["option_frames"]).replace("{options}", joined).replace("{list}", listed)

    def _lettered(self, rng: random.Random, label: Label) -> tuple[str, str]:
        """Options with letters or numbers, and a choice by them, mostly with the label's name beside it."""
        labels = list(self.dataset.labels)
        rng.shuffle(labels)
        mark = rng.choice(["({x})", "{x})", "{x}."])
        signs = "abcdefghij" if rng.random() < 0.6 else "123456789"
        marks = [mark.replace("{x}", sign) for sign in signs[: len(labels)]]
        phrases = [self._phrase(rng, other) for other in labels]
        options = rng.choice([" ", "\n", ", "]).join(f"{m} {phrase}" for m, phrase in zip(marks, phrases, strict=True))
        at = labels.index(label)
        chosen = f"{marks[at]} {phrases[at]}" if rng.random() < 0.7 else marks[at].rstrip(".")
        return options, rng.choice(["The answer is {c}", "I choose {c}", "{c}", "Answer: {c}", "Correct: {c}"]).replace(
            "{c}", chosen
        )

    # --- small tools ------------------------------------------------------------------------------------------------

    def _filled(self, text: str, aspect: str) -> str:
        return text.replace("{aspect}", aspect)

    def _upper(self, text: str) -> str:
        return text[:1].upper() + text[1:]

    def _ended(self, text: str) -> str:
        return text if text.rstrip().endswith((".", "!", "?", '"', ":", "…")) else text + "."

    def _joined(self, rng: random.Random, parts: Sequence[str]) -> str:
        glue = rng.choice([" ", " ", " ", "\n", "\n\n"])
        return glue.join(part for part in parts if part)

    def _shortened(self, rng: random.Random, body: str, least: float) -> str:
        """Some sentences of `body`, in order: at least this share."""
        sentences = sentences_of(body)
        keep = max(1, round(len(sentences) * rng.uniform(least, 1.0)))
        chosen = sorted(rng.sample(range(len(sentences)), keep))
        return " ".join(sentences[index] for index in chosen)

    def _enumerated(self, rng: random.Random, body: str) -> str:
        sentences = sentences_of(body)
        mark = rng.choice(["{n}. ", "- ", "* ", "({n}) ", "Step {n}: "])
        return "\n".join(mark.replace("{n}", str(number + 1)) + sentence for number, sentence in enumerate(sentences))

    def _worn(self, rng: random.Random, text: str, label: Label, aspect: str, *, least: float) -> str:
        """The answer with what models put around it, cut off now and then, misspelt now and then."""
        common = self.common
        if rng.random() < 0.12:
            text = self._joined(rng, [rng.choice(common["openers"]), text])
        if rng.random() < 0.06:
            text = self._joined(rng, [self._question(rng, aspect), text])
        if rng.random() < 0.04:
            text = f"{rng.choice(common['leading_leftovers'])} {text}"
        for name, share in (("disclaimers", 0.09), ("advice", 0.08), ("closers", 0.04), ("leftovers", 0.04)):
            if rng.random() < share:
                text = self._joined(rng, [text, rng.choice(common[name])])
        if rng.random() < 0.12:
            words = text.split(" ")
            text = " ".join(words[: max(min(len(words), 12), round(len(words) * rng.uniform(least, max(least, 0.98))))])
        return self._scribbled(rng, text)

    def _scribbled(self, rng: random.Random, text: str) -> str:
        if rng.random() < 0.05:
            text = text.lower()
        if rng.random() < 0.03:
            text = text.replace("'", "").replace(",", "")
        if rng.random() < 0.04:
            text = _misspelt(rng, text)
        return text


# --- shapes of an answer: (writer, rng, label, aspect, body, whether the body is ours) → text ------------------------


def _instruction_head(w: AnswerWriter, rng: random.Random, label: Label, aspect: str, body: str, own: bool) -> str:
    return f"{label.instruction} {_reasons(w, rng)}{_glue(rng)}{body}"


def _completion_head(w: AnswerWriter, rng: random.Random, label: Label, aspect: str, body: str, own: bool) -> str:
    return f"{label.completion} {_reasons(w, rng)}{_glue(rng)}{body}"


def _explanation(w: AnswerWriter, rng: random.Random, label: Label, aspect: str, body: str, own: bool) -> str:
    return body if own or rng.random() < 0.7 else w._shortened(rng, body, 0.75)


def _reasoning_first(w: AnswerWriter, rng: random.Random, label: Label, aspect: str, body: str, own: bool) -> str:
    parts = [f"{_reasons(w, rng)} {body}"]
    if rng.random() < 0.4:
        parts.append(w._statement(rng, label, aspect))
    return w._joined(rng, parts)


def _tagged(w: AnswerWriter, rng: random.Random, label: Label, aspect: str, body: str, own: bool) -> str:
    tag = w._tag(rng, label, aspect)
    reasons = _reasons(w, rng) if rng.random() < 0.6 else ""
    if rng.random() < 0.2:
        return w._joined(rng, [f"{reasons} {body}".strip(), tag])
    return w._joined(rng, [tag, f"{reasons} {body}".strip()])


def _picked(w: AnswerWriter, rng: random.Random, label: Label, aspect: str, body: str, own: bool) -> str:
    pick = w._pick(rng, label, aspect)
    body = w._shortened(rng, body, 0.5)
    return w._joined(rng, [body, pick] if rng.random() < 0.5 else [pick, body])


def _stated(w: AnswerWriter, rng: random.Random, label: Label, aspect: str, body: str, own: bool) -> str:
    statement = w._ended(w._statement(rng, label, aspect))
    body = w._shortened(rng, body, 0.5)
    return w._joined(rng, [body, statement] if rng.random() < 0.3 else [statement, body])


def _after_options(w: AnswerWriter, rng: random.Random, label: Label, aspect: str, body: str, own: bool) -> str:
    if rng.random() < 0.3:
        options, choice = w._lettered(rng, label)
    else:
        options = w._options(rng, [w._phrase(rng, other) for other in w.dataset.labels])
        choice = w._pick(rng, label, aspect) if rng.random() < 0.6 else w._statement(rng, label, aspect)
    parts = [options, w._ended(choice)]
    if rng.random() < 0.5:
        parts.insert(rng.randint(1, 2), w._shortened(rng, body, 0.4))
    return w._joined(rng, parts)


def _bare(w: AnswerWriter, rng: random.Random, label: Label, aspect: str, body: str, own: bool) -> str:
    kind = rng.random()
    if kind < 0.3:
        return w._phrase(rng, label) + rng.choice(["", ".", "!", "\n"])
    if kind < 0.5:
        return w._tag(rng, label, aspect)
    return w._statement(rng, label, aspect)


def _verbose(w: AnswerWriter, rng: random.Random, label: Label, aspect: str, body: str, own: bool) -> str:
    if rng.random() < 0.5:
        body = body + " " + w._own_explanation(rng, label, aspect)
    parts = [w._enumerated(rng, body) if rng.random() < 0.5 else body]
    parts.insert(rng.choice([0, len(parts)]), w._ended(w._statement(rng, label, aspect)))
    for name in ("openers", "ramble", "disclaimers", "advice"):
        if rng.random() < 0.5:
            filler = rng.choice(w.common[name]).replace("{question}", w._question(rng, aspect))
            parts.insert(0 if name == "openers" else rng.randint(1, len(parts)), filler)
    return "\n\n".join(parts) if rng.random() < 0.5 else " ".join(parts)


def _rambling(w: AnswerWriter, rng: random.Random, label: Label, aspect: str, body: str, own: bool) -> str:
    parts = sentences_of(w._shortened(rng, body, 0.4))
    parts.insert(rng.randint(0, len(parts)), w._ended(w._statement(rng, label, aspect)))
    for _ in range(rng.randint(1, 4)):
        name = rng.choice(["ramble", "ramble", "advice", "disclaimers"])
        filler = rng.choice(w.common[name]).replace("{question}", w._question(rng, aspect))
        parts.insert(rng.randint(0, len(parts)), filler)
    if rng.random() < 0.5:
        parts.append(rng.choice(parts))
    if rng.random() < 0.3:
        parts.append(w._statement(rng, label, aspect))
    return " ".join(parts)


def _contrasted(w: AnswerWriter, rng: random.Random, label: Label, aspect: str, body: str, own: bool) -> str:
    """Another label is named, or argued for, and turned down; the answer stays `label`."""
    bank = w.bank["labels"]
    contrast = w._ended(w._filled(rng.choice(bank[label.name]["contrasts"]), aspect))
    others = [other for other in w.dataset.labels if other.name != label.name]
    other = rng.choice(others)
    kind = rng.random()
    if kind < 0.45:
        parts = [contrast]
    elif kind < 0.75:
        named, rejected = w._phrase(rng, label), w._phrase(rng, other)
        parts = [w._upper(rng.choice(_CORRECTIONS).replace("{a}", named).replace("{b}", rejected))]
    else:
        evidence = bank[other.name]["evidence"][aspect] if aspect else bank[other.name]["evidence"]
        parts = [rng.choice(evidence), rng.choice(_TURNS), w._ended(w._statement(rng, label, aspect))]
    if rng.random() < 0.4:
        parts.insert(rng.choice([0, len(parts)]), w._shortened(rng, body, 0.5))
    return w._joined(rng, parts)


def _official_head_wins(w: AnswerWriter, rng: random.Random, label: Label, aspect: str, body: str, own: bool) -> str:
    """A head and an explanation of another label: the answer is what stands where the label stands."""
    other = rng.choice([other for other in w.dataset.labels if other.name != label.name])
    strange = w._own_explanation(rng, other, aspect)
    head = rng.choice([label.instruction, label.completion])
    return f"{head} Reasoning: {strange}"


_CORRECTIONS = (
    "not {b} but {a}.",
    "{a}, not {b}.",
    "{a} rather than {b}.",
    "the answer is {a} and not {b}.",
    "instead of {b}, the label should be {a}.",
    "at first I thought {b}, but it is {a}.",
    "one might say {b}; I would still say {a}.",
    "{b} was considered and rejected. The label is {a}.",
    "it would be wrong to answer {b}. The answer is {a}.",
    "no signs of {b}; {a} fits.",
    "while {b} is possible, {a} is the better answer.",
    "some would choose {b}, I choose {a}.",
    "{b}? Not quite. {a}.",
    "the label is not {b}. It is {a}.",
    "more {a} than {b}.",
)
_TURNS = (
    "Even so,",
    "Nevertheless,",
    "Still,",
    "However, this is not what decides.",
    "But that is beside the point.",
    "That alone would suggest another answer, but",
    "Despite this,",
    "Nonetheless,",
    "Yet this does not change the answer:",
    "On closer reading, though,",
)


def _reasons(w: AnswerWriter, rng: random.Random) -> str:
    return "Reasoning:" if rng.random() < 0.6 else str(rng.choice(w.common["reasons"]))


def _glue(rng: random.Random) -> str:
    return rng.choice([" ", " ", " ", " ", "\n"])


def _misspelt(rng: random.Random, text: str) -> str:
    """A few letters swapped, doubled or dropped."""
    letters = list(text)
    for _ in range(max(1, len(letters) // 60)):
        at = rng.randrange(len(letters))
        kind = rng.randrange(3)
        if kind == 0 and at + 1 < len(letters):
            letters[at], letters[at + 1] = letters[at + 1], letters[at]
        elif kind == 1:
            letters[at] *= 2
        else:
            letters[at] = ""
    return "".join(letters)


_Shape = Callable[[AnswerWriter, random.Random, Label, str, str, bool], str]
# How often each shape is written; about a quarter of all answers has no label apart from what the explanation says.
_SHARES: dict[_Shape, float] = {
    _instruction_head: 0.08,
    _completion_head: 0.07,
    _explanation: 0.28,
    _reasoning_first: 0.08,
    _tagged: 0.07,
    _picked: 0.06,
    _stated: 0.07,
    _after_options: 0.05,
    _bare: 0.07,
    _verbose: 0.05,
    _rambling: 0.04,
    _contrasted: 0.08,
    _official_head_wins: 0.02,
}
_SHAPES, _WEIGHTS = list(_SHARES), list(_SHARES.values())
# What is left, at least, of an answer that is cut off; where the label may come last, nothing is cut.
_LEAST: dict[_Shape, float] = {
    _instruction_head: 0.35,
    _completion_head: 0.35,
    _official_head_wins: 0.35,
    _after_options: 1.0,
    _contrasted: 1.0,
    _bare: 1.0,
    _picked: 1.0,
}
