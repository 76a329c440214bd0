"""The tables of results say what the kept runs say: made-up runs of the released size, and the shipped documents."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from report_runs import random_rows, save_run

from imhi.benchmark import DATASETS
from imhi.data import DataRoot
from imhi.errors import UserError
from imhi.kept import keep_run
from imhi.report.published import PUBLISHED
from imhi.results import RULE, read_results

ROOT = Path(__file__).parents[1]
TRAINED = ["DR", "dreaddit", "SAD", "MultiWD", "Irf"]
UNTRAINED = ["t-sid", "CAMS", "loneliness"]
# Share of rows whose answer was meant to have the gold label.
SKILLS = {"base-zero-shot": 0.1, "base-few-shot": 0.3, "adapter": 0.95}


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("make_results_table", ROOT / "tools" / "make_results_table.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkout(tool, tmp_path_factory) -> Path:
    """A checkout with three kept runs on as many rows as were released, and both documents."""
    folder = tmp_path_factory.mktemp("checkout")
    for seed, (name, skill) in enumerate(SKILLS.items()):
        rows = {
            each: random_rows(
                each,
                dataset.released_test_rows,
                seed=seed,
                words=4,
                skill=skill,
                rows_a_post=6 if each == "MultiWD" else 1,
            )
            for each, dataset in DATASETS.items()
            if dataset.released_test_rows and each != "swmh"
        }
        save_run(folder / "runs" / name, rows, root=folder / "root")
        run = read_results(folder / "runs" / name, data_root=DataRoot(folder / "root", "test"))
        keep_run(run, folder / tool.FOLDER)
    for document in tool.DOCUMENTS:
        (folder / document).parent.mkdir(exist_ok=True)
        (folder / document).write_text(f"Before.\n{tool.BEGIN}\n{tool.END}\nAfter.\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def found(tool, checkout):
    return tool.read_runs(checkout / tool.FOLDER, resamples=40)


def lines_of(table: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]


def test_the_overview_has_the_sets_apart_and_their_means(tool, found):
    header, _, *lines = lines_of(tool.overview(found))
    assert header[2:8:2] == [f"{name}: weighted F1" for name in ("base, zero-shot", "base, few-shot", "our adapter")]
    assert header[8:] == [row.system for row in PUBLISHED]
    names = [line[0] for line in lines]
    assert names == [
        *TRAINED,
        "**mean of 5, trained on**",
        *UNTRAINED,
        "**mean of 3, not trained on**",
        "**mean of 8**",
    ]
    by_name = {line[0].strip("*"): [cell.strip("*") for cell in line[1:]] for line in lines}
    for at, run in enumerate(SKILLS):
        figures = {name: found.runs[run].datasets[name].correctness() for name in (*TRAINED, *UNTRAINED)}
        for title, group in (
            ("mean of 5, trained on", TRAINED),
            ("mean of 3, not trained on", UNTRAINED),
            ("mean of 8", [*TRAINED, *UNTRAINED]),
        ):
            mean = sum(100 * figures[name].weighted_f1 for name in group) / len(group)
            unparsed = 100 * sum(figures[name].unparsed for name in group) / sum(figures[name].n for name in group)
            assert by_name[title][1 + 2 * at : 3 + 2 * at] == [f"{mean:.1f}", f"{unparsed:.1f}"]
        for name in (*TRAINED, *UNTRAINED):
            value, low, high = map(float, re.findall(r"[\d.]+", by_name[name][1 + 2 * at]))
            assert value == pytest.approx(100 * figures[name].weighted_f1, abs=0.051)
            assert low <= value <= high and low < high
    assert by_name["mean of 8"][0] == "8,169"
    # ChatGPT zero-shot over CAMS, loneliness and t-sid: (33.85 + 58.40 + 33.30) / 3.
    assert by_name["mean of 3, not trained on"][7] == "41.9"
    assert by_name["SAD"][7:] == ["54.0", "68.4", "63.6"]


def test_intervals_are_those_of_the_report_over_posts(tool, found):
    from imhi.report.figures import figures_of

    run = found.runs["adapter"]
    assert len(set(run.datasets["MultiWD"].posts)) == 407
    whole = figures_of(run, resamples=40).datasets["MultiWD"].by_source[RULE].weighted_f1
    line = next(line for line in lines_of(tool.overview(found)) if line[0] == "MultiWD")
    assert line[6] == f"{100 * whole.value:.1f} [{100 * whole.low:.1f}, {100 * whole.high:.1f}]"


def test_the_page_has_labels_scores_and_questions_of_every_run(tool, found):
    labels = lines_of(tool.labels_table(found))[2:]
    assert [line[0] for line in labels] == [name for name in (*TRAINED, *UNTRAINED) for _ in range(6)]
    assert labels[0][2] == "base, zero-shot" and "[" in labels[0][3] and "[" in labels[0][4] and "[" in labels[0][5]
    assert labels[3][2:] == ["ChatGPT, zero-shot (published)", "", "82.4", "", ""]
    header, _, *scores = lines_of(tool.scores_table(found))
    assert header == ["test set", "model", "ROUGE-1", "ROUGE-L", "BLEU", "mean new tokens"]
    dr = found.runs["base-zero-shot"].datasets["DR"]
    assert scores[0] == [
        "DR",
        "base, zero-shot",
        *(f"{dr.scores[name].value:.4f}" for name in ("rouge1", "rougeL", "bleu")),
        f"{sum(dr.new_tokens) / len(dr):.1f}",
    ]
    aspects = lines_of(tool.aspects_table(found))[2:]
    assert len(aspects) == (6 + 2) * 3
    assert {line[1] for line in aspects} == {*DATASETS["MultiWD"].aspects, *DATASETS["Irf"].aspects}
    for name, rows in (("MultiWD", 2441), ("Irf", 2113)):
        assert sum(int(line[2].replace(",", "")) for line in aspects if line[0] == name) == 3 * rows
    multiwd = found.runs["adapter"].datasets["MultiWD"]
    own = [at for at, aspect in enumerate(multiwd.aspects) if aspect == "social"]
    right = [multiwd.labels[RULE].predicted[at] == multiwd.gold[at] for at in own]
    line = next(line for line in aspects if line[1] == "social" and line[4] == "our adapter")
    assert line[5].startswith(f"{100 * sum(right) / len(own):.1f} [")


def test_the_bars_follow_from_the_numbers(tool, found):
    lines = lines_of(tool.bars(found))[2:]
    unparsed = sum(results.correctness().unparsed for results in found.runs["adapter"].datasets.values())
    assert lines[0][1:] == ["under 2 %", f"{100 * unparsed / 8169:.2f} % ({unparsed:,} of 8,169)", "**no**"]
    gain = found.mean("adapter", found.sets) - found.mean("base-zero-shot", found.sets)
    assert lines[1][2].startswith(f"{gain:+.1f} [+") and lines[1][3] == "yes"
    apart = [found.mean("adapter", sets) - found.mean("base-zero-shot", sets) for sets in (TRAINED, UNTRAINED)]
    assert [line[2] for line in lines[2:4]] == [f"{gained:+.1f}" for gained in apart]
    chatgpt = PUBLISHED[0].weighted_f1
    above = [
        name
        for name, results in found.runs["adapter"].datasets.items()
        if 100 * results.correctness().weighted_f1 > chatgpt[name]
    ]
    assert above
    assert lines[4][2] == f"{len(above)} of 8 ({', '.join(above)})"
    assert lines[4][3] == ("yes" if len(above) >= 4 else "**no**")


def test_documents_are_written_and_then_hold(tool, checkout, capsys):
    root = ["--root", str(checkout)]
    assert tool.main([*root, "--check"]) == 1
    assert "README.md: differs from the kept runs" in capsys.readouterr().err
    assert tool.main(root) == 0
    readme = (checkout / "README.md").read_text(encoding="utf-8")
    assert readme.startswith("Before.\n") and readme.endswith("After.\n") and "| DR | 405 |" in readme
    page = (checkout / "docs" / "results.md").read_text(encoding="utf-8")
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        f"## {title}"
        for title in ("Bars", "Labels", "Scores", "Question by question", "How the runs were made", "Published values")
    ]
    assert tool.main([*root, "--check"]) == 0
    (checkout / "README.md").write_text(readme.replace("| DR | 405 |", "| DR | 406 |"), encoding="utf-8")
    assert tool.main([*root, "--check"]) == 1


def test_runs_that_cannot_be_put_in_a_table_are_refused(tool, checkout, tmp_path):
    with pytest.raises(UserError, match="no base-zero-shot, adapter; `imhi keep"):
        tool.read_runs(tmp_path)
    runs = tmp_path / "results"
    shutil.copytree(checkout / tool.FOLDER, runs)
    path = runs / "adapter" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**manifest, "kept": {**manifest["kept"], "made_up": True}}), encoding="utf-8")
    with pytest.raises(UserError, match="made-up sample rows"):
        tool.read_runs(runs)
    digests = manifest["kept"]["datasets"]
    digests["SAD"]["file_digest"] = "sha256:another"
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UserError, match=r"SAD: .* of other gold texts"):
        tool.read_runs(runs)
    del digests["SAD"]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UserError, match=r"adapter: DR, .*; base-zero-shot has DR"):
        tool.read_runs(runs)
    save_run(tmp_path / "some" / "adapter", {"SAD": random_rows("SAD", 9)})
    shutil.rmtree(runs / "adapter")
    keep_run(read_results(tmp_path / "some" / "adapter"), runs)
    with pytest.raises(UserError, match="SAD has 9 rows of 684"):
        tool.read_runs(runs)


def test_a_document_without_the_markers_is_named(tool, tmp_path):
    (tmp_path / "README.md").write_text("Nothing.\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"README\.md: no block <!-- results: tools/make_results_table\.py -->"):
        tool.main(["--root", str(tmp_path)])


@pytest.mark.skipif(not (ROOT / "docs" / "results").is_dir(), reason="no runs are kept in docs/results yet")
def test_the_shipped_documents_say_what_the_kept_runs_say(tool):
    assert tool.main(["--check"]) == 0
