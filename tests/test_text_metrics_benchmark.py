"""The benchmark of the text metrics runs, both sides find the same values, and its ratios follow from its turns."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from imhi.data import resolve_data_root
from imhi.errors import UserError

ROOT = Path(__file__).parents[1]
TINY_BERT = str(ROOT / "tests" / "fixtures" / "tiny_bert")


@pytest.fixture
def benchmark(monkeypatch):
    pytest.importorskip("nltk")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("text_metrics")


def test_pairs_are_answers_of_one_dataset_evenly_spaced(benchmark):
    root = resolve_data_root(None)
    generated, golds = benchmark.read_pairs(root, None)
    assert len(generated) == len(golds) > 90
    assert not any(text == gold for text, gold in zip(generated, golds, strict=True))
    some, _ = benchmark.read_pairs(root, 10)
    assert some == [generated[number * len(generated) // 10] for number in range(10)]
    assert benchmark.read_pairs(root, 10**6) == (generated, golds)


@pytest.mark.parametrize(
    ("flags", "values"),
    [
        (["--stage", "overlap"], {"rouge1", "rouge2", "rougeL", "bleu"}),
        (
            ["--stage", "bertscore", "--bert_model", TINY_BERT, "--num_layers", "2"],
            {"bert_f1", "bert_precision", "bert_recall"},
        ),
    ],
)
def test_both_sides_find_the_same_values(benchmark, flags, values, tmp_path, capsys):
    out = tmp_path / "made" / "out.json"
    assert benchmark.run(benchmark.parse([*flags, "--rows", "7", "--repeats", "1", "--out", str(out)])) == 0
    result = json.loads(out.read_text(encoding="utf-8"))
    assert [turn["side"] for turn in result["turns"]] == ["reference", "toolkit"]
    assert all(set(turn["values"]) == values for turn in result["turns"])
    assert result["rows"] == 7 and result["machine"]["cores"] >= 1 and result["environment"]["python"]
    for side in ("reference", "toolkit"):
        assert result["peak_memory_bytes"][side] > 1e7
        assert result["rows_per_second"][side] == pytest.approx(7 / result["seconds"][side])
    assert result["ratio"] == pytest.approx(result["seconds"]["reference"] / result["seconds"]["toolkit"])
    stdout = capsys.readouterr().out
    assert "7 pairs (sample rows, made up" in stdout and f"{result['ratio']:.1f}" in stdout


def test_sides_that_disagree_are_no_comparison(benchmark):
    turns = [{"side": "reference", "values": {"bleu": 0.5}}, {"side": "toolkit", "values": {"bleu": 0.51}}]
    benchmark.refuse_different(turns, 0.02)
    for wrong in (0.51, float("nan")):
        turns[1]["values"] = {"bleu": wrong}
        with pytest.raises(UserError, match=r"bleu: reference found 0\.5"):
            benchmark.refuse_different(turns, 1e-12)


def test_without_the_reference_packages_one_line_says_what_to_install(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install '\.\[bench\]'"):
        benchmark.run(benchmark.parse(["--rows", "1"]))
