"""Markdown and LaTeX: the figures of the report, every text escaped."""

from __future__ import annotations

import re

import pytest
from report_runs import random_rows, save_run

from imhi.report import make_report
from imhi.report.published import PUBLISHED
from imhi.report.tables import latex, latex_escaped, markdown, markdown_escaped
from imhi.results import read_results


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    for seed, name in enumerate(("run_a & co", "run|b")):
        save_run(folder / name, {each: random_rows(each, 40, seed=seed) for each in ("DR", "SAD")})
    return [read_results(folder / name) for name in ("run_a & co", "run|b")]


def test_every_special_letter_of_latex_is_escaped():
    assert latex_escaped("a_b & 50% {x} #1 $ ~ ^ \\") == (
        r"a\_b \& 50\% \{x\} \#1 \$ \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )


def test_a_markdown_cell_is_text_alone():
    assert markdown_escaped("<img src=x>|a_b*c`d[e]\nf") == r"\<img src=x\>\|a\_b\*c\`d\[e\] f"


def test_markdown_has_value_and_interval(runs):
    report = make_report(runs[:1], resamples=50)
    text = markdown(report)
    value = report.runs[0].figures.datasets["DR"].by_source["rule"].weighted_f1
    cell = f"{100 * value.value:.2f} \\[{100 * value.low:.1f}, {100 * value.high:.1f}\\]"
    (line,) = [line for line in text.splitlines() if line.startswith("| DR | 40 |") and cell in line]
    assert line.count("|") == 5
    assert report.runs[0].figures.datasets["DR"].scores["bleu"].signature in text
    assert "secondary copy" in text


def test_every_markdown_row_has_as_many_cells_as_its_header(runs):
    tables = [
        block.splitlines() for block in markdown(make_report(runs, resamples=20)).split("\n\n") if block[0] == "|"
    ]
    assert len(tables) == 7
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1, table


def test_latex_rows_fit_their_columns_and_braces_balance(runs):
    text = latex(make_report(runs, resamples=20))
    assert "run\\_a \\& co" in text
    for table in re.findall(r"\\begin\{tabular\}\{(l(?:r+))\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        columns, body = table
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(rows) >= 3
        for row in rows:
            assert len(re.findall(r"(?<!\\)&", row)) + 1 == len(columns), row
    plain = re.sub(r"\\[{}]", "", re.sub(r"^%.*$", "", text, flags=re.MULTILINE))
    assert plain.count("{") == plain.count("}")


def test_several_runs_stand_side_by_side(runs):
    report = make_report(runs, resamples=20)
    assert [comparison.title for comparison in report.comparisons] == [
        "Weighted F1, labels by classifier",
        "Weighted F1, labels by rule",
    ]
    for comparison in report.comparisons:
        assert comparison.series == ["run_a & co", "run|b"]
    cells = report.comparisons[0].rows[0].cells
    assert cells == [run.figures.datasets["DR"].by_source["classifier"].weighted_f1 for run in report.runs]
    mean = sum(row.cells[1].value for row in report.comparisons[0].rows) / 2
    assert report.comparisons[0].means[1] == pytest.approx(mean)


def test_published_rows_name_their_source_and_leave_out_clp():
    assert {row.system: row.weighted_f1["t-sid"] for row in PUBLISHED} == {
        "ChatGPT, zero-shot": 33.30,
        "best fine-tuned encoder": 89.01,
        "MentaLLaMA-chat-13B": 75.31,
    }
    for row in PUBLISHED:
        assert "secondary copy" in row.source
        assert len(row.weighted_f1) == 9
        assert "CLP" not in row.weighted_f1
