"""What stands where on the page: figures put into the tables and charts that the templates and text tables show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from imhi.benchmark import DATASETS
from imhi.report.charts import Histogram, ReliabilityChart, Strip, histogram, reliability_chart, strip
from imhi.report.data_facts import DataFacts
from imhi.report.figures import DatasetFigures, LabelFigures, RunFigures
from imhi.report.published import PUBLISHED
from imhi.report.setting import Difference, Notice
from imhi.results import CLASSIFIER, RULE
from imhi.statistics import Interval

__all__ = ["BY", "Comparison", "ComparisonRow", "DatasetView", "Report", "RunView", "ScoreComparison", "layout"]

# Labeller → how a table calls it.
BY = {RULE: "by rule", CLASSIFIER: "by classifier"}


@dataclass(frozen=True)
class ComparisonRow:
    """One dataset: weighted F1 of each series, None where a series has none."""

    dataset: str
    rows: list[int]
    cells: list[Interval | None]
    strip: Strip


@dataclass(frozen=True)
class Comparison:
    """Weighted F1 by dataset, a column a series; `means` over the datasets that every series has."""

    title: str
    series: list[str]
    rows: list[ComparisonRow]
    means: list[float | None]
    mean_of: int


@dataclass(frozen=True)
class ScoreComparison:
    """One score by dataset, a column a run; `alike` says whether all signatures are equal."""

    name: str
    rows: list[tuple[str, list[Interval | None]]]
    alike: bool


@dataclass(frozen=True)
class DatasetView:
    """One dataset of one run with its charts; `heat` is the share of a gold label's rows in each cell, in tenths."""

    figures: DatasetFigures
    histogram: Histogram
    reliability: dict[str, ReliabilityChart]
    heat: dict[str, list[list[int]]]
    published: list[tuple[str, float]]


@dataclass(frozen=True)
class RunView:
    """One run as the page shows it; `has_texts` is False for one that was kept without its answers."""

    figures: RunFigures
    notices: list[Notice]
    differences: list[Difference]
    facts: list[tuple[str, str]]
    has_texts: bool = True
    datasets: list[DatasetView] = field(default_factory=list)

    @property
    def score_names(self) -> list[str]:
        return list(dict.fromkeys(name for view in self.datasets for name in view.figures.scores))

    @property
    def signatures(self) -> dict[str, list[str]]:
        """Metric and target → its signatures in this run; one, unless datasets were scored differently."""
        found: dict[str, list[str]] = {}
        for view in self.datasets:
            for score in view.figures.scores.values():
                title = score.metric if score.target == "response" else f"{score.metric}, {score.target} only"
                if score.signature not in found.setdefault(title, []):
                    found[title].append(score.signature)
        return found

    @property
    def score_notes(self) -> list[str]:
        notes = (score.note for view in self.datasets for score in view.figures.scores.values() if score.note)
        return list(dict.fromkeys(notes))


@dataclass(frozen=True)
class Report:
    """Everything that the page, the tables and the JSON file show."""

    runs: list[RunView]
    comparisons: list[Comparison]
    score_comparisons: list[ScoreComparison]
    data: DataFacts | None
    include_posts: bool

    @property
    def title(self) -> str:
        return ", ".join(run.figures.name for run in self.runs)

    @property
    def notices(self) -> list[tuple[list[str], Notice]]:
        """Every banner once, with the runs that it is about, the gravest first."""
        about: dict[Notice, list[str]] = {}
        for run in self.runs:
            for notice in run.notices:
                about.setdefault(notice, []).append(run.figures.name)
        found = [(names, notice) for notice, names in about.items()]
        return sorted(found, key=lambda entry: entry[1].weight != "warning")

    @property
    def has_texts(self) -> bool:
        """Whether there are answers to show."""
        return any(run.has_texts for run in self.runs)

    @property
    def datasets(self) -> list[str]:
        """Datasets of any run, in the table's order."""
        present = {name for run in self.runs for name in run.figures.datasets}
        return [name for name in DATASETS if name in present]


def layout(runs: Sequence[RunView], data: DataFacts | None, *, include_posts: bool) -> Report:
    """Arrange runs, given without their dataset views, and the audit for the page."""
    views = [
        RunView(
            run.figures,
            run.notices,
            run.differences,
            run.facts,
            run.has_texts,
            [_view(each) for each in run.figures.datasets.values()],
        )
        for run in runs
    ]
    report = Report(views, [], [], data, include_posts)
    figures = [run.figures for run in views]
    if len(views) == 1:
        sources = figures[0].sources
        comparisons = [
            _comparison("Weighted F1", report.datasets, [(BY[source], figures[0], source) for source in sources])
        ]
    else:
        sources = list(dict.fromkeys(source for each in figures for source in each.sources))
        comparisons = [
            _comparison(
                f"Weighted F1, labels {BY[source]}", report.datasets, [(each.name, each, source) for each in figures]
            )
            for source in reversed(sources)
        ]
    scores = [] if len(views) == 1 else _score_comparisons(views, report.datasets)
    return Report(views, comparisons, scores, data, include_posts)


def _comparison(title: str, datasets: Sequence[str], series: Sequence[tuple[str, RunFigures, str]]) -> Comparison:
    rows, names = [], [name for name, _, _ in series]
    for dataset in datasets:
        cells = [_weighted_f1(run, dataset, source) for _, run, source in series]
        counts = sorted({run.datasets[dataset].counts.rows for _, run, _ in series if dataset in run.datasets})
        chart = strip(
            f"Weighted F1 on {dataset}",
            list(zip(names, cells, strict=True)),
            [(row.system, _share(row.weighted_f1.get(dataset))) for row in PUBLISHED],
        )
        rows.append(ComparisonRow(dataset, counts, cells, chart))
    everywhere = [row for row in rows if all(cell is not None for cell in row.cells)]
    means = [
        sum(cell.value for row in everywhere if (cell := row.cells[at]) is not None) / len(everywhere)
        if everywhere
        else None
        for at in range(len(series))
    ]
    return Comparison(title, names, rows, means, len(everywhere))


def _weighted_f1(run: RunFigures, dataset: str, source: str) -> Interval | None:
    labels = _labels(run, dataset, source)
    return None if labels is None else labels.weighted_f1


def _labels(run: RunFigures, dataset: str, source: str) -> LabelFigures | None:
    return run.datasets[dataset].by_source.get(source) if dataset in run.datasets else None


def _share(per_cent: float | None) -> float | None:
    return None if per_cent is None else per_cent / 100


def _score_comparisons(runs: Sequence[RunView], datasets: Sequence[str]) -> list[ScoreComparison]:
    found = []
    for name in dict.fromkeys(name for run in runs for name in run.score_names):
        rows, alike = [], True
        for dataset in datasets:
            scores = [
                run.figures.datasets[dataset].scores.get(name) if dataset in run.figures.datasets else None
                for run in runs
            ]
            alike = alike and len({score.signature for score in scores if score is not None}) <= 1
            if any(scores):
                rows.append((dataset, [None if score is None else score.value for score in scores]))
        found.append(ScoreComparison(name, rows, alike))
    return found


def _view(figures: DatasetFigures) -> DatasetView:
    charts = {
        source: reliability_chart(labels.reading, labels.against_gold)
        for source, labels in figures.by_source.items()
        if labels.against_gold is not None
    }
    heat = {
        source: [[round(10 * cell / max(1, sum(row))) for cell in row] for row in labels.confusion]
        for source, labels in figures.by_source.items()
    }
    published = [(row.system, row.weighted_f1[figures.name]) for row in PUBLISHED if figures.name in row.weighted_f1]
    return DatasetView(figures, histogram(figures.lengths), charts, heat, published)
