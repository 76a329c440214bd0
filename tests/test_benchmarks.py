"""The benchmark of labelling runs, on tiny models, and its figures follow from what it measured."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from tiny_classifiers import save_adapter, save_bert_base, save_bert_classifier

from imhi.benchmark import DATASETS

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def labelling():
    spec = importlib.util.spec_from_file_location("benchmark_labelling", FOLDER / "labelling.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        # As where the script is run: its folder first, for `measuring`.
        patch.setattr(sys, "path", [str(FOLDER), *sys.path])
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
        {"side": side, "seconds": seconds, "loading_seconds": loading, "peak_memory": 10**9}
        for published, own in ((110.0, 5.0), (10.0, 50.0), (210.0, 6.0))
        for side, seconds, loading in (("published", published, 10.0), ("toolkit", own, 1.0))
    ]
    found = labelling.summary(turns, 300)
    published, own = found["sides"]["published"], found["sides"]["toolkit"]
    assert published["seconds"] == 110.0 and own["seconds"] == 6.0
    assert (published["rows_per_second"], own["rows_per_second"]) == (2.73, 50.0)
    assert (published["rows_per_second_after_loading"], own["rows_per_second_after_loading"]) == (3.0, 60.0)
    assert found["ratios"] == {"toolkit": {"with_loading": 18.33, "after_loading": 20.0}}
    assert labelling.summary([turn for turn in turns if turn["side"] == "toolkit"], 300)["ratios"] == {}


def test_a_checkpoint_a_dataset_with_one_body(labelling, tmp_path, monkeypatch):
    """What both sides read loads whole, in the published way and in the toolkit's."""
    import transformers

    plain = transformers.BertConfig
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    monkeypatch.setattr(transformers, "BertConfig", lambda **given: plain(**small, **given))
    labelling.save_checkpoints(tmp_path, ["DR", "SAD"])
    monkeypatch.undo()
    texts = {"DR": ["Yes.", "no", "a longer answer " * 9], "SAD": ["work", "This shows school."]}
    published = labelling.published_loop(tmp_path, texts, "cpu")
    own = labelling.toolkit(tmp_path, texts, "cpu", "float32")
    assert published["labels"] == own["labels"] and len(own["labels"]) == 5
    assert published["confidences"] == pytest.approx(own["confidences"], abs=1e-5)
    for side in (published, own):
        assert 0 < side["loading_seconds"] < side["seconds"]


def test_all_sides_label_the_same_rows(labelling, tmp_path, monkeypatch, capsys):
    base = save_bert_base(tmp_path / "base")
    for name in DATASETS:
        save_adapter(tmp_path / "adapters" / name, name, base)

    def tiny_checkpoints(folder, names):
        for name in names:
            save_bert_classifier(folder / name, name)

    monkeypatch.setattr(labelling, "save_checkpoints", tiny_checkpoints)
    flags = ["--rows", "20", "--repeats", "2", "--adapters", tmp_path / "adapters", "--out", tmp_path / "made/out.json"]
    assert labelling.run(labelling.parse([str(flag) for flag in flags])) == 0
    result = json.loads((tmp_path / "made" / "out.json").read_text())
    assert result["rows"] == {"all": 21, **dict.fromkeys(DATASETS, 2), "MultiWD": 3}
    sides = ["published", "toolkit-bert-base", "toolkit"]
    assert [(turn["turn"], turn["side"]) for turn in result["turns"]] == [(1, s) for s in sides] + [
        (2, s) for s in sides
    ]
    for turn in result["turns"]:
        assert turn["seconds"] > turn["loading_seconds"] > 0 and turn["peak_memory"] > 0
        assert "labels" not in turn
    assert list(result["sides"]) == sides and list(result["ratios"]) == sides[1:]
    assert result["same_checkpoints"]["equal_labels"] == 21
    assert result["same_checkpoints"]["largest_difference_of_confidences"] < 1e-5
    assert result["machine"]["threads"] >= 1 and result["environment"]["libraries"]["torch"]
    stdout = capsys.readouterr().out
    assert "sample rows, made up" in stdout and "21 of 21 labels equal" in stdout
    assert f"{result['ratios']['toolkit']['after_loading']:.1f}" in stdout
