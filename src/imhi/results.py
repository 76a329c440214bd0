"""A run read back as rows: answers, labels by rule and by classifier, scores; what report, compare and check stand on.

Works on run folders of this toolkit, on any folder of ``goldens,generated_text[,labels]`` files, and on runs that were
kept without their texts (`imhi.kept`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from imhi.audit import post_key
from imhi.benchmark import DATASETS, SUITES, aspect_of
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
from imhi.kept import is_kept, read_kept
from imhi.labelers.rules import label_by_rule
from imhi.labelling import CLEAR_LABEL, CONFIDENCE, UNCLEAR, labels_of, read_record
from imhi.metrics import summed_metric
from imhi.metrics.base import digest_of
from imhi.rows import CLASSIFIER, RULE, UNRECORDED, Column, DatasetResults, Labels, RunResults
from imhi.runs import JOURNAL, read_completions, read_manifest
from imhi.scoring import TARGETS, explanation_of, read_row_values, read_scores, row_column

__all__ = [
    "CLASSIFIER",
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

LABELS_RECORD = "labels.json"


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
    folder : of ``DATASET.csv`` files, or of a kept run.
    labels : the folder of their labels; None: `labels_folder`, else the ``labels`` columns of `folder` itself.
    datasets : only these.
    data_root : where posts are looked up; answers are matched to a test file by its gold texts, row by row.

    Raises
    ------
    UserError
        An unreadable file; labels of other answers than the run's; `labels` for a kept run, which has its own.
    """
    if is_kept(folder):
        if labels is not None:
            raise UserError(
                f"--labels {labels}: {folder} is a kept run, whose labels are kept with it; leave the flag out"
            )
        kept = read_kept(folder, datasets)
        return kept if data_root is None else _looked_up(kept, data_root)
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
                prompt_tokens=[record.prompt_tokens for record in told],
                new_tokens=[record.new_tokens for record in told],
            )
        read[name] = one
    name = folder.resolve().name
    suite = (manifest or {}).get("configuration", {}).get("test_dataset")
    run = RunResults(folder, name, read, manifest, labels_folder=labelled, suite=suite, cautions=tuple(cautions))
    return run if data_root is None else _looked_up(run, data_root)


def _looked_up(run: RunResults, root: DataRoot) -> RunResults:
    """The run with what its data root tells: prompts and posts, and of a folder of unknown origin the suite."""
    read, unknown, suites = _with_posts(run.datasets, root, run.configuration)
    suite = run.suite or (suites.pop() if len(suites) == 1 else None)
    cautions = run.cautions
    if unknown:
        cautions += (f"posts not found in {root.path}: {', '.join(unknown)} (other gold texts there)",)
    return replace(run, datasets=read, data_root=root, suite=suite, cautions=cautions)


def _read_one(
    response: ResponseFile, folder: Path, labelled: Path | None, *, explicit: bool, cautions: list[str]
) -> DatasetResults:
    dataset = response.dataset
    labels = {RULE: Labels(RULE, [label_by_rule(dataset, text) for text in response.generated], definition=RULE)}
    by_classifier = _classifier_labels(response, labelled, explicit=explicit, cautions=cautions)
    if by_classifier is not None:
        labels[CLASSIFIER] = by_classifier
    index = list(range(len(response.goldens)))
    return DatasetResults(
        dataset=dataset,
        path=response.path,
        index=index,
        gold=response.gold_labels(),
        labels=labels,
        answer_words=[len(text.split()) for text in response.generated],
        gold_words=[len(text.split()) for text in response.goldens],
        file_digest=digest_of([index, response.goldens]),
        goldens=response.goldens,
        answers=response.generated,
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
            same = digest_of([one.index, [gold for _, gold in rows]]) == one.file_digest
            if same and name in digests:
                same = digests[name] == "sha256:" + sha256_of(loaded.files[name])
            if same and name not in found:
                queries = [query for query, _ in rows]
                suites.add(suite)
                found[name] = replace(
                    one,
                    queries=queries,
                    posts=[post_key(query) for query in queries],
                    aspects=[aspect_of(one.dataset, SUITES[suite].form, query) or "" for query in queries],
                )
    return {**read, **found}, [name for name in read if name not in found], suites
