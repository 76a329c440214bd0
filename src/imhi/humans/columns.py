"""What is held against the ratings: every value per row that the toolkit has for (explanation, reference) pairs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imhi.batching import is_out_of_memory
from imhi.errors import UserError
from imhi.humans.annotations import DATASET, Annotated, Golds
from imhi.metrics.base import Metric, Signature, digest_of
from imhi.talk import progress_bar

if TYPE_CHECKING:
    import numpy as np

    from imhi.labelers.classifier import Classifier

__all__ = ["LENGTH", "REFERENCES", "Columns", "Sample", "columns_of", "label_support", "samples"]

REFERENCES = ("post", "gold")
# The number of words of the explanation: the figure that every metric is tested against.
LENGTH = "words"

_FIRST_SENTENCE = re.compile(r"^\s*\S.*?(?:[.!?:](?=\s)|\n|$)", re.DOTALL)


@dataclass(frozen=True)
class Sample:
    """The annotated rows that have a reference of one kind, all files one behind the other.

    Attributes
    ----------
    files : file name → row numbers in this sample; files without a row are left out.
    keys : what is one post, shape (rows,).
    ratings : aspect → shape (rows, 3).
    """

    reference: str
    files: dict[str, np.ndarray]
    keys: list[str]
    posts: list[str]
    explanations: list[str]
    references: list[str]
    ratings: dict[str, np.ndarray]


def samples(annotated: Sequence[Annotated], golds: Golds) -> dict[str, Sample]:
    """Reference ("post", "gold") → its sample; "gold" holds the rows whose post has a gold explanation."""
    return {
        "post": _sample("post", annotated, [list(file.posts) for file in annotated]),
        "gold": _sample("gold", annotated, [[golds.of(key) for key in file.keys] for file in annotated]),
    }


def _sample(reference: str, annotated: Sequence[Annotated], references: Sequence[Sequence[str | None]]) -> Sample:
    import numpy as np

    files: dict[str, np.ndarray] = {}
    rows: list[tuple[Annotated, int, str]] = []
    for file, texts in zip(annotated, references, strict=True):
        having = [(file, at, text) for at, text in enumerate(texts) if text is not None]
        if having:
            files[file.name] = np.arange(len(rows), len(rows) + len(having))
        rows += having
    aspects = annotated[0].ratings
    return Sample(
        reference,
        files,
        [file.keys[at] for file, at, _ in rows],
        [file.posts[at] for file, at, _ in rows],
        [file.explanations[at] for file, at, _ in rows],
        [text for _, _, text in rows],
        {aspect: np.array([file.ratings[aspect][at] for file, at, _ in rows], dtype=float) for aspect in aspects},
    )


@dataclass(frozen=True)
class Columns:
    """Value name → values, shape (rows,).

    Attributes
    ----------
    lengths : words of the explanation (`LENGTH`), of the post, and of the gold explanation where that is the
        reference: what a metric must say more than.
    values : of the metrics, and of the label classifier.
    signatures : what each metric's values depend on.
    """

    lengths: dict[str, np.ndarray]
    values: dict[str, np.ndarray]
    signatures: dict[str, str]


def columns_of(sample: Sample, metrics: Sequence[Metric], classifier: Classifier | None) -> Columns:
    """Compute every column of a sample; the progress is told on stderr.

    Raises UserError where not even one row fits into memory.
    """
    import numpy as np

    lengths = {LENGTH: sample.explanations, "post_words": sample.posts}
    if sample.reference != "post":
        lengths[f"{sample.reference}_words"] = sample.references
    values: dict[str, np.ndarray] = {}
    signatures: dict[str, str] = {}
    for metric in metrics:
        with progress_bar(len(sample.keys), f"{metric.name} ({sample.reference})") as bar:
            try:
                statistics = metric.statistics(sample.explanations, sample.references, bar.update)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise UserError(
                    f"{metric.name}: memory ran out, even with one row at a time; --device cpu takes the machine's memory",
                    code=1,
                ) from error
        for name, column in metric.row_values(statistics).items():
            values[name] = np.array(column)
        signatures[metric.name] = str(metric.signature)
    if classifier is not None:
        values["label_support"] = np.array(label_support(classifier, sample.explanations))
        options = {"classifier": digest_of(classifier.identity())[7:19], "dataset": DATASET.name}
        signatures["label_support"] = str(Signature.of("label_support", options, ["torch", "transformers"]))
    return Columns(
        {name: np.array([len(text.split()) for text in texts], dtype=float) for name, texts in lengths.items()},
        values,
        signatures,
    )


def label_support(classifier: Classifier, explanations: Sequence[str]) -> list[float]:
    """How far what follows the first sentence supports the label that this one gives, to a label classifier.

    Its calibrated probability of that label on the rest alone; 0 to 1, higher is better.  An explanation of one
    sentence is taken whole.
    """
    from imhi.statistics import softmax

    ends = [_head_end(text) for text in explanations]
    heads = [text[:end] for text, end in zip(explanations, ends, strict=True)]
    rests = [text[end:].strip() or text for text, end in zip(explanations, ends, strict=True)]
    labels = classifier.logits(DATASET, heads).argmax(axis=1)
    probabilities = softmax(classifier.logits(DATASET, rests), classifier.settings.temperature)
    return [float(row[label]) for row, label in zip(probabilities, labels, strict=True)]


def _head_end(text: str) -> int:
    matched = _FIRST_SENTENCE.match(text)
    return matched.end() if matched else 0
