"""Comparing two runs: what may be compared, what is found, and what the command says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from imhi.commands import run_script
from imhi.comparison import compare_runs, comparison_table
from imhi.data import DataRoot, write_table
from imhi.errors import UserError
from imhi.metrics import METRICS
from imhi.pairing import holm, mcnemar
from imhi.results import RunResults, read_results
from imhi.scoring import score_folder

YES, NO = "Yes, the poster suffers from depression. Reasoning: {}", "No, the poster does not suffer from depression. {}"
REASONS = ("They sleep badly.", "They like soup.", "They see no way out.", "They ask about bicycles.")

DR_GOLD = [(YES if at % 2 else NO).format(REASONS[at % 4]) for at in range(12)]
SAD_GOLD = [
    f"This post shows the stress cause related to {cause}. Reasoning: It says so." for cause in ("work", "school")
]


def answered(gold: list[str], wrong: tuple[int, ...], unparsed: tuple[int, ...] = ()) -> list[str]:
    """The gold texts themselves, but for rows that say another row's label or none."""
    answers = list(gold)
    for at in wrong:
        answers[at] = gold[(at + 1) % len(gold)]
    for at in unparsed:
        answers[at] = "I cannot say anything about that."
    return answers


def write_run(folder: Path, answers: dict[str, tuple[list[str], list[str]]], **columns: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (gold, said) in answers.items():
        labels = columns.get(name)
        extra = [labels] if labels else []
        write_table(
            folder / f"{name}.csv",
            ("goldens", "generated_text", *(["labels"] if labels else [])),
            zip(gold, said, *extra, strict=True),
        )
    return folder


@pytest.fixture
def two(tmp_path: Path) -> tuple[RunResults, RunResults]:
    """A has rows 1-5 of DR wrong, B has row 1 wrong and row 8 unparsed; SAD equal."""
    first = write_run(
        tmp_path / "a", {"DR": (DR_GOLD, answered(DR_GOLD, (0, 1, 2, 3, 4))), "SAD": (SAD_GOLD, SAD_GOLD)}
    )
    second = write_run(tmp_path / "b", {"DR": (DR_GOLD, answered(DR_GOLD, (0,), (7,))), "SAD": (SAD_GOLD, SAD_GOLD)})
    for folder in (first, second):
        score_folder(folder, [METRICS["bleu"](), METRICS["rouge"]()])
    return read_results(first), read_results(second)


def with_posts(run: RunResults, posts: list[str]) -> RunResults:
    dr = replace(run.datasets["DR"], posts=posts)
    return replace(run, datasets={**run.datasets, "DR": dr})


# --- what is found ----------------------------------------------------------------------------------------------------


def test_every_figure_that_both_have_is_compared(two):
    found = compare_runs(*two, resamples=200)
    assert list(found.lines) == ["accuracy", "weighted_f1", "macro_f1", "bleu", "rouge1", "rouge2", "rougeL"]
    for key, lines in found.lines.items():
        assert list(lines) == ["DR", "SAD"]
        for name, line in lines.items():
            for run, value in zip(two, (line.figure.first, line.figure.second), strict=True):
                results = run.datasets[name]
                column = results.scores.get(key)
                expected = column.value if column else getattr(results.correctness(), key)
                assert value == pytest.approx(expected, abs=1e-12)
        assert found.overall[key].difference == pytest.approx(
            (lines["DR"].figure.difference + lines["SAD"].figure.difference) / 2
        )


def test_accuracy_is_tested_by_mcnemar_and_adjusted_for_the_datasets(two):
    lines = compare_runs(*two, resamples=200).lines["accuracy"]
    right = [
        [gold == said for gold, said in zip(dr.gold, dr.labels["rule"].predicted, strict=True)]
        for dr in (run.datasets["DR"] for run in two)
    ]
    assert lines["DR"].mcnemar == mcnemar(*right)
    assert (lines["DR"].mcnemar.gained, lines["DR"].mcnemar.lost) == (4, 1)
    assert lines["DR"].p == lines["DR"].mcnemar.p == pytest.approx(0.375)
    assert lines["DR"].test.startswith("McNemar")
    assert [line.p_holm for line in lines.values()] == holm([line.p for line in lines.values()])
    assert lines["DR"].p_holm == pytest.approx(0.75)


def test_rows_on_one_post_are_exchanged_together(two):
    posts = [{1: "one", 2: "one", 3: "two", 4: "two"}.get(at, "three") for at in range(12)]
    found = compare_runs(*(with_posts(run, posts) for run in two), resamples=2000)
    line = found.lines["accuracy"]["DR"]
    assert (line.rows, line.units) == (12, 3)
    # The posts add 2, 2 and -1 rows: of the eight exchanges four give a sum of 3 or more.
    assert line.test == "approximate randomization"
    assert line.p == line.figure.randomization_p == pytest.approx(0.5, abs=0.05)
    assert "posts" in comparison_table(found)


def test_flipped_rows_are_told_with_their_labels(two):
    first, second = two
    found = compare_runs(first, second, resamples=50)
    flips = {flip.index: flip for flip in found.flips["rule"]["DR"]}
    assert {at: flip.change for at, flip in flips.items()} == {
        1: "gained",
        2: "gained",
        3: "gained",
        4: "gained",
        7: "lost",
    }
    assert (flips[1].gold, flips[1].first, flips[1].second) == ("yes", "no", "yes")
    assert (flips[7].first, flips[7].second) == ("yes", "unparsed")
    assert flips[7].first_answer is None
    assert found.flips["rule"]["SAD"] == []
    with_texts = compare_runs(first, second, resamples=50, include_answers=True).flips["rule"]["DR"]
    assert with_texts[-1].second_answer == "I cannot say anything about that."


def test_a_change_from_one_wrong_label_to_another_is_neither_gained_nor_lost(tmp_path):
    gold = [f"This post shows the stress cause related to {cause}. Reasoning: So." for cause in ("work", "school")]
    family = "This post shows the stress cause related to family issues. Reasoning: So."
    runs = [
        read_results(write_run(tmp_path / name, {"SAD": (gold, [gold[0], answer])}))
        for name, answer in (("a", gold[0]), ("b", family))
    ]
    [flip] = compare_runs(*runs, resamples=20).flips["rule"]["SAD"]
    assert (flip.first, flip.second, flip.change) == ("work", "family issues", "other")


def test_a_datasets_numbers_do_not_depend_on_the_others(two):
    both = compare_runs(*two, resamples=100)
    alone = compare_runs(*(replace(run, datasets={"DR": run.datasets["DR"]}) for run in two), resamples=100)
    assert both.lines["bleu"]["DR"].figure == alone.lines["bleu"]["DR"].figure
    assert alone.overall == {}


def test_metrics_are_chosen_by_column_or_by_metric(two):
    assert list(compare_runs(*two, metrics=["rouge", "accuracy"], resamples=20).lines) == [
        "accuracy",
        "rouge1",
        "rouge2",
        "rougeL",
    ]
    with pytest.raises(UserError, match=r"--metrics bert_f1: not among the figures of these runs \(accuracy"):
        compare_runs(*two, metrics=["bert_f1"], resamples=20)


def test_labels_by_classifier_are_compared_beside_those_by_rule(tmp_path):
    spoken = ["yes" if at % 2 else "no" for at in range(12)]
    runs = [
        read_results(write_run(tmp_path / name, {"DR": (DR_GOLD, answered(DR_GOLD, wrong))}, DR=labels))
        for name, wrong, labels in (("a", (0, 1), spoken), ("b", (), ["no", *spoken[1:-1], "no"]))
    ]
    found = compare_runs(*runs, resamples=50)
    assert found.lines["accuracy"]["DR"].figure.difference == pytest.approx(2 / 12)
    assert found.lines["classifier_accuracy"]["DR"].figure.difference == pytest.approx(-1 / 12)
    assert [flip.index for flip in found.flips["classifier"]["DR"]] == [11]
    assert any("who labelled is not known" in caution for caution in found.cautions)


def test_two_folders_of_one_name_are_told_apart(tmp_path):
    runs = [read_results(write_run(tmp_path / above / "run", {"DR": (DR_GOLD, DR_GOLD)})) for above in "ab"]
    found = compare_runs(*runs, resamples=20)
    assert (found.first, found.second) == ("run (A)", "run (B)")
    assert found.folders == (str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run"))


# --- what may not be compared -----------------------------------------------------------------------------------------


def refused(first: RunResults, second: RunResults) -> str:
    with pytest.raises(UserError) as caught:
        compare_runs(first, second, resamples=20)
    assert caught.value.code == 2
    return str(caught.value)


def test_a_run_with_other_gold_is_refused(two, tmp_path):
    other = [*DR_GOLD[:5], DR_GOLD[5].replace("They", "You"), *DR_GOLD[6:]]
    third = read_results(write_run(tmp_path / "c", {"DR": (other, DR_GOLD)}))
    assert "DR, row 6: the gold text differs between" in refused(two[0], third)


def test_a_run_of_fewer_rows_is_refused(two, tmp_path):
    third = read_results(write_run(tmp_path / "c", {"DR": (DR_GOLD[:9], DR_GOLD[:9])}))
    message = refused(two[0], third)
    assert "DR: rows differ, 12 in a and 9 in c (row 10 only in a)" in message
    dropped = two[1].without({"DR": [3]})
    assert "DR: rows differ, 12 in a and 11 in b (row 4 only in a)" in refused(two[0], dropped)


def test_runs_on_other_prompts_are_refused(two):
    def made(run: RunResults, **configuration) -> RunResults:
        return replace(run, manifest={"configuration": configuration, "sessions": []})

    first, second = two
    assert "prompts differ: a answered --test_dataset IMHI, b IMHI-completion" in refused(
        made(first, test_dataset="IMHI"), made(second, test_dataset="IMHI-completion")
    )
    files = [{"DR": f"sha256:{digit * 64}", "SAD": "sha256:same"} for digit in "12"]
    message = refused(made(first, data_files=files[0]), made(second, data_files=files[1]))
    assert message.startswith("DR: ") and "111111" in message and "222222" in message
    queries = [replace(run.datasets["DR"], queries=[f"{run.name} {at}" for at in range(12)]) for run in two]
    runs = [replace(run, datasets={"DR": dr}) for run, dr in zip(two, queries, strict=True)]
    assert "DR, row 1: the prompt differs" in refused(*runs)


def test_runs_without_a_common_dataset_are_refused(two):
    alone = [replace(run, datasets={name: run.datasets[name]}) for run, name in zip(two, ("DR", "SAD"), strict=True)]
    assert refused(*alone) == "no dataset in common: a has DR, b has SAD"


def test_a_score_of_another_signature_is_left_out_and_why(two):
    first, second = two
    scores = dict(second.datasets["DR"].scores)
    scores["bleu"] = replace(scores["bleu"], signature=scores["bleu"].signature.replace("tok:13a", "tok:intl"))
    second = replace(second, datasets={**second.datasets, "DR": replace(second.datasets["DR"], scores=scores)})
    found = compare_runs(first, second, resamples=20)
    assert list(found.lines["bleu"]) == ["SAD"]
    assert list(found.lines["rouge1"]) == ["DR", "SAD"]
    [reason] = found.refused
    assert reason.startswith("DR: bleu left out, its signatures differ (tok:13a against tok:intl)")
    assert f"not compared: {reason}" in comparison_table(found)
    only = [replace(run, datasets={"DR": run.datasets["DR"]}) for run in (first, second)]
    with pytest.raises(UserError, match="bleu left out, its signatures differ"):
        compare_runs(*only, metrics=["bleu"], resamples=20)


def test_labels_of_another_classifier_are_left_out_and_why(tmp_path):
    spoken = ["yes" if at % 2 else "no" for at in range(12)]
    runs = [read_results(write_run(tmp_path / name, {"DR": (DR_GOLD, DR_GOLD)}, DR=spoken)) for name in "ab"]
    labels = {**runs[1].datasets["DR"].labels}
    labels["classifier"] = replace(labels["classifier"], definition='{"labeler": "bert"}')
    runs[1] = replace(runs[1], datasets={"DR": replace(runs[1].datasets["DR"], labels=labels)})
    found = compare_runs(*runs, resamples=20)
    assert list(found.lines) == ["accuracy", "weighted_f1", "macro_f1"]
    assert found.refused == (
        "DR: labels by classifier left out, the two runs were labelled differently; label both with one",
    )


def test_what_differs_but_may_be_compared_is_told(two):
    decoding = {"max_new_tokens": 128, "chat_template": False}
    first, second = (
        replace(
            run,
            manifest={
                "configuration": {"decoding": {**decoding, **changes}, "dtype": "float32"},
                "sessions": [],
                "data_root": {"made_up_samples": True},
            },
        )
        for run, changes in zip(two, ({}, {"chat_template": True, "max_new_tokens": 512}), strict=True)
    )
    failed = replace(first.datasets["DR"], finish=["error", *["stop"] * 11])
    first = replace(first, datasets={"DR": failed, "SAD": first.datasets["SAD"]}, cautions=("stale scores",))
    second = replace(second, datasets={"DR": second.datasets["DR"]})
    cautions = "\n".join(compare_runs(first, second, resamples=20).cautions)
    for said in (
        "a: stale scores",
        "only in a, left aside: SAD",
        "a: made-up sample rows",
        "a: failed rows count as unparsed (DR 1)",
        "prompts are wrapped in the chat template in b, raw in a",
        "settings differ: max_new_tokens 128 / 512",
        "rows are taken as independent",
    ):
        assert said in cautions


def test_a_server_that_wraps_prompts_and_another_engine_are_told(two):
    configurations = [
        {"engine": "transformers", "decoding": {"chat_template": False}},
        {"engine": "openai", "api": "chat", "decoding": {"chat_template": False}},
    ]
    runs = [
        replace(run, manifest={"configuration": configuration, "sessions": []})
        for run, configuration in zip(two, configurations, strict=True)
    ]
    cautions = "\n".join(compare_runs(*runs, resamples=20).cautions)
    assert "prompts are wrapped in the chat template in b, raw in a" in cautions
    assert "answered through other engines: transformers / openai" in cautions
    assert "wrapped" not in "\n".join(compare_runs(runs[1], runs[1], resamples=20).cautions)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_tables_and_writes_json(two, tmp_path, capsys):
    out = tmp_path / "found.json"
    folders = [str(run.folder) for run in two]
    assert run_script("compare", [*folders, "--resamples", "100", "--out", str(out), "--metrics", "accuracy"]) == 0
    printed = capsys.readouterr().out
    assert "accuracy of the labels by rule, per cent" in printed
    assert "DR: B alone right 4 (row 2, 3, 4, 5); A alone right 1 (row 8)" in printed
    assert DR_GOLD[0] not in printed
    document = json.loads(out.read_text(encoding="utf-8"))
    figure = document["figures"]["accuracy"]["datasets"]["DR"]
    assert figure["difference"] == pytest.approx(3 / 12)
    assert figure["low"] <= figure["difference"] <= figure["high"]
    assert figure["mcnemar"]["odds_ratio"] == 4
    assert document["flips"]["rule"]["DR"][-1] == {
        "index": 7,
        "gold": "yes",
        "first": "yes",
        "second": "unparsed",
        "change": "lost",
    }
    assert "Reasoning" not in out.read_text(encoding="utf-8")
    again = tmp_path / "again.json"
    run_script("compare", [*folders, "--resamples", "100", "--out", str(again), "--metrics", "accuracy"])
    assert again.read_bytes() == out.read_bytes()


def test_the_command_takes_labels_from_folders(two, tmp_path, capsys):
    spoken = ["yes" if at % 2 else "no" for at in range(12)]
    labels = [
        str(write_run(tmp_path / f"labels-{run.name}", {"DR": (DR_GOLD, run.datasets["DR"].answers)}, DR=spoken))
        for run in two
    ]
    folders = [str(run.folder) for run in two]
    flags = ["--labels_a", labels[0], "--labels_b", labels[1], "--datasets", "DR", "--resamples", "20"]
    assert run_script("compare", [*folders, *flags]) == 0
    assert "accuracy of the labels by classifier" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--level", "95"], "--level 95: expected a share between 0 and 1"),
        (["--include_answers"], "no effect without --out"),
        (["--seed", "-1"], "--seed -1"),
        (["--datasets", "CAMS"], "no file for CAMS"),
    ],
)
def test_the_command_answers_a_mistake_in_one_line(two, capsys, flags, said):
    assert run_script("compare", [*(str(run.folder) for run in two), *flags]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_posts_are_found_in_the_data_root(tmp_path):
    root = tmp_path / "root"
    folder = root / "test_data" / "test_instruction"
    folder.mkdir(parents=True)
    queries = [
        f'Consider this post: "{post}" Question: Does the poster suffer from depression?'
        for post in ("Again no sleep.", "Soup.", "Soup!", "No way out.")
    ]
    gold = DR_GOLD[:4]
    write_table(folder / "DR.csv", ("query", "gpt-3.5-turbo"), zip(queries, gold, strict=True))
    runs = [
        read_results(
            write_run(tmp_path / name, {"DR": (gold, answered(gold, wrong))}), data_root=DataRoot(root, "--data_root")
        )
        for name, wrong in (("a", (0,)), ("b", (1,)))
    ]
    line = compare_runs(*runs, resamples=20).lines["accuracy"]["DR"]
    assert (line.rows, line.units) == (4, 3)
