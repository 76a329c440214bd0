"""The figures of a report as Markdown and as LaTeX tables, for papers and repositories."""

from __future__ import annotations

from collections.abc import Sequence

from imhi.report.layout import BY, Comparison, Report, RunView
from imhi.report.published import PUBLISHED
from imhi.statistics import Interval

__all__ = ["latex", "latex_escaped", "markdown", "markdown_escaped"]

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "“": "``",
    "”": "''",
}


def latex_escaped(text: str) -> str:
    """`text` as LaTeX shows it letter by letter."""
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def markdown_escaped(text: str) -> str:
    """`text` as a cell of a Markdown table shows it: nothing in it is markup, a link or HTML."""
    flat = " ".join(text.split())
    for letter in "\\`*_[]<>|":
        flat = flat.replace(letter, "\\" + letter)
    return flat


# --- what both show: a title, headers, rows of cells; a cell is a text, a number or an interval -------------------------

Cell = str | int | float | Interval | None
Table = tuple[str, list[str], list[list[Cell]]]


def _tables(report: Report) -> list[Table]:
    tables = [_comparison(comparison) for comparison in report.comparisons]
    for run in report.runs:
        prefix = f"{run.figures.name}: " if len(report.runs) > 1 else ""
        tables.append(_labels(run, prefix))
        if run.score_names:
            tables.append(_scores(run, prefix))
    return tables


def _comparison(comparison: Comparison) -> Table:
    rows: list[list[Cell]] = [
        [row.dataset, "/".join(f"{rows}" for rows in row.rows), *row.cells] for row in comparison.rows
    ]
    if comparison.mean_of > 1:
        means = [None if mean is None else 100 * mean for mean in comparison.means]
        rows.append([f"mean of {comparison.mean_of}", "", *means])
    return (
        f"{comparison.title} in per cent, with 95 % bootstrap interval",
        ["dataset", "rows", *comparison.series],
        rows,
    )


def _labels(run: RunView, prefix: str) -> Table:
    sources = run.figures.sources
    headers = ["dataset", "rows"]
    for source in sources:
        headers += [f"accuracy {BY[source]}", f"macro F1 {BY[source]}", f"unparsed {BY[source]}"]
    rows: list[list[Cell]] = []
    for figures in run.figures.datasets.values():
        row: list[Cell] = [figures.name, figures.counts.rows]
        for source in sources:
            labels = figures.by_source.get(source)
            row += [labels.accuracy, labels.macro_f1, labels.unparsed] if labels else [None, None, None]
        rows.append([*row, figures.counts.truncated, figures.counts.empty, figures.counts.failed])
    return f"{prefix}labels in per cent, and counts", [*headers, "cut short", "empty", "failed"], rows


def _scores(run: RunView, prefix: str) -> Table:
    rows: list[list[Cell]] = []
    for figures in run.figures.datasets.values():
        values = [figures.scores.get(name) for name in run.score_names]
        rows.append([figures.name, *(None if score is None else f"{score.value.value:.4f}" for score in values)])
    return f"{prefix}scores; higher is better", ["dataset", *run.score_names], rows


def _shown(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, Interval):
        return f"{100 * cell.value:.2f} [{100 * cell.low:.1f}, {100 * cell.high:.1f}]"
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell)


# --- Markdown ---------------------------------------------------------------------------------------------------------


def markdown(report: Report) -> str:
    """The report's tables, banners and signatures as GitHub-flavoured Markdown."""
    parts = [f"# {markdown_escaped(report.title)}", ""]
    for names, notice in report.notices:
        name = f"{markdown_escaped(', '.join(names))}: " if len(report.runs) > 1 else ""
        parts += [f"> **{name}{markdown_escaped(notice.title)}.** {markdown_escaped(notice.text)}", ""]
    for title, headers, rows in _tables(report):
        parts += [f"## {markdown_escaped(title[0].upper() + title[1:])}", ""]
        parts += [_line(headers), "| --- |" + " ---: |" * (len(headers) - 1)]
        parts += [_line([_shown(cell) for cell in row]) for row in rows]
        parts.append("")
    signatures = dict.fromkeys(each for run in report.runs for found in run.signatures.values() for each in found)
    if signatures:
        parts += ["Signatures:", "", *(f"- `{signature.replace('`', '')}`" for signature in signatures), ""]
    parts += ["## Published weighted F1, for context", ""]
    headers = ["system", *report.datasets, "source"]
    parts += [_line(headers), "| --- |" + " ---: |" * len(report.datasets) + " --- |"]
    for row in PUBLISHED:
        values = [f"{row.weighted_f1[name]:.2f}" if name in row.weighted_f1 else "–" for name in report.datasets]
        parts.append(_line([row.system, *values, row.source]))
    return "\n".join(parts) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(markdown_escaped(cell) for cell in cells) + " |"


# --- LaTeX ------------------------------------------------------------------------------------------------------------


def latex(report: Report) -> str:
    """The report's tables as LaTeX ``table`` environments; they need the packages booktabs and graphicx."""
    parts = ["% needs \\usepackage{booktabs}, \\usepackage{graphicx}"]
    for names, notice in report.notices:
        said = f"{', '.join(names)}: {notice.title}. {notice.text}"
        parts.append("% " + " ".join(said.split()))
    for title, headers, rows in _tables(report):
        body = [[_latex_cell(cell) for cell in row] for row in rows]
        parts += [
            "",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_escaped(title[0].upper() + title[1:])}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{l{'r' * (len(headers) - 1)}}}",
            r"\toprule",
            " & ".join(latex_escaped(header) for header in headers) + r" \\",
            r"\midrule",
            *(" & ".join(row) + r" \\" for row in body),
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
        ]
    return "\n".join(parts) + "\n"


def _latex_cell(cell: Cell) -> str:
    if isinstance(cell, Interval):
        return rf"{100 * cell.value:.2f} {{\footnotesize [{100 * cell.low:.1f}, {100 * cell.high:.1f}]}}"
    return latex_escaped(_shown(cell))
