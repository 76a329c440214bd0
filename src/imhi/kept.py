"""Runs kept without any text: labels, lengths and score values row by row, so that their figures can be published.

Gold explanations and answers quote posts.  A kept run therefore has no query, gold text, answer or token id, and no path
of the machine that it ran on: a folder of

- ``rows.csv.gz``: a line a row, with the columns of `COLUMNS`, and behind them a column a score ("rouge1") and, of
  scores whose corpus value is no mean of rows, a column a statistic ("bleu.length");
- ``scores.json``: signatures and corpus values, as the run has them;
- ``manifest.json``: the run's own, paths reduced to names, and under "kept" what reading it back takes.

An empty cell is a value that the run did not tell.  Equal runs give equal bytes.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imhi import __version__
from imhi.benchmark import DATASETS, Dataset
from imhi.data import sha256_of, write_text_atomically
from imhi.errors import UserError
from imhi.labelers.rules import published_rule
from imhi.labelling import CLEAR_LABEL, UNCLEAR
from imhi.metrics import summed_metric
from imhi.metrics.correctness import UNPARSED
from imhi.rows import CLASSIFIER, RULE, Column, DatasetResults, Labels, RunResults
from imhi.scoring import SCORES, TARGETS, read_scores, row_column

__all__ = ["COLUMNS", "is_kept", "keep_run", "read_kept"]

FORMAT = "imhi-kept-1"
MANIFEST, ROWS = "manifest.json", "rows.csv.gz"
# Values that a reader compares are told apart by fewer; a mean over rows moves in its seventh digit at most.
DIGITS = 6

# Column → what it holds.
COLUMNS = {
    "dataset": "name in the table of datasets",
    "row": "0-based position in the test file",
    "aspect": "which of the dataset's questions is asked; empty for sets with one question",
    "post": "number of the post within the dataset: rows with the same one are about the same post",
    "gold": "gold label",
    "rule": "label by rule; unparsed for no label or several",
    "published_rule": "label by the published substring rule",
    "published_default": "1 where no substring matched, so that the published rule gave its default class",
    "classifier": "label by classifier",
    "confidence": "probability of that label",
    CLEAR_LABEL: "that label, or unclear where the answer supports none",
    "finish": "how the answer ended: stop, length, no_room, error",
    "prompt_tokens": "length of the prompt",
    "new_tokens": "length of the answer",
    "empty": "1 for an answer without text",
    "answer_words": "length of the answer, by white space",
    "gold_words": "length of the gold text",
}

_ABSOLUTE = re.compile(r"(?:[A-Za-z]:)?[\\/]|~")
_PATH = re.compile(r"(?<![\w\\/.~-])(?:[A-Za-z]:|~[\w.-]*|\.{1,2})?[\\/][^\s\"'=,;()]+")
# Names, versions and settings have fewer words; what has more may be somebody's text.
MOST_WORDS = 8


def is_kept(folder: Path) -> bool:
    """Whether a folder is a run kept without its texts."""
    return (folder / ROWS).is_file()


# --- keeping --------------------------------------------------------------------------------------------------------


def keep_run(run: RunResults, out: Path) -> Path:
    """Write a run without its texts to ``out/NAME``, over what was kept there before; returns that folder.

    `run` should know its posts (see `imhi.results.read_results`): else rows about one post cannot be told to be, and
    intervals of the kept run take every row as independent.

    Raises
    ------
    UserError
        A run that is kept already or has stale labels or scores; a folder in the way that is no kept run.
    """
    for results in run.datasets.values():
        results.texts("keeping it again reads")
    if run.cautions:
        raise UserError(f"{run.folder} cannot be kept as it is: {run.cautions[0]}")
    folder = out / run.name
    if folder.exists() and not (folder.is_dir() and (is_kept(folder) or not any(folder.iterdir()))):
        raise UserError(f"--out: {folder} is there and is no kept run; give another folder")
    rows = gzip.compress(_rows_as_csv(run).encode(), compresslevel=9, mtime=0)
    scores = _scores_of(run)
    files = {ROWS: hashlib.sha256(rows).hexdigest()}
    if scores:
        files[SCORES] = hashlib.sha256(scores.encode()).hexdigest()
    kept = {
        "format": FORMAT,
        "imhi": __version__,
        "suite": run.suite,
        "made_up": run.on_samples,
        "datasets": {
            name: {
                "rows": len(results),
                "file_digest": results.file_digest,
                "labels": {source: without_paths(labels.definition) for source, labels in results.labels.items()},
            }
            for name, results in run.datasets.items()
        },
        "sha256": files,
    }
    manifest = json.dumps({**_without_texts(run.manifest or {}), "kept": kept}, indent=1, ensure_ascii=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"--out: {out} is a file; give a folder") from None
    _write_bytes(folder / ROWS, rows)
    if scores:
        write_text_atomically(folder / SCORES, scores)
    else:
        (folder / SCORES).unlink(missing_ok=True)
    write_text_atomically(folder / MANIFEST, manifest + "\n")
    return folder


def _write_bytes(path: Path, content: bytes) -> None:
    """As `imhi.data.write_text_atomically`."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)


def _rows_as_csv(run: RunResults) -> str:
    tables = {name: _columns(results) for name, results in run.datasets.items()}
    names = list(dict.fromkeys([*COLUMNS, *(name for columns in tables.values() for name in columns)]))
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    for name, columns in tables.items():
        unknown = [""] * len(run.datasets[name])
        writer.writerows(zip(*(columns.get(column, unknown) for column in names), strict=True))
    return buffer.getvalue()


def _columns(results: DatasetResults) -> dict[str, list[str]]:
    """The columns that a dataset has, as text, each of shape (rows,)."""
    answers, _ = results.texts("keeping it reads")
    by_published = [published_rule(results.dataset, answer) for answer in answers]
    number: dict[str, int] = {}
    columns: dict[str, Sequence[Any] | None] = {
        "dataset": [results.name] * len(results),
        "row": results.index,
        "aspect": results.aspects,
        "post": results.posts and [number.setdefault(post, len(number)) for post in results.posts],
        "gold": results.gold,
        "rule": [label or UNPARSED for label in results.labels[RULE].predicted],
        "published_rule": [label for label, _ in by_published],
        "published_default": [int(default) for _, default in by_published],
        "finish": results.finish,
        "prompt_tokens": results.prompt_tokens,
        "new_tokens": results.new_tokens,
        "empty": [int(words == 0) for words in results.answer_words],
        "answer_words": results.answer_words,
        "gold_words": results.gold_words,
    }
    if CLASSIFIER in results.labels:
        labels = results.labels[CLASSIFIER]
        spoken = [label or UNPARSED for label in labels.predicted]
        columns["classifier"] = spoken
        columns["confidence"] = labels.confidence
        if labels.clear is not None:
            columns[CLEAR_LABEL] = [
                label if clear else UNCLEAR for label, clear in zip(spoken, labels.clear, strict=True)
            ]
    for name, column in results.scores.items():
        columns[name] = column.rows
        if column.statistics is not None:
            columns.update(
                zip(_statistics_names(column.metric, name), zip(*column.statistics, strict=True), strict=True)
            )
    return {name: [_cell(value) for value in values] for name, values in columns.items() if values is not None}


def _statistics_names(metric: str, column: str) -> list[str]:
    return [f"{column}.{name}" for name in summed_metric(metric).statistics_columns]


def _cell(value: str | float) -> str:
    return f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value)


def _scores_of(run: RunResults) -> str:
    """``scores.json`` of the datasets of a run; "" where it has none."""
    found = read_scores(run.folder)
    scores = {
        target: {name: entries for name, entries in found[target].items() if name in run.datasets} for target in found
    }
    if not any(scores.values()):
        return ""
    document = json.loads((run.folder / SCORES).read_text(encoding="utf-8"))
    return json.dumps(_walked({**document, "scores": scores}, without_paths), indent=1, ensure_ascii=False) + "\n"


def _without_texts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A run's manifest without prompts and paths; what else may be text is a digest there."""
    return _walked({name: value for name, value in manifest.items() if name != "first_prompt"}, _settled)


def _walked(value: Any, change: Any) -> Any:
    """The same lists and dicts with `change` applied to every string, names of entries included; no token ids."""
    if isinstance(value, dict):
        return {change(name): _walked(each, change) for name, each in value.items() if name != "token_ids"}
    if isinstance(value, (list, tuple)):
        return [_walked(each, change) for each in value]
    return change(value) if isinstance(value, str) else value


def _settled(text: str) -> str:
    if len(text.split()) > MOST_WORDS or "\n" in text:
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    return without_paths(text)


def without_paths(text: str) -> str:
    """`text` with every path that says where it lies on a machine (``/a/b``, ``~/b``, ``../b``) reduced to its last name."""
    option, equals, value = text.partition("=")
    if equals and option.startswith("-") and _ABSOLUTE.match(value):
        return f"{option}={_last_name(value)}"
    if _ABSOLUTE.match(text) and not text.startswith("//"):
        return _last_name(text)
    return _PATH.sub(lambda found: _last_name(found.group()), text)


def _last_name(path: str) -> str:
    """The last name of a path; that of a home folder is its owner's."""
    if Path(path).expanduser() == Path.home():
        return "~"
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


# --- reading --------------------------------------------------------------------------------------------------------


def read_kept(folder: Path, datasets: Sequence[str] = ()) -> RunResults:
    """Read a kept run; of `datasets` only, where some are given.

    Raises
    ------
    UserError
        A file that is not as it was kept; a dataset that it lacks.
    """
    manifest = _read_manifest(folder)
    kept = manifest.pop("kept")
    absent = [name for name in datasets if name not in kept["datasets"]]
    if absent:
        raise UserError(f"{folder}: no rows of {', '.join(absent)}; present: {', '.join(kept['datasets'])}")
    tables: dict[str, list[dict[str, str]]] = {}
    text = gzip.decompress((folder / ROWS).read_bytes()).decode("utf-8")
    for record in csv.DictReader(io.StringIO(text, newline="")):
        tables.setdefault(record["dataset"], []).append(record)
    scores = read_scores(folder)
    found = {
        name: _read_dataset(DATASETS[name], folder / ROWS, _Cells(tables[name]), entry, scores)
        for name, entry in kept["datasets"].items()
        if not datasets or name in datasets
    }
    read_by = kept["imhi"]
    cautions = (f"labels by rule are those of imhi {read_by}, which read the answers; this is {__version__}",)
    return RunResults(
        folder=folder,
        name=folder.resolve().name,
        datasets=found,
        manifest=manifest if "configuration" in manifest else None,
        made_up=kept["made_up"],
        suite=kept["suite"],
        cautions=() if read_by == __version__ else cautions,
    )


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    remedy = "bring the folder back as it was kept, or keep the run again"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        kept = manifest["kept"]
        known = kept["format"] == FORMAT
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, but {ROWS} beside it; {remedy}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise UserError(f"{path}: not the manifest of a kept run; {remedy}") from None
    if not known:
        raise UserError(f"{path}: kept in the form {kept['format']}; this version reads {FORMAT}")
    for name, digest in kept["sha256"].items():
        if not (folder / name).is_file() or sha256_of(folder / name) != digest:
            raise UserError(f"{folder / name}: missing, or not as it was kept (SHA-256 in {MANIFEST}); {remedy}")
    unknown = [name for name in kept["datasets"] if name not in DATASETS]
    if unknown:
        raise UserError(f"{path}: {', '.join(unknown)} is no dataset of this toolkit; {remedy}")
    return manifest


class _Cells:
    """The cells of one dataset's rows by column; None for a column that the run did not tell."""

    def __init__(self, records: list[dict[str, str]]):
        self._records = records

    def told(self, column: str) -> list[str] | None:
        cells = [record.get(column, "") for record in self._records]
        return cells if any(cells) else None

    def texts(self, column: str) -> list[str]:
        return [record[column] for record in self._records]

    def labels(self, column: str) -> list[str | None]:
        return [None if cell == UNPARSED else cell for cell in self.texts(column)]

    def counts(self, column: str) -> list[int] | None:
        cells = self.told(column)
        return None if cells is None else [int(cell) for cell in cells]

    def numbers(self, column: str) -> list[float]:
        return [float(cell) for cell in self.texts(column)]


def _read_dataset(
    dataset: Dataset, path: Path, cells: _Cells, entry: Mapping[str, Any], scores: Mapping[str, Any]
) -> DatasetResults:
    labels = {RULE: Labels(RULE, cells.labels("rule"), definition=entry["labels"][RULE])}
    if CLASSIFIER in entry["labels"]:
        clear = cells.told(CLEAR_LABEL)
        labels[CLASSIFIER] = Labels(
            CLASSIFIER,
            cells.labels(CLASSIFIER),
            cells.numbers("confidence") if cells.told("confidence") else None,
            None if clear is None else [cell != UNCLEAR for cell in clear],
            entry["labels"][CLASSIFIER],
        )
    posts = cells.told("post")
    return DatasetResults(
        dataset=dataset,
        path=path,
        index=[int(cell) for cell in cells.texts("row")],
        gold=cells.texts("gold"),
        labels=labels,
        answer_words=[int(cell) for cell in cells.texts("answer_words")],
        gold_words=[int(cell) for cell in cells.texts("gold_words")],
        file_digest=entry["file_digest"],
        scores={
            column.name: column
            for target in TARGETS
            for metric, stored in scores.get(target, {}).get(dataset.name, {}).items()
            for column in _score_columns(metric, target, stored, cells)
        },
        posts=posts,
        # Both were known or both unknown; for sets with one question the cells are empty either way.
        aspects=None if posts is None else cells.texts("aspect"),
        finish=cells.told("finish"),
        prompt_tokens=cells.counts("prompt_tokens"),
        new_tokens=cells.counts("new_tokens"),
    )


def _score_columns(metric: str, target: str, entry: Mapping[str, Any], cells: _Cells) -> list[Column]:
    lowest, highest = entry["range"]
    found = []
    for value, corpus in entry["values"].items():
        name = row_column(value, target)
        statistics = None
        if summed_metric(metric):
            statistics = list(zip(*(cells.numbers(each) for each in _statistics_names(metric, name)), strict=True))
        found.append(
            Column(
                metric,
                name,
                target,
                corpus,
                cells.numbers(name),
                entry["signature"],
                entry["note"],
                lowest,
                highest,
                statistics,
            )
        )
    return found
