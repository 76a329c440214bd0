"""Two runs on the same rows, figure by figure: differences with intervals, paired tests, rows that flipped.

A difference is the second run's figure minus the first's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from imhi.benchmark import DATASETS
from imhi.comparable import cautions_of, comparable_datasets, shared_measures
from imhi.errors import UserError
from imhi.measures import LABEL_FIGURES, Measure, chosen_keys, label_key, summed_figures
from imhi.metrics.correctness import UNPARSED
from imhi.pairing import McNemar, PairedFigure, holm, mcnemar, mean_of_pairs, paired_figures
from imhi.results import DatasetResults, RunResults
from imhi.talk import progress_bar, some, table

__all__ = ["Comparison", "Flip", "Line", "compare_runs", "comparison_table"]

MCNEMAR = "McNemar, exact"
RANDOMIZATION = "approximate randomization"


@dataclass(frozen=True)
class Flip:
    """A row whose label differs between the runs.

    Attributes
    ----------
    index : 0-based position in the test file.
    first, second : the label of each run, "unparsed" for none.
    change : "gained" (only the second is right), "lost" (only the first is right) or "other" (both are wrong).
    first_answer, second_answer : texts, None unless asked for.
    """

    index: int
    gold: str
    first: str
    second: str
    change: str
    first_answer: str | None = None
    second_answer: str | None = None


@dataclass(frozen=True)
class Line:
    """One figure of one dataset of both runs.

    Attributes
    ----------
    units : what was drawn and exchanged together: posts where they are known, else rows.
    p : of `test`, two-sided; McNemar's for accuracy on independent rows, else approximate randomization.
    p_holm : adjusted for the datasets on which the same figure is tested.
    mcnemar : for accuracy only; its p takes every row as independent.
    """

    dataset: str
    rows: int
    units: int
    figure: PairedFigure
    test: str
    p: float
    p_holm: float
    mcnemar: McNemar | None = None


@dataclass(frozen=True)
class Comparison:
    """What `compare_runs` found.

    Attributes
    ----------
    first, second : names of the runs.  folders : where they lie.
    measures : key → what it is, in the order of the tables.
    lines : key → dataset → `Line`.
    overall : key → the plain mean over the datasets that have it; only where there are several.
    flips : labeller's source → dataset → rows.
    refused : one line each, a figure that was not compared and why.
    cautions : one line each, what a reader must know.
    left_out : reason → dataset → rows that were left out of both runs before.
    """

    first: str
    second: str
    folders: tuple[str, str]
    level: float
    resamples: int
    seed: int
    measures: dict[str, Measure]
    lines: dict[str, dict[str, Line]]
    overall: dict[str, PairedFigure]
    flips: dict[str, dict[str, list[Flip]]]
    refused: tuple[str, ...]
    cautions: tuple[str, ...]
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON; without the resamples."""
        figures = {}
        for key, lines in self.lines.items():
            overall = self.overall.get(key)
            figures[key] = {
                "definition": self.measures[key].definition,
                "versions": self.measures[key].versions,
                "datasets": {
                    name: {
                        "rows": line.rows,
                        "units": line.units,
                        **_plain(line.figure),
                        "test": line.test,
                        "p": line.p,
                        "p_holm": line.p_holm,
                        "mcnemar": asdict(line.mcnemar) if line.mcnemar else None,
                    }
                    for name, line in lines.items()
                },
                "overall": {"datasets": len(lines), **_plain(overall)} if overall else None,
            }
        return {
            "first": {"name": self.first, "folder": self.folders[0]},
            "second": {"name": self.second, "folder": self.folders[1]},
            "difference": "second minus first; higher is better",
            "level": self.level,
            "resamples": self.resamples,
            "seed": self.seed,
            "figures": figures,
            "flips": {
                source: {name: [_without_none(flip) for flip in flips] for name, flips in by_dataset.items()}
                for source, by_dataset in self.flips.items()
            },
            "refused": list(self.refused),
            "cautions": list(self.cautions),
            "left_out": {reason: dict(rows) for reason, rows in self.left_out.items()},
        }


def _plain(figure: PairedFigure) -> dict[str, Any]:
    names = ("first", "second", "difference", "low", "high", "standard_error", "effect")
    return {
        **{name: getattr(figure, name) for name in names},
        "bootstrap_p": figure.bootstrap_p,
        "randomization_p": figure.randomization_p,
    }


def _without_none(flip: Flip) -> dict[str, Any]:
    return {name: value for name, value in asdict(flip).items() if value is not None}


def compare_runs(
    first: RunResults,
    second: RunResults,
    *,
    metrics: Sequence[str] = (),
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
    include_answers: bool = False,
) -> Comparison:
    """Compare two runs on the datasets that both have.

    Datasets are taken as independent of each other in `overall`, although some posts stand in two of them.

    Parameters
    ----------
    metrics : keys or metrics (see `imhi.measures`); all that both have without any.
    include_answers : put the texts of flipped rows into the result.

    Raises
    ------
    UserError
        Other rows, gold texts or prompts; no dataset in common; a figure of `metrics` that cannot be compared.
    """
    if first.name == second.name:
        first, second = replace(first, name=f"{first.name} (A)"), replace(second, name=f"{second.name} (B)")
    names = comparable_datasets(first, second)
    shared: dict[str, dict[str, Measure]] = {}
    refused: list[str] = []
    for name in names:
        shared[name], reasons = shared_measures(first.datasets[name], second.datasets[name])
        refused += [f"{name}: {reason}" for reason in reasons]
    known = _in_order(shared.values())
    if not metrics and not known:
        raise UserError(f"nothing to compare: {'; '.join(refused)}")
    keys = _chosen(metrics, known, refused)
    lines: dict[str, dict[str, Line]] = {key: {} for key in keys}
    with progress_bar(len(names), "comparing", unit="dataset") as bar:
        for name in names:
            bar.set_description(f"comparing {name}")
            own = [key for key in keys if key in shared[name]]
            found = _lines(first.datasets[name], second.datasets[name], shared[name], own, resamples, seed, level)
            for key, line in found.items():
                lines[key][name] = line
            bar.update(1)
    lines = {key: _adjusted(found) for key, found in lines.items()}
    sources = dict.fromkeys(known[key].source for key in keys if known[key].source)
    return Comparison(
        first=first.name,
        second=second.name,
        folders=(str(first.folder), str(second.folder)),
        level=level,
        resamples=resamples,
        seed=seed,
        measures={key: known[key] for key in keys},
        lines=lines,
        overall={
            key: mean_of_pairs([line.figure for line in found.values()], level=level)
            for key, found in lines.items()
            if len(found) > 1
        },
        flips={
            source: {
                name: _flips(first.datasets[name], second.datasets[name], source, include_answers)
                for name in names
                if label_key("accuracy", source) in shared[name]
            }
            for source in sources
        },
        refused=tuple(refused),
        cautions=tuple(cautions_of(first, second, names)),
    )


def _in_order(found: Iterable[dict[str, Measure]]) -> dict[str, Measure]:
    """The measures of all datasets, figures of labels before scores."""
    every: dict[str, Measure] = {}
    for measures in found:
        for key, measure in measures.items():
            every.setdefault(key, measure)
    return dict(sorted(every.items(), key=lambda item: not item[1].source))


def _chosen(metrics: Sequence[str], known: dict[str, Measure], refused: Sequence[str]) -> list[str]:
    try:
        return chosen_keys(metrics, known)
    except UserError as error:
        raise UserError("; ".join([str(error), *refused])) from None


def _lines(
    one: DatasetResults,
    other: DatasetResults,
    measures: dict[str, Measure],
    keys: Sequence[str],
    resamples: int,
    seed: int,
    level: float,
) -> dict[str, Line]:
    if not keys:
        return {}
    posts = one.posts or other.posts
    units = len(set(posts)) if posts else len(one)
    figures = paired_figures(
        summed_figures(one, keys),
        summed_figures(other, keys),
        groups=posts if units < len(one) else None,
        resamples=resamples,
        # Each dataset draws for itself, whichever others are compared.
        seed=[seed, list(DATASETS).index(one.name)],
        level=level,
    )
    found = {}
    for key in keys:
        source = measures[key].source
        test, p, matched = RANDOMIZATION, figures[key].randomization_p, None
        if source and key == label_key("accuracy", source):
            matched = mcnemar(_right(one, source), _right(other, source))
            if units == len(one):
                test, p = MCNEMAR, matched.p
        found[key] = Line(one.name, len(one), units, figures[key], test, p, p, matched)
    return found


def _right(results: DatasetResults, source: str) -> list[bool]:
    return [gold == said for gold, said in zip(results.gold, results.labels[source].predicted, strict=True)]


def _adjusted(lines: dict[str, Line]) -> dict[str, Line]:
    adjusted = holm([line.p for line in lines.values()])
    return {name: replace(line, p_holm=p) for (name, line), p in zip(lines.items(), adjusted, strict=True)}


def _flips(one: DatasetResults, other: DatasetResults, source: str, include_answers: bool) -> list[Flip]:
    texts = [results.texts("--include_answers writes")[0] for results in (one, other)] if include_answers else None
    flips = []
    for at, (gold, mine, theirs) in enumerate(
        zip(one.gold, one.labels[source].predicted, other.labels[source].predicted, strict=True)
    ):
        if mine == theirs:
            continue
        change = "gained" if theirs == gold else "lost" if mine == gold else "other"
        answers = (None, None) if texts is None else (texts[0][at], texts[1][at])
        flips.append(Flip(one.index[at], gold, mine or UNPARSED, theirs or UNPARSED, change, *answers))
    return flips


# --- as text --------------------------------------------------------------------------------------------------------

FLIPS_SHOWN = 5


def comparison_table(comparison: Comparison) -> str:
    """The comparison as text: a table a figure, the flipped rows, what a reader must know."""
    parts = [f"A: {comparison.first} ({comparison.folders[0]})\nB: {comparison.second} ({comparison.folders[1]})"]
    for key, lines in comparison.lines.items():
        if lines:
            parts.append(_figure_table(comparison, key, lines))
    for source, by_dataset in comparison.flips.items():
        parts.append(_flip_lines(source, by_dataset))
    notes = [
        f"difference: B minus A, with its {100 * comparison.level:g} % bootstrap interval; p: McNemar's exact test for "
        "accuracy on independent rows, else approximate",
        f"randomization ({comparison.resamples} resamples, seed {comparison.seed}); Holm: adjusted for the datasets of one "
        "table; g: Cohen's g; d: difference over the spread of",
        "what single rows (or posts) add to it",
        *(f"not compared: {reason}" for reason in comparison.refused),
        *(f"note: {caution}" for caution in comparison.cautions),
        *(
            f"left out of both, {reason}: {', '.join(f'{name} {count}' for name, count in rows.items()) or 'no row'}"
            for reason, rows in comparison.left_out.items()
        ),
    ]
    return "\n\n".join([*parts, "\n".join(notes)])


def _figure_table(comparison: Comparison, key: str, lines: dict[str, Line]) -> str:
    measure = comparison.measures[key]
    factor, digits = (100, 2) if measure.source else (1, 4)
    matched = any(line.mcnemar for line in lines.values())
    shared_posts = any(line.units < line.rows for line in lines.values())

    def number(value: float, sign: str = "") -> str:
        return f"{factor * value:{sign}.{digits}f}"

    def cells(figure: PairedFigure, p: float) -> list[str]:
        interval = f"[{number(figure.low, '+')}, {number(figure.high, '+')}]"
        values = [number(figure.first), number(figure.second), number(figure.difference, "+")]
        return [*values, interval, _p_text(p)]

    rows = []
    for name, line in lines.items():
        size = line.mcnemar.cohens_g if line.mcnemar else line.figure.effect
        counts = [str(line.rows), str(line.units)] if shared_posts else [str(line.rows)]
        behind = [_p_text(line.p_holm), "" if size is None else f"{size:+.2f}"]
        behind += [str(line.mcnemar.gained), str(line.mcnemar.lost)] if line.mcnemar else []
        rows.append([name, *counts, *cells(line.figure, line.p), *behind])
    counted = ["rows", "posts"] if shared_posts else ["rows"]
    last = ["Holm", "g", "gained", "lost"] if matched else ["Holm", "d"]
    if key in comparison.overall:
        overall = comparison.overall[key]
        blank = [[""] * len(columns) for columns in (counted, last)]
        rows.append([f"mean of {len(lines)}", *blank[0], *cells(overall, overall.randomization_p), *blank[1]])
    headers = ["dataset", *counted, "A", "B", "B - A", f"{100 * comparison.level:g} % interval", "p", *last]
    what = f"{_spoken(key, measure)}, per cent" if measure.source else f"{key} ({measure.definition})"
    return f"{what}\n{table(headers, rows)}"


def _spoken(key: str, measure: Measure) -> str:
    figure = next(figure for figure in LABEL_FIGURES if key == label_key(figure, measure.source))
    return f"{figure.replace('_f1', ' F1')} of the labels by {measure.source}"


def _p_text(p: float) -> str:
    return f"{p:.4f}" if p >= 5e-5 else f"{p:.0e}"


def _flip_lines(source: str, by_dataset: dict[str, list[Flip]]) -> str:
    lines = [f"rows whose label by {source} differs (counted from 1; all of them: --out)"]
    for name, flips in by_dataset.items():
        told = []
        for change, what in (("gained", "B alone right"), ("lost", "A alone right"), ("other", "both wrong")):
            rows = [str(flip.index + 1) for flip in flips if flip.change == change]
            if rows:
                told.append(f"{what} {len(rows)} (row {some(rows, FLIPS_SHOWN)})")
        lines.append(f"  {name}: {'; '.join(told) or 'none'}")
    return "\n".join(lines)
