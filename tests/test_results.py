"""A run read back: labels by rule and by classifier, scores, posts; what is stale or of another run is left aside."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from imhi.data import DataRoot, load_suite, read_table, sha256_of, write_table
from imhi.engines import Completion
from imhi.errors import UserError
from imhi.metrics import METRICS
from imhi.results import CLASSIFIER, RULE, UNRECORDED, labels_folder, read_results
from imhi.scoring import score_folder

POSTS = ("Again no sleep.", "Soup, as ever.", "soup as ever", "There is no way out.", "My bicycle is green.")
QUERIES = [f'Consider this post: "{post}" Question: Does the poster suffer from depression?' for post in POSTS]
YES, NO = (
    "Yes, the poster suffers from depression. Reasoning: ",
    "No, the poster does not suffer from depression. Reasoning: ",
)
GOLD = [YES + "No sleep.", NO + "Soup.", NO + "Soup again.", YES + "No way out.", NO + "A bicycle."]
ANSWERS = [YES + "Sleep.", YES + "Soup.", "", NO + "No way out was seen.", "Who knows?"]


def write(folder: Path, *, labels: list[str] | None = None, **columns: list) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    names = ["goldens", "generated_text", *(["labels"] if labels else []), *columns]
    lists = [GOLD, ANSWERS, *([labels] if labels else []), *columns.values()]
    write_table(folder / "DR.csv", names, zip(*lists, strict=True))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "run")


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    tests = tmp_path / "root" / "test_data" / "test_instruction"
    tests.mkdir(parents=True)
    write_table(tests / "DR.csv", ("query", "gpt-3.5-turbo"), zip(QUERIES, GOLD, strict=True))
    return DataRoot(tmp_path / "root", "--data_root")


def make_a_run(folder: Path, configuration: dict, errors: dict[int, str] | None = None) -> None:
    """The manifest and journal of a run of this toolkit around the answers."""
    (folder / "manifest.json").write_text(
        json.dumps({"configuration": configuration, "sessions": []}), encoding="utf-8"
    )
    with (folder / "responses.jsonl").open("w", encoding="utf-8") as journal:
        for at, text in enumerate(ANSWERS):
            error = (errors or {}).get(at)
            completion = Completion(
                id=f"DR/{at}",
                text=text,
                finish_reason="error" if error else "stop",
                prompt_tokens=9,
                new_tokens=at,
                prompt_truncated=False,
                error=error,
            )
            journal.write(json.dumps({"dataset": "DR", "row": at, **asdict(completion)}) + "\n")


# --- rows and labels --------------------------------------------------------------------------------------------------


def test_rows_and_their_labels_by_rule(folder):
    run = read_results(folder)
    dr = run.datasets["DR"]
    assert (run.name, run.manifest, run.configuration, run.rows, len(dr), dr.name) == ("run", None, {}, 5, 5, "DR")
    assert (dr.index, dr.goldens, dr.answers) == ([0, 1, 2, 3, 4], GOLD, ANSWERS)
    assert dr.gold == ["yes", "no", "no", "yes", "no"]
    assert dr.labels[RULE].predicted == ["yes", "yes", None, "no", None]
    figures = dr.correctness()
    assert (figures.accuracy, figures.unparsed) == (0.2, 2)
    # In the table's order "no" is 0 and "yes" 1; 2 is unparsed.
    assert dr.coded() == ([1, 0, 0, 1, 0], [1, 1, 2, 0, 2])
    assert (dr.finish, dr.new_tokens, dr.queries, dr.posts) == (None, None, None, None)


def test_a_run_of_the_toolkit_tells_how_each_answer_ended(folder):
    make_a_run(folder, {"test_dataset": "IMHI"}, {2: "overflow"})
    dr = read_results(folder).datasets["DR"]
    assert dr.finish == ["stop", "stop", "error", "stop", "stop"]
    assert dr.new_tokens == [0, 1, 2, 3, 4]
    assert read_results(folder).configuration == {"test_dataset": "IMHI"}
    # A journal that lacks a row is not of these answers.
    journal = folder / "responses.jsonl"
    journal.write_text("".join(journal.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    assert read_results(folder).datasets["DR"].finish is None


def test_a_strangers_manifest_is_not_read(folder):
    (folder / "manifest.json").write_text("not ours", encoding="utf-8")
    assert read_results(folder).manifest is None


def test_labels_by_classifier_from_the_files_themselves(tmp_path):
    folder = write(tmp_path / "run", labels=["yes", "No", "unparsed", "yes", "no"])
    labels = read_results(folder).datasets["DR"].labels[CLASSIFIER]
    assert labels.predicted == ["yes", "no", None, "yes", "no"]
    assert (labels.confidence, labels.clear, labels.definition) == (None, None, UNRECORDED)


@pytest.mark.parametrize("place", ["run/labels", "run-labels"])
def test_labels_by_classifier_from_the_usual_places(folder, tmp_path, place):
    spoken = ["yes", "no", "no", "yes", "no"]
    labelled = write(
        tmp_path / place,
        labels=spoken,
        label_confidence=[0.5, 0.6, 0.7, 0.8, 0.9],
        clear_label=["yes", "unclear", "no", "yes", "no"],
    )
    record = {"datasets": {"DR": {"key": {"input_sha256": sha256_of(folder / "DR.csv"), "labeler": "adapter"}}}}
    record["datasets"]["DR"]["output_sha256"] = sha256_of(labelled / "DR.csv")
    (labelled / "labels.json").write_text(json.dumps(record), encoding="utf-8")
    run = read_results(folder)
    labels = run.datasets["DR"].labels[CLASSIFIER]
    assert (run.labels_folder, labels_folder(folder)) == (labels_folder(folder), run.labels_folder)
    assert run.labels_folder.resolve() == labelled.resolve()
    assert labels.predicted == spoken
    assert labels.confidence == [0.5, 0.6, 0.7, 0.8, 0.9]
    assert labels.clear == [True, False, True, True, True]
    assert json.loads(labels.definition) == {"labeler": "adapter"}


def test_labels_of_other_answers_are_left_aside_or_refused(folder, tmp_path):
    labelled = tmp_path / "run-labels"
    labelled.mkdir()
    other = [ANSWERS[0] + " More.", *ANSWERS[1:]]
    write_table(labelled / "DR.csv", ("goldens", "generated_text", "labels"), zip(GOLD, other, ["no"] * 5, strict=True))
    run = read_results(folder)
    assert CLASSIFIER not in run.datasets["DR"].labels
    assert "the labels of other answers" in run.cautions[0]
    with pytest.raises(UserError, match="the labels of other answers"):
        read_results(folder, labels=labelled)
    (labelled / "DR.csv").rename(labelled / "SAD.csv")
    with pytest.raises(UserError, match=r"no labels of DR \(DR.csv\)"):
        read_results(folder, labels=labelled)


def test_a_confidence_that_is_no_number_is_named(tmp_path):
    folder = write(tmp_path / "run", labels=["no"] * 5, label_confidence=[0.1, "high", 0.2, 0.3, 0.4])
    with pytest.raises(UserError, match=r"DR.csv, row 2: label_confidence is 'high'"):
        read_results(folder)


def test_only_the_datasets_asked_for(folder):
    shutil.copy(folder / "DR.csv", folder / "CLP.csv")
    assert list(read_results(folder).datasets) == ["DR", "CLP"]
    assert list(read_results(folder, datasets=["CLP"]).datasets) == ["CLP"]
    with pytest.raises(UserError, match="no file for SAD"):
        read_results(folder, datasets=["SAD"])


# --- scores -----------------------------------------------------------------------------------------------------------


def test_scores_with_their_rows_and_what_they_are_resampled_by(folder):
    score_folder(folder, [METRICS["bleu"](), METRICS["rouge"]()])
    score_folder(folder, [METRICS["rouge"]()], target="explanation")
    scores = read_results(folder).datasets["DR"].scores
    assert list(scores) == ["bleu", "rouge1", "rouge2", "rougeL", *(f"rouge{n}_explanation" for n in "12L")]
    bleu, rouge = METRICS["bleu"]().score(ANSWERS, GOLD), METRICS["rouge"]().score(ANSWERS, GOLD)
    assert (scores["bleu"].value, scores["bleu"].rows) == (bleu.values["bleu"], bleu.row_values["bleu"])
    assert (scores["rouge2"].value, scores["rouge2"].rows) == (rouge.values["rouge2"], rouge.row_values["rouge2"])
    assert scores["rouge1_explanation"].target == "explanation"
    assert (scores["bleu"].metric, scores["bleu"].signature) == ("bleu", str(bleu.signature))
    assert (scores["rouge1"].lowest, scores["rouge1"].highest) == (0.0, 1.0)


def test_corpus_values_of_resamples_are_those_of_the_rows_drawn(folder):
    score_folder(folder, [METRICS["bleu"](), METRICS["rouge"]()])
    scores = read_results(folder).datasets["DR"].scores
    drawn = np.array([[0, 1, 2, 3, 4], [0, 0, 3, 3, 1], [2, 2, 2, 2, 2]])
    counts = np.array([np.bincount(rows, minlength=5) for rows in drawn])
    for name, metric in (("bleu", METRICS["bleu"]()), ("rougeL", METRICS["rouge"]())):
        expected = [
            metric.score([ANSWERS[at] for at in rows], [GOLD[at] for at in rows]).values[name] for rows in drawn
        ]
        assert scores[name].over(counts) == pytest.approx(expected)
    assert scores["bleu"].over(counts)[0] == pytest.approx(scores["bleu"].value)


def test_scores_of_other_texts_are_left_aside(folder):
    score_folder(folder, [METRICS["rouge"]()])
    changed = [*ANSWERS[:4], "Nobody knows."]
    write_table(folder / "DR.csv", ("goldens", "generated_text"), zip(GOLD, changed, strict=True))
    run = read_results(folder)
    assert run.datasets["DR"].scores == {}
    assert run.cautions[0].startswith("DR: rouge (response) left aside")


def test_scores_whose_rows_were_touched_are_left_aside(folder):
    score_folder(folder, [METRICS["rouge"]()])
    path = folder / "scores" / "DR.csv"
    table = read_table(path)
    records = [[float(cell) for cell in record] for record in table.records]
    records[1][1] = 0.5
    write_table(path, table.columns, records)
    assert read_results(folder).datasets["DR"].scores == {}


# --- fewer rows -------------------------------------------------------------------------------------------------------


def test_a_run_without_some_rows_is_that_of_the_others(tmp_path):
    folder = write(tmp_path / "run", labels=["yes", "no", "unparsed", "yes", "no"], label_confidence=[0.5] * 5)
    score_folder(folder, [METRICS["bleu"](), METRICS["rouge"]()])
    make_a_run(folder, {})
    whole = read_results(folder)
    dr = whole.without({"DR": [1, 3], "SAD": [0]}).datasets["DR"]
    kept = [0, 2, 4]
    assert (dr.index, dr.gold, len(dr)) == (kept, ["yes", "no", "no"], 3)
    assert dr.labels[RULE].predicted == ["yes", None, None]
    assert dr.labels[CLASSIFIER].predicted == ["yes", None, "no"]
    assert dr.labels[CLASSIFIER].confidence == [0.5] * 3
    assert dr.new_tokens == kept
    answers, gold = [ANSWERS[at] for at in kept], [GOLD[at] for at in kept]
    for name, metric in (("bleu", METRICS["bleu"]()), ("rouge1", METRICS["rouge"]())):
        assert dr.scores[name].value == pytest.approx(metric.score(answers, gold).values[name])
        assert len(dr.scores[name].rows) == 3
    assert dr.rows_digest != whole.datasets["DR"].rows_digest
    # Positions are those of the test file, also after rows went.
    assert whole.without({"DR": [1]}).without({"DR": [3]}).datasets["DR"].index == kept
    assert whole.without({}).datasets["DR"] is whole.datasets["DR"]


def test_a_run_without_any_row_is_refused(folder):
    with pytest.raises(UserError, match="no row is left"):
        read_results(folder).without({"DR": range(5)})


def test_labels_edited_after_they_were_recorded_are_left_aside(folder, tmp_path):
    labelled = write(tmp_path / "run" / "labels", labels=["yes", "no", "no", "yes", "no"])
    record = {"datasets": {"DR": {"key": {}, "output_sha256": "of what stood there"}}}
    (labelled / "labels.json").write_text(json.dumps(record), encoding="utf-8")
    run = read_results(folder)
    assert CLASSIFIER not in run.datasets["DR"].labels
    assert any("changed since labels.json" in caution for caution in run.cautions)
    with pytest.raises(UserError, match=r"changed since labels\.json"):
        read_results(folder, labels=labelled)


# --- posts ------------------------------------------------------------------------------------------------------------


def test_posts_are_found_by_the_gold_texts(folder, root):
    run = read_results(folder, data_root=root)
    dr = run.datasets["DR"]
    assert dr.queries == QUERIES
    assert dr.posts[1] == dr.posts[2] != dr.posts[0]  # the same words
    assert (run.cautions, run.data_root) == ((), root)


def test_the_first_rows_of_a_test_file_are_found_and_other_rows_are_not(folder, root):
    write_table(folder / "DR.csv", ("goldens", "generated_text"), zip(GOLD[:3], ANSWERS[:3], strict=True))
    assert read_results(folder, data_root=root).datasets["DR"].queries == QUERIES[:3]
    write_table(folder / "DR.csv", ("goldens", "generated_text"), zip(GOLD[1:], ANSWERS[1:], strict=True))
    run = read_results(folder, data_root=root)
    assert run.datasets["DR"].posts is None
    assert "posts not found" in run.cautions[0] and "DR" in run.cautions[0]


def test_a_runs_posts_are_those_of_the_files_that_it_read(folder, root):
    digest = "sha256:" + sha256_of(root.path / "test_data" / "test_instruction" / "DR.csv")
    make_a_run(folder, {"test_dataset": "IMHI", "data_files": {"DR": digest}})
    assert read_results(folder, data_root=root).datasets["DR"].queries == QUERIES
    make_a_run(folder, {"test_dataset": "IMHI", "data_files": {"DR": "sha256:another"}})
    assert read_results(folder, data_root=root).datasets["DR"].queries is None
    make_a_run(folder, {"test_dataset": "IMHI-completion"})
    assert read_results(folder, data_root=root).datasets["DR"].queries is None


def test_the_released_rows_find_their_posts(real_data, tmp_path):
    """MultiWD asks six questions about each post."""
    root = DataRoot(real_data, "test")
    gold = [row.gold for row in load_suite(root, "IMHI", datasets=["MultiWD"]).rows]
    write_table(tmp_path / "MultiWD.csv", ("goldens", "generated_text"), zip(gold, gold, strict=True))
    results = read_results(tmp_path, data_root=root).datasets["MultiWD"]
    assert (len(results), len(set(results.posts))) == (2441, 407)
    assert results.correctness().accuracy == 1
