"""The benchmarks run, on tiny models, and their figures follow from what they measured."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from tiny_classifiers import save_adapter, save_bert_base, save_bert_classifier

from imhi.benchmark import DATASETS

SOURCE = Path(__file__).parents[1] / "benchmarks" / "labelling.py"


@pytest.fixture(scope="module")
def labelling():
    spec = importlib.util.spec_from_file_location("benchmark_labelling", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_samples_keep_the_proportions_and_the_order(labelling):
    files = {"DR": [f"a{row}" for row in range(100)], "SAD": [f"b{row}" for row in range(700)], "CLP": ["c"]}
    taken = labelling.sample(files, 80)
    assert {name: len(texts) for name, texts in taken.items()} == {"DR": 10, "SAD": 70, "CLP": 1}
    assert taken["DR"] == [f"a{row}" for row in range(0, 100, 10)]
    assert labelling.sample(files, None) == labelling.sample(files, 10**6) == files


def test_ratios_are_those_of_the_medians(labelling):
    turns = [
        {"published": seconds, "published_loading": 10.0, "toolkit": own, "toolkit_loading": 1.0}
        for seconds, own in ((110.0, 5.0), (10.0, 50.0), (210.0, 6.0))
    ]
    found = labelling.summary(turns, 300)
    assert found["seconds"]["published"] == 110.0 and found["seconds"]["toolkit"] == 6.0
    assert found["rows_per_second"] == {"published": 2.73, "toolkit": 50.0}
    assert (found["ratio"], found["ratio_after_loading"]) == (18.33, 20.0)


def test_both_sides_label_the_same_rows(labelling, tmp_path, monkeypatch, capsys):
    base = save_bert_base(tmp_path / "base")
    for name in DATASETS:
        save_adapter(tmp_path / "adapters" / name, name, base)
    monkeypatch.setattr(labelling, "save_checkpoint", lambda folder: save_bert_classifier(folder, "DR"))
    flags = ["--rows", "20", "--repeats", "2", "--adapters", tmp_path / "adapters", "--out", tmp_path / "made/out.json"]
    assert labelling.run(labelling.parse([str(flag) for flag in flags])) == 0
    result = json.loads((tmp_path / "made" / "out.json").read_text())
    assert result["rows"] == {"all": 21, **dict.fromkeys(DATASETS, 2), "MultiWD": 3}
    assert len(result["turns"]) == 2 and all(turn["published"] > turn["published_loading"] for turn in result["turns"])
    assert result["machine"]["threads"] >= 1 and result["environment"]["libraries"]["torch"]
    stdout = capsys.readouterr().out
    assert "sample rows, made up" in stdout and f"{result['ratio']:.1f}" in stdout
