"""`imhi run`: four stages behind one command, each left alone once it is done."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from imhi.cli import main
from imhi.commands.run import default_name
from imhi.data import samples_root

FILES = {
    "generate": ["responses.jsonl", "manifest.json", "DR.csv", "SAD.csv"],
    "label": ["correctness.json", "results.txt", "labels/DR.csv", "labels/labels.json", "labels/correctness.json"],
    "score": ["scores.json", "scores/DR.csv"],
    "report": ["report.html", "report.md", "report.tex", "report.json"],
}


def command(model: Path, output: Path, *more: str) -> list[str]:
    data = ["--data_root", str(samples_root()), "--datasets", "DR", "SAD", "--limit", "3", "--max_new_tokens", "8"]
    return ["run", "--model_path", str(model), "--model_output_path", f"{output}", *data, *more]


@pytest.fixture(scope="module")
def finished(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline") / "run"
    assert main(command(tiny_llama, folder)) == 0
    return folder


@pytest.fixture
def done(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def times(folder: Path) -> dict[str, dict[str, int]]:
    return {stage: {name: (folder / name).stat().st_mtime_ns for name in names} for stage, names in FILES.items()}


def changed(before: dict[str, dict[str, int]], folder: Path) -> set[str]:
    """Files of labels, scores and report that were written again since."""
    after = times(folder)
    return {
        name
        for stage in ("label", "score", "report")
        for name in FILES[stage]
        if after[stage][name] != before[stage][name]
    }


def test_every_stage_leaves_its_files(finished: Path) -> None:
    assert [name for names in FILES.values() for name in names if not (finished / name).exists()] == []
    scores = json.loads((finished / "scores.json").read_text())["scores"]["response"]
    assert set(scores) == {"DR", "SAD"} and set(scores["DR"]) == {"bleu", "rouge", "bert_score"}


def test_a_second_run_computes_nothing(tiny_llama: Path, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = times(done)
    assert main(command(tiny_llama, done)) == 0
    # Figures by rule cost nothing and are written again.
    assert changed(before, done) <= {"correctness.json", "results.txt", "labels/correctness.json"}
    told = capsys.readouterr().err
    assert "all 6 rows were generated before" in told and "made of the same answers, labels and scores" in told
    assert told.count("already labelled") == 2 and "kept from before for DR, SAD" in told


def test_a_stage_is_repeated_alone(tiny_llama: Path, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = times(done)
    assert main(command(tiny_llama, done, "--from", "score", "--to", "score")) == 0
    assert changed(before, done) == {"scores.json", "scores/DR.csv"}
    assert "1 of 1: score" in capsys.readouterr().err


def test_an_earlier_stage_is_not_looked_at(done: Path, tmp_path: Path) -> None:
    """Where the model is gone, what it said can still be scored and reported."""
    before = times(done)
    assert main(command(tmp_path / "no model here", done, "--from", "score")) == 0
    assert "scores.json" in changed(before, done)


def test_changed_labels_make_a_new_report(tiny_llama: Path, done: Path) -> None:
    before = times(done)
    for name in ("labels", "scores"):
        shutil.rmtree(done / name)
    (done / "scores.json").unlink()
    assert main(command(tiny_llama, done, "--score_method", "rouge")) == 0
    assert {"labels/DR.csv", "scores.json", "report.html"} <= changed(before, done)


def test_stages_in_the_wrong_order_are_refused(
    tiny_llama: Path, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tiny_llama, done, "--from", "report", "--to", "label")) == 2
    assert "nothing lies between them" in capsys.readouterr().err


def test_a_stage_without_its_inputs_is_refused(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tiny_llama, tmp_path / "nothing", "--from", "label")) == 2
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "lora", "suite", "name"),
    [
        (None, None, "IMHI", "imhi-smollm2"),
        ("klyang/MentaLLaMA-chat-7B-hf", None, "IMHI", "MentaLLaMA-chat-7B-hf"),
        ("/models/vicuna 33b/", "klyang/lora", "IMHI-completion", "vicuna_33b-lora-IMHI-completion"),
        (None, "adapters/mine", "IMHI", "mine"),
    ],
)
def test_a_run_is_named_after_what_ran(model: str | None, lora: str | None, suite: str, name: str) -> None:
    assert default_name(model, lora, suite) == name


def test_flags_that_a_later_stage_cannot_honour_are_refused(
    tiny_llama: Path, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tiny_llama, done, "--from", "report", "--overwrite")) == 2
    assert "--overwrite discards the responses" in capsys.readouterr().err
    assert main(command(tiny_llama, done, "--from", "report", "--test_dataset", "expert")) == 2
    assert "holds answers to IMHI, not to expert" in capsys.readouterr().err


def test_changed_data_make_a_new_report(tiny_llama: Path, done: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for top in ("test_data", "train_data"):
        shutil.copytree(samples_root() / top, root / top)
    assert main(command(tiny_llama, done, "--data_root", str(root))) == 0
    before = times(done)
    assert main(command(tiny_llama, done, "--data_root", str(root))) == 0 and "report.html" not in changed(before, done)
    train = next((root / "train_data").rglob("*.csv"))
    train.write_bytes(train.read_bytes() + train.read_bytes().splitlines(keepends=True)[1])
    assert main(command(tiny_llama, done, "--data_root", str(root))) == 0
    assert "report.html" in changed(before, done)


def test_labels_changed_by_hand_are_not_taken_for_the_classifiers(tiny_llama: Path, done: Path) -> None:
    path = done / "labels" / "DR.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("0.", "0.1", 1), encoding="utf-8")
    assert main(["report", str(done), "--data_root", str(samples_root())]) == 0
    assert "changed since labels.json" in (done / "report.md").read_text(encoding="utf-8")
