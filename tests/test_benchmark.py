"""The table of the ten datasets agrees with itself and with the released files."""

from __future__ import annotations

import csv

import pytest

from imhi.benchmark import DATASETS, FORMS, SUITES, dataset_named, gold_answer, match_gold, query
from imhi.data import load_suite, resolve_data_root
from imhi.labelers.rules import label_by_rule


def test_published_sizes():
    assert len(DATASETS) == 10
    assert sum(dataset.published_test_rows for dataset in DATASETS.values()) == 19353
    assert [name for name, dataset in DATASETS.items() if dataset.released_test_rows is None] == ["CLP"]


@pytest.mark.parametrize("name", list(DATASETS))
def test_labels_are_consistent(name):
    dataset = DATASETS[name]
    names = set(dataset.label_names)
    assert len(names) == len(dataset.labels)
    assert {label for _, label in dataset.published_rule} == names
    assert dataset.published_default in names
    for label in dataset.labels:
        for form in FORMS:
            gold = gold_answer(label, form, "the post names work, school, family and depression, and says yes and no")
            assert match_gold(dataset, gold) == label
            assert label_by_rule(dataset, gold) == label.name


def test_class_order_is_that_of_the_published_classifiers():
    order = {name: [label.classifier for label in dataset.labels] for name, dataset in DATASETS.items()}
    assert order["CAMS"] == ["none", "bias", "job", "medication", "relation", "alienation"]
    assert order["SAD"] == [
        "school",
        "financial",
        "family",
        "social",
        "work",
        "health",
        "emotional",
        "everyday",
        "other",
    ]
    assert order["swmh"] == ["depression", "suicide", "anxiety", "bipolar", "no mental"]
    assert order["t-sid"] == ["depression", "suicide", "ptsd", "control"]
    assert all(order[name] == ["no", "yes"] for name, dataset in DATASETS.items() if dataset.is_yes_no)


def test_names_are_found_in_any_case():
    assert dataset_named("T-SID") is DATASETS["t-sid"]
    assert dataset_named("nothing") is None


@pytest.mark.parametrize("suite", list(SUITES))
def test_every_released_query_is_the_tables_template_around_a_post(real_data, suite):
    """The prompts that `query` writes are the released ones, character for character."""
    loaded = load_suite(resolve_data_root(real_data), suite)
    for row in loaded.rows:
        dataset = DATASETS[row.dataset]
        wordings = [query(dataset, loaded.form, "\0", aspect).split("\0") for aspect in dataset.aspects]
        assert any(row.query.startswith(start) and row.query.endswith(end) for start, end in wordings), row.id


def test_sample_rows_cover_every_dataset_and_label():
    root = resolve_data_root(None)
    assert root.is_samples
    for suite in SUITES:
        loaded = load_suite(root, suite)
        assert set(loaded.files) == set(DATASETS)
        for name, dataset in DATASETS.items():
            labels = [row.gold_label for row in loaded.rows if row.dataset == name]
            assert len(labels) >= 8
            assert set(labels) == set(dataset.label_names), (suite, name)


def test_committed_samples_are_what_the_tool_renders():
    import subprocess
    import sys
    from pathlib import Path

    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, str(root / "tools/make_sample_data.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_sample_row_is_a_released_row(real_data):
    """No ten words in a row of a released post stand in one of ours."""
    from imhi.data import samples_root

    def posts(folder):
        for path in sorted(folder.rglob("*.csv")):
            with path.open(newline="", encoding="utf-8-sig") as handle:
                for record in csv.reader(handle):
                    yield " ".join(record[0].lower().split())

    def stretches(text):
        words = text.rsplit("question:", 1)[0].split()
        return {" ".join(words[at : at + 10]) for at in range(3, len(words) - 10)}

    real = set()
    for text in posts(real_data / "test_data"):
        real |= stretches(text)
    for folder in ("test_data", "train_data", "human_evaluation"):
        for text in posts(samples_root() / folder):
            assert not stretches(text) & real
