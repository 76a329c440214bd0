"""Prompt styles: the benchmark's questions in other words, as data (``prompt_styles.json``, with the sources).

A style has a template for each form, with the places ``{post}``, ``{question}`` (the benchmark's question, of the
instruction form), ``{stem}`` (its beginning of an answer, of the completion form) and ``{labels}`` (what may be
answered).  Labels are named as in `imhi.benchmark`, so that `imhi.labelers.rules` reads them in an answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from imhi.benchmark import DATASETS, FORMS, Dataset, query, question, split_reasoning
from imhi.engines import Shot
from imhi.errors import UserError

__all__ = ["DEFAULT_STYLE", "STYLES", "Style", "split_query", "style_facts", "styled", "styled_shots"]

DEFAULT_STYLE = "imhi"


@dataclass(frozen=True)
class Style:
    """One way of asking.

    Attributes
    ----------
    title : what it is, in a few words.
    source : who published it, and its wording there.
    adapted : where our wording departs from that, and why; "" where it does not.
    explains : whether it asks for an explanation beside the label.
    templates : form → template.
    """

    title: str
    source: str
    adapted: str
    explains: bool
    templates: dict[str, str]


STYLES = {
    name: Style(**described)
    for name, described in json.loads(
        Path(__file__).with_name("prompt_styles.json").read_text(encoding="utf-8")
    ).items()
}


def styled(text: str, dataset: Dataset, form: str, style: str) -> str:
    """A query of the benchmark in the words of a style; in its own words ("imhi") it stays what it is, to the letter.

    Parameters
    ----------
    text : a query of `dataset` in `form` ("instruction" or "completion"), as in a test file.
    style : a key of `STYLES`.

    Raises
    ------
    UserError
        A text that is no query of the dataset in this form: its post cannot be told from its question.
    """
    post, aspect = split_query(text, dataset, form)
    return _rendered(STYLES[style].templates[form], dataset, post, aspect)


def styled_shots(shots: Sequence[Shot], dataset: Dataset, form: str, style: str) -> tuple[Shot, ...]:
    """Worked examples in the words of a style; where it asks for a label alone, their answer is the label's alone."""
    if style == DEFAULT_STYLE:
        return tuple(shots)
    explains = STYLES[style].explains
    return tuple(
        replace(
            shot,
            query=styled(shot.query, dataset, form, style),
            answer=shot.answer if explains else split_reasoning(shot.answer)[0].strip(),
        )
        for shot in shots
    )


def split_query(text: str, dataset: Dataset, form: str) -> tuple[str, str]:
    """(post, aspect) of a query, to the letter: `imhi.benchmark.query` of them is the query again.

    Raises UserError, which shows the question but not the post, for a text that is no query of the dataset and form.
    """
    for aspect in dataset.aspects:
        before, behind = FORMS[form].format(post="\0", question=question(dataset, form, aspect)).split("\0")
        if len(text) >= len(before) + len(behind) and text.startswith(before) and text.endswith(behind):
            return text[len(before) : len(text) - len(behind)], aspect
    expected = query(dataset, form, "POST", dataset.aspects[0])
    _, mark, asked = text.rpartition("Question:")
    ends = f"ends in {mark + asked[:120]!r}" if mark else "has no 'Question:'"
    raise UserError(
        f"{dataset.name}: a query is not of the {form} form, so --prompt_style cannot word it anew; expected "
        f"{expected!r}, the query {ends}; mend the test file, or leave --prompt_style out"
    )


def style_facts(style: str, form: str) -> dict[str, str]:
    """For a manifest: the style's name, and a SHA-256 of its wording in `form`, questions and labels filled in."""
    template = STYLES[style].templates[form]
    worded = [
        _rendered(template, dataset, "{post}", aspect) for dataset in DATASETS.values() for aspect in dataset.aspects
    ]
    digest = hashlib.sha256(json.dumps([template, worded]).encode()).hexdigest()
    return {"name": style, "template_sha256": f"sha256:{digest}"}


def _rendered(template: str, dataset: Dataset, post: str, aspect: str) -> str:
    return template.format(
        post=post,
        question=question(dataset, "instruction", aspect),
        stem=question(dataset, "completion", aspect),
        labels=_labels_in_words(dataset.name),
    )


@cache
def _labels_in_words(name: str) -> str:
    """``Yes or No``, or ``one of these labels: "none", "bias or abuse" or ...`` (quoted, as names hold "or")."""
    dataset = DATASETS[name]
    if dataset.is_yes_no:
        return " or ".join(label.capitalize() for label in sorted(dataset.label_names, reverse=True))
    quoted = [f'"{label}"' for label in dataset.label_names]
    return f"one of these labels: {', '.join(quoted[:-1])} or {quoted[-1]}"
