"""A run read back as rows: answers, labels by rule and by classifier, scores; what report, compare and check stand on.

Works on run folders of this toolkit and on any folder of ``goldens,generated_text[,labels]`` files.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imhi.audit import post_key
from imhi.benchmark import DATASETS, SUITES, Dataset
from imhi.data import (
    DataRoot,
    ResponseFile,
    load_suite,
    read_responses,
    read_table,
    resolve_data_root,
    response_files,
    sha256_of,
)
from imhi.errors import UserError
from imhi.labelers.rules import label_by_rule
from imhi.labelling import CLEAR_LABEL, CONFIDENCE, UNCLEAR, labels_of, read_record
from imhi.metrics import summed_metric
from imhi.metrics.base import digest_of, mean
from imhi.metrics.correctness import Correctness, correctness
from imhi.runs import JOURNAL, read_completions, read_manifest
from imhi.scoring import TARGETS, explanation_of, read_row_values, read_scores, row_column

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "RULE",
    "UNRECORDED",
    "Column",
    "DatasetResults",
    "Labels",
    "RunResults",
    "data_root_of",
    "labels_folder",
    "read_results",
]

RULE = "rule"
CLASSIFIER = "classifier"
LABELS_RECORD = "labels.json"
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
    index : 0-based position of each row in the test file.
    goldens, answers : texts.  gold : canonical label names.
    labels : labeller's source → its labels; "rule" is always there.
    scores : column name → `Column`.
    queries, posts : the prompts' texts and what two prompts about one post share; None where the test file that the
        answers belong to is not at hand.
    finish : "stop", "length", ... or "error" for each row; None for a folder that is not a run of this toolkit.
    new_tokens : length of each answer in the model's tokens; None likewise.
    """

    dataset: Dataset
    path: Path
    index: list[int]
    goldens: list[str]
    answers: list[str]
    gold: list[str]
    labels: dict[str, Labels]
    scores: dict[str, Column] = field(default_factory=dict)
    queries: list[str] | None = None
    posts: list[str] | None = None
    finish: list[str] | None = None
    new_tokens: list[int] | None = None

    def __len__(self) -> int:
        return len(self.goldens)

    @property
    def name(self) -> str:
        return self.dataset.name

    @cached_property
    def rows_digest(self) -> str:
        """What makes rows the same rows: their positions and gold texts."""
        return digest_of([self.index, self.goldens])

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
        lists = ("index", "goldens", "answers", "gold", "queries", "posts", "finish", "new_tokens")
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
    labels_folder : where the classifier's labels were read, None without any.
    data_root : where the posts were looked up; None: nowhere.
    suite : the ``--test_dataset`` whose rows these are; None where that is not known.
    cautions : one line each, what a reader of the figures must know (stale scores left aside, posts not found, ...).
    """

    folder: Path
    name: str
    datasets: dict[str, DatasetResults]
    manifest: dict[str, Any] | None = None
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
        if (self.manifest or {}).get("data_root", {}).get("made_up_samples"):
            return True
        found = any(results.queries is not None for results in self.datasets.values())
        return self.data_root is not None and self.data_root.is_samples and found

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


def labels_folder(folder: Path) -> Path | None:
    """Where the labels of a run usually lie: ``RUN/labels``, else ``RUN-labels`` beside it; None where neither is."""
    beside = folder.resolve()
    candidates = (folder / "labels", beside.with_name(beside.name + "-labels"))
    return next((path for path in candidates if path.is_dir() and any(path.glob("*.csv"))), None)


def data_root_of(folder: Path, given: str | None) -> DataRoot | None:
    """Where a run's posts are: ``--data_root``, else the folder that the run recorded, else ``$IMHI_DATA``, else nowhere.

    Answers are matched to test files by their gold texts, so a root of other data does no harm.
    """
    if given is not None:
        return resolve_data_root(given)
    manifest = (read_manifest(folder) if (folder / JOURNAL).exists() else None) or {}
    recorded = manifest.get("data_root", {}).get("path")
    if recorded and (Path(recorded) / "test_data").is_dir():
        return DataRoot(Path(recorded), "as the run recorded")
    return resolve_data_root(None) if os.environ.get("IMHI_DATA") else None


def read_results(
    folder: Path,
    *,
    labels: Path | None = None,
    datasets: Sequence[str] = (),
    data_root: DataRoot | None = None,
) -> RunResults:
    """Read a run with its labels and scores.

    Parameters
    ----------
    folder : of ``DATASET.csv`` files.
    labels : the folder of their labels; None: `labels_folder`, else the ``labels`` columns of `folder` itself.
    datasets : only these.
    data_root : where posts are looked up; answers are matched to a test file by its gold texts, row by row.

    Raises
    ------
    UserError
        An unreadable file; labels of other answers than the run's.
    """
    found, _ = response_files(folder, datasets)
    # Somebody else's folder may hold a manifest.json of its own.
    manifest = read_manifest(folder) if (folder / JOURNAL).exists() else None
    completions = read_completions(folder)
    labelled = labels or labels_folder(folder)
    cautions: list[str] = []
    read = {}
    for name, path in found.items():
        response = read_responses(DATASETS[name], path)
        one = _read_one(response, folder, labelled, explicit=labels is not None, cautions=cautions)
        records = [completions.get(f"{name}/{index}") for index in one.index] if completions else []
        told = [record for record in records if record is not None]
        if told and [record.text for record in told] == one.answers:
            one = replace(
                one,
                finish=["error" if record.error is not None else record.finish_reason for record in told],
                new_tokens=[record.new_tokens for record in told],
            )
        read[name] = one
    configuration = (manifest or {}).get("configuration", {})
    suite = configuration.get("test_dataset")
    if data_root is not None:
        read, unknown, suites = _with_posts(read, data_root, configuration)
        suite = suite or (suites.pop() if len(suites) == 1 else None)
        if unknown:
            cautions.append(f"posts not found in {data_root.path}: {', '.join(unknown)} (other gold texts there)")
    name = folder.resolve().name
    return RunResults(folder, name, read, manifest, labelled, data_root, suite, tuple(cautions))


def _read_one(
    response: ResponseFile, folder: Path, labelled: Path | None, *, explicit: bool, cautions: list[str]
) -> DatasetResults:
    dataset = response.dataset
    labels = {RULE: Labels(RULE, [label_by_rule(dataset, text) for text in response.generated], definition=RULE)}
    by_classifier = _classifier_labels(response, labelled, explicit=explicit, cautions=cautions)
    if by_classifier is not None:
        labels[CLASSIFIER] = by_classifier
    return DatasetResults(
        dataset=dataset,
        path=response.path,
        index=list(range(len(response.goldens))),
        goldens=response.goldens,
        answers=response.generated,
        gold=response.gold_labels(),
        labels=labels,
        scores=_scores(folder, response, cautions),
    )


def _classifier_labels(
    response: ResponseFile, labelled: Path | None, *, explicit: bool, cautions: list[str]
) -> Labels | None:
    name = response.dataset.name
    source, path = response, response.path
    if labelled is not None and (labelled / f"{name}.csv").exists():
        path = labelled / f"{name}.csv"
        source = read_responses(response.dataset, path)
        if (source.goldens, source.generated) != (response.goldens, response.generated):
            problem = f"{path}: the labels of other answers than those of {response.path}; label that folder again"
            if explicit:
                raise UserError(problem)
            cautions.append(problem)
            return None
    elif explicit:
        raise UserError(f"{labelled}: no labels of {name} ({name}.csv); label that dataset, or leave it out")
    if source.labels is None:
        return None
    table = read_table(path)
    record = path.parent / LABELS_RECORD
    # A published file has no record: its labels are defined by themselves.
    entry = read_record(record)["datasets"].get(name, {}) if record.exists() else {}
    if entry and sha256_of(path) != entry.get("output_sha256"):
        problem = (
            f"{path}: changed since {record.name} beside it was written; label that folder again, or remove that record"
        )
        if explicit:
            raise UserError(problem)
        cautions.append(f"labels by classifier left aside: {problem}")
        return None
    key = entry.get("key", {})
    definition = {part: value for part, value in key.items() if part != "input_sha256"}
    confidence = clear = None
    if CONFIDENCE in table.columns:
        confidence = [_number(path, at, cell) for at, cell in enumerate(table.column(CONFIDENCE))]
    if CLEAR_LABEL in table.columns:
        clear = [cell.strip() != UNCLEAR for cell in table.column(CLEAR_LABEL)]
    text = json.dumps(definition, sort_keys=True) if definition else UNRECORDED
    return Labels(CLASSIFIER, labels_of(source), confidence, clear, text)


def _number(path: Path, row: int, cell: str) -> float:
    try:
        number = float(cell)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise UserError(f"{path}, row {row + 1}: {CONFIDENCE} is {cell[:40]!r}; expected a number 0-1")
    return number


def _scores(folder: Path, response: ResponseFile, cautions: list[str]) -> dict[str, Column]:
    name = response.dataset.name
    texts = digest_of([response.generated, response.goldens])
    stored = read_scores(folder)
    columns = read_row_values(folder, name) if stored else {}
    found = {}
    for target in TARGETS:
        for metric, entry in stored.get(target, {}).get(name, {}).items():
            rows = {value: columns.get(row_column(value, target)) for value in entry["values"]}
            if entry["texts"] != texts or digest_of(rows) != entry["row_values"]:
                cautions.append(
                    f"{name}: {metric} ({target}) left aside, it is of other texts than {response.path} holds now; "
                    "score that folder again"
                )
                continue
            summed = summed_metric(metric)
            statistics = summed.statistics(*_texts_of(response, target)) if summed else None
            lowest, highest = entry["range"]
            for value, values in rows.items():
                assert values is not None  # their digest is that of the entry
                column = Column(
                    metric,
                    row_column(value, target),
                    target,
                    entry["values"][value],
                    values,
                    entry["signature"],
                    entry["note"],
                    lowest,
                    highest,
                    statistics,
                )
                found[column.name] = column
    return found


def _texts_of(response: ResponseFile, target: str) -> tuple[list[str], list[str]]:
    if target == "response":
        return response.generated, response.goldens
    return (
        [explanation_of(text)[0] for text in response.generated],
        [explanation_of(text)[0] for text in response.goldens],
    )


def _with_posts(
    read: dict[str, DatasetResults], root: DataRoot, configuration: Mapping[str, Any]
) -> tuple[dict[str, DatasetResults], list[str], set[str]]:
    """The same with queries and posts, the names of the datasets whose rows stand in no test file here, and the suites.

    A run says which suite and which files its rows come from; the answers of any other folder are matched by their
    gold texts, a folder of the first rows of a file included.
    """
    named = configuration.get("test_dataset")
    digests = configuration.get("data_files", {})
    found: dict[str, DatasetResults] = {}
    suites: set[str] = set()
    for suite in [named] if named in SUITES else list(SUITES):
        try:
            loaded = load_suite(root, suite)
        except UserError:
            if suite == named:
                return read, list(read), suites
            continue  # a data root may hold one suite only
        by_dataset: dict[str, list[tuple[str, str]]] = {}
        for row in loaded.rows:
            by_dataset.setdefault(row.dataset, []).append((row.query, row.gold))
        for name, one in read.items():
            rows = by_dataset.get(name, [])[: len(one)]
            same = [gold for _, gold in rows] == one.goldens
            if same and name in digests:
                same = digests[name] == "sha256:" + sha256_of(loaded.files[name])
            if same and name not in found:
                queries = [query for query, _ in rows]
                suites.add(suite)
                found[name] = replace(one, queries=queries, posts=[post_key(query) for query in queries])
    return {**read, **found}, [name for name in read if name not in found], suites
