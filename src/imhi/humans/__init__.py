"""Metrics held against human judgement: every value of the toolkit beside the annotators' ratings (`imhi humans`).

`annotations` reads the files, `columns` computes a value per row, `crossval` combines values fairly, `figures` makes
correlations and tests of them, `report` and `heatmap` show these.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imhi.data import DataRoot, write_table, write_text_atomically
from imhi.errors import UserError
from imhi.humans.annotations import DATASET, Annotated, annotation_files, gold_explanations, read_annotations
from imhi.humans.columns import Columns, Sample, columns_of, samples
from imhi.humans.crossval import FEWEST_POSTS, FOLDS, REPEATS
from imhi.humans.figures import FEWEST_ROWS, Resampling, agreement_figures, rater_figures
from imhi.humans.heatmap import heat_map
from imhi.humans.report import markdown, summary
from imhi.metrics.base import Metric
from imhi.talk import progress_bar

if TYPE_CHECKING:
    from imhi.labelers.classifier import Classifier

__all__ = [
    "DATASET",
    "Measured",
    "annotation_files",
    "human_agreement",
    "read_annotations",
    "summary",
    "write_agreement",
]

FORMAT = "imhi-humans-1"


@dataclass(frozen=True)
class Measured:
    """The document of figures, and by reference the values per row behind it."""

    document: dict[str, Any]
    rows: dict[str, tuple[Sample, Columns]]


def human_agreement(
    annotated: Sequence[Annotated],
    root: DataRoot,
    metrics: Sequence[Metric],
    classifier: Classifier | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Measured:
    """How well each metric agrees with the annotators, by both references, per file and pooled within files.

    Parameters
    ----------
    annotated : files, from `read_annotations`.
    root : where gold explanations are looked up by post.
    metrics : from `imhi.metrics`; their pairs are (explanation, reference).
    classifier : of the annotated task; adds the column ``label_support``.  None: without it.
    resamples, seed, level : of the bootstrap over posts.

    Returns
    -------
    A document of plain values: files, annotators' agreement, figures per reference, scope, column and aspect
    (`imhi.humans.figures.agreement_figures`), signatures, notes.

    Raises
    ------
    UserError
        Where every file has fewer than five rows; memory that runs out.
    """
    if all(len(file.posts) < FEWEST_ROWS for file in annotated):
        raise UserError(f"{annotated[0].path}: fewer than {FEWEST_ROWS} rows; a correlation needs more")
    from imhi import __version__

    golds = gold_explanations(root)
    by_reference = {name: sample for name, sample in samples(annotated, golds).items() if sample.keys}
    measured = {name: (sample, columns_of(sample, metrics, classifier)) for name, sample in by_reference.items()}
    published = _published_rouge(measured)
    setting = Resampling(resamples, seed, level)
    references: dict[str, Any] = {}
    for name, (sample, columns) in measured.items():
        scopes = 1 + sum(len(rows) >= FEWEST_ROWS for rows in sample.files.values())
        wide = len(columns.lengths) + len(columns.values) + 3
        with progress_bar(scopes * wide * len(sample.ratings), f"correlations ({name})", unit="figure") as bar:
            figures = agreement_figures(sample, columns, published=published[name], setting=setting, advance=bar.update)
        references[name] = {"rows": len(sample.keys), "lengths": list(columns.lengths), "figures": figures}
    references.setdefault("gold", {"rows": 0, "lengths": [], "figures": {}})
    post = by_reference["post"]
    document = {
        "format": FORMAT,
        "imhi": __version__,
        **asdict(setting),
        "files": {
            file.name: {
                "file": file.path.name,
                "sha256": file.sha256,
                "model": file.model,
                "rows": len(file.posts),
                "posts": len(set(file.keys)),
                "gold_rows": sum(golds.of(key) is not None for key in file.keys),
                "gold_rows_test": sum(key in golds.test for key in file.keys),
                "gold_rows_expert": sum(key in golds.expert for key in file.keys),
            }
            for file in annotated
        },
        "raters": {
            name: rater_figures(
                {aspect: given[rows] for aspect, given in post.ratings.items()},
                [post.keys[at] for at in rows],
                setting,
            )
            for name, rows in post.files.items()
            if len(rows) >= FEWEST_ROWS
        },
        "references": references,
        "signatures": measured["post"][1].signatures,
        "notes": _notes(post, root),
    }
    return Measured(document, measured)


def _published_rouge(measured: dict[str, tuple[Sample, Columns]]) -> dict[str, Any]:
    """Reference → ROUGE-1 against the post on its rows; None where ROUGE was not computed."""
    import numpy as np

    sample, columns = measured["post"]
    values = columns.values.get("rouge1")
    if values is None:
        return dict.fromkeys(measured)
    at = dict(zip(zip(sample.posts, sample.explanations, strict=True), values, strict=True))
    return {
        name: np.array([at[pair] for pair in zip(some.posts, some.explanations, strict=True)])
        for name, (some, _) in measured.items()
    }


def _notes(sample: Sample, root: DataRoot) -> list[str]:
    posts = len(set(sample.keys))
    notes = [root.describe()] if root.is_samples else []
    notes.append("intervals: percentile bootstrap over posts; tests: difference, p (Holm's p over the table's rows)")
    if posts < FEWEST_POSTS:
        notes.append(f"no cross-validated combination: {posts} posts, {FEWEST_POSTS} are needed")
    else:
        notes.append(f"cross-validated: ridge regression, {FOLDS} folds of posts dealt {REPEATS} times")
    return notes


def write_agreement(measured: Measured, folder: Path) -> list[Path]:
    """Write ``humans.json``, ``humans.md``, ``humans.svg`` and ``values_REFERENCE.csv`` (numbers only); their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "humans.json", folder / "humans.md", folder / "humans.svg"]
    text = json.dumps(measured.document, indent=1, ensure_ascii=False, allow_nan=False)
    for path, content in zip(
        written, (text + "\n", markdown(measured.document), heat_map(measured.document)), strict=True
    ):
        write_text_atomically(path, content)
    for reference, (sample, columns) in measured.rows.items():
        names = {**columns.lengths, **columns.values}
        file_of_row = {int(at): name for name, rows in sample.files.items() for at in rows}
        records: list[list[str | float]] = [
            [file_of_row[at], *(float(values[at]) for values in names.values())] for at in range(len(sample.keys))
        ]
        written.append(folder / f"values_{reference}.csv")
        write_table(written[-1], ["file", *names], records)
    return written
