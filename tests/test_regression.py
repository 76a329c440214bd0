"""Checking a run against a baseline: what moved, what may move, what may not be compared; and our own examples."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imhi import __version__
from imhi.benchmark import DATASETS
from imhi.cli import main
from imhi.commands import run_script
from imhi.data import write_table
from imhi.errors import UserError
from imhi.metrics import METRICS
from imhi.metrics.rouge import Rouge
from imhi.regression import (
    Tolerance,
    baseline_of,
    check_run,
    check_table,
    parse_tolerances,
    read_baseline,
    with_text_metrics,
)
from imhi.results import RunResults, read_results
from imhi.scoring import score_folder

ROOT = Path(__file__).parents[1]
GOLD = [
    ("Yes, the poster suffers from depression." if at % 2 else "No, the poster does not suffer from depression.")
    + f" Reasoning: It is about item {at} and its long story."
    for at in range(20)
]
# Rows 1 and 2 are wrong.
ANSWERS = [GOLD[1], GOLD[0], *GOLD[2:]]


def write_run(folder: Path, answers: list[str], gold: list[str] = GOLD, labels: list[str] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    columns = [gold, answers, *([labels] if labels else [])]
    names = ("goldens", "generated_text", "labels")[: len(columns)]
    write_table(folder / "DR.csv", names, zip(*columns, strict=True))
    return folder


def read(folder: Path) -> RunResults:
    return with_text_metrics(read_results(folder))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", ANSWERS, labels=["yes" if at % 2 else "no" for at in range(20)])


@pytest.fixture
def baseline(run: Path, tmp_path: Path) -> Path:
    path = tmp_path / "baseline.json"
    assert run_script("check", [str(run), "--baseline", str(path), "--update"]) == 0
    return path


def check(run: Path, baseline: Path, *flags: str) -> int:
    return run_script("check", [str(run), "--baseline", str(baseline), *flags])


# --- what a baseline holds --------------------------------------------------------------------------------------------


def test_a_baseline_holds_figures_with_their_standard_errors(run, baseline):
    entry = json.loads(baseline.read_text(encoding="utf-8"))["datasets"]["DR"]
    results = read_results(run).datasets["DR"]
    expected = results.correctness()
    accuracy = entry["figures"]["accuracy"]
    assert accuracy["value"] == pytest.approx(expected.accuracy) == pytest.approx(0.9)
    assert accuracy["standard_error"] == pytest.approx(np.sqrt(0.9 * 0.1 / 20), rel=0.05)
    assert accuracy["versions"] == {"imhi": __version__}
    assert entry["figures"]["weighted_f1"]["value"] == pytest.approx(expected.weighted_f1, abs=1e-12)
    assert entry["figures"]["classifier_accuracy"]["value"] == 1
    assert entry["figures"]["bleu"]["value"] == METRICS["bleu"]().score(ANSWERS, GOLD).values["bleu"]
    assert (entry["rows"], entry["rows_digest"]) == (20, results.rows_digest)
    assert GOLD[3] not in baseline.read_text(encoding="utf-8")


def test_rows_on_one_post_widen_the_standard_errors(run):
    found = read(run)
    alone = baseline_of(found)["datasets"]["DR"]
    dr = replace(found.datasets["DR"], posts=[f"post {at // 2}" for at in range(20)])
    together = baseline_of(replace(found, datasets={"DR": dr}))["datasets"]["DR"]
    assert (alone["units"], together["units"]) == (20, 10)
    errors = [entry["figures"]["accuracy"]["standard_error"] for entry in (alone, together)]
    assert errors[1] == pytest.approx(errors[0] * 2**0.5, rel=0.1)


# --- exit status ------------------------------------------------------------------------------------------------------


def test_the_same_run_passes(run, baseline, capsys):
    assert check(run, baseline) == 0
    assert capsys.readouterr().out.endswith("\npassed\n")


def test_a_worse_answer_is_a_regression_and_is_told_in_standard_errors(run, baseline, capsys):
    write_run(run, [*ANSWERS[:5], GOLD[6], *ANSWERS[6:]], labels=["yes" if at % 2 else "no" for at in range(20)])
    assert check(run, baseline) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:2] == ["DR", "accuracy"])
    before, after, moved, errors, verdict = line.split()[2:]
    error = read_baseline(baseline)["datasets"]["DR"]["figures"]["accuracy"]["standard_error"]
    assert (before, after, moved, verdict) == ("0.900000", "0.850000", "-0.050000", "REGRESSION")
    assert float(errors) == pytest.approx(-0.05 / error, abs=0.006)


def test_a_better_run_passes_and_can_be_kept(run, baseline, capsys):
    write_run(run, GOLD, labels=["yes" if at % 2 else "no" for at in range(20)])
    assert check(run, baseline) == 0
    printed = capsys.readouterr().out
    assert "figures are better than the baseline, --update keeps them" in printed
    assert "REGRESSION" not in printed
    assert check(run, baseline, "--update") == 0
    capsys.readouterr()
    assert check(run, baseline) == 0
    assert capsys.readouterr().out.endswith("\npassed\n")
    assert read_baseline(baseline)["datasets"]["DR"]["figures"]["accuracy"]["value"] == 1


def test_a_tolerance_lets_a_figure_fall_so_far_and_no_farther(run, baseline):
    write_run(run, [*ANSWERS[:5], GOLD[6], *ANSWERS[6:]], labels=["yes" if at % 2 else "no" for at in range(20)])
    rest = ["bleu=1", "rouge=1", "weighted_f1=1", "macro_f1=1"]
    assert check(run, baseline, "--tolerance", "accuracy=0.05", *rest) == 0
    assert check(run, baseline, "--tolerance", "accuracy=0.049", *rest) == 1
    assert check(run, baseline, "--tolerance", "all=5se") == 0
    assert check(run, baseline, "--tolerance", "all=5se", "accuracy=0.1se") == 1
    assert check(run, baseline, "--tolerance", "all=5se", "rouge=0") == 1


def test_other_rows_are_a_changed_definition(run, baseline, capsys):
    labels = ["yes" if at % 2 else "no" for at in range(20)]
    write_run(run, ANSWERS, [GOLD[0] + " ", *GOLD[1:]], labels)
    assert check(run, baseline) == 2
    assert "changed: DR: other rows or gold texts (20 rows, 20 in the baseline)" in capsys.readouterr().out
    write_run(run, ANSWERS[:9], GOLD[:9], labels[:9])
    assert check(run, baseline) == 2
    assert "(9 rows, 20 in the baseline)" in capsys.readouterr().out


def test_a_missing_dataset_or_figure_is_a_changed_definition(run, baseline, capsys):
    write_run(run, ANSWERS)
    assert check(run, baseline) == 2
    assert f"changed: DR: no classifier_accuracy in {run}" in capsys.readouterr().out
    (run / "DR.csv").rename(run / "CLP.csv")
    assert check(run, baseline) == 2
    printed = capsys.readouterr().out
    assert f"changed: DR: not in {run}" in printed
    assert "note: not in the baseline: CLP" in printed


def test_another_signature_is_a_changed_definition_and_another_version_is_not(run, baseline, capsys):
    document = json.loads(baseline.read_text(encoding="utf-8"))
    bleu = document["datasets"]["DR"]["figures"]["bleu"]
    bleu["versions"]["imhi"] = "0.0.1"
    baseline.write_text(json.dumps(document), encoding="utf-8")
    assert check(run, baseline) == 0
    assert f"note: other software than the baseline's: imhi 0.0.1 -> {__version__}" in capsys.readouterr().out
    bleu["definition"] = bleu["definition"].replace("tok:13a", "tok:intl")
    baseline.write_text(json.dumps(document), encoding="utf-8")
    assert check(run, baseline) == 2
    assert "changed: DR: bleu is another figure, bleu|level:corpus|order:4|tok:intl" in capsys.readouterr().out


def test_a_changed_definition_outweighs_a_regression(run, baseline):
    write_run(run, [*ANSWERS[:5], GOLD[6], *ANSWERS[6:]])
    found = check_run(read(run), read_baseline(baseline))
    assert found.regressions and found.changed
    assert found.exit_status == 2


def test_a_new_figure_passes_and_is_told(run, baseline):
    document = read_baseline(baseline)
    del document["datasets"]["DR"]["figures"]["rouge2"]
    found = check_run(read(run), document)
    assert found.exit_status == 0
    assert "DR: not in the baseline: rouge2 (--update adds them)" in found.notes


def test_rule_labels_and_text_metrics_are_computed_anew(run, baseline, monkeypatch, capsys):
    """What a score file says of ROUGE does not count, and another rule shows."""

    class Flattering(Rouge):
        def _statistics(self, pairs, advance):
            return [(1.0, 1.0, 1.0) for _ in pairs]

    score_folder(run, [Flattering()])
    assert read_results(run).datasets["DR"].scores["rouge1"].value == 1
    assert check(run, baseline) == 0
    assert capsys.readouterr().out.endswith("\npassed\n")
    monkeypatch.setattr("imhi.results.label_by_rule", lambda dataset, text: "no")
    assert check(run, baseline) == 1


def test_scores_by_a_model_are_taken_from_the_folder_and_may_differ_by_rounding(run):
    found = read(run)
    dr = found.datasets["DR"]
    column = replace(
        dr.scores["rouge1"],
        metric="bert_score",
        name="bert_f1",
        signature="bert_score|model:m|layer:5|torch:2.13.0|transformers:5.23.0|imhi:0.1.0",
    )

    def shifted(by: float) -> RunResults:
        rows = [value + by for value in column.rows]
        scores = {**dr.scores, "bert_f1": replace(column, rows=rows)}
        return replace(found, datasets={"DR": replace(dr, scores=scores)})

    document = baseline_of(shifted(0))
    assert document["datasets"]["DR"]["figures"]["bert_f1"]["versions"]["torch"] == "2.13.0"
    assert check_run(shifted(-5e-5), document).exit_status == 0
    assert check_run(shifted(-2e-4), document).exit_status == 1
    assert "bert_f1" in with_text_metrics(shifted(0)).datasets["DR"].scores


def test_explanations_are_scored_where_the_folder_scores_them(run, tmp_path):
    score_folder(run, [METRICS["rouge"]()], target="explanation")
    path = tmp_path / "with.json"
    assert check(run, path, "--update") == 0
    figures = read_baseline(path)["datasets"]["DR"]["figures"]
    explained = (
        [text.partition("Reasoning:")[2] for text in ANSWERS],
        [text.partition("Reasoning:")[2] for text in GOLD],
    )
    assert figures["bleu_explanation"]["value"] == pytest.approx(METRICS["bleu"]().score(*explained).values["bleu"])
    assert check(run, path) == 0


def test_a_figure_without_spread_moves_by_no_number_of_standard_errors(tmp_path):
    run = write_run(tmp_path / "run", GOLD)
    document = baseline_of(read(run))
    write_run(run, ANSWERS)
    found = check_run(read(run), document)
    accuracy = next(moved for moved in found.moved if moved.key == "accuracy")
    assert accuracy.standard_errors is None and accuracy.is_regression
    assert "REGRESSION" in check_table(found, document)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["accuracy", "accuracy=", "=0.1", "accuracy=-1", "accuracy=nan", "accuracy=2sd"])
def test_a_tolerance_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="expected METRIC=VALUE"):
        parse_tolerances([text])


def test_tolerances_are_read():
    assert parse_tolerances(["a=0.1", "b=2se"]) == {"a": Tolerance(0.1), "b": Tolerance(2.0, in_standard_errors=True)}
    assert Tolerance(2.0, in_standard_errors=True).of(0.3) == pytest.approx(0.6)


def test_mistakes_are_answered_in_one_line(run, baseline, tmp_path, capsys):
    strange = tmp_path / "strange.json"
    for text, said in (("[", "not readable as JSON"), ("{}", "not a baseline of this toolkit")):
        strange.write_text(text, encoding="utf-8")
        for flags in ([], ["--update"]):
            assert check(run, strange, *flags) == 2
            assert said in capsys.readouterr().err
        assert strange.read_text(encoding="utf-8") == text
    assert check(run, tmp_path / "none.json") == 2
    assert "--update writes it from the run" in capsys.readouterr().err
    assert check(run, tmp_path / "no" / "folder.json", "--update") == 2
    assert "no folder" in capsys.readouterr().err
    assert check(run, baseline, "--tolerance", "accuracie=1") == 2
    assert "--tolerance accuracie: not a figure of the baseline" in capsys.readouterr().err
    assert check(run, baseline, "--data_root", str(tmp_path)) == 2
    assert "no effect without --update" in capsys.readouterr().err


# --- our own examples -------------------------------------------------------------------------------------------------

EXAMPLES = ROOT / "examples"
RUNS = sorted(path.name.removesuffix(".baseline.json") for path in EXAMPLES.glob("*.baseline.json"))


def test_the_examples_cover_all_ten_datasets_in_the_published_format():
    assert RUNS == ["smollm2-chat", "smollm2-raw"]
    for name in RUNS:
        found = read_results(EXAMPLES / name)
        assert list(found.datasets) == list(DATASETS)
        assert found.cautions == ()
        for results in found.datasets.values():
            header = results.path.read_text(encoding="utf-8").partition("\n")[0]
            assert header.startswith("goldens,generated_text,labels")
            assert len(results.labels["classifier"].predicted) == len(results)


@pytest.mark.parametrize("name", RUNS)
def test_the_command_passes_on_the_examples(name):
    command = [sys.executable, "-m", "imhi.cli", "check", f"examples/{name}"]
    done = subprocess.run(
        [*command, "--baseline", f"examples/{name}.baseline.json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=10,  # the bar of the command after installation
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("passed\n")


def test_the_examples_are_what_the_shipped_classifiers_and_metrics_give(tmp_path):
    """Labels and BERTScore stand in the files; computed anew they pass the same check."""
    import torch

    from imhi.demo import ENCODER
    from imhi.labelers.folders import open_labelers
    from imhi.labelling import label_folder, output_folder, read_folder

    name = RUNS[0]
    responses = read_folder(EXAMPLES / name)
    folder = output_folder(tmp_path / name, EXAMPLES / name)
    labelers = open_labelers(None, [DATASETS[dataset] for dataset in responses], device="cpu", dtype=torch.float32)
    label_folder(responses, labelers, folder)
    score_folder(folder, [METRICS["bert_score"](model=ENCODER)])
    found = check_run(read(folder), read_baseline(EXAMPLES / f"{name}.baseline.json"))
    assert (found.changed, found.regressions) == ((), ())


def test_a_broken_example_fails(tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(EXAMPLES / "smollm2-chat", folder)
    results = read_results(folder).datasets["dreaddit"]
    right = results.labels["rule"].predicted.index("yes" if "yes" in results.labels["rule"].predicted else "no")
    answers = ["" if at == right else text for at, text in enumerate(results.answers)]
    spoken = list(results.labels["classifier"].predicted)
    write_table(
        results.path, ("goldens", "generated_text", "labels"), zip(results.goldens, answers, spoken, strict=True)
    )
    assert check(folder, EXAMPLES / "smollm2-chat.baseline.json") == 2  # its BERTScore and labels are of other answers
    document = read_baseline(EXAMPLES / "smollm2-chat.baseline.json")
    for entry in document["datasets"].values():
        entry["figures"] = {
            key: figure for key, figure in entry["figures"].items() if not key.startswith(("bert_", "classifier_"))
        }
    found = check_run(read(folder), document)
    assert {moved.dataset for moved in found.regressions} == {"dreaddit"}
    assert found.exit_status == 1


@pytest.mark.parametrize("content", ['{"format": "imhi-baseline-1"}', '{"format": "imhi-baseline-1", "datasets": {}}'])
def test_a_damaged_baseline_is_no_pass_and_no_regression(tmp_path, capsys, content):
    baseline = tmp_path / "baseline.json"
    baseline.write_text(content, encoding="utf-8")
    folder = Path(__file__).parents[1] / "examples" / "smollm2-chat"
    assert main(["check", str(folder), "--baseline", str(baseline)]) == 2
    assert "damaged" in capsys.readouterr().err
