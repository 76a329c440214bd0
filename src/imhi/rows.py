"""A run's rows in memory: gold and read labels, scores, lengths, and the texts where they are at hand."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imhi.benchmark import Dataset
from imhi.data import DataRoot
from imhi.errors import UserError
from imhi.metrics import summed_metric
from imhi.metrics.base import digest_of, mean
from imhi.metrics.correctness import Correctness, correctness

if TYPE_CHECKING:
    import numpy as np

__all__ = ["CLASSIFIER", "RULE", "UNRECORDED", "Column", "DatasetResults", "Labels", "RunResults"]

RULE = "rule"
CLASSIFIER = "classifier"
# The definition of labels that no record says the origin of.
UNRECORDED = "a labels column"


@dataclass(frozen=True)
class Labels:
    """One labeller's labels of one dataset.

    Attributes
    ----------
    source : "rule" or "classifier" (a ``labels`` column, whoever wrote it).
    predicted : canonical label names, shape (rows,); None for an unparsed answer.
    confidence : probability of the label, 0 to 1, shape (rows,); None where the labeller gives none.
    clear : whether the answer supports its label, shape (rows,); None where the labeller does not say.
    definition : what the labels depend on beside the answers, for comparison by equality.
    """

    source: str
    predicted: list[str | None]
    confidence: list[float] | None = None
    clear: list[bool] | None = None
    definition: str = ""


@dataclass(frozen=True)
class Column:
    """One score of one dataset; higher is better.

    Attributes
    ----------
    name : as in ``scores/DATASET.csv``: "rouge1", or "rouge1_explanation" for the parts after ``Reasoning:``.
    value : the corpus value.
    rows : value per row, shape (rows,).
    statistics : shape (rows, numbers): what sums over rows to the corpus value (`Metric.statistics`); None where the
        corpus value is the mean of `rows`.
    """

    metric: str
    name: str
    target: str
    value: float
    rows: list[float]
    signature: str
    note: str = ""
    lowest: float | None = None
    highest: float | None = None
    statistics: list[tuple[float, ...]] | None = None

    def over(self, counts: np.ndarray) -> np.ndarray:
        """The corpus value of resamples: `counts` says how often each row is drawn, shape (resamples, rows).

        Returns shape (resamples,).
        """
        import numpy as np

        if self.statistics is None:
            return counts @ np.asarray(self.rows) / counts.sum(axis=1)
        return summed_metric(self.metric).values_of_sums(counts @ np.asarray(self.statistics))


@dataclass(frozen=True)
class DatasetResults:
    """The rows of one dataset of one run; every list has shape (rows,).

    Attributes
    ----------
    path : the file that they were read from.
    index : 0-based position of each row in the test file.
    gold : canonical label names.
    labels : labeller's source → its labels; "rule" is always there.
    answer_words, gold_words : lengths in words, by white space; an answer of 0 words is empty.
    file_digest : of positions and gold texts of all rows of the file, also where `only` left some out.
    goldens, answers : texts; None in a run that was kept without them (`imhi.kept`).
    scores : column name → `Column`.
    queries : the prompts' texts; None where the test file that the answers belong to is not at hand.
    posts : what two prompts about one post share; None likewise, unless a kept run tells.
    aspects : which of the dataset's questions each prompt asks, "" for the only one; None likewise.
    finish : "stop", "length", ... or "error" for each row; None for a folder that is not a run of this toolkit.
    prompt_tokens, new_tokens : length of each prompt and answer in the model's tokens; None likewise.
    """

    dataset: Dataset
    path: Path
    index: list[int]
    gold: list[str]
    labels: dict[str, Labels]
    answer_words: list[int]
    gold_words: list[int]
    file_digest: str
    goldens: list[str] | None = None
    answers: list[str] | None = None
    scores: dict[str, Column] = field(default_factory=dict)
    queries: list[str] | None = None
    posts: list[str] | None = None
    aspects: list[str] | None = None
    finish: list[str] | None = None
    prompt_tokens: list[int] | None = None
    new_tokens: list[int] | None = None

    def __len__(self) -> int:
        return len(self.index)

    @property
    def name(self) -> str:
        return self.dataset.name

    @property
    def has_texts(self) -> bool:
        return self.answers is not None

    def texts(self, purpose: str) -> tuple[list[str], list[str]]:
        """(answers, golds); UserError, with what they are needed for, where the run was kept without them."""
        if self.answers is None or self.goldens is None:
            raise UserError(f"{self.path.parent} is kept without its texts, which {purpose}; give the run itself")
        return self.answers, self.goldens

    @cached_property
    def rows_digest(self) -> str:
        """What makes rows the same rows: their positions and gold texts; UserError in a run without texts."""
        return digest_of([self.index, self.texts("tell its rows from others")[1]])

    def correctness(self, source: str = RULE) -> Correctness:
        """Accuracy and F1 of one labeller's labels; unparsed answers are wrong."""
        return correctness(self.gold, self.labels[source].predicted)

    def coded(self, source: str = RULE) -> tuple[list[int], list[int]]:
        """Gold and predicted labels as positions in the dataset's label table; an unparsed one is one past the end."""
        position = {label.name: at for at, label in enumerate(self.dataset.labels)}
        beyond = len(position)
        predicted = self.labels[source].predicted
        return (
            [position[name] for name in self.gold],
            [beyond if name is None else position[name] for name in predicted],
        )

    def only(self, kept: Sequence[int]) -> DatasetResults:
        """The same with only the rows at these positions of the lists, in this order; corpus values anew."""

        def take(values: Any) -> Any:
            return None if values is None else [values[at] for at in kept]

        labels = {
            name: replace(
                labels,
                predicted=take(labels.predicted),
                confidence=take(labels.confidence),
                clear=take(labels.clear),
            )
            for name, labels in self.labels.items()
        }
        lists = (
            *("index", "gold", "answer_words", "gold_words", "goldens", "answers", "queries", "posts", "aspects"),
            *("finish", "prompt_tokens", "new_tokens"),
        )
        scores = {name: _column_of(column, kept) for name, column in self.scores.items()}
        return replace(self, labels=labels, scores=scores, **{name: take(getattr(self, name)) for name in lists})


def _column_of(column: Column, kept: Sequence[int]) -> Column:
    rows = [column.rows[at] for at in kept]
    if column.statistics is None:
        return replace(column, rows=rows, value=mean(rows))
    statistics = [column.statistics[at] for at in kept]
    sums = [[math.fsum(values) for values in zip(*statistics, strict=True)]]
    value = float(summed_metric(column.metric).values_of_sums(sums)[0])
    return replace(column, rows=rows, statistics=statistics, value=value)


@dataclass(frozen=True)
class RunResults:
    """One run, dataset by dataset in the table's order.

    Attributes
    ----------
    folder, name : where it lies, and the folder's last name.
    manifest : of a run of this toolkit; None for any other folder.
    made_up : whether a kept run says that its rows are the toolkit's sample rows; None: `on_samples` finds out.
    labels_folder : where the classifier's labels were read, None without any.
    data_root : where the posts were looked up; None: nowhere.
    suite : the ``--test_dataset`` whose rows these are; None where that is not known.
    cautions : one line each, what a reader of the figures must know (stale scores left aside, posts not found, ...).
    """

    folder: Path
    name: str
    datasets: dict[str, DatasetResults]
    manifest: dict[str, Any] | None = None
    made_up: bool | None = None
    labels_folder: Path | None = None
    data_root: DataRoot | None = None
    suite: str | None = None
    cautions: tuple[str, ...] = ()

    @property
    def configuration(self) -> dict[str, Any]:
        """What decided the responses; {} for a folder that is not a run of this toolkit."""
        return (self.manifest or {}).get("configuration", {})

    @property
    def on_samples(self) -> bool:
        """Whether the rows are the toolkit's made-up ones, by the manifest or because they stand in the sample files."""
        if self.made_up is not None:
            return self.made_up
        if (self.manifest or {}).get("data_root", {}).get("made_up_samples"):
            return True
        found = any(results.queries is not None for results in self.datasets.values())
        return self.data_root is not None and self.data_root.is_samples and found

    @property
    def has_texts(self) -> bool:
        """Whether answers and golds are there; not in a kept run."""
        return all(results.has_texts for results in self.datasets.values())

    @property
    def rows(self) -> int:
        return sum(len(results) for results in self.datasets.values())

    def without(self, dropped: Mapping[str, Collection[int]]) -> RunResults:
        """The run without the rows at these positions of the test files (dataset → positions).

        A dataset with no row left is left out.  Raises UserError where that is all of them.
        """
        kept = {}
        for name, results in self.datasets.items():
            gone = frozenset(dropped.get(name, ()))
            positions = [at for at, index in enumerate(results.index) if index not in gone]
            if positions:
                kept[name] = results.only(positions) if len(positions) < len(results) else results
        if not kept:
            raise UserError(f"{self.folder}: no row is left once the rows to leave out are left out")
        return replace(self, datasets=kept)
