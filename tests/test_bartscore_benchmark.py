"""The benchmark of BART-score runs, on a tiny model, and its figures follow from what it measured."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bartscore():
    spec = importlib.util.spec_from_file_location("benchmark_bartscore", FOLDER / "bartscore.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        # As where the script is run: its folder first, for `measuring`.
        patch.setattr(sys, "path", [str(FOLDER), *sys.path])
        spec.loader.exec_module(module)
    return module


def test_pairs_keep_the_proportions_and_pair_neighbours(bartscore):
    files = {"DR": [f"a{row}" for row in range(10)], "SAD": [f"b{row}" for row in range(30)], "CLP": ["c"]}
    pairs = bartscore.pick_pairs(files, 8)
    assert pairs[:2] == [("a1", "a0"), ("a6", "a5")]
    assert len(pairs) == 9 and pairs[-1] == ("c", "c")
    assert len(bartscore.pick_pairs(files, 10**6)) == 41


def test_the_reference_is_the_formula(bartscore, tiny_bart):
    """Padding counts nothing: pairs in batches of four equal each pair alone, by the model's own loss."""
    import torch

    pairs = [("a b c", "d"), ("e", "f g h i j k"), ("no", "yes, I think so"), ("x y", ""), ("again", "once more")]
    score = bartscore.Reference(tiny_bart, "cpu")
    found = score(pairs)
    for (generated, gold), value in zip(pairs, found, strict=True):
        source, target = (score.tokenizer(text, return_tensors="pt")["input_ids"] for text in (generated, gold))
        with torch.no_grad():
            assert -score.model(source, labels=target).loss.item() == pytest.approx(value, abs=1e-5)


def test_all_sides_score_the_same_pairs(bartscore, tmp_path, capsys):
    out = tmp_path / "made" / "out.json"
    sides = ["reference", "toolkit", "toolkit-bf16"]
    flags = ["--shape", "tiny", "--rows", "12", "--repeats", "1", "--out", str(out), "--sides", *sides]
    assert bartscore.run(bartscore.parse(flags)) == 0
    result = json.loads(out.read_text())
    assert [turn["side"] for turn in result["turns"]] == sides == list(result["sides"])
    assert result["rows"] >= 10 and result["tokens"]["source"] > 10 * result["rows"]
    assert result["tokens"]["target_padded_by_reference"] > result["tokens"]["target"]
    assert result["largest_difference"]["toolkit"] < 1e-5
    assert 1e-5 < result["largest_difference"]["toolkit-bf16"] < 0.1
    for side in sides:
        figures = result["sides"][side]
        assert figures["peak_memory"] > 0 and figures["seconds"] > 0
        assert figures["pairs_per_second"] == pytest.approx(result["rows"] / figures["seconds"], rel=0.02)
    assert set(result["ratios"]) == {"toolkit", "toolkit-bf16"}
    assert result["machine"]["threads"] >= 1 and result["environment"]["libraries"]["torch"]
    stdout = capsys.readouterr().out
    assert "BART of shape tiny" in stdout and f"{result['ratios']['toolkit']:.2f}" in stdout
