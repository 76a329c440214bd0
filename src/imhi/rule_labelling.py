"""Correctness of a folder of responses by rule: our strict labels beside the published rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imhi.data import write_text_atomically
from imhi.labelers.rules import label_by_rule, published_rule
from imhi.labelling import earlier_figures, read_folder, write_correctness
from imhi.metrics.correctness import Correctness, correctness
from imhi.runs import JOURNAL, read_manifest
from imhi.talk import table

SOURCE = "rules"

__all__ = ["SOURCE", "RuleFigures", "label_folder_by_rules", "rule_table"]


@dataclass(frozen=True)
class RuleFigures:
    """Figures of one dataset: ours (unparsed answers wrong) and the published rule's (`out_of_domain` credited).

    `failed` and `length_limited` are the run's own counts, None for a folder that is no run of ours.
    """

    dataset: str
    strict: Correctness
    published: Correctness
    out_of_domain: int
    empty: int
    failed: int | None = None
    length_limited: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "rows": self.strict.n,
            "empty": self.empty,
            "failed": self.failed,
            "length_limited": self.length_limited,
            "unparsed_share": self.strict.unparsed / self.strict.n,
            "strict": self.strict.as_dict(),
            "published_rule": {**self.published.as_dict(), "out_of_domain": self.out_of_domain},
        }


def label_folder_by_rules(
    folder: Path, *, datasets: Sequence[str] = (), published_results: bool = False, overwrite: bool = False
) -> list[RuleFigures]:
    """Label every ``DATASET.csv`` of `folder` by rule; writes ``correctness.json`` there.

    Works on any folder of ``goldens,generated_text`` files.  `published_results`: also ``results.txt``, with the
    lines that the published generator wrote into its run folder.  Raises UserError where ``correctness.json`` holds
    the figures of classifiers, unless `overwrite`.
    """
    responses = read_folder(folder, datasets)
    earlier_figures(folder, source=SOURCE, overwrite=overwrite)
    # Somebody else's folder may hold a manifest.json of its own.
    manifest = (read_manifest(folder) if (folder / JOURNAL).exists() else None) or {}
    figures = []
    for name, response in responses.items():
        dataset, gold = response.dataset, response.gold_labels()
        by_published = [published_rule(dataset, text) for text in response.generated]
        counts = manifest.get("counts", {}).get(name, {})
        figures.append(
            RuleFigures(
                name,
                strict=correctness(gold, [label_by_rule(dataset, text) for text in response.generated]),
                published=correctness(gold, [label for label, _ in by_published]),
                out_of_domain=sum(default for _, default in by_published),
                empty=sum(not text.strip() for text in response.generated),
                failed=counts.get("failed"),
                length_limited=counts.get("length_limited"),
            )
        )
    entries = {figure.dataset: figure.as_dict() for figure in figures}
    files = {name: response.path for name, response in responses.items()}
    write_correctness(folder, entries, files, source=SOURCE, overwrite=overwrite)
    if published_results:
        lines = [figure.published.published_line(figure.dataset, figure.out_of_domain) for figure in figures]
        write_text_atomically(folder / "results.txt", "\n".join(lines) + "\n")
    return figures


def rule_table(figures: Sequence[RuleFigures]) -> str:
    """The figures as a plain-text table, in per cent; headline figures left, the published rule's right."""
    headers = [
        "dataset",
        "rows",
        "unparsed",
        "acc",
        "w-F1",
        "micro",
        "macro",
        "published: OOD",
        "acc",
        "w-F1",
        "micro",
        "macro",
    ]
    rows = []
    for figure in figures:
        strict, published = figure.strict, figure.published
        rows.append(
            [
                figure.dataset,
                str(strict.n),
                f"{100 * strict.unparsed / strict.n:.1f}%",
                *(
                    f"{100 * value:.2f}"
                    for value in (strict.accuracy, strict.weighted_f1, strict.micro_f1, strict.macro_f1)
                ),
                str(figure.out_of_domain),
                *(
                    f"{100 * value:.2f}"
                    for value in (published.accuracy, published.weighted_f1, published.micro_f1, published.macro_f1)
                ),
            ]
        )
    note = (
        "unparsed answers count as wrong; right of 'published' is the published rule, "
        "which gives them a default class with credit"
    )
    for name, what in (
        ("failed", "rows failed and count as unparsed"),
        ("length_limited", "answers ended by the length limit"),
        ("empty", "empty answers"),
    ):
        counts = {figure.dataset: getattr(figure, name) for figure in figures if getattr(figure, name)}
        if counts:
            listed = ", ".join(f"{dataset} {count}" for dataset, count in counts.items())
            note += f"\n{sum(counts.values())} {what} ({listed})"
    return f"{table(headers, rows)}\n{note}"
