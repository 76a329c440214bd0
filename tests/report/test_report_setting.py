"""Banners: what a reader must know first is said, and what is as published is not."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from report_runs import Row, random_rows, save_run

from imhi.audit import audit_data
from imhi.benchmark import DATASETS, query
from imhi.data import DataRoot, samples_root, write_table
from imhi.engines import Decoding
from imhi.report.data_facts import data_facts
from imhi.report.figures import figures_of
from imhi.report.setting import differences, facts_of, notices_about_data, notices_of
from imhi.results import read_results


def titles(folder, *, data_root=None, dropped=None):
    run = read_results(folder, data_root=data_root)
    return {notice.title: notice for notice in notices_of(run, figures_of(run, resamples=10, dropped=dropped))}


def whole_benchmark():
    """One row standing for as many as were released would be too slow to label; sizes are what counts here."""
    return {
        name: [
            Row(f"{dataset.labels[0].instruction} Reasoning: a.", "", dataset.labels[0].name, post=f"{name} {at}")
            for at in range(dataset.released_test_rows)
        ]
        for name, dataset in DATASETS.items()
        if dataset.released_test_rows
    }


def test_a_whole_run_under_the_published_setting_has_no_banner(tmp_path):
    save_run(tmp_path / "run", whole_benchmark(), root=tmp_path / "root", score=False)
    assert titles(tmp_path / "run", data_root=DataRoot(tmp_path / "root", "given")) == {}


def test_what_is_missing_of_the_benchmark_is_named(tmp_path):
    save_run(tmp_path / "run", {"SAD": random_rows("SAD", 40)}, score=False)
    text = titles(tmp_path / "run")["Not the whole benchmark"].text
    assert "SAD has 40 rows of 684" in text
    assert "CLP was never released" in text
    assert "Not in this run: DR, dreaddit, swmh" in text
    assert "CLP" not in text.split(".")[0]


def test_dropped_rows_are_told_and_are_no_gap(tmp_path):
    save_run(tmp_path / "run", {"DR": whole_benchmark()["DR"][:400]}, score=False)
    told = titles(tmp_path / "run", dropped={"post in a training file": {"DR": 5, "SAD": 0}})
    assert "DR has" not in told["Not the whole benchmark"].text
    assert told["Rows left out"].text == "post in a training file: 5 rows (DR 5)."


def test_sample_rows_are_called_so(tmp_path):
    save_run(tmp_path / "made-up", {"SAD": random_rows("SAD", 40)}, root=tmp_path / "root", made_up=True, score=False)
    told = titles(tmp_path / "made-up")
    assert "Sample rows" in told
    assert "Not the whole benchmark" not in told


def test_sample_rows_are_recognised_without_a_manifest(tmp_path):
    from imhi.data import load_suite

    root = DataRoot(samples_root(), "default")
    rows = load_suite(root, "IMHI", datasets=["DR"]).rows
    write_table(tmp_path / "DR.csv", ["goldens", "generated_text"], [(row.gold, "Yes.") for row in rows])
    assert "Sample rows" in titles(tmp_path, data_root=root)
    # Other rows do not become sample rows by looking their posts up among the samples.
    write_table(tmp_path / "DR.csv", ["goldens", "generated_text"], [("Yes. Reasoning: mine.", "Yes.")])
    told = titles(tmp_path, data_root=root)
    assert "Sample rows" not in told
    assert "posts not found" in told["Read with care"].text


@pytest.mark.parametrize(
    ("configuration", "what"),
    [
        ({"dtype": "bfloat16"}, "dtype: bfloat16 (published: float32)"),
        ({"decoding": {"chat_template": True, "max_length": 2048}}, "prompts: inside the model's chat template"),
        ({"shots": {"per_label": 2}}, "examples: 2 of every label before every prompt (published: none)"),
        ({"decoding": {"do_sample": True, "max_length": 2048}}, "decoding: sampled"),
        ({"decoding": asdict(Decoding())}, "length limit: 512 new tokens"),
    ],
)
def test_a_departure_from_the_published_setting_is_a_banner(tmp_path, configuration, what):
    save_run(tmp_path / "run", {"SAD": random_rows("SAD", 40)}, configuration=configuration, score=False)
    told = titles(tmp_path / "run")["Other than the published setting"]
    assert told.text.startswith(what)
    assert "ended 3 of 40 answers" in told.text
    assert len(differences(read_results(tmp_path / "run"))) == 1


def test_failed_and_few_rows_are_banners(tmp_path):
    save_run(tmp_path / "run", {"SAD": random_rows("SAD", 29)}, score=False)
    told = titles(tmp_path / "run")
    assert "2 of 29 rows failed (SAD 2)" in told["Failed rows"].text
    assert told["Few rows"].text.startswith("SAD:")


def test_a_folder_of_anybodys_says_that_its_setting_is_unknown(tmp_path):
    write_table(tmp_path / "DR.csv", ["goldens", "generated_text"], [("Yes. Reasoning: a.", "Yes.")] * 40)
    told = titles(tmp_path)
    assert {"Setting unknown", "Labels by rule only", "Rows taken as independent"} <= set(told)
    assert facts_of(read_results(tmp_path)) == [("folder", str(tmp_path))]


def test_the_expert_rows_are_not_measured_against_the_test_sets(tmp_path):
    configuration = {"test_dataset": "expert"}
    save_run(tmp_path / "run", {"SAD": random_rows("SAD", 35)}, configuration=configuration, score=False)
    assert "Not the whole benchmark" not in titles(tmp_path / "run")


def test_test_files_that_are_not_the_published_ones_are_named(tmp_path):
    table = tmp_path / "test_data" / "test_instruction" / "DR.csv"
    table.parent.mkdir(parents=True)
    gold = f"{DATASETS['DR'].labels[0].instruction} Reasoning: a."
    write_table(table, ("query", "gpt-3.5-turbo"), [(query(DATASETS["DR"], "instruction", "a post"), gold)])
    (notice,) = notices_about_data(data_facts(audit_data(DataRoot(tmp_path, "given"))))
    assert notice.title == "Other test data" and "DR (differs)" in notice.text
    assert notices_about_data(data_facts(audit_data(DataRoot(samples_root(), "default")))) == []
    assert notices_about_data(None) == []
