"""Correctness of a folder of responses by rule: our strict labels beside the published rule."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imhi.benchmark import DATASETS
from imhi.data import read_responses, response_files, write_text_atomically
from imhi.errors import UserError
from imhi.labelers.rules import label_by_rule, published_rule
from imhi.labelling import earlier_figures
from imhi.metrics.correctness import Correctness, correctness
from imhi.provenance import now
from imhi.talk import say, table

SOURCE = "rules"

__all__ = ["RuleFigures", "label_folder_by_rules", "rule_table"]


@dataclass(frozen=True)
class RuleFigures:
    """Figures of one dataset: ours (unparsed answers wrong) and the published rule's (`out_of_domain` credited)."""

    dataset: str
    strict: Correctness
    published: Correctness
    out_of_domain: int
    empty: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "rows": self.strict.n,
            "empty": self.empty,
            "unparsed_share": self.strict.unparsed / self.strict.n,
            "strict": self.strict.as_dict(),
            "published_rule": {**self.published.as_dict(), "out_of_domain": self.out_of_domain},
        }


def label_folder_by_rules(folder: Path, *, datasets: Sequence[str] = (), overwrite: bool = False) -> list[RuleFigures]:
    """Label every ``DATASET.csv`` of `folder` by rule; writes ``correctness.json`` and ``results.txt`` there.

    Works on any folder of ``goldens,generated_text`` files.  ``results.txt`` has the published script's lines.
    Raises UserError where ``correctness.json`` holds the figures of classifiers, unless `overwrite`.
    """
    found, strays = response_files(folder, datasets)
    if ignored := [name for name in strays if name.lower().endswith(".csv")]:
        say(f"ignored in {folder}, not named after a dataset: {', '.join(ignored)}")
    earlier_figures(folder, source=SOURCE, overwrite=overwrite)
    figures = []
    for name, path in found.items():
        dataset = DATASETS[name]
        responses = read_responses(dataset, path)
        gold = responses.gold_labels()
        by_published = [published_rule(dataset, text) for text in responses.generated]
        figures.append(
            RuleFigures(
                name,
                strict=correctness(gold, [label_by_rule(dataset, text) for text in responses.generated]),
                published=correctness(gold, [label for label, _ in by_published]),
                out_of_domain=sum(default for _, default in by_published),
                empty=sum(not text.strip() for text in responses.generated),
            )
        )
    record = {"labeler": SOURCE, "made": now(), "datasets": {figure.dataset: figure.as_dict() for figure in figures}}
    lines = [figure.published.published_line(figure.dataset, figure.out_of_domain) for figure in figures]
    try:
        write_text_atomically(folder / "correctness.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        write_text_atomically(folder / "results.txt", "\n".join(lines) + "\n")
    except OSError as error:
        raise UserError(f"{folder}: the figures cannot be written there ({error.strerror})", code=1) from None
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
    return f"{table(headers, rows)}\n{note}"
