"""Labelling a folder of responses, and the correctness of labels that a folder carries.

An output folder holds ``DATASET.csv`` (the published columns, behind them the class probability and, of a classifier
with a threshold, the label again or ``unclear``), ``labels.json`` (what labelled each file, so that a rerun knows what
is done) and, where asked for, ``correctness.json``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imhi.benchmark import DATASETS
from imhi.data import (
    ResponseFile,
    dataset_files,
    read_responses,
    read_table,
    response_files,
    sha256_of,
    write_table,
    write_text_atomically,
)
from imhi.errors import UserError
from imhi.labelers import Labeler
from imhi.locks import only_process
from imhi.metrics.correctness import UNPARSED, Correctness, correctness
from imhi.provenance import environment, now
from imhi.talk import say, table

__all__ = [
    "correctness_table",
    "counts_table",
    "earlier_figures",
    "label_folder",
    "labelled_correctness",
    "labels_of",
    "output_folder",
    "read_folder",
    "read_record",
    "unlabelled",
    "write_correctness",
]

RECORD = "labels.json"
CORRECTNESS = "correctness.json"
COLUMNS = ("goldens", "generated_text", "labels")
CONFIDENCE = "label_confidence"
CLEAR_LABEL = "clear_label"
UNCLEAR = "unclear"
# Where the figures of ``correctness.json`` come from: the labels that stand in the files.
SOURCE = "labels column"


def read_folder(folder: Path, datasets: Sequence[str] = ()) -> dict[str, ResponseFile]:
    """The responses of a folder, one file a dataset, in the table's order; says what it leaves aside."""
    files, stray = response_files(folder, datasets)
    ignored = [name for name in stray if name.lower().endswith(".csv")]
    if ignored:
        say(f"{folder}: not named after a dataset, ignored: {', '.join(ignored)}")
    nested = [
        name for name in stray if name != "scores" and (folder / name).is_dir() and dataset_files(folder / name)[0]
    ]
    if nested:
        say(f"{folder}: folders inside it are not read: {', '.join(nested)}")
    return {name: read_responses(DATASETS[name], path) for name, path in files.items()}


def output_folder(out: Path, data: Path) -> Path:
    """Create the output folder; UserError where it cannot be one, or is the folder of the responses."""
    if out.resolve() == data.resolve():
        raise UserError(
            f"--data_output_path: {out} is the folder of --data_path, whose files would be overwritten; give another"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"--data_output_path: {out} is a file; give a folder") from None
    except OSError as error:
        raise UserError(f"--data_output_path: {out} cannot be created ({error.strerror})") from None
    return out


def unlabelled(
    responses: Mapping[str, ResponseFile], labelers: Mapping[str, Labeler], out: Path, *, overwrite: bool = False
) -> list[str]:
    """Names of the datasets that `label_folder` would label, in its order: those that it would not skip."""
    records = read_record(out / RECORD)["datasets"] if (out / RECORD).exists() else {}
    return [
        name
        for name in responses
        if name in labelers
        and (
            overwrite or not _is_labelled(records.get(name), _key(responses[name], labelers[name]), out / f"{name}.csv")
        )
    ]


def _key(response: ResponseFile, labeler: Labeler) -> dict[str, Any]:
    """What the labels of a file depend on."""
    return {"input_sha256": sha256_of(response.path), **labeler.identity()}


def _is_labelled(record: dict[str, Any] | None, key: dict[str, Any], target: Path) -> bool:
    return record is not None and target.exists() and record["key"] == key


def label_folder(
    responses: Mapping[str, ResponseFile], labelers: Mapping[str, Labeler], out: Path, *, overwrite: bool = False
) -> dict[str, dict[str, Any]]:
    """Label responses, one dataset after the other, into `out`.

    A dataset is skipped where ``labels.json`` says that the same labeler labelled the same file; after each dataset
    its CSV and then the record are written in one step each, so that a rerun after a crash repeats one dataset at
    most.  A file in `out` that this did not write, or that was edited since, stops the run before it starts.

    Parameters
    ----------
    responses, labelers : by dataset name; datasets without a labeler are left out.
    overwrite : compute again, and replace whatever stands in `out`.

    Returns
    -------
    dict
        Dataset name → its entry in ``labels.json``.
    """
    with only_process(out, "labelling into this folder"):
        return _label_folder(responses, labelers, out, overwrite=overwrite)


def _label_folder(
    responses: Mapping[str, ResponseFile], labelers: Mapping[str, Labeler], out: Path, *, overwrite: bool
) -> dict[str, dict[str, Any]]:
    records = read_record(out / RECORD)["datasets"] if (out / RECORD).exists() else {}
    todo = [name for name in responses if name in labelers]
    if not overwrite:
        for name in todo:
            _check_untouched(out / f"{name}.csv", records.get(name))
    done: dict[str, dict[str, Any]] = {}
    ran_in = environment()
    for name in todo:
        response, target = responses[name], out / f"{name}.csv"
        key = _key(response, labelers[name])
        record = records.get(name)
        if not overwrite and _is_labelled(record, key, target):
            say(f"{name}: already labelled in {target}, input and labeler unchanged; skipped (--overwrite repeats it)")
        else:
            if record and not overwrite:
                say(f"{name}: {_what_changed(record['key'], key, target)} since {target} was labelled; labelling again")
            if records.pop(name, None):
                # A crash before the new record then finds a file without one, and not one that seems edited.
                _write_record(out / RECORD, {"datasets": records})
            record = _label_one(response, labelers[name], target, key)
            records[name] = {**record, "environment": ran_in}
            _write_record(out / RECORD, {"datasets": records})
        done[name] = records[name]
    return done


def _label_one(response: ResponseFile, labeler: Labeler, target: Path, key: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    result = labeler.label(response.dataset, response.generated)
    seconds = time.perf_counter() - started
    spoken = [UNPARSED if label is None else response.dataset.label_named(label).classifier for label in result.labels]
    columns: list[Sequence[str | float]] = [response.goldens, response.generated, spoken]
    names: tuple[str, ...] = COLUMNS
    if result.confidences is not None:
        columns.append([round(confidence, 6) for confidence in result.confidences])
        names = (*names, CONFIDENCE)
    if result.clear is not None:
        columns.append([label if clear else UNCLEAR for label, clear in zip(spoken, result.clear, strict=True)])
        names = (*names, CLEAR_LABEL)
    write_table(target, names, zip(*columns, strict=True))
    return {
        "key": key,
        "input": str(response.path),
        "output_sha256": sha256_of(target),
        "counts": {**result.counts, "unparsed": sum(label is None for label in result.labels)},
        "seconds": round(seconds, 3),
        "finished": now(),
    }


def _check_untouched(target: Path, record: dict[str, Any] | None) -> None:
    """Stop where `target` holds what nobody could compute again: a stranger's file, or labels edited by hand."""
    if not target.exists():
        return
    remedy = "give another --data_output_path, or --overwrite to replace it"
    if record is None:
        # Killed between the CSV and its record: the file is ours and whole, and is computed again.
        if read_table(target).columns[:4] != (*COLUMNS, CONFIDENCE):
            raise UserError(f"{target} exists and {RECORD} beside it does not list it; {remedy}")
    elif sha256_of(target) != record["output_sha256"]:
        raise UserError(f"{target} was changed after it was labelled; {remedy}")


def _what_changed(old: dict[str, Any], new: dict[str, Any], target: Path) -> str:
    changed = [name.replace("_sha256", "") for name in {**old, **new} if old.get(name) != new.get(name)]
    return " and ".join(changed) + " changed" if changed else f"{target.name} vanished"


def labels_of(response: ResponseFile) -> list[str | None]:
    """Canonical label per row of a file's ``labels`` column, shape (rows,); None where it says "unparsed".

    Classifier names and canonical names are accepted, in any letter case; UserError names the row of anything else.
    """
    if response.labels is None:
        raise UserError(f"{response.path}: no column 'labels'; label the folder first, or leave --labelled out")
    names = {}
    for label in response.dataset.labels:
        names[label.name.casefold()] = names[label.classifier.casefold()] = label.name
    found: list[str | None] = []
    for index, cell in enumerate(response.labels):
        folded = cell.strip().casefold()
        if folded not in names and folded != UNPARSED:
            raise UserError(
                f"{response.path}, row {index + 1}: {cell[:40]!r} in column labels is no label of "
                f"{response.dataset.name} ({', '.join(label.classifier for label in response.dataset.labels)})"
            )
        found.append(names.get(folded))
    return found


def labelled_correctness(responses: Mapping[str, ResponseFile]) -> dict[str, Correctness]:
    """Correctness of the ``labels`` column of each file against its gold texts."""
    return {name: correctness(response.gold_labels(), labels_of(response)) for name, response in responses.items()}


def earlier_figures(out: Path, *, source: str = SOURCE, overwrite: bool = False) -> dict[str, Any]:
    """The entries of ``correctness.json`` in `out`, by dataset; UserError if another labeler wrote that file."""
    target = out / CORRECTNESS
    if overwrite or not target.exists():
        return {}
    record = read_record(target)
    if record.get("labeler") != source:
        raise UserError(
            f"{target} holds figures of another labeler ({record.get('labeler')}); "
            "take another folder, or --overwrite to replace it"
        )
    return record["datasets"]


def write_correctness(
    out: Path,
    entries: Mapping[str, dict[str, Any]],
    files: Mapping[str, Path],
    *,
    source: str = SOURCE,
    overwrite: bool = False,
) -> Path:
    """Put entries (by dataset) into ``correctness.json``; those of other datasets stay while their file is the same."""
    kept = {
        name: entry
        for name, entry in earlier_figures(out, source=source, overwrite=overwrite).items()
        if Path(entry["file"]).exists() and sha256_of(Path(entry["file"])) == entry["file_sha256"]
    }
    for name, entry in entries.items():
        path = files[name].resolve()
        kept[name] = {**entry, "file": str(path), "file_sha256": sha256_of(path)}
    ordered = {name: kept[name] for name in DATASETS if name in kept}
    target = out / CORRECTNESS
    _write_record(target, {"labeler": source, "made": now(), "environment": environment(), "datasets": ordered})
    return target


def counts_table(records: Mapping[str, dict[str, Any]]) -> str:
    """What was labelled, as text: a line a dataset, a column a count."""
    columns = list(dict.fromkeys(column for record in records.values() for column in record["counts"]))
    rows = [[name, *(str(record["counts"].get(column, "")) for column in columns)] for name, record in records.items()]
    return table(["dataset", *columns], rows)


def correctness_table(figures: Mapping[str, Correctness]) -> str:
    """Correctness in per cent, as text: a line a dataset, and the plain mean over datasets."""
    per_cent = {
        name: [100 * value for value in (figure.accuracy, figure.weighted_f1, figure.micro_f1, figure.macro_f1)]
        for name, figure in figures.items()
    }
    rows = [
        [name, str(figures[name].n), str(figures[name].unparsed), *(f"{value:.2f}" for value in values)]
        for name, values in per_cent.items()
    ]
    if len(rows) > 1:
        means = [sum(column) / len(rows) for column in zip(*per_cent.values(), strict=True)]
        total = sum(figure.n for figure in figures.values())
        unparsed = sum(figure.unparsed for figure in figures.values())
        rows.append([f"mean of {len(rows)}", str(total), str(unparsed), *(f"{mean:.2f}" for mean in means)])
    return table(["dataset", "rows", "unparsed", "accuracy", "weighted F1", "micro F1", "macro F1"], rows)


def read_record(path: Path) -> dict[str, Any]:
    """``labels.json`` or ``correctness.json`` as written by `_write_record`."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON ({error}); move it away to start afresh") from None
    if not isinstance(record, dict) or not isinstance(record.get("datasets"), dict):
        raise UserError(f"{path} is not a record of this toolkit; move it away to start afresh")
    return record


def _write_record(path: Path, record: dict[str, Any]) -> None:
    write_text_atomically(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
