"""The annotation files of ``human_evaluation/DR_annotation`` as rows: posts, explanations, three ratings an aspect.

``text,label,MODEL,fluency,completeness,reliability,overall``: the third column is the explanation, named after the
model that wrote it; each aspect holds the integers 0 to 3 of three annotators, as ``[3, 2, 3]``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imhi.audit import ANNOTATION_FOLDER, ASPECTS, post_key
from imhi.benchmark import DATASETS, SUITES, Dataset
from imhi.data import DataRoot, dataset_files, read_query_rows, read_table, sha256_of
from imhi.errors import UserError

__all__ = ["DATASET", "Annotated", "Golds", "annotation_files", "gold_explanations", "read_annotations"]

# What the annotated explanations answer.
DATASET: Dataset = DATASETS["DR"]
RATERS = 3

_RATING = re.compile(r"\[\s*([0-3])\s*,\s*([0-3])\s*,\s*([0-3])\s*\]")


@dataclass(frozen=True)
class Annotated:
    """One file.

    Attributes
    ----------
    name : short and distinct among the files read.
    model : the explanation column's header.
    posts, explanations, keys : shape (rows,); equal keys are one post (`imhi.audit.post_key`).
    ratings : aspect → three ratings a row, shape (rows, 3), 0 to 3.
    sha256 : of the file, so that a figure can say what it was measured on.
    """

    path: Path
    name: str
    model: str
    sha256: str
    posts: list[str] = field(repr=False)
    explanations: list[str] = field(repr=False)
    keys: list[str] = field(repr=False)
    ratings: dict[str, list[tuple[int, ...]]] = field(repr=False)


def annotation_files(root: DataRoot) -> list[Path]:
    """The annotation files of a data root, by name; UserError where there are none."""
    folder = root.path / ANNOTATION_FOLDER
    found = sorted(folder.glob("*.csv")) if folder.is_dir() else []
    if not found:
        raise UserError(f"{folder}: no annotation file (*.csv) there; name files, or give another --data_root")
    return found


def read_annotations(paths: Sequence[Path]) -> list[Annotated]:
    """Read annotation files; UserError names the file, the row and what is expected there."""
    stems = [path.stem for path in paths]
    names = [path.stem if stems.count(path.stem) == 1 else f"{path.parent.name}/{path.stem}" for path in paths]
    for at, name in enumerate(names):
        if name in names[:at]:
            raise UserError(f"{paths[at]}: named twice; name each annotation file once")
    return [_read(path, name) for path, name in zip(paths, names, strict=True)]


def _read(path: Path, name: str) -> Annotated:
    table = read_table(path)
    known = ("text", "label", *ASPECTS)
    models = [
        column for column in table.columns if column not in known and column and not column.startswith("Unnamed:")
    ]
    if len(models) != 1 or any(column not in table.columns for column in known):
        raise UserError(
            f"{path}: columns {', '.join(table.columns)}; expected text,label,MODEL,{','.join(ASPECTS)}, "
            "the explanations in the one column MODEL"
        )
    ratings: dict[str, list[tuple[int, ...]]] = {}
    for aspect in ASPECTS:
        ratings[aspect] = []
        for index, cell in enumerate(table.column(aspect)):
            matched = _RATING.fullmatch(cell.strip())
            if matched is None:
                raise UserError(
                    f"{path}, row {index + 1}: {aspect} is {cell[:60]!r}; expected three integers 0-3 as [3, 2, 3]"
                )
            ratings[aspect].append(tuple(int(rating) for rating in matched.groups()))
    posts = table.column("text")
    for index, post in enumerate(posts):
        if not post.strip():
            raise UserError(f"{path}, row {index + 1}: the post (text) is empty; mend the row or take it out")
    keys = [post_key(post) for post in posts]
    return Annotated(path, name, models[0], sha256_of(path), posts, table.column(models[0]), keys, ratings)


@dataclass(frozen=True)
class Golds:
    """Gold explanations by post key: of the released test rows, and those written by experts."""

    test: dict[str, str]
    expert: dict[str, str]

    def of(self, key: str) -> str | None:
        """The gold explanation of a post: the test row's, else an expert's; None without either."""
        return self.test.get(key, self.expert.get(key))


def gold_explanations(root: DataRoot) -> Golds:
    """The gold explanations that a data root has for the annotated task; empty where it has no such file."""
    found = []
    for suite in ("IMHI", "expert"):
        folder = root.path / SUITES[suite].folder
        path = dataset_files(folder)[0].get(DATASET.name) if folder.is_dir() else None
        rows = read_query_rows(path) if path is not None else []
        found.append({post_key(query): gold for query, gold in rows})
    return Golds(*found)
