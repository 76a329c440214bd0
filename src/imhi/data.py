"""Reading the IMHI folders: which data root, which files, which rows.

Readers accept the quirks of the published files (byte order mark, CRLF, stray index columns,
``post,question,response``, stray files beside the data) and stop with one line on what is really wrong.
Backslashes are literal: no reader here uses an escape character.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from imhi.benchmark import DATASETS, SUITES, Dataset, dataset_named, match_gold
from imhi.errors import UserError

__all__ = [
    "DataRoot",
    "LoadedSuite",
    "ResponseFile",
    "Row",
    "load_suite",
    "parse_dataset_names",
    "read_query_rows",
    "read_responses",
    "read_table",
    "resolve_data_root",
    "response_files",
    "samples_root",
    "sha256_of",
    "write_table",
    "write_text_atomically",
]

QUERY_COLUMN = "query"
GOLD_COLUMN = "gpt-3.5-turbo"
TRAINING_COLUMNS = ("post", "question", "response")

# What pandas.read_csv takes for a missing value by default; such a text would not come back as itself.
_NUMERIC_MISSING = ("-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "NaN", "nan")
PANDAS_MISSING = frozenset(
    (*_NUMERIC_MISSING, "#N/A", "#N/A N/A", "#NA", "<NA>", "N/A", "NA", "NULL", "None", "n/a", "null")
)


@dataclass(frozen=True)
class DataRoot:
    """A folder in the published layout and how it was chosen."""

    path: Path
    source: str

    @property
    def is_samples(self) -> bool:
        """Whether these are the toolkit's own made-up rows, not the benchmark."""
        return self.path.resolve() == samples_root().resolve()

    def describe(self) -> str:
        if self.is_samples:
            return f"data root: {self.path} ({self.source}: made-up sample rows, not the benchmark)"
        return f"data root: {self.path} ({self.source})"


def samples_root() -> Path:
    """The made-up sample rows: the repository's own folders, or the copy that an installed package carries."""
    packaged = Path(__file__).parent / "samples"
    return packaged if packaged.is_dir() else Path(__file__).parents[2]


def resolve_data_root(given: str | Path | None) -> DataRoot:
    """The data root: ``--data_root``, else ``$IMHI_DATA``, else the toolkit's sample rows.

    Raises UserError where the chosen folder does not exist or holds none of the published folders.
    """
    if given is not None:
        if not str(given).strip():
            raise UserError("--data_root is empty; give the folder that contains test_data/, or leave the flag out")
        root, source = DataRoot(Path(given).expanduser(), "--data_root"), "--data_root"
    elif os.environ.get("IMHI_DATA"):
        root, source = DataRoot(Path(os.environ["IMHI_DATA"]).expanduser(), "$IMHI_DATA"), "$IMHI_DATA"
    else:
        return DataRoot(samples_root(), "default")
    if not root.path.is_dir():
        raise UserError(
            f"{source}: no folder {root.path}; `imhi data fetch --to {root.path}` brings the published data"
        )
    if not any((root.path / top).is_dir() for top in ("test_data", "human_evaluation", "train_data")):
        raise UserError(
            f"{source}: {root.path} has none of test_data/, human_evaluation/, train_data/; "
            "give the folder that contains them"
        )
    return root


@dataclass(frozen=True)
class Row:
    """One test item. `index` is its 0-based position in the file; with the dataset's name it is the row's identity."""

    dataset: str
    index: int
    query: str
    gold: str
    gold_label: str

    @property
    def id(self) -> str:
        return f"{self.dataset}/{self.index}"


@dataclass(frozen=True)
class LoadedSuite:
    """The rows of one ``--test_dataset`` and what was found on disk."""

    suite: str
    form: str
    folder: Path
    rows: list[Row]
    files: dict[str, Path]
    missing: tuple[str, ...] = ()
    stray: tuple[str, ...] = ()

    def counts(self) -> dict[str, int]:
        counts = dict.fromkeys(self.files, 0)
        for row in self.rows:
            counts[row.dataset] += 1
        return counts


def parse_dataset_names(names: Iterable[str], *, flag: str = "--datasets") -> list[str]:
    """Canonical dataset names, in the table's order, from user input (any case, comma- or space-separated).

    No names at all give an empty list, which means all; names that are empty are an error.
    """
    given = list(names)
    parts = [part.strip() for name in given for part in name.split(",") if part.strip()]
    if given and not parts:
        raise UserError(f"{flag} is empty; the ten are {', '.join(DATASETS)}")
    chosen = set()
    for name in parts:
        dataset = dataset_named(name)
        if dataset is None:
            close = get_close_matches(name.casefold(), [known.casefold() for known in DATASETS], n=1)
            known = dataset_named(close[0]) if close else None
            hint = f"; did you mean {known.name}?" if known else ";"
            raise UserError(f"{flag}: no dataset {name!r}{hint} The ten are {', '.join(DATASETS)}")
        chosen.add(dataset.name)
    return [name for name in DATASETS if name in chosen]


def dataset_files(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """CSV files named after a dataset, in the table's order, and the names of everything else in `folder`."""
    found: dict[str, Path] = {}
    stray: list[str] = []
    for path in sorted(folder.iterdir()):
        dataset = dataset_named(path.stem) if path.suffix.lower() == ".csv" and path.is_file() else None
        if dataset is None:
            stray.append(path.name)
        elif dataset.name in found:
            raise UserError(f"{folder}: {found[dataset.name].name} and {path.name} both claim {dataset.name}; keep one")
        else:
            found[dataset.name] = path
    return {name: found[name] for name in DATASETS if name in found}, stray


def load_suite(root: DataRoot, suite: str, *, datasets: Sequence[str] = (), limit: int | None = None) -> LoadedSuite:
    """Read the test rows of `suite` ("IMHI", "IMHI-completion" or "expert"), at most `limit` a dataset.

    Every gold text must name a label; UserError names file, row and text head where one does not.
    """
    described = SUITES[suite]
    folder = root.path / described.folder
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; the data root has no {suite} files (`imhi data check {root.path}`)")
    found, stray = dataset_files(folder)
    absent = [name for name in datasets if name not in found]
    if absent:
        unreleased = [name for name in absent if DATASETS[name].released_test_rows is None]
        why = f" ({', '.join(unreleased)} was never released)" if unreleased else ""
        raise UserError(f"{folder}: no file for {', '.join(absent)}{why}; present: {', '.join(found) or 'none'}")
    files = {name: path for name, path in found.items() if not datasets or name in datasets}
    if not files:
        raise UserError(f"{folder}: no file named after a dataset (DR.csv, SAD.csv, ...)")
    rows: list[Row] = []
    for name, path in files.items():
        queries = read_query_rows(path)
        rows.extend(_with_gold_labels(DATASETS[name], path, queries[:limit]))
    missing = tuple(name for name in DATASETS if name not in found)
    return LoadedSuite(suite, described.form, folder, rows, files, missing, tuple(stray))


def _with_gold_labels(dataset: Dataset, path: Path, pairs: Sequence[tuple[str, str]]) -> list[Row]:
    rows = []
    for index, (query, gold) in enumerate(pairs):
        rows.append(Row(dataset.name, index, query, gold, gold_label(dataset, path, index, gold)))
    return rows


def gold_label(dataset: Dataset, path: Path, index: int, gold: str) -> str:
    """The label name of a gold text; UserError with file, row and text head where it names none."""
    label = match_gold(dataset, gold)
    if label is None:
        raise UserError(
            f"{path}, row {index + 1}: the gold text names no label of {dataset.name} "
            f"({', '.join(dataset.label_names)}): {gold[:80]!r}; mend the row or leave {dataset.name} out with --datasets"
        )
    return label.name


def read_query_rows(path: Path) -> list[tuple[str, str]]:
    """(query, gold) pairs of a test or training file, in file order.

    Training files of the completion form have ``post,question,response``; there the query is post and question
    joined as published.
    """
    table = read_table(path)
    if QUERY_COLUMN in table.columns and GOLD_COLUMN in table.columns:
        return list(zip(table.column(QUERY_COLUMN), table.column(GOLD_COLUMN), strict=True))
    if all(name in table.columns for name in TRAINING_COLUMNS):
        post, question, response = (table.column(name) for name in TRAINING_COLUMNS)
        return [(p + q, r) for p, q, r in zip(post, question, response, strict=True)]
    raise UserError(
        f"{path}: columns {', '.join(table.columns) or '(none)'}; expected {QUERY_COLUMN},{GOLD_COLUMN} "
        f"(or {','.join(TRAINING_COLUMNS)})"
    )


@dataclass(frozen=True)
class Table:
    """A CSV file in memory: every cell a string, as written."""

    path: Path
    columns: tuple[str, ...]
    records: list[list[str]] = field(repr=False)

    def column(self, name: str) -> list[str]:
        at = self.columns.index(name)
        return [record[at] for record in self.records]

    def __len__(self) -> int:
        return len(self.records)


def read_table(path: Path) -> Table:
    """Read a CSV file strictly; UserError names the file and the row of what cannot be read.

    Accepts a byte order mark, CRLF and any columns.  Row numbers count data rows from 1.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; expected a CSV file")
    csv.field_size_limit(2**31 - 1)
    columns: tuple[str, ...] = ()
    records: list[list[str]] = []
    try:
        # Line by line: the whole text beside its rows would take seven times the room.
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle, strict=True)
            columns = tuple(next(reader, ()))
            for record in reader:
                if not record:
                    continue
                if len(record) != len(columns):
                    raise UserError(
                        f"{path}, row {len(records) + 1}: {len(record)} fields where the header has {len(columns)}; "
                        "a quote or comma in that row is not escaped"
                    )
                records.append(record)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except csv.Error as error:
        raise UserError(f"{path}, row {len(records) + 1}: not valid CSV ({error}); is a quote left open?") from None
    if not "".join(columns).strip():
        raise UserError(f"{path}: the file is empty; expected a CSV file with a header line")
    if not records:
        raise UserError(f"{path}: a header but no rows")
    return Table(path, columns, records)


def _not_utf8(path: Path) -> UserError:
    """What to say of a file that cannot be decoded; the decoder of a stream knows places in its piece alone."""
    raw = path.read_bytes()
    try:
        raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        return UserError(f"{path}, line {line}: not UTF-8 (byte 0x{raw[error.start]:02x}); convert the file to UTF-8")
    return UserError(f"{path}: was changed while it was read; read it again")


@dataclass(frozen=True)
class ResponseFile:
    """``DATASET.csv`` with ``goldens,generated_text[,labels]``: what the three scripts hand to each other.

    An empty answer is ``""`` (pandas reads it back as NaN).  `labels` is None without that column.
    """

    dataset: Dataset
    path: Path
    goldens: list[str]
    generated: list[str]
    labels: list[str] | None

    def gold_labels(self) -> list[str]:
        """Label name per row; UserError names the row whose gold text resolves to no label."""
        return [gold_label(self.dataset, self.path, index, gold) for index, gold in enumerate(self.goldens)]


def response_files(folder: Path, datasets: Sequence[str] = ()) -> tuple[dict[str, Path], list[str]]:
    """Response CSVs of a folder (not of folders inside it), and the names of stray entries."""
    if not folder.exists():
        raise UserError(f"{folder}: no such folder; expected a folder of DATASET.csv files")
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; expected a folder of DATASET.csv files")
    found, stray = dataset_files(folder)
    absent = [name for name in datasets if name not in found]
    if absent:
        raise UserError(f"{folder}: no file for {', '.join(absent)}; present: {', '.join(found) or 'none'}")
    if datasets:
        found = {name: path for name, path in found.items() if name in datasets}
    if not found:
        raise UserError(f"{folder}: no file named after a dataset (DR.csv, SAD.csv, ...)")
    return found, stray


def read_responses(dataset: Dataset, path: Path) -> ResponseFile:
    """Read one response file; UserError where ``goldens`` or ``generated_text`` is missing or a gold is empty."""
    table = read_table(path)
    for name in ("goldens", "generated_text"):
        if name not in table.columns:
            raise UserError(f"{path}: no column {name!r} (found {', '.join(table.columns)})")
    goldens = table.column("goldens")
    for index, gold in enumerate(goldens):
        if not gold.strip():
            raise UserError(f"{path}, row {index + 1}: the gold text is empty")
    labels = [_unguarded(cell) for cell in table.column("labels")] if "labels" in table.columns else None
    generated = [_unguarded(cell) for cell in table.column("generated_text")]
    return ResponseFile(dataset, path, goldens, generated, labels)


def write_table(path: Path, columns: Sequence[str], records: Iterable[Sequence[str | float]]) -> None:
    """Write a CSV file atomically, so that ``pandas.read_csv(path)`` gives every text back.

    All text cells are quoted (a lone ``\\r`` would otherwise end a row).  A text that pandas takes for a missing
    value ("None", "NA", ...) carries one trailing space; an empty text stays empty and is read as NaN.
    """
    buffer = io.StringIO(newline="")
    buffer.write(",".join(columns) + "\n")
    writer = csv.writer(buffer, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    for record in records:
        writer.writerow([_guarded(cell) if isinstance(cell, str) else cell for cell in record])
    write_text_atomically(path, buffer.getvalue())


def _guarded(text: str) -> str:
    return text + " " if text in PANDAS_MISSING else text


def _unguarded(text: str) -> str:
    return text[:-1] if text.endswith(" ") and text[:-1] in PANDAS_MISSING else text


def write_text_atomically(path: Path, text: str) -> None:
    """Replace `path` in one step: a crash leaves the old file or the new one, never a part."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w", encoding="utf-8", newline="") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        digest = hashlib.sha256()
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
