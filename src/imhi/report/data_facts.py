"""What the audit of the data root says about the rows of a report: shared posts, leakage, duplicates, gaps."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from imhi.audit import Audit, FileAudit, leaked_rows, shared_rows
from imhi.benchmark import DATASETS, SUITES

__all__ = ["DataFacts", "FileFacts", "SharedPosts", "data_facts"]


@dataclass(frozen=True)
class FileFacts:
    """One test file.

    Attributes
    ----------
    status : "verified", "repaired", "differs", "not published" or "sample" (`imhi.audit.FileAudit`).
    posts : distinct posts; several rows may ask about one.
    duplicates : rows whose query and gold stood before.
    unmatched : gold texts that name no label.
    mojibake : rows whose post is UTF-8 read as Mac Roman.
    leaked : rows whose post stands in a training file.
    shared : rows whose post stands in another test set of the suite.
    remarks : oddities of the file's writing.
    """

    dataset: str
    rows: int
    expected: int | None
    status: str
    posts: int
    duplicates: int
    unmatched: int
    mojibake: int
    leaked: int
    shared: int
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class SharedPosts:
    """Posts that stand in two files: how many, and the rows about them in each."""

    relation: str
    left: str
    right: str
    posts: int
    left_rows: int
    right_rows: int


@dataclass(frozen=True)
class DataFacts:
    """The audit of one suite of a data root.

    `missing` are datasets without a test file here, `unreleased` those that upstream never published; `absent` counts
    published files, of any kind, that are not in this data root; `errors` are the audit's, of all its files.
    """

    root: str
    suite: str
    is_samples: bool
    files: list[FileFacts]
    shared: list[SharedPosts]
    missing: list[str]
    unreleased: list[str]
    absent: int
    errors: list[str]


def data_facts(audit: Audit, suite: str = "IMHI", datasets: Collection[str] = ()) -> DataFacts:
    """The facts of an audit that concern `datasets` (none: all) of `suite`."""
    chosen = list(datasets) or list(DATASETS)
    kind = "expert" if suite == "expert" else "test"
    folder = SUITES[suite].folder
    leaked, shared = leaked_rows(audit.overlaps, suite), shared_rows(audit.overlaps, suite)
    found = {
        file.dataset: file
        for file in audit.files
        if file.kind == kind and file.path.startswith(f"{folder}/") and file.dataset in chosen
    }
    own = {file.path for file in found.values()}
    return DataFacts(
        root=audit.root,
        suite=suite,
        is_samples=audit.is_samples,
        files=[
            _file_facts(found[name], len(leaked.get(name, ())), len(shared.get(name, ())))
            for name in DATASETS
            if name in found
        ],
        shared=[
            SharedPosts(
                overlap.relation,
                overlap.left_name,
                overlap.right_name,
                overlap.posts,
                len(overlap.left_rows),
                len(overlap.right_rows),
            )
            for overlap in audit.overlaps
            if overlap.right in own and (overlap.relation != "test-test" or overlap.left in own)
        ],
        missing=[name for name in chosen if name not in found],
        unreleased=[name for name in audit.unreleased if name in chosen],
        absent=0 if audit.is_samples else len(audit.absent),
        errors=audit.errors,
    )


def _file_facts(file: FileAudit, leaked: int, shared: int) -> FileFacts:
    return FileFacts(
        dataset=file.dataset,
        rows=file.rows,
        expected=file.released_rows if file.released_rows is not None else file.manifest_rows,
        status=file.status,
        posts=file.posts,
        duplicates=file.duplicate_rows,
        unmatched=len(file.unmatched),
        mojibake=file.mojibake_rows,
        leaked=leaked,
        shared=shared,
        remarks=tuple(file.quirks),
    )
