"""The model card says what record, counts and kept run say: made-up ones, and the shipped documents."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from report_runs import Row, random_rows, save_run

from imhi.benchmark import DATASETS
from imhi.data import DataRoot
from imhi.errors import UserError
from imhi.failures import SYMPTOMS
from imhi.kept import keep_run
from imhi.results import RULE, read_results

ROOT = Path(__file__).parents[1]
SETS = {"DR": 1, "MultiWD": 6, "Irf": 2}  # rows a post


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("make_model_card", ROOT / "tools" / "make_model_card.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def record_of() -> dict:
    looks = [
        {"step": step, "eval_loss": loss, "eval_weighted_f1": f1, "eval_weighted_f1_DR": f1, "epoch": step / 40}
        for step, loss, f1 in ((20, 2.5, 0.3), (40, 2.0, 0.61), (60, 2.1, 0.55))
    ]
    losses = [{"step": step, "loss": 4.0 - step / 20, "learning_rate": 1e-3} for step in range(10, 61, 10)]
    # A step that was done again after an interruption.
    losses.insert(1, {"step": 20, "loss": 2.9, "learning_rate": 1e-3})
    return {
        "recipe": {
            "base": "embedded:smollm2", "form": "instruction", "chat_template": True, "rank": 16, "alpha": 32,
            "dropout": 0.05, "learning_rate": 1e-3, "warmup": 0.05, "epochs": 2, "batch_size": 16, "temperature": 2.0,
            "head_weight": 5.0, "max_tokens": 1024, "weight_decay": 0.0, "clip": 1.0, "asked_rows": 16,
            "best_by": "weighted_f1", "seed": 7,
        },
        "base_hub": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "device": "cpu", "dtype": "bfloat16", "threads": 2, "seconds": 5400.0,
        "environment": {
            "imhi": "9.8.7",
            "libraries": {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2", "numpy": "2"},
        },
        "rows": {
            "training": {"DR": 1003, "Irf": 500, "CAMS": 12, "t-sid": 9},
            "validation": {"DR": 101, "Irf": 55},
            "made_up": ["CAMS", "t-sid"],
            "left_out": {"leaked": {"Irf": 334}, "repeated": {"DR": 2}},
            "drawn_per_epoch": {"DR": 700, "Irf": 600, "CAMS": 120, "t-sid": 104},
        },
        "tokens": {"prompt": 3_000_000, "answer": 1_250_000, "rows_cut": 3},
        "steps": 60, "planned_steps": 80, "best_step": 40,
        "data": {"train_data/instruction_data/DR/train.csv": "0", "train_data/instruction_data/Irf/val.csv": "0"},
        "history": [*losses, *looks, {"step": 60, "train_loss": 1.0, "train_runtime": 5400.0}],
    }  # fmt: skip


@pytest.fixture(scope="module")
def checkout(tool, tmp_path_factory) -> Path:
    """A checkout with record and kept run, the run itself beside them, and its failures counted."""
    folder = tmp_path_factory.mktemp("checkout")
    rows = {
        name: random_rows(name, DATASETS[name].released_test_rows, words=4, rows_a_post=each)
        for name, each in SETS.items()
    }
    text = 'Yes, the poster suffers from depression. Reasoning: They say "my sister moved out" and have insomnia.'
    rows["DR"][0] = Row(text, text, post="A zebra.")
    save_run(folder / "adapter", rows, root=folder / "root", score=False)
    keep_run(read_results(folder / "adapter", data_root=DataRoot(folder / "root", "test")), folder / "docs" / "results")
    (folder / tool.RECORD).parent.mkdir(parents=True)
    (folder / tool.RECORD).write_text(json.dumps(record_of()), encoding="utf-8")
    assert tool.main(["--root", str(folder), "--run", str(folder / "adapter")]) == 0
    return folder


@pytest.fixture(scope="module")
def failures(tool, checkout) -> dict:
    return json.loads((checkout / tool.FAILURES).read_text(encoding="utf-8"))


def lines_of(table: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]


def test_the_failures_of_a_run_are_kept_without_its_texts(checkout, tool, failures):
    assert failures["all"]["answers"]["rows"] == 405 + 2441 + 2113
    assert failures["datasets"]["DR"]["answers"]["quotations_invented"] == 1
    text = (checkout / tool.FAILURES).read_text(encoding="utf-8")
    assert "zebra" not in text and "sister" not in text and str(checkout) not in text


def test_only_a_full_run_on_released_rows_is_counted(tool, tmp_path):
    save_run(tmp_path / "run", {"DR": random_rows("DR", 3)}, root=tmp_path / "root", score=False)
    with pytest.raises(UserError, match="DR has 3 rows of 405"):
        tool.main(["--root", str(tmp_path), "--run", str(tmp_path / "run")])
    save_run(tmp_path / "samples", {"DR": random_rows("DR", 405)}, root=tmp_path / "root2", score=False, made_up=True)
    with pytest.raises(UserError, match="made-up sample rows"):
        tool.main(["--root", str(tmp_path), "--run", str(tmp_path / "samples")])
    assert not (tmp_path / tool.FAILURES).exists()


def test_the_data_table_tells_made_up_rows_from_released_ones(tool):
    header, _, *lines = lines_of(tool.data_table(record_of()))
    assert lines == [
        ["DR", "released", "1,003", "101", "700", "0", "2"],
        ["t-sid", "made up", "9", "0", "104", "0", "0"],
        ["CAMS", "made up", "12", "0", "120", "0", "0"],
        ["Irf", "released", "500", "55", "600", "334", "0"],
    ]
    assert header[-2].startswith("left out: the post stands in a test") and len(header) == 7
    notes = tool.data_notes(record_of())
    assert "For t-sid, CAMS no training files are released" in notes and "Of Irf the validation file alone" in notes
    record = record_of()
    record["data"]["train_data/instruction_data/Irf/train.csv"] = "0"
    record["rows"]["made_up"] = []
    record["rows"]["training"] = {"DR": 1}
    assert tool.data_notes(record) == ""


def test_the_recipe_table_has_what_was_trained_for_how_long(tool):
    told = dict(lines_of(tool.recipe_table(record_of()))[2:])
    assert told["length"].startswith("60 of 80 planned steps of 16 rows, 2 epochs")
    assert told["tokens planned"] == "4,250,000, of which 1,250,000 in answers"
    assert told["time"].startswith("1.5 hours")
    assert told["software"] == "imhi 9.8.7, torch 2.13.0, transformers 5.23.0, peft 0.21.2"
    assert told["prompts"] == "instruction form, in the chat template"


def test_the_bias_table_shows_the_labels_whose_shares_differ_most(tool):
    counts = {"gold": {"a": 50, "b": 30, "c": 20}, "parsed": {"a": 10, "b": 32, "c": 38}, "unparsed": 20}
    found = {"datasets": {"DR": {"labels": {**counts, "distance": 0.275, "one_label_only": None}}}}
    assert lines_of(tool.bias_table(found))[2:] == [["DR", "100", "20", "a 50.0 → 12.5; c 20.0 → 47.5", "0.275", "no"]]
    found["datasets"]["DR"]["labels"] |= {"parsed": {"a": 0, "b": 0, "c": 0}, "distance": None}
    assert lines_of(tool.bias_table(found))[2][3:5] == ["a 50.0 → –; b 30.0 → –", "–"]


def test_failure_tables_have_answers_and_golds_of_every_set(tool, failures):
    header, _, *lines = lines_of(tool.text_table(failures))
    assert [line[0] for line in lines] == [*SETS, "**all**"]
    dr = dict(zip(header, lines[0], strict=True))
    answers, golds = (failures["datasets"]["DR"][kind] for kind in ("answers", "golds"))
    assert dr["invented quotations"] == "1 of 1 / 1 of 1"
    assert dr["symptom without a hint"] == (
        f"{answers['with_unfounded_symptom']:,} of {answers['explanations']:,} / "
        f"{golds['with_unfounded_symptom']:,} of {golds['explanations']:,}"
    )
    symptoms = lines_of(tool.symptom_table(failures))[2:]
    assert {line[0] for line in symptoms} <= {symptom.name for symptom in SYMPTOMS}
    assert next(line for line in symptoms if line[0] == "sleep problems")[1].startswith("1 of ")
    ends = {line[0]: line[1:] for line in lines_of(tool.ends_table(failures))[2:]}
    assert ends["DR"][4] == f"{failures['datasets']['DR']['failed']:,}" and failures["datasets"]["DR"]["failed"] > 0
    assert ends["**all**"][0] == "4,959"


def test_every_question_has_its_figures_and_intervals_over_posts(tool, checkout):
    run = read_results(checkout / tool.ADAPTER)
    header, _, *lines = lines_of(tool.aspect_table(run, resamples=40))
    assert [line[:2] for line in lines] == [
        [name, aspect] for name in ("MultiWD", "Irf") for aspect in DATASETS[name].aspects
    ]
    for name in ("MultiWD", "Irf"):
        assert sum(int(line[2].replace(",", "")) for line in lines if line[0] == name) == len(run.datasets[name])
    social = dict(zip(header, next(line for line in lines if line[1] == "social"), strict=True))
    one = run.datasets["MultiWD"]
    part = one.only([at for at, aspect in enumerate(one.aspects) if aspect == "social"])
    f1, low, high = map(float, re.findall(r"[\d.]+", social["weighted F1"]))
    assert f1 == pytest.approx(100 * part.correctness().weighted_f1, abs=0.051) and low <= f1 <= high and low < high
    assert social["yes in gold, %"] == f"{100 * part.gold.count('yes') / len(part):.1f}"
    said = [label for label in part.labels[RULE].predicted if label]
    assert social["yes in parsed answers, %"] == f"{100 * said.count('yes') / len(said):.1f}"
    assert int(social["unparsed"]) == len(part) - len(said) > 0


def test_the_curves_are_an_svg_of_the_history(tool):
    assert tool.series_of(record_of()["history"], "loss")[:3] == [(10, 3.5), (20, 3.0), (30, 2.5)]
    picture = ElementTree.fromstring(tool.curves(record_of()))
    space = "{http://www.w3.org/2000/svg}"
    curves = [each for each in picture.iter(f"{space}path") if each.get("class") in ("curve a", "curve b", "curve c")]
    assert [each.get("d").count("L") + 1 for each in curves if "h16" not in each.get("d")] == [6, 3, 3]
    titles = [each.text for each in picture.iter(f"{space}title")]
    assert "weighted F1, %, step 40: 61.000" in titles and titles.count("kept: step 40") == 2
    assert "kept: step 40" in picture.get("aria-label")
    heights = [float(dot.get("cy")) for dot in picture.iter(f"{space}circle")][3:]
    assert heights[1] == min(heights) >= tool.TOP and max(heights) <= tool.BASE


def test_curves_of_a_training_without_looks_have_no_marks(tool):
    bare = {**record_of(), "history": []}
    assert "<circle" not in tool.curves(bare)
    ElementTree.fromstring(tool.curves(bare))


def test_the_card_has_its_head_and_every_part_and_check_sees_a_change(tool, checkout, monkeypatch, capsys):
    monkeypatch.setattr(tool, "documents", lambda root, given=tool.documents: given(root, resamples=40))
    arguments = ["--root", str(checkout)]
    assert tool.main([*arguments, "--check"]) == 1
    assert not (checkout / tool.CARD).exists()
    assert tool.main(arguments) == 0
    card = (checkout / tool.CARD).read_text(encoding="utf-8")
    assert card.startswith(
        "---\nlicense: apache-2.0\nbase_model: HuggingFaceTB/SmolLM2-135M-Instruct\nlibrary_name: peft\n---\n"
    )
    for part in ("## Intended use", "## Not for clinical use", "## Training data", "## Recipe", "## Results"):
        assert f"\n{part}\n" in card
    assert "](results.md)" in card and f"]({tool.CURVES.name})" in card and "zebra" not in card
    assert tool.main([*arguments, "--check"]) == 0
    (checkout / tool.CARD).write_text(card.replace("4,959 answers", "9,594 answers"), encoding="utf-8")
    capsys.readouterr()
    assert tool.main([*arguments, "--check"]) == 1
    assert "docs/responder.md: differs" in capsys.readouterr().err


def test_counts_of_other_answers_than_the_kept_ones_are_refused(tool, checkout, failures, tmp_path):
    for path in (tool.RECORD, tool.FAILURES):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes((checkout / path).read_bytes())
    with pytest.raises(UserError, match="adapter: no such folder; `imhi keep"):
        tool.documents(tmp_path)
    (tmp_path / tool.ADAPTER).symlink_to(checkout / tool.ADAPTER)
    other = {**failures, "answers": {**failures["answers"], "DR": {**failures["answers"]["DR"], "words": 1}}}
    (tmp_path / tool.FAILURES).write_text(json.dumps(other), encoding="utf-8")
    with pytest.raises(UserError, match="of other answers than"):
        tool.documents(tmp_path)
    (tmp_path / tool.FAILURES).unlink()
    with pytest.raises(UserError, match=r"failures\.json: no such file; make it with"):
        tool.documents(tmp_path)


def test_the_shipped_card_is_what_its_sources_say(tool, capsys):
    missing = [path for path in (tool.RECORD, tool.FAILURES, tool.ADAPTER, tool.CARD) if not (ROOT / path).exists()]
    if missing:
        pytest.skip(f"not shipped yet: {', '.join(map(str, missing))}")
    assert tool.main(["--check"]) == 0, capsys.readouterr().err
