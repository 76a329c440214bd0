"""Scoring a folder: resume, damage, strays, counts, the files a user reads, the command line's answers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from imhi.commands import run_script
from imhi.data import write_table
from imhi.errors import UserError
from imhi.metrics import METRICS
from imhi.metrics.bleu import Bleu
from imhi.metrics.rouge import Rouge
from imhi.scoring import explanation_of, read_scores, score_folder, score_table

TINY_BERT = str(Path(__file__).parent / "fixtures" / "tiny_bert")

DR = [
    (
        "Yes. Reasoning: They cannot sleep and see no way out.",
        "Yes. Reasoning: The poster cannot sleep and sees no way out.",
    ),
    ("No. Reasoning: A recipe for soup.", ""),
    ("No. Reasoning: A question about bicycles.", "None"),
    ("Yes. Reasoning: They feel left out.", "They feel left out, I think."),
]
SAD = [
    ("work. Reasoning: The manager adds shifts.", "work. Reasoning: The manager adds shifts."),
    ("school. Reasoning: The exam is near.", 'a "quoted", line\nbroken\r\nanswer with a \\ in it'),
]


def write_responses(folder: Path, name: str, rows: Sequence[tuple[str, str]]) -> None:
    write_table(folder / f"{name}.csv", ["goldens", "generated_text"], rows)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads of a tiny model only wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    write_responses(folder, "DR", DR)
    write_responses(folder, "SAD", SAD)
    return folder


class CountingBleu(Bleu):
    """BLEU that tells how many pairs it was asked for."""

    def __init__(self) -> None:
        self.pairs = 0

    def _statistics(self, pairs, advance: Callable[[int], object]):
        self.pairs += len(pairs)
        return super()._statistics(pairs, advance)


def test_values_rows_and_counts(run):
    results = score_folder(run, [Bleu(), Rouge()])
    assert list(results) == ["DR", "SAD"]
    entry = results["DR"]["rouge"]
    golds, answers = zip(*DR, strict=True)
    expected = Rouge().score(list(answers), list(golds))
    assert entry["values"] == expected.values
    assert entry["rows"] == 4 and entry["empty_answers"] == 1 and entry["empty_golds"] == 0
    assert entry["signature"] == str(expected.signature) and entry["empty_rule"] == "0"
    assert read_scores(run)["response"] == results
    document = json.loads((run / "scores.json").read_text(encoding="utf-8"))
    assert document["environment"]["libraries"]["rapidfuzz"]


def test_rows_are_read_by_pandas(run):
    import pandas as pd

    results = score_folder(run, [Rouge(), Bleu()])
    rows = pd.read_csv(run / "scores" / "DR.csv")
    assert list(rows.columns) == ["row", "bleu", "rouge1", "rouge2", "rougeL"]
    assert rows["row"].tolist() == [0, 1, 2, 3]
    assert rows["rouge1"].mean() == pytest.approx(results["DR"]["rouge"]["values"]["rouge1"], abs=1e-12)
    assert rows.notna().all().all()


def test_a_second_run_computes_nothing(run, capsys):
    score_folder(run, [Bleu()])
    before = [(run / name).read_bytes() for name in ("scores.json", "scores/DR.csv")]
    again = CountingBleu()
    assert score_folder(run, [again]) == read_scores(run)["response"]
    assert again.pairs == 0
    assert [(run / name).read_bytes() for name in ("scores.json", "scores/DR.csv")] == before
    assert "bleu: kept from before for DR, SAD" in capsys.readouterr().err
    score_folder(run, [again], overwrite=True)
    assert again.pairs == 6


def test_changed_texts_are_scored_again_and_old_values_of_them_dropped(run, capsys):
    score_folder(run, [Bleu(), Rouge()])
    write_responses(run, "DR", [*DR[:1], ("No. Reasoning: A recipe for soup.", "No. Reasoning: soup."), *DR[2:]])
    again = CountingBleu()
    score_folder(run, [again])
    assert again.pairs == 4
    assert list(read_scores(run)["response"]["DR"]) == ["bleu"]
    assert list(read_scores(run)["response"]["SAD"]) == ["bleu", "rouge"]
    assert "DR: dropped rouge" in capsys.readouterr().err
    assert (run / "scores" / "DR.csv").read_text().startswith("row,bleu\n")


def test_another_signature_is_scored_again(run):
    score_folder(run, [METRICS["bert_score"](model=TINY_BERT, num_layers=2)])
    first = read_scores(run)["response"]["DR"]["bert_score"]
    score_folder(run, [METRICS["bert_score"](model=TINY_BERT, num_layers=3)])
    second = read_scores(run)["response"]["DR"]["bert_score"]
    assert "layer:2" in first["signature"] and "layer:3" in second["signature"]
    assert first["values"] != second["values"]
    # Device and batch size are no part of the signature.
    kept = score_folder(run, [METRICS["bert_score"](model=TINY_BERT, num_layers=3, batch_size=1)])
    assert kept["DR"]["bert_score"] == second


def test_lost_or_edited_rows_are_scored_again(run, capsys):
    score_folder(run, [Bleu(), Rouge()])
    file = run / "scores" / "DR.csv"
    file.write_text(file.read_text().replace("\n1,0.0", "\n1,0.5"))
    again = CountingBleu()
    score_folder(run, [again, Rouge()])
    assert again.pairs == 4
    assert "are not those of scores.json; scoring anew" in capsys.readouterr().err
    shutil.rmtree(run / "scores")
    score_folder(run, [again, Rouge()])
    assert again.pairs == 4 + 6
    assert file.read_text().startswith("row,bleu,rouge1")


class Dies(Rouge):
    """A metric that fails on the second dataset, as a killed process would."""

    def _statistics(self, pairs, advance):
        if any("manager" in gold for _, gold in pairs):
            raise OSError("power cut")
        return super()._statistics(pairs, advance)


def test_a_crash_loses_only_what_was_in_flight(run):
    with pytest.raises(OSError, match="power cut"):
        score_folder(run, [Bleu(), Dies()])
    scores = read_scores(run)["response"]
    assert list(scores["DR"]) == ["bleu", "rouge"] and list(scores["SAD"]) == ["bleu"]
    again = CountingBleu()
    results = score_folder(run, [again, Rouge()])
    assert again.pairs == 0 and list(results["SAD"]) == ["bleu", "rouge"]
    assert not list(run.rglob("*.part"))


def test_another_process_s_entries_are_kept(run):
    """Two processes score one folder: what the other wrote meanwhile stays."""

    class Meanwhile(Bleu):
        def _statistics(self, pairs, advance):
            score_folder(run, [Rouge()])
            return super()._statistics(pairs, advance)

    score_folder(run, [Meanwhile()])
    assert list(read_scores(run)["response"]["DR"]) == ["bleu", "rouge"]
    assert (run / "scores" / "DR.csv").read_text().startswith("row,bleu,rouge1")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("damage", ["{", "[]", '{"format": "other"}', "\ufffd"])
def test_a_damaged_score_file_is_one_line_before_any_work(run, damage, overwrite):
    (run / "scores.json").write_text(damage)
    counted = CountingBleu()
    with pytest.raises(UserError, match=r"scores\.json: not (readable|a score file).*score again") as raised:
        score_folder(run, [counted], overwrite=overwrite)
    assert "\n" not in str(raised.value) and counted.pairs == 0


def test_explanations(run, capsys):
    assert explanation_of("Yes. Reasoning: a Reasoning: b ") == ("a Reasoning: b", True)
    assert explanation_of("no marker") == ("no marker", False)
    assert explanation_of("Reasoning:") == ("", True)
    results = score_folder(run, [Rouge()], target="explanation")
    entry = results["DR"]["rouge"]
    assert entry["answers_without_reasoning"] == 3 and entry["golds_without_reasoning"] == 0
    assert entry["empty_answers"] == 1
    alone = Rouge().score([DR[0][1].partition("Reasoning: ")[2]], [DR[0][0].partition("Reasoning: ")[2]])
    rows = (run / "scores" / "DR.csv").read_text().splitlines()
    assert rows[0] == "row,rouge1_explanation,rouge2_explanation,rougeL_explanation"
    assert rows[1].split(",")[1] == repr(alone.row_values["rouge1"][0])
    # Both targets live side by side.
    score_folder(run, [Rouge()])
    assert set(read_scores(run)) == {"response", "explanation"}
    assert "unmarked" in score_table(results)
    assert "dropped" not in capsys.readouterr().err


def test_stray_files_are_left_aside_and_named(run, capsys):
    (run / "notes.txt").write_text("x")
    (run / "summary.csv").write_text("a,b\n1,2\n")
    (run / "manifest.json").write_text("{}")
    assert list(score_folder(run, [Bleu()], datasets=["DR"])) == ["DR"]
    told = capsys.readouterr().err
    assert "left aside notes.txt, summary.csv (" in told and "manifest" not in told


def test_a_broken_file_stops_before_any_work(run):
    (run / "SAD.csv").write_text('goldens,generated_text\n"never closed,x\n')
    counted = CountingBleu()
    with pytest.raises(UserError, match=r"SAD\.csv, row 1"):
        score_folder(run, [counted])
    assert counted.pairs == 0


def test_a_value_that_is_not_finite_is_an_error(run):
    class Broken(Rouge):
        def _statistics(self, pairs, advance):
            return [(0.0, 0.0, float("nan"))] * len(pairs)

    with pytest.raises(UserError, match="rouge on DR, row 1: rougeL is nan") as raised:
        score_folder(run, [Broken()])
    assert raised.value.code == 1 and not (run / "scores.json").exists()


def test_a_row_that_alone_does_not_fit_in_memory(run):
    class Full(Rouge):
        def _statistics(self, pairs, advance):
            raise RuntimeError("CUDA out of memory")

    with pytest.raises(UserError, match="rouge on DR: memory ran out") as raised:
        score_folder(run, [Full()])
    assert raised.value.code == 1


def test_the_command_prints_a_table(run, capsys):
    assert run_script("score", ["--gen_dir_name", str(run), "--score_method", "rouge"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["dataset", "rows", "empty", "rouge1", "rouge2", "rougeL"]
    assert out[2].split()[:3] == ["DR", "4", "1"]
    assert "rouge: an empty answer scores 0" in out
    assert out[-1].startswith("rouge|types:rouge1+rouge2+rougeL|")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--score_method", "bleu", "--datasets", "CAMS"], "no file for CAMS"),
        (["--score_method", "bleu", "--num_layers", "4"], "--num_layers has no effect"),
        (["--score_method", "bert_score", "--bert_model", TINY_BERT], "--num_layers"),
        (["--score_method", "all", "--bart_model", "/nowhere/bart"], "--bart_model: no file or folder"),
        (["--score_method", "all", "--bert_model", "embedded:other"], "no embedded model"),
    ],
)
def test_mistakes_end_with_status_2_one_line_and_no_file(run, capsys, arguments, message):
    assert run_script("score", ["--gen_dir_name", str(run), *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    errors = [line for line in told.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and message in errors[0], told.err
    assert not (run / "scores.json").exists()


@pytest.mark.parametrize(
    ("given", "device", "asked"),
    [([], "cpu", "float32"), ([], "cuda:0", "auto"), (["--dtype", "float16"], "cuda:0", "float16")],
)
def test_the_number_format_suits_the_device(run, monkeypatch, given, device, asked):
    """What a metric is made with; it records what "auto" comes to."""
    made: dict[str, object] = {}

    def stop(**options: object) -> object:
        made.update(options)
        raise UserError("enough")

    monkeypatch.setattr("imhi.devices.pick_device", lambda **_: device)
    monkeypatch.setitem(METRICS, "bart_score", stop)
    assert run_script("score", ["--gen_dir_name", str(run), *given]) == 2
    assert (made["device"], made["dtype"]) == (device, asked) and "batch_size" not in made


def test_the_help_says_the_default_number_format(capsys):
    for command in ("score", "label"):
        with pytest.raises(SystemExit):
            run_script(command, ["--help"])
        told = " ".join(capsys.readouterr().out.split())
        assert "(default float32 on the CPU, auto on a GPU; auto: bfloat16 where" in told


def test_the_script_runs_from_any_folder(run, tmp_path):
    script = Path(__file__).parents[1] / "src" / "score.py"
    (tmp_path / "model_output").mkdir()
    run.rename(tmp_path / "model_output" / "run")
    command = [sys.executable, str(script), "--gen_dir_name", "run", "--score_method", "bleu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("dataset") and (tmp_path / "model_output" / "run" / "scores.json").exists()
