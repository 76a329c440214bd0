"""Scores of a folder of responses: ``scores.json`` and ``scores/DATASET.csv`` beside them.

After every metric on every dataset both files are replaced in one step each, so that a crash loses at most the
values in flight, and of those that a server is asked for not even these (`imhi.metrics.value_journal`).  A value is
computed again only where its signature or its texts changed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imhi.batching import is_out_of_memory
from imhi.benchmark import DATASETS, split_reasoning
from imhi.data import ResponseFile, read_responses, read_table, response_files, write_table, write_text_atomically
from imhi.errors import UserError
from imhi.locks import only_process
from imhi.metrics import METRICS
from imhi.metrics.base import Metric, digest_of
from imhi.metrics.value_journal import Unscored, values_kept
from imhi.talk import progress_bar, say, table

__all__ = [
    "TARGETS",
    "explanation_of",
    "read_row_values",
    "read_scores",
    "row_column",
    "score_folder",
    "score_table",
]

SCORES = "scores.json"
ROWS_FOLDER = "scores"
FORMAT = "imhi-scores-1"

# What is compared: the whole texts, as published, or the parts after "Reasoning:".
TARGETS = ("response", "explanation")
MARKER = "Reasoning:"

# What the toolkit itself puts beside response files; not worth a word as stray.
OWN_NAMES = frozenset(
    [
        *(
            SCORES,
            ROWS_FOLDER,
            "manifest.json",
            "responses.jsonl",
            "correctness.json",
            "results.txt",
            "labels",
            ".lock",
        ),
        *("report.html", "report.md", "report.tex", "report.json", "pipeline.json"),
    ]
)

# dataset → metric → entry of scores.json
Entries = dict[str, dict[str, dict[str, Any]]]


def explanation_of(text: str) -> tuple[str, bool]:
    """The text after the first ``Reasoning:``, and whether that marker is there; without it the whole text."""
    _, explanation, marked = split_reasoning(text)
    return (explanation, True) if marked else (text, False)


@dataclass(frozen=True)
class Texts:
    """The texts of one dataset that are compared, and what is counted about them."""

    dataset: str
    generated: list[str]
    golds: list[str]
    counts: dict[str, int]
    digest: str

    @classmethod
    def of(cls, responses: ResponseFile, target: str) -> Texts:
        generated, golds = responses.generated, responses.goldens
        digest = digest_of([generated, golds])
        counts = {"rows": len(golds)}
        if target == "explanation":
            generated, generated_marked = (list(found) for found in zip(*map(explanation_of, generated), strict=True))
            golds, golds_marked = (list(found) for found in zip(*map(explanation_of, golds), strict=True))
            counts["answers_without_reasoning"] = generated_marked.count(False)
            counts["golds_without_reasoning"] = golds_marked.count(False)
        counts["empty_answers"] = sum(not text.strip() for text in generated)
        counts["empty_golds"] = sum(not text.strip() for text in golds)
        return cls(responses.dataset.name, generated, golds, counts, digest)


def read_scores(folder: Path) -> dict[str, Entries]:
    """Target → dataset → metric → entry of a folder's ``scores.json``; {} without one.

    Raises UserError where the file is not what this module writes.
    """
    path = folder / SCORES
    if not path.exists():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); remove it and score again") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UserError(f"{path}: not a score file of this toolkit ({FORMAT}); move it away and score again")
    scores: Any = document.get("scores")
    needed = {"values", "texts", "row_values", "signature", "range", "note"}
    try:
        whole = all(
            needed <= entry.keys() for kind in scores.values() for found in kind.values() for entry in found.values()
        )
    except AttributeError:
        whole = False
    if not whole:
        raise UserError(f"{path}: damaged, an entry lacks what every score has; move it away and score again")
    return scores


def score_folder(
    folder: Path,
    metrics: Sequence[Metric],
    *,
    datasets: Sequence[str] = (),
    target: str = "response",
    overwrite: bool = False,
) -> Entries:
    """Score every response file of `folder` with every metric and keep the values there.

    Parameters
    ----------
    folder : holds ``DATASET.csv`` files; gets ``scores.json`` and ``scores/DATASET.csv``.
    metrics : from `imhi.metrics.METRICS`; what they need is checked when they are made.
    datasets : only these; all files present otherwise.
    target : "response" (whole texts, as published) or "explanation" (after ``Reasoning:``).
    overwrite : compute values again that are there already; those that a server gave to a scoring that did not come to
        its end are used all the same.

    Returns
    -------
    dataset → metric → entry, of the datasets and metrics asked for.

    Raises
    ------
    UserError
        An unreadable file, a value that is not finite, a row that alone does not fit in memory; rows that got no value,
        once all other datasets and metrics are scored.
    """
    found, stray = response_files(folder, datasets)
    stray = [name for name in stray if name not in OWN_NAMES]
    if stray:
        say(f"{folder}: left aside {', '.join(stray[:6])}{' ...' if len(stray) > 6 else ''} (no dataset's name)")
    # All files are read, and an earlier scores.json too, before hours of work are begun.
    texts = [Texts.of(read_responses(DATASETS[name], path), target) for name, path in found.items()]
    read_scores(folder)
    results: Entries = {text.dataset: {} for text in texts}
    unscored = []
    for metric in metrics:
        kept, todo = [], []
        for text in texts:
            entry = None if overwrite else _earlier_entry(folder, metric, text, target)
            if entry is None:
                todo.append(text)
            else:
                kept.append(text.dataset)
                results[text.dataset][metric.name] = entry
        if kept:
            say(
                f"{metric.name}: kept from before for {', '.join(kept)} (same signature, same texts; --overwrite scores anew)"
            )
        if not todo:
            continue
        with progress_bar(sum(len(text.golds) for text in todo), metric.name) as bar:
            for text in todo:
                bar.set_description(f"{metric.name} {text.dataset}")
                journal = f"{row_column(metric.name, target)}.{text.dataset}"
                try:
                    with values_kept(metric, _rows_folder(folder), journal):
                        entry, row_values = _compute(metric, text, bar.update)
                        _store(folder, metric, text, target, entry, row_values)
                except Unscored as error:
                    unscored.append(f"{text.dataset}: {error}")
                    continue
                results[text.dataset][metric.name] = entry
    if unscored:
        raise UserError(" | ".join(unscored), code=1)
    return results


def _compute(
    metric: Metric, text: Texts, advance: Callable[[int], object]
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """The entry of one metric on one dataset and its values per row."""
    started = time.monotonic()
    try:
        statistics = metric.statistics(text.generated, text.golds, advance)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"{metric.name} on {text.dataset}: memory ran out, even with one row at a time; "
            "--dtype bfloat16 halves the need, --device cpu takes the machine's memory",
            code=1,
        ) from error
    row_values = metric.row_values(statistics)
    for name, values in row_values.items():
        broken = next((row for row, value in enumerate(values) if not math.isfinite(value)), None)
        if broken is not None:
            raise UserError(
                f"{metric.name} on {text.dataset}, row {broken + 1}: {name} is {values[broken]}; "
                "a model overflows in a small --dtype (float32 does not), or its weights are broken",
                code=1,
            )
    from imhi.provenance import now

    entry = {
        "values": metric.values(statistics),
        **text.counts,
        "empty_rule": metric.empty_rule,
        "range": [metric.lowest, metric.highest],
        "higher_is_better": True,
        "signature": str(metric.signature),
        "note": metric.note,
        "texts": text.digest,
        "row_values": digest_of(row_values),
        "run": {**metric.run_facts, "seconds": round(time.monotonic() - started, 3), "finished": now()},
    }
    return entry, row_values


def row_column(value_name: str, target: str) -> str:
    """A value's column in ``scores/DATASET.csv``."""
    return value_name if target == "response" else f"{value_name}_{target}"


def _earlier_entry(folder: Path, metric: Metric, text: Texts, target: str) -> dict[str, Any] | None:
    """The entry of an earlier run, if it is of the same signature and texts and its row values are there."""
    if not (folder / SCORES).exists():
        return None
    with only_process(_rows_folder(folder)):
        entry = read_scores(folder).get(target, {}).get(text.dataset, {}).get(metric.name)
        columns = read_row_values(folder, text.dataset)
    if entry is None or entry["signature"] != str(metric.signature) or entry["texts"] != text.digest:
        return None
    if not _has_rows(entry, columns, target):
        where = _rows_file(folder, text.dataset)
        say(f"{where}: the {metric.name} values there are not those of {SCORES}; scoring anew")
        return None
    return entry


def _has_rows(entry: dict[str, Any], columns: dict[str, list[float]], target: str) -> bool:
    """Whether the values per row that belong to an entry are there, unchanged."""
    return digest_of({name: columns.get(row_column(name, target)) for name in entry["values"]}) == entry["row_values"]


def _rows_folder(folder: Path) -> Path:
    rows_folder = folder / ROWS_FOLDER
    rows_folder.mkdir(exist_ok=True)
    return rows_folder


def _rows_file(folder: Path, dataset: str) -> Path:
    return folder / ROWS_FOLDER / f"{dataset}.csv"


def read_row_values(folder: Path, dataset: str) -> dict[str, list[float]]:
    """Column of ``scores/DATASET.csv`` → values per row; {} without the file.  Raises UserError on a damaged one."""
    path = _rows_file(folder, dataset)
    if not path.exists():
        return {}
    rows = read_table(path)
    try:
        return {name: [float(cell) for cell in rows.column(name)] for name in rows.columns if name != "row"}
    except ValueError as error:
        raise UserError(f"{path}: not a number ({error}); remove the file and score again") from None


def _store(
    folder: Path, metric: Metric, text: Texts, target: str, entry: dict[str, Any], row_values: dict[str, list[float]]
) -> None:
    """Add one entry to ``scores/DATASET.csv`` and then to ``scores.json``.

    Both are read again first: another process may have scored the folder with another metric meanwhile.
    """
    from imhi.provenance import environment

    with only_process(_rows_folder(folder)):
        scores = read_scores(folder)
        columns = read_row_values(folder, text.dataset)
        for kind in TARGETS:
            entries = scores.setdefault(kind, {}).setdefault(text.dataset, {})
            for name in [name for name in entries if (kind, name) != (target, metric.name)]:
                if entries[name]["texts"] != text.digest:
                    say(f"{text.dataset}: dropped {name} ({kind}); it was of other texts than the file holds now")
                elif not _has_rows(entries[name], columns, kind):
                    say(f"{text.dataset}: dropped {name} ({kind}); its values per row are lost")
                else:
                    continue
                del entries[name]
        scores[target][text.dataset][metric.name] = entry
        columns.update((row_column(name, target), values) for name, values in row_values.items())
        kept = [
            row_column(value, kind)
            for kind in TARGETS
            for name in METRICS
            for value in scores[kind][text.dataset].get(name, {}).get("values", ())
        ]
        records = zip(*(columns[name] for name in kept), strict=True)
        numbered = ((row, *values) for row, values in enumerate(records))
        write_table(_rows_file(folder, text.dataset), ["row", *kept], numbered)
        document = {"format": FORMAT, "environment": environment(), "scores": _in_table_order(scores)}
        text_form = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
        write_text_atomically(folder / SCORES, text_form + "\n")


def _in_table_order(scores: dict[str, Entries]) -> dict[str, Entries]:
    """The same entries, datasets and metrics in the order of their tables; nothing for what has no entry."""
    ordered: dict[str, Entries] = {}
    for kind in TARGETS:
        for dataset in DATASETS:
            entries = scores.get(kind, {}).get(dataset, {})
            if entries:
                ordered.setdefault(kind, {})[dataset] = {name: entries[name] for name in METRICS if name in entries}
    return ordered


def score_table(results: Entries) -> str:
    """A table of corpus values, one line a dataset, and below it what the values depend on."""
    first = next(iter(results.values()))
    values = [(metric, name) for metric, entry in first.items() for name in entry["values"]]
    counts = [
        (title, field)
        for title, field in (
            ("rows", "rows"),
            ("empty", "empty_answers"),
            ("unmarked", "answers_without_reasoning"),
            ("unmarked golds", "golds_without_reasoning"),
            ("empty golds", "empty_golds"),
        )
        if field in ("rows", "empty_answers", "answers_without_reasoning")
        or any(entry.get(field) for entries in results.values() for entry in entries.values())
    ]
    counts = [(title, field) for title, field in counts if field in next(iter(first.values()))]
    lines = []
    for dataset, entries in results.items():
        anyone = next(iter(entries.values()))
        lines.append(
            [dataset, *(str(anyone[field]) for _, field in counts)]
            + [f"{entries[metric]['values'][name]:.4f}" for metric, name in values]
        )
    shown = table(["dataset", *(title for title, _ in counts), *(name for _, name in values)], lines)
    notes = [entry["note"] for entry in first.values() if entry["note"]]
    if any(entry["empty_answers"] for entries in results.values() for entry in entries.values()):
        notes += [f"{metric}: an empty answer scores {entry['empty_rule']}" for metric, entry in first.items()]
    if "answers_without_reasoning" in next(iter(first.values())):
        notes.append(f"unmarked: answers without {MARKER!r}, compared whole")
    signatures = dict.fromkeys(entry["signature"] for entries in results.values() for entry in entries.values())
    return "\n".join([shown, "", *notes, *signatures])
