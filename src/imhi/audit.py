"""What a data root holds and what is odd about it: sizes, columns, golds, duplicates, mojibake, shared posts.

Everything here returns dataclasses; ``imhi data check`` and the reports render them.  Findings that stop a run are
errors; the rest (duplicates, mojibake, posts that stand in two sets) are facts that a reader of scores should know.

Row positions are 0-based, as in `imhi.data.Row.index`; texts for people count rows from 1.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from imhi.benchmark import DATASETS, FORMS, SUITES, Dataset, dataset_named, match_gold
from imhi.data import (
    GOLD_COLUMN,
    QUERY_COLUMN,
    TRAINING_COLUMNS,
    DataRoot,
    Table,
    dataset_files,
    read_query_rows,
    read_table,
    write_text_atomically,
)
from imhi.errors import UserError
from imhi.fetch import ORIGINALS, TOPS, is_published, published_files

__all__ = [
    "Audit",
    "FileAudit",
    "Overlap",
    "UnmatchedGold",
    "audit_data",
    "leaked_rows",
    "overlaps",
    "post_key",
    "post_of",
    "repair_data",
    "repaired",
    "shared_rows",
    "stem_of",
]

TRAIN_FOLDERS = {"instruction": "train_data/instruction_data", "completion": "train_data/complete_data"}
ANNOTATION_FOLDER = "human_evaluation/DR_annotation"
ASPECTS = ("fluency", "completeness", "reliability", "overall")
HEAD = 60

_RATING = re.compile(r"\[\s*[0-3]\s*(?:,\s*[0-3]\s*){2}\]")
_NON_ASCII = re.compile(r"[^\x00-\x7f]+")
_WORD = re.compile(r"\w+")


# --- one text -------------------------------------------------------------------------------------------------------


def repaired(text: str) -> str:
    """`text` with its characters restored if it is UTF-8 that was read as Mac Roman; any other text as it is."""
    if text.isascii():
        return text
    try:
        return text.encode("mac_roman").decode("utf-8")
    except UnicodeError:
        return text  # not such a text: most non-ASCII text is not valid UTF-8 once it is in Mac Roman bytes


def post_of(query: str) -> str:
    """The post inside a query of either form: what stands before the last ``Question:``, without its frame."""
    before, mark, _ = query.rpartition("Question:")
    post = (before if mark else query).strip()
    for frame in FORMS.values():
        opening = frame.partition("{post}")[0]
        if post.startswith(opening):
            closing = '"' if opening.endswith('"') else ""
            return post.removeprefix(opening).removesuffix(closing).strip()
    return post


def post_key(query: str) -> str:
    """What two queries about one post have in common, whatever their form and question.

    The words of the post: mojibake repaired, letter case, punctuation and spacing ignored.  A post without words
    keeps its characters.
    """
    post = post_of(repaired(query)).casefold()
    return " ".join(_WORD.findall(post)) or " ".join(post.split())


def stem_of(key: str) -> str:
    """What the keys of near-copies of a post, cut off differently, have in common: 100 letters, spaces aside."""
    return key.replace(" ", "")[:100]


# --- one file -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UnmatchedGold:
    """A gold text that names no label: 1-based row and the beginning of the text."""

    row: int
    head: str


@dataclass
class FileAudit:
    """One CSV file of the layout.

    Attributes
    ----------
    path : relative to the data root, with forward slashes.
    kind : "test", "expert", "train", "annotation" or "example" (published responses; only read and verified).
    form : "instruction" or "completion"; None for annotations and examples.
    published_rows, released_rows, manifest_rows : sizes in the paper, in the release, in the manifest; None: unknown
        or not applicable.
    status : "verified" (the published file), "repaired" (the published file after ``--repair``), "differs",
        "not published" (the manifest has no such path) or "sample" (the toolkit's own rows).
    quirks : accepted oddities of the file's writing (byte order mark, CRLF, stray columns).
    label_counts : rows per label name, labels without rows included.
    posts : distinct posts.  duplicate_rows : rows whose (query, gold) stood before; duplicate_queries : queries.
    mojibake_rows, mojibake_golds : rows whose query (or post), or gold, is UTF-8 read as Mac Roman.
    errors : one line each, what stops a run.  warnings : one line each, what a reader of scores should know.
    """

    path: str
    kind: str
    form: str | None
    dataset: str
    status: str
    manifest_rows: int | None = None
    published_rows: int | None = None
    released_rows: int | None = None
    rows: int = 0
    columns: tuple[str, ...] = ()
    quirks: list[str] = field(default_factory=list)
    label_counts: dict[str, int] = field(default_factory=dict)
    posts: int = 0
    duplicate_rows: int = 0
    duplicate_queries: int = 0
    mojibake_rows: int = 0
    mojibake_golds: int = 0
    unmatched: list[UnmatchedGold] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The file in a few letters: "Irf", "expert/Irf", else the end of its path ("Irf/val.csv")."""
        short = {"test": self.dataset, "expert": f"expert/{self.dataset}"}
        return short.get(self.kind, "/".join(Path(self.path).parts[-2:]))


@dataclass(frozen=True)
class _Found:
    """A file of the layout before it is read."""

    path: Path
    kind: str
    form: str | None
    dataset: Dataset


def _layout(root: Path) -> tuple[list[_Found], list[str]]:
    """The CSV files of the layout, and one line for each folder that cannot be sorted out."""
    found: list[_Found] = []
    problems: list[str] = []
    for suite, described in SUITES.items():
        folder = root / described.folder
        if not folder.is_dir():
            continue
        try:
            files, _ = dataset_files(folder)
        except UserError as error:
            problems.append(str(error))
            continue
        kind = "expert" if suite == "expert" else "test"
        found += [_Found(path, kind, described.form, DATASETS[name]) for name, path in files.items()]
    for form, below in TRAIN_FOLDERS.items():
        folders = sorted((root / below).iterdir()) if (root / below).is_dir() else []
        named = {folder: dataset_named(folder.name) for folder in folders if folder.is_dir()}
        for folder, dataset in named.items():
            if dataset is not None:
                found += [_Found(path, "train", form, dataset) for path in _csv_files(folder)]
    found += [_Found(path, "annotation", None, DATASETS["DR"]) for path in _csv_files(root / ANNOTATION_FOLDER)]
    examples = [root / path for path in published_files() if path.startswith("examples/")]
    for path in examples:
        dataset = dataset_named(path.stem)
        if dataset is not None and path.is_file():
            found.append(_Found(path, "example", None, dataset))
    return found, problems


def _csv_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() == ".csv" and path.is_file()]


def _relative(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _status(root: Path, path: Path) -> str:
    published = published_files().get(_relative(root, path))
    if published is None:
        return "not published"
    if is_published(path, published):
        return "verified"
    original = root / ORIGINALS / published.path
    if original.is_file() and is_published(original, published):
        table = read_table(original)
        if _with_repairs(table)[0] == path.read_bytes().decode("utf-8", errors="replace"):
            return "repaired"
    return "differs"


def _audit_file(root: DataRoot, found: _Found) -> tuple[FileAudit, list[str]]:
    """The audit of one file and the post key of each of its rows."""
    relative = _relative(root.path, found.path)
    published = published_files().get(relative)
    is_test = found.kind == "test"
    audit = FileAudit(
        path=relative,
        kind=found.kind,
        form=found.form,
        dataset=found.dataset.name,
        status="sample" if root.is_samples else _status(root.path, found.path),
        manifest_rows=published.rows if published else None,
        published_rows=found.dataset.published_test_rows if is_test else None,
        released_rows=found.dataset.released_test_rows if is_test else None,
    )
    try:
        table = read_table(found.path)
        audit.columns, audit.rows = table.columns, len(table)
        audit.quirks = _quirks(table, found.kind)
        if found.kind == "example":
            return audit, []
        pairs = _annotated_rows(table, audit) if found.kind == "annotation" else read_query_rows(found.path)
    except UserError as error:
        audit.errors.append(str(error))
        return audit, []
    if found.kind != "annotation":
        _count_labels(audit, found, pairs)
    expected = audit.released_rows or audit.manifest_rows
    if expected is not None and audit.rows != expected and not root.is_samples:
        audit.warnings.append(f"{audit.rows:,} rows, released with {expected:,}")
    queries = [query for query, _ in pairs]
    keys = [post_key(query) for query in queries]
    audit.posts = len(set(keys))
    audit.duplicate_rows = len(pairs) - len(set(pairs))
    audit.duplicate_queries = len(queries) - len(set(queries))
    audit.mojibake_rows = sum(repaired(query) != query for query in queries)
    audit.mojibake_golds = sum(repaired(gold) != gold for _, gold in pairs)
    return audit, keys


def _count_labels(audit: FileAudit, found: _Found, pairs: Sequence[tuple[str, str]]) -> None:
    counts = dict.fromkeys(found.dataset.label_names, 0)
    for index, (_, gold) in enumerate(pairs):
        label = match_gold(found.dataset, gold)
        if label is None:
            audit.unmatched.append(UnmatchedGold(index + 1, gold[:HEAD]))
        else:
            counts[label.name] += 1
    audit.label_counts = counts
    audit.errors += [
        f"{found.path}, row {gold.row}: the gold text names no label of {found.dataset.name}: {gold.head!r}"
        for gold in audit.unmatched
    ]


def _annotated_rows(table: Table, audit: FileAudit) -> list[tuple[str, str]]:
    """(text, explanation) pairs of an annotation file; ratings and labels are checked on the way."""
    absent = [name for name in ("text", "label", *ASPECTS) if name not in table.columns]
    if absent or len(table.columns) < 7:
        raise UserError(
            f"{table.path}: columns {', '.join(table.columns)}; expected text,label,MODEL,{','.join(ASPECTS)}"
        )
    for name in ASPECTS:
        for index, cell in enumerate(table.column(name)):
            if not _RATING.fullmatch(cell.strip()):
                audit.errors.append(
                    f"{table.path}, row {index + 1}: {name} is {cell[:HEAD]!r}; expected three integers 0-3 as [3, 2, 3]"
                )
    counts = {"no": 0, "yes": 0}
    for index, cell in enumerate(table.column("label")):
        if cell.strip() in ("0", "1"):
            counts["yes" if cell.strip() == "1" else "no"] += 1
        else:
            audit.errors.append(f"{table.path}, row {index + 1}: label is {cell[:HEAD]!r}; expected 0 or 1")
    audit.label_counts = counts
    model = next(name for name in table.columns if name not in ("text", "label", *ASPECTS) and not _is_stray(name))
    return list(zip(table.column("text"), table.column(model), strict=True))


def _is_stray(column: str) -> bool:
    """Whether a column is an index that pandas wrote."""
    return not column or column.startswith("Unnamed:")


def _quirks(table: Table, kind: str) -> list[str]:
    raw = table.path.read_bytes()
    known = {QUERY_COLUMN, GOLD_COLUMN}
    if not known <= set(table.columns):
        known = set(TRAINING_COLUMNS)
    is_query_file = kind in ("test", "expert", "train")
    stray = [name for name in table.columns if (name not in known if is_query_file else _is_stray(name))]
    return [
        *(["byte order mark"] if raw.startswith(b"\xef\xbb\xbf") else []),
        *(["CRLF line ends"] if b"\r\n" in raw.partition(b"\n")[0] + b"\n" else []),
        *([f"stray column {name!r}" for name in stray]),
    ]


# --- posts in two files ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overlap:
    """Posts that stand in two files: how many, and in which rows of each (0-based).

    `relation` is "train-test" (`left` is the training file), "test-test" (two sets of one suite) or "expert-test"
    (`left` is the expert set).  `left` and `right` are paths in the data root, `left_name` and `right_name` their
    short names.
    """

    relation: str
    form: str
    left: str
    right: str
    left_name: str
    right_name: str
    posts: int
    left_rows: tuple[int, ...] = field(repr=False)
    right_rows: tuple[int, ...] = field(repr=False)


Keyed = tuple[FileAudit, list[str]]


def _overlaps(read: Sequence[Keyed]) -> list[Overlap]:
    """All overlaps that matter: training files with test sets of their form, and test sets with each other.

    Where a form has no training file at all, those of the other form stand in: their posts are the same.
    """
    files = [(audit, keys) for audit, keys in read if keys]
    found: list[Overlap] = []
    for form in FORMS:
        tests = [item for item in files if item[0].kind == "test" and item[0].form == form]
        experts = [item for item in files if item[0].kind == "expert" and item[0].form == form]
        trains = [item for item in files if item[0].kind == "train"]
        trains = [item for item in trains if item[0].form == form] or trains
        found += _between("train-test", form, ((train, test) for train in trains for test in [*tests, *experts]))
        found += _between("test-test", form, [*combinations(tests, 2), *combinations(experts, 2)])
        found += _between("expert-test", form, ((expert, test) for expert in experts for test in tests))
    return found


def _between(relation: str, form: str, pairs: Iterable[tuple[Keyed, Keyed]]) -> Iterator[Overlap]:
    for (left, left_keys), (right, right_keys) in pairs:
        shared = set(left_keys) & set(right_keys)
        if shared:
            yield Overlap(
                relation,
                form,
                left.path,
                right.path,
                left.name,
                right.name,
                len(shared),
                tuple(index for index, key in enumerate(left_keys) if key in shared),
                tuple(index for index, key in enumerate(right_keys) if key in shared),
            )


def overlaps(root: DataRoot) -> list[Overlap]:
    """Posts that stand in two files of the data root; files that cannot be read are left out."""
    return _overlaps([_audit_file(root, found) for found in _layout(root.path)[0]])


def leaked_rows(found: Iterable[Overlap], suite: str) -> dict[str, dict[int, tuple[str, ...]]]:
    """Test rows of `suite` whose post stands in a training file: dataset → row index → those files."""
    folder = SUITES[suite].folder
    leaked: defaultdict[str, defaultdict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for overlap in found:
        if overlap.relation == "train-test" and overlap.right.startswith(f"{folder}/"):
            for index in overlap.right_rows:
                leaked[_dataset_of(overlap.right)][index].append(overlap.left_name)
    return {name: {index: tuple(files) for index, files in sorted(rows.items())} for name, rows in leaked.items()}


def shared_rows(found: Iterable[Overlap], suite: str) -> dict[str, dict[int, tuple[str, ...]]]:
    """Test rows of `suite` whose post stands in another set of the suite: dataset → row index → those sets.

    To keep each shared post once, drop a row if one of its sets stands before its own in the table of datasets.
    """
    folder = SUITES[suite].folder
    shared: defaultdict[str, defaultdict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for overlap in found:
        if overlap.relation == "test-test" and overlap.left.startswith(f"{folder}/"):
            left, right = _dataset_of(overlap.left), _dataset_of(overlap.right)
            for index in overlap.left_rows:
                shared[left][index].append(right)
            for index in overlap.right_rows:
                shared[right][index].append(left)
    return {name: {index: tuple(sets) for index, sets in sorted(rows.items())} for name, rows in shared.items()}


def _dataset_of(path: str) -> str:
    dataset = dataset_named(Path(path).stem)
    assert dataset is not None  # _layout takes only files named after a dataset into a suite
    return dataset.name


# --- the whole root -------------------------------------------------------------------------------------------------


@dataclass
class Audit:
    """A data root's audit; `errors` stop a run, everything else is for the reader.

    `stray` are files among the data that are not part of the layout; `absent` are published files that are not here;
    `unreleased` are datasets that upstream never released.
    """

    root: str
    is_samples: bool
    files: list[FileAudit]
    overlaps: list[Overlap]
    stray: list[str]
    absent: list[str]
    unreleased: list[str]
    layout_errors: list[str]

    @property
    def errors(self) -> list[str]:
        return [*self.layout_errors, *(error for file in self.files for error in file.errors)]


def audit_data(root: DataRoot) -> Audit:
    """Audit every file of the layout under `root`; a file that cannot be read becomes an error of its own."""
    layout, problems = _layout(root.path)
    read = [_audit_file(root, found) for found in layout]
    known = {found.path for found in layout}
    stray = [
        _relative(root.path, path)
        for top in TOPS
        for path in sorted((root.path / top).rglob("*"))
        if path.is_file() and path not in known
    ]
    return Audit(
        root=str(root.path),
        is_samples=root.is_samples,
        files=[audit for audit, _ in read],
        overlaps=_overlaps(read),
        stray=stray,
        absent=[path for path in published_files() if not (root.path / path).is_file()],
        unreleased=[name for name, dataset in DATASETS.items() if dataset.released_test_rows is None],
        layout_errors=problems,
    )


# --- repair ---------------------------------------------------------------------------------------------------------


def _with_repairs(table: Table) -> tuple[str, int]:
    """The file's text with every mojibake cell repaired, and how many rows that changed.

    Repairing replaces runs of non-ASCII characters by such runs, so commas, quotes and line ends stay where they
    are: all other bytes of the file are kept as they stand.
    """
    replacements: list[str] = []
    changed = 0
    for record in [list(table.columns), *table.records]:
        before = len(replacements)
        runs: list[str] = []
        for cell in record:
            own = _NON_ASCII.findall(cell)
            runs += own
            replacements += map(repaired, own) if repaired(cell) != cell else own
        changed += replacements[before:] != runs
    text = table.path.read_bytes().decode("utf-8")
    mark = "\ufeff" if text.startswith("\ufeff") else ""
    fixed = iter(replacements)
    return mark + _NON_ASCII.sub(lambda _: next(fixed), text.removeprefix(mark)), changed


def repair_data(root: DataRoot) -> dict[str, int]:
    """Repair mojibake in place; returns path → rows changed, for the files that had any.

    The file as it was is kept under ``.originals/`` first.  Files that cannot be read are left alone (the audit says
    why).
    """
    if root.is_samples:
        raise UserError(f"{root.path}: the toolkit's own sample rows are not repaired")
    done: dict[str, int] = {}
    for found in _layout(root.path)[0]:
        try:
            table = read_table(found.path)
        except UserError:
            continue
        text, changed = _with_repairs(table)
        if changed:
            relative = _relative(root.path, found.path)
            try:
                _keep_original(root.path / ORIGINALS / relative, found.path)
                write_text_atomically(found.path, text)
            except OSError as error:
                raise UserError(f"{error.filename or found.path}: {error.strerror or error}", code=1) from None
            done[relative] = changed
    return done


def _keep_original(original: Path, path: Path) -> None:
    content = path.read_bytes()
    if original.exists() and original.read_bytes() != content:
        raise UserError(f"{original}: already keeps another original of {path}; move it away, then repair again")
    original.parent.mkdir(parents=True, exist_ok=True)
    part = original.with_name(original.name + ".part")
    part.write_bytes(content)
    part.replace(original)
