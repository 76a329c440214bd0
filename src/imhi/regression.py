"""A run's figures against a stored baseline: what moved, by how many standard errors, and whether it may.

A baseline keeps each figure with its bootstrap standard error and its definition, and a digest of the rows; no text.
Labels by rule, BLEU and ROUGE are computed from the answers anew whenever a run is checked; labels by classifier and
scores by a model are taken as they stand in the folder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imhi import __version__
from imhi.benchmark import DATASETS
from imhi.data import write_text_atomically
from imhi.errors import UserError
from imhi.measures import Measure, measures_of, summed_figures
from imhi.metrics import METRICS, summed_metric
from imhi.provenance import now
from imhi.results import Column, DatasetResults, RunResults
from imhi.scoring import TARGETS, explanation_of, row_column
from imhi.statistics import resampled
from imhi.talk import table

__all__ = [
    "Check",
    "Moved",
    "Tolerance",
    "baseline_of",
    "check_run",
    "check_table",
    "parse_tolerances",
    "read_baseline",
    "with_text_metrics",
    "write_baseline",
]

FORMAT = "imhi-baseline-1"
RESAMPLES, SEED = 2000, 0

# Metrics without a model: cheap, and the same on every machine.
TEXT_METRICS = ("bleu", "rouge")
# A figure that moved by less did not move: what summing in another order changes.
ROUNDING = 1e-9
# What other hardware and library versions may change in a model's scores.
EXACT, BY_MODEL = 1e-6, 1e-4


# --- the baseline ---------------------------------------------------------------------------------------------------


def with_text_metrics(run: RunResults) -> RunResults:
    """The run with BLEU and ROUGE computed from its texts, whatever its folder's ``scores.json`` says of them.

    Of whole texts, and of explanations where the folder holds a score of explanations.
    """
    return replace(run, datasets={name: _rescored(results) for name, results in run.datasets.items()})


def _rescored(results: DatasetResults) -> DatasetResults:
    explained = any(column.target == "explanation" for column in results.scores.values())
    columns = {}
    for target in TARGETS if explained else TARGETS[:1]:
        generated, golds = results.texts("imhi check computes its figures from")
        if target == "explanation":
            generated, golds = ([explanation_of(text)[0] for text in texts] for texts in (generated, golds))
        for name in TEXT_METRICS:
            metric = METRICS[name]()
            statistics = metric.statistics(generated, golds)
            rows = metric.row_values(statistics)
            for value, corpus in metric.values(statistics).items():
                key = row_column(value, target)
                columns[key] = Column(
                    metric=name,
                    name=key,
                    target=target,
                    value=corpus,
                    rows=rows[value],
                    signature=str(metric.signature),
                    lowest=metric.lowest,
                    highest=metric.highest,
                    statistics=statistics if summed_metric(name) else None,
                )
    by_model = {key: column for key, column in results.scores.items() if column.metric not in TEXT_METRICS}
    return replace(results, scores={**columns, **by_model})


def baseline_of(run: RunResults) -> dict[str, Any]:
    """The document that `check_run` compares with; rows on one post are drawn together where posts are known."""
    datasets = {}
    for name, results in run.datasets.items():
        measures = measures_of(results)
        summed = summed_figures(results, measures)
        sampled = resampled(summed, groups=results.posts, resamples=RESAMPLES, seed=[SEED, list(DATASETS).index(name)])
        values = summed.values
        datasets[name] = {
            "rows": len(results),
            "rows_digest": results.rows_digest,
            "units": len(set(results.posts)) if results.posts else len(results),
            "figures": {
                key: {
                    "value": values[key],
                    "standard_error": float(sampled[key].std(ddof=1)),
                    "definition": measure.definition,
                    "versions": measure.versions,
                }
                for key, measure in measures.items()
            },
        }
    return {
        "format": FORMAT,
        "run": run.name,
        "made": now(),
        "imhi": __version__,
        "resamples": RESAMPLES,
        "seed": SEED,
        "datasets": datasets,
    }


def write_baseline(path: Path, baseline: dict[str, Any]) -> None:
    """Write the document of `baseline_of`; UserError where another kind of file stands there."""
    if path.exists():
        read_baseline(path)
    if not path.parent.is_dir():
        raise UserError(f"--baseline: no folder {path.parent}; make it first")
    write_text_atomically(path, json.dumps(baseline, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_baseline(path: Path) -> dict[str, Any]:
    """The document of `baseline_of`; UserError where the file is not one."""
    if not path.is_file():
        raise UserError(f"--baseline: no file {path}; --update writes it from the run")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); give another file, or remove it") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UserError(f"{path}: not a baseline of this toolkit ({FORMAT}); give another file")
    datasets: Any = document.get("datasets")
    try:
        whole = bool(datasets) and all(
            entry.keys() >= {"rows", "rows_digest", "figures"}
            and bool(entry["figures"])
            and all(figure.keys() >= {"definition", "versions"} for figure in entry["figures"].values())
            for entry in datasets.values()
        )
    except (AttributeError, TypeError):
        whole = False
    if not whole:
        raise UserError(f"{path}: damaged, it lacks rows, figures or their definitions; remove it and --update anew")
    for name, entry in datasets.items():
        for key, figure in entry["figures"].items():
            numbers = [figure.get("value"), figure.get("standard_error")]
            if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
                raise UserError(
                    f"{path}: {name}, {key} has no finite value and standard error; --update writes it anew"
                )
    return document


# --- tolerances -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tolerance:
    """By how much a figure may fall: `value` in its own unit (0.01 of accuracy is one per cent) or in standard errors."""

    value: float
    in_standard_errors: bool = False

    def of(self, standard_error: float) -> float:
        return self.value * standard_error if self.in_standard_errors else self.value


def parse_tolerances(texts: Sequence[str]) -> dict[str, Tolerance]:
    """``METRIC=VALUE`` or ``METRIC=NUMBERse`` (standard errors); UserError at anything else."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        in_standard_errors = value.endswith("se")
        try:
            number = float(value.removesuffix("se"))
        except ValueError:
            number = math.nan
        if not (name and equals) or not 0 <= number < math.inf:
            raise UserError(f"--tolerance {text}: expected METRIC=VALUE, such as accuracy=0.01, bleu=2se or all=1se")
        found[name] = Tolerance(number, in_standard_errors)
    return found


def _allowed(key: str, measure: Measure, tolerances: Mapping[str, Tolerance]) -> Tolerance:
    for name in (key, measure.metric, "all"):
        if name in tolerances:
            return tolerances[name]
    return Tolerance(EXACT if measure.source or measure.metric in TEXT_METRICS else BY_MODEL)


# --- the check ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moved:
    """A figure that is not what it was.  `allowed` is by how much it may fall."""

    dataset: str
    key: str
    before: float
    now: float
    standard_error: float
    allowed: float

    @property
    def difference(self) -> float:
        return self.now - self.before

    @property
    def standard_errors(self) -> float | None:
        """The difference in standard errors of the baseline; None where that error is 0."""
        return self.difference / self.standard_error if self.standard_error > ROUNDING else None

    @property
    def is_regression(self) -> bool:
        return -self.difference > self.allowed + ROUNDING

    @property
    def verdict(self) -> str:
        if self.is_regression:
            return "REGRESSION"
        return "better" if self.difference > self.allowed else "within tolerance"


@dataclass(frozen=True)
class Check:
    """What `check_run` found.

    Attributes
    ----------
    figures : how many were compared.
    moved : the figures that are not what they were.
    changed : one line each, what cannot be compared with the baseline: other rows, another definition, gone.
    notes : one line each, what does not fail a check.
    """

    figures: int
    moved: tuple[Moved, ...]
    changed: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def regressions(self) -> tuple[Moved, ...]:
        return tuple(moved for moved in self.moved if moved.is_regression)

    @property
    def exit_status(self) -> int:
        """2 for a changed definition, else 1 for a regression, else 0."""
        return 2 if self.changed else 1 if self.regressions else 0


def check_run(run: RunResults, baseline: Mapping[str, Any], tolerances: Mapping[str, Tolerance] | None = None) -> Check:
    """Compare a run (see `with_text_metrics`) with a baseline.

    Figures move against the baseline beyond their tolerance: a regression.  Versions of software are no part of a
    definition: other ones are told, and the figures compared all the same.

    Raises UserError at a tolerance for a figure that the baseline has not.
    """
    tolerances = tolerances or {}
    stored = baseline["datasets"]
    _refuse_unknown(tolerances, stored)
    figures = 0
    moved: list[Moved] = []
    changed: list[str] = []
    notes = list(run.cautions)
    versions: dict[str, None] = {}
    for name, entry in stored.items():
        results = run.datasets.get(name)
        if results is None:
            changed.append(f"{name}: not in {run.folder}")
            continue
        if results.rows_digest != entry["rows_digest"]:
            sizes = f"{len(results)} rows, {entry['rows']} in the baseline"
            changed.append(f"{name}: other rows or gold texts ({sizes})")
            continue
        measures = measures_of(results)
        values = summed_figures(results, measures).values
        for key, figure in entry["figures"].items():
            if key not in measures:
                changed.append(f"{name}: no {key} in {run.folder}")
                continue
            measure = measures[key]
            if measure.definition != figure["definition"]:
                changed.append(
                    f"{name}: {key} is another figure, {figure['definition']} before, {measure.definition} now"
                )
                continue
            versions.update(dict.fromkeys(_other_versions(figure["versions"], measure.versions)))
            figures += 1
            before, error = figure["value"], figure["standard_error"]
            if abs(values[key] - before) > ROUNDING:
                allowed = _allowed(key, measure, tolerances).of(error)
                moved.append(Moved(name, key, before, values[key], error, allowed))
        if new := [key for key in measures if key not in entry["figures"]]:
            notes.append(f"{name}: not in the baseline: {', '.join(new)} (--update adds them)")
    if new := [name for name in run.datasets if name not in stored]:
        notes.append(f"not in the baseline: {', '.join(new)} (--update adds them)")
    if versions:
        notes.append(f"other software than the baseline's: {', '.join(versions)}")
    return Check(figures, tuple(moved), tuple(changed), tuple(notes))


def _refuse_unknown(tolerances: Mapping[str, Tolerance], stored: Mapping[str, Any]) -> None:
    known = {"all": None}
    for entry in stored.values():
        for key, figure in entry["figures"].items():
            known.update({key: None, figure["definition"].partition("|")[0]: None})
    unknown = [name for name in tolerances if name not in known]
    if unknown:
        raise UserError(f"--tolerance {unknown[0]}: not a figure of the baseline ({', '.join(known)})")


def _other_versions(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    return [
        f"{name} {before.get(name, 'none')} -> {after.get(name, 'none')}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]


def check_table(check: Check, baseline: Mapping[str, Any]) -> str:
    """The check as text: what moved, what cannot be compared, notes, and the verdict."""
    lines = [f"{check.figures} figures against the baseline of {baseline['run']} ({baseline['made']})"]
    if check.moved:
        rows = []
        for moved in check.moved:
            errors = "" if moved.standard_errors is None else f"{moved.standard_errors:+.2f}"
            numbers = [f"{moved.before:.6f}", f"{moved.now:.6f}", f"{moved.difference:+.6f}", errors]
            rows.append([moved.dataset, moved.key, *numbers, moved.verdict])
        headers = ["dataset", "figure", "baseline", "now", "moved by", "standard errors", ""]
        lines += ["", table(headers, rows), ""]
    lines += [f"changed: {what}" for what in check.changed]
    lines += [f"note: {note}" for note in check.notes]
    if check.changed:
        lines.append(f"{len(check.changed)} definitions changed; if they should have, --update writes a new baseline")
    if check.regressions:
        lines.append(f"{len(check.regressions)} of {check.figures} figures fell by more than their tolerance")
    if not check.exit_status:
        better = sum(moved.difference > moved.allowed for moved in check.moved)
        lines.append(
            f"passed; {better} figures are better than the baseline, --update keeps them" if better else "passed"
        )
    return "\n".join(lines)
