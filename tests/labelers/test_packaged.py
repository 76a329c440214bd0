"""The ten classifiers that come with the toolkit, on the real MiniLM."""

import json
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from imhi.benchmark import DATASETS, gold_answer
from imhi.data import DataRoot, load_suite, read_table, samples_root
from imhi.labelers.challenge import UNCLEAR, read_challenge
from imhi.labelers.folders import PACKAGED, open_labelers
from imhi.labelers.rules import label_by_rule
from imhi.training.answers import writing_digests
from imhi.training.corpus import read_corpus
from imhi.training.fitting import Recipe

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests" / "fixtures" / "packaged_labels.json"


@pytest.fixture(scope="module")
def labelers():
    return open_labelers(None, list(DATASETS.values()), device="cpu", dtype=torch.float32)


def forty_rows():
    """(id, dataset, gold label, text): four of our sample answers a dataset, with either head, without, and cut off."""
    rows = []
    loaded = load_suite(DataRoot(samples_root(), "test"), "IMHI")
    for name, dataset in DATASETS.items():
        mine = [row for row in loaded.rows if row.dataset == name]
        for number, row in enumerate(mine[:: max(1, len(mine) // 4)][:4]):
            explanation = row.gold.partition("Reasoning:")[2].strip()
            label = dataset.label_named(row.gold_label)
            texts = (row.gold, gold_answer(label, "completion", explanation), explanation, row.gold[:90])
            rows.append((f"{row.id} {number}", dataset, row.gold_label, texts[number]))
    return rows


def test_forty_rows_of_ours_have_the_recorded_labels(labelers, monkeypatch):
    def refused(*arguments):
        raise AssertionError("a network connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refused)
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    rows = forty_rows()
    assert len(rows) == 40 and [row[0] for row in rows] == list(recorded)
    found = {}
    for name, dataset in DATASETS.items():
        mine = [row for row in rows if row[1].name == name]
        labels = labelers[name].label(dataset, [row[3] for row in mine]).labels
        found |= {row[0]: label for row, label in zip(mine, labels, strict=True)}
    assert found == recorded
    assert sum(found[row[0]] == row[2] for row in rows) >= 38


def test_switching_adapters_equals_loading_each_alone(labelers):
    texts = [answer.text for answer in read_challenge("SAD")[:6]]
    for name in ("SAD", "DR", "CAMS", "SAD"):
        alone = open_labelers(None, [DATASETS[name]], device="cpu", dtype=torch.float32)[name]
        np.testing.assert_allclose(
            labelers[name].logits(DATASETS[name], texts), alone.logits(DATASETS[name], texts), atol=1e-5
        )


def test_the_challenge_set_gives_the_figures_of_the_cards(labelers):
    for name, dataset in DATASETS.items():
        answers = [answer for answer in read_challenge(name) if answer.label != UNCLEAR]
        labels = labelers[name].label(dataset, [answer.text for answer in answers]).labels
        missed = [answer.id for answer, label in zip(answers, labels, strict=True) if label != answer.label]
        settings = json.loads((PACKAGED / name / "labeler.json").read_text(encoding="utf-8"))
        assert missed == settings["figures"]["sets"]["challenge"]["misses"]


def test_odd_texts_have_a_defined_result(labelers):
    texts = [
        "",
        "   ",
        "stress " * 5000,
        "El autor del mensaje habla de su trabajo.",
        "我不知道。",
        "\x00\ufffd",
        "</s>",
    ]
    for name, dataset in DATASETS.items():
        result = labelers[name].label(dataset, texts)
        assert len(result.labels) == len(result.confidences) == len(result.clear) == len(texts)
        assert set(result.labels) <= set(dataset.label_names)
        assert not any(result.clear[:2]), name
        assert result.counts["truncated"] == 1 and result.counts["empty"] == 2


@pytest.mark.parametrize("name", DATASETS)
def test_an_adapter_is_small_and_says_what_it_is(name):
    folder = PACKAGED / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
    settings = json.loads((folder / "labeler.json").read_text(encoding="utf-8"))
    assert settings["dataset"] == name and 0 < settings["unclear_below"] < 1
    card = (folder / "README.md").read_text(encoding="utf-8")
    for promised in ("What it learned from", "How good it is", "Not for clinical use", "Confusion", "ECE"):
        assert promised in card


def test_the_documents_say_what_the_cards_say():
    done = subprocess.run(
        [sys.executable, "tools/make_labeler_tables.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_bars():
    """What the toolkit promises of its classifiers: on rows never learned from, with head, without, and challenge."""
    right = answers = 0
    for name, dataset in DATASETS.items():
        settings = json.loads((PACKAGED / name / "labeler.json").read_text(encoding="utf-8"))
        sets = settings["figures"]["sets"]
        answers += sets["challenge"]["answers"]
        right += sets["challenge"]["answers"] - len(sets["challenge"]["misses"])
        assert sets["challenge"]["accuracy"]["value"] >= 0.85, name
        if dataset.released_test_rows is None or settings["training"]["borrowed_from"]:
            continue
        assert sets["gold, instruction head"]["accuracy"]["value"] >= 0.99, name
        assert sets["gold, completion head"]["accuracy"]["value"] >= 0.99, name
        assert sets["gold, no head"]["accuracy"]["value"] >= (0.90 if dataset.is_yes_no else 0.80), name
    assert right / answers >= 0.92


@pytest.mark.parametrize("name", ["DR", "dreaddit"])
def test_gold_figures_come_out_again(labelers, real_data, name):
    dataset = DATASETS[name]
    rows = read_corpus(DataRoot(real_data, "test")).test[name]
    figures = json.loads((PACKAGED / name / "labeler.json").read_text(encoding="utf-8"))["figures"]["sets"]
    given = labelers[name].label(dataset, [row.explanation for row in rows]).labels
    right = sum(label == row.label for label, row in zip(given, rows, strict=True))
    assert right / len(rows) == pytest.approx(figures["gold, no head"]["accuracy"]["value"], abs=1e-4)


def test_real_answers_of_chatgpt_are_read_as_the_rule_reads_them(labelers, real_data):
    """The 121 annotated answers about DR posts, which no training reads: the figures of docs/label-classifiers.md."""
    table = read_table(real_data / "human_evaluation" / "DR_annotation" / "chatgpt_data.csv")
    answers = table.column("gpt-3.5-turbo")
    by_rule = [label_by_rule(DATASETS["DR"], answer) for answer in answers]
    result = labelers["DR"].label(DATASETS["DR"], answers)
    read = [(rule, label) for rule, label in zip(by_rule, result.labels, strict=True) if rule is not None]
    assert (len(answers), len(read), sum(rule == label for rule, label in read)) == (121, 119, 119)
    assert result.clear.count(False) == 1


def test_labels_do_not_depend_on_the_batch_size():
    """Limits of 1, 8 and 64 texts, and none: equal labels, confidences equal to float32's noise."""
    texts = [answer.text for answer in read_challenge("Irf")]
    found = []
    for batch_size in (1, 8, 64, None):
        labeler = open_labelers(None, [DATASETS["Irf"]], device="cpu", dtype=torch.float32, batch_size=batch_size)[
            "Irf"
        ]
        found.append(labeler.label(DATASETS["Irf"], texts))
    for other in found[1:]:
        assert other.labels == found[0].labels and other.clear == found[0].clear
        np.testing.assert_allclose(other.confidences, found[0].confidences, atol=1e-5)


def test_the_sentences_they_learned_from_are_the_repositorys():
    """Whoever changes a training sentence trains the classifiers again."""
    manifest = json.loads((PACKAGED / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["writing"] == writing_digests()
    assert manifest["recipe"] == json.loads(json.dumps(asdict(Recipe())))
