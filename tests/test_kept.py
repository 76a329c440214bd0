"""A run kept without texts: what is in the files, what is not, and that every figure comes back from them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
from pathlib import Path

import pytest
from report_runs import random_rows, save_run

from imhi.benchmark import DATASETS, aspect_of, query
from imhi.cli import COMMANDS
from imhi.commands import run_script
from imhi.comparison import compare_runs
from imhi.data import DataRoot, samples_root
from imhi.errors import UserError
from imhi.exclusions import leave_out
from imhi.kept import COLUMNS, is_kept, keep_run, read_kept, without_paths
from imhi.labelers.rules import published_rule
from imhi.report import make_report, write_report
from imhi.results import CLASSIFIER, RULE, data_root_of, read_results
from imhi.rows import RunResults
from imhi.scoring import score_folder
from imhi.statistics import Interval

ROOT = Path(__file__).parents[1]
# Where a run's prose would stand.
PROMPT_IDS = [1, 9690, 198, 2683]
SECRET = "Somebody wrote this sentence about a very bad night and nobody else should read it."


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two runs on the same rows, with posts, labels and scores of whole texts and of explanations."""
    from imhi.metrics import METRICS

    folder = tmp_path_factory.mktemp("made")
    counts = {"DR": 60, "SAD": 50, "MultiWD": 72, "Irf": 60}
    for name, seed in (("run-a", 0), ("run-b", 1)):
        rows = {
            each: random_rows(each, count, seed=seed, rows_a_post=3 if each == "MultiWD" else 1)
            for each, count in counts.items()
        }
        save_run(folder / name, rows, root=folder / "root")
        score_folder(folder / name, [METRICS["bleu"](), METRICS["rouge"]()], target="explanation")
        path = folder / name / "manifest.json"
        manifest = json.loads(path.read_text(encoding="utf-8"))
        manifest["first_prompt"] = {"id": "DR/0", "token_ids": PROMPT_IDS}
        manifest["sessions"][0] |= {
            "model": "/home/jane/models/base",
            "command": ["/home/jane/src/IMHI.py", "--lora_path=/home/jane/adapters/mine", "--shots", "2"],
            "engine": {"guards": [SECRET], "attention": "sdpa", "longest": {"token_ids": PROMPT_IDS}},
        }
        path.write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def whole(made: Path, name: str = "run-a") -> RunResults:
    return read_results(made / name, data_root=DataRoot(made / "root", "given"))


@pytest.fixture(scope="module")
def kept(made, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("kept")
    for name in ("run-a", "run-b"):
        keep_run(whole(made, name), out)
    return out


def table_of(folder: Path) -> list[dict[str, str]]:
    text = gzip.decompress((folder / "rows.csv.gz").read_bytes()).decode()
    return list(csv.DictReader(io.StringIO(text)))


def content_of(folder: Path) -> str:
    files = [
        gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes() for path in folder.iterdir()
    ]
    return b"\n".join(files).decode()


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_a_kept_run_holds_no_text_of_its_rows(made, kept):
    assert sorted(path.name for path in (kept / "run-a").iterdir()) == ["manifest.json", "rows.csv.gz", "scores.json"]
    content = content_of(kept / "run-a")
    run = whole(made)
    heads = {label.instruction for dataset in DATASETS.values() for label in dataset.labels}
    for results in run.datasets.values():
        for text in (*results.answers, *results.goldens, *results.queries):
            # Of every text any three words in a row that stand behind its head.
            words = text.partition("Reasoning:")[2].split() or text.split()
            for at in range(len(words) - 2):
                assert " ".join(words[at : at + 3]) not in content
    assert not [head for head in heads if head in content]
    assert SECRET not in content and "jane" not in content
    assert "token_ids" not in content and str(made) not in content


def test_every_cell_is_a_number_or_a_name_of_the_benchmark(kept):
    names = {name for dataset in DATASETS.values() for name in (dataset.name, *dataset.label_names, *dataset.aspects)}
    names |= {"unparsed", "unclear", "stop", "length", "error", "no_room", ""}
    rows = table_of(kept / "run-a")
    assert len(rows) == 242
    for row in rows:
        for cell in row.values():
            assert cell in names or float(cell) is not None
    assert list(rows[0])[: len(COLUMNS)] == list(COLUMNS)


def test_the_rows_are_those_of_the_run(made, kept):
    run = whole(made)
    for name, results in run.datasets.items():
        rows = [row for row in table_of(kept / "run-a") if row["dataset"] == name]
        dataset = DATASETS[name]
        assert [int(row["row"]) for row in rows] == results.index
        assert [row["gold"] for row in rows] == results.gold
        assert [row["rule"] for row in rows] == [label or "unparsed" for label in results.labels[RULE].predicted]
        published = [published_rule(dataset, answer) for answer in results.answers]
        assert [(row["published_rule"], row["published_default"] == "1") for row in rows] == published
        assert [row["empty"] == "1" for row in rows] == [not answer.strip() for answer in results.answers]
        assert [row["finish"] for row in rows] == results.finish
        assert {row["prompt_tokens"] for row in rows} == {"50"}
        assert [float(row["rougeL"]) for row in rows] == pytest.approx(results.scores["rougeL"].rows, rel=1e-5)
        asked = [query.rpartition("Question: ")[2] for query in results.queries]
        if dataset.aspects == ("",):
            assert {row["aspect"] for row in rows} == {""}
        else:
            assert len({row["aspect"] for row in rows}) == len(dataset.aspects)
            assert all(row["aspect"] in text for row, text in zip(rows, asked, strict=True))
    groups = [row["post"] for row in table_of(kept / "run-a") if row["dataset"] == "MultiWD"]
    assert groups == [str(at // 3) for at in range(72)]


def test_equal_runs_give_equal_bytes(made, kept, tmp_path):
    again = keep_run(whole(made), tmp_path)
    for path in again.iterdir():
        assert path.read_bytes() == (kept / "run-a" / path.name).read_bytes()


def test_the_manifest_has_names_for_paths_and_digests_for_prose(kept):
    manifest = json.loads((kept / "run-a" / "manifest.json").read_text(encoding="utf-8"))
    session = manifest["sessions"][0]
    assert session["command"] == ["IMHI.py", "--lora_path=mine", "--shots", "2"]
    assert (session["model"], manifest["data_root"]["path"]) == ("base", "root")
    assert session["engine"]["guards"][0].startswith("sha256:") and session["engine"]["attention"] == "sdpa"
    assert "first_prompt" not in manifest
    assert manifest["configuration"]["decoding"]["max_length"] == 2048


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/Jane Doe/runs/one", "one"),
        ("~/runs/one/", "one"),
        ("../jane/one", "one"),
        ("C:\\Users\\jane\\one", "one"),
        ("--out=/home/jane/one", "--out=one"),
        ("model:/home/jane/one|layer:5", "model:one|layer:5"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("train_data/instruction_data/DR/train.csv", "train_data/instruction_data/DR/train.csv"),
        ("embedded:smollm2", "embedded:smollm2"),
        ("2026-11-23T04:38:32+00:00", "2026-11-23T04:38:32+00:00"),
        (str(Path.home()), "~"),
    ],
)
def test_paths_of_a_machine_become_names(text, expected):
    assert without_paths(text) == expected


def test_the_aspect_is_that_of_the_question():
    dataset = DATASETS["Irf"]
    queries = [
        query(dataset, "instruction", "thwarted belongingness", "perceived burdensomeness"),
        query(dataset, "instruction", "Hm.", "thwarted belongingness"),
        'Consider this post: "Hm." Question: What else?',
    ]
    found = [aspect_of(dataset, "instruction", text) for text in queries]
    assert found == ["perceived burdensomeness", "thwarted belongingness", None]
    stem = query(dataset, "completion", "Hm.", "thwarted belongingness")
    assert aspect_of(dataset, "completion", stem) == "thwarted belongingness"


def test_every_released_row_has_its_aspect(real_data):
    from imhi.data import load_suite

    for suite, form in (("IMHI", "instruction"), ("IMHI-completion", "completion")):
        rows = load_suite(DataRoot(real_data, "test"), suite, datasets=["MultiWD", "Irf"]).rows
        for name in ("MultiWD", "Irf"):
            found = [aspect_of(DATASETS[name], form, row.query) for row in rows if row.dataset == name]
            assert set(found) == set(DATASETS[name].aspects)


# --- what comes back --------------------------------------------------------------------------------------------------


def report_json(runs: list[RunResults], out: Path) -> dict:
    write_report(make_report(runs, resamples=200), runs, out)
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


def assert_same(one, other, where: str = "") -> int:
    """Field by field; numbers to what the kept digits allow.  Returns how many fields were compared."""
    if isinstance(one, dict):
        assert isinstance(other, dict) and one.keys() == other.keys(), where
        return sum(assert_same(one[key], other[key], f"{where}.{key}") for key in one)
    if isinstance(one, list):
        assert isinstance(other, list) and len(one) == len(other), where
        return sum(
            assert_same(left, right, f"{where}[{at}]") for at, (left, right) in enumerate(zip(one, other, strict=True))
        )
    if isinstance(one, float):
        assert other == pytest.approx(one, abs=2e-6), where
    else:
        assert one == other, where
    return 1


def test_the_report_of_a_kept_run_has_every_figure_of_the_run(made, kept, tmp_path):
    full = whole(made)
    mine = report_json([full], tmp_path / "full")["runs"][0]
    theirs = report_json([read_results(kept / "run-a")], tmp_path / "kept")["runs"][0]
    titles = [notice["title"] for notice in theirs["notices"]]
    assert "Kept without texts" in titles
    theirs["notices"] = [notice for notice in theirs["notices"] if notice["title"] != "Kept without texts"]
    # Where things lie on the machine is all that may differ.
    for facts in (mine["facts"], theirs["facts"]):
        for name in ("folder", "data root", "posts looked up in", "classifier labels", "model"):
            facts.pop(name, None)
    mine.pop("folder"), theirs.pop("folder")
    assert assert_same(mine, theirs) > 1000
    multiwd = theirs["datasets"]["MultiWD"]
    assert (multiwd["resampled"], multiwd["units"]) == ("posts", 24)
    assert {"bleu", "rouge1", "bleu_explanation", "rougeL_explanation"} <= multiwd["scores"].keys()


def test_the_shipped_example_is_kept_whole(tmp_path):
    """A folder that is no run of the toolkit, with labels and a model's scores."""
    folder = ROOT / "examples" / "smollm2-chat"
    root = DataRoot(samples_root(), "test")
    run = read_results(folder, data_root=root)
    back = read_results(keep_run(run, tmp_path))
    assert (back.manifest, back.suite, back.on_samples) == (None, "IMHI", True)
    mine, theirs = (report_json([each], tmp_path / name)["runs"][0] for each, name in ((run, "a"), (back, "b")))
    assert_same(mine["datasets"], theirs["datasets"])
    assert "bert_f1" in theirs["datasets"]["DR"]["scores"]


def test_a_kept_run_compares_as_the_run_does(made, kept):
    runs = [whole(made, name) for name in ("run-a", "run-b")]
    expected = compare_runs(*runs, resamples=200).as_dict()
    for pair in ([read_results(kept / "run-a"), read_results(kept / "run-b")], [runs[0], read_results(kept / "run-b")]):
        found = compare_runs(*pair, resamples=200).as_dict()
        # A row's sixth digit may make or break a tie of the randomization test.
        assert found["figures"].keys() == expected["figures"].keys()
        for key, figure in expected["figures"].items():
            for name, line in figure["datasets"].items():
                other = found["figures"][key]["datasets"][name]
                for field in ("first", "second", "difference", "low", "high", "units", "mcnemar"):
                    assert_same(line[field], other[field], f"{key} {name} {field}")
        assert found["flips"] == expected["flips"]
        assert found["refused"] == []


def test_rows_are_left_out_of_a_kept_run_where_its_posts_are_at_hand(made, kept):
    root = DataRoot(made / "root", "given")
    rest, counts = leave_out(read_results(kept / "run-a", data_root=root), dedup_posts=True)
    expected, expected_counts = leave_out(whole(made), dedup_posts=True)
    assert counts == expected_counts
    assert rest.datasets["MultiWD"].index == expected.datasets["MultiWD"].index
    with pytest.raises(UserError, match="are not known"):
        leave_out(read_results(kept / "run-a"), dedup_posts=True)


def test_fewer_rows_and_fewer_datasets_of_a_kept_run(made, kept):
    run = read_results(kept / "run-a", datasets=["SAD"])
    assert list(run.datasets) == ["SAD"]
    some = run.without({"SAD": range(10)}).datasets["SAD"]
    full = whole(made).without({"SAD": range(10)}).datasets["SAD"]
    assert (some.index, some.finish) == (full.index, full.finish)
    assert some.scores["bleu"].value == pytest.approx(full.scores["bleu"].value)
    with pytest.raises(UserError, match="no rows of swmh"):
        read_kept(kept / "run-a", ["swmh"])


def test_labels_by_rule_are_read_and_not_computed(made, kept):
    run = read_results(kept / "run-a")
    for name, results in whole(made).datasets.items():
        for source in (RULE, CLASSIFIER):
            assert run.datasets[name].labels[source] == results.labels[source]


def test_the_rule_of_another_version_is_told(kept, tmp_path, monkeypatch):
    monkeypatch.setattr("imhi.kept.__version__", "9.9.9")
    assert "labels by rule are those of imhi" in read_results(kept / "run-a").cautions[0]


def test_the_page_of_a_kept_run_has_no_browser_of_answers(made, kept, tmp_path):
    runs = [read_results(kept / "run-a")]
    page = write_report(make_report(runs, resamples=20), runs, tmp_path)[0].read_text(encoding="utf-8")
    assert "The answers are not kept with the run" in page
    assert "answer-data" not in page.partition("<script>")[0] and '<button type="button" data-run' not in page
    both = [whole(made), read_results(kept / "run-b")]
    page = write_report(make_report(both, resamples=20), both, tmp_path)[0].read_text(encoding="utf-8")
    assert 'id="answer-data"' in page
    assert 'data-run="0"' in page and 'data-run="1"' not in page


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_needs_texts_says_so_in_one_line(kept, tmp_path):
    from imhi.regression import with_text_metrics

    runs = [read_results(kept / name) for name in ("run-a", "run-b")]
    with pytest.raises(UserError, match="kept without its texts, which imhi check"):
        with_text_metrics(runs[0])
    with pytest.raises(UserError, match="kept without its texts, which --include_answers"):
        compare_runs(*runs, resamples=20, include_answers=True)
    with pytest.raises(UserError, match="--include_posts: these runs are kept without their texts"):
        make_report(runs, include_posts=True)
    with pytest.raises(UserError, match="is kept without its texts"):
        keep_run(runs[0], tmp_path)
    with pytest.raises(UserError, match="labels are kept with it"):
        read_results(kept / "run-a", labels=tmp_path)


def test_files_that_were_changed_are_refused(kept, tmp_path):
    folder = tmp_path / "run-a"
    for name in ("rows.csv.gz", "scores.json"):
        shutil.copytree(kept / "run-a", folder)
        (folder / name).write_bytes((folder / name).read_bytes() + b" ")
        with pytest.raises(UserError, match=rf"{name}: missing, or not as it was kept"):
            read_results(folder)
        shutil.rmtree(folder)
    shutil.copytree(kept / "run-a", folder)
    (folder / "scores.json").unlink()
    with pytest.raises(UserError, match=r"scores\.json: missing"):
        read_results(folder)
    (folder / "manifest.json").write_text('{"configuration": {}}', encoding="utf-8")
    with pytest.raises(UserError, match="not the manifest of a kept run"):
        read_results(folder)
    (folder / "manifest.json").write_text('{"kept": {"format": "imhi-kept-9"}}', encoding="utf-8")
    with pytest.raises(UserError, match="kept in the form imhi-kept-9"):
        read_results(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json: no such file"):
        read_results(folder)


def test_other_gold_texts_are_refused_by_their_digest(made, kept, tmp_path):
    folder = tmp_path / "run-b"
    shutil.copytree(made / "run-b", folder)
    shutil.rmtree(folder / "labels")
    (folder / "scores.json").unlink()
    path = folder / "SAD.csv"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("Reasoning: ", "Reasoning: Well, ", 1), encoding="utf-8")
    with pytest.raises(UserError, match="of other gold texts, by their digests"):
        compare_runs(read_results(kept / "run-a"), read_results(folder), resamples=20)


def test_a_run_with_stale_scores_is_not_kept(made, tmp_path):
    folder = tmp_path / "run-a"
    shutil.copytree(made / "run-a", folder)
    path = folder / "scores" / "SAD.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("0,", "1,", 1), encoding="utf-8")
    text = path.read_text(encoding="utf-8").splitlines()
    cells = text[1].split(",")
    text[1] = ",".join([cells[0], "0.123", *cells[2:]])
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be kept as it is: SAD: bleu"):
        keep_run(read_results(folder), tmp_path / "out")


def test_a_folder_in_the_way_stays(made, tmp_path):
    with pytest.raises(UserError, match="is there and is no kept run"):
        keep_run(whole(made), made)
    assert not is_kept(made / "run-a")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="is a file"):
        keep_run(whole(made), tmp_path / "file")


def test_a_run_without_posts_is_kept_row_by_row(made, tmp_path):
    back = read_results(keep_run(read_results(made / "run-a"), tmp_path)).datasets["MultiWD"]
    assert (back.posts, back.aspects) == (None, None)
    assert back.finish is not None


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_keeps_runs_and_report_reads_them(made, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("IMHI_DATA", raising=False)
    out = tmp_path / "kept"
    assert run_script("keep", [str(made / "run-a"), str(made / "run-b"), "--out", str(out)]) == 0
    assert "kept 242 rows of 4 datasets" in capsys.readouterr().err
    assert run_script("report", [str(out / "run-a"), "--out", str(tmp_path / "page"), "--resamples", "20"]) == 0
    assert run_script("compare", [str(out / "run-a"), str(out / "run-b"), "--resamples", "20"]) == 0
    assert "difference: B minus A" in capsys.readouterr().out
    assert data_root_of(out / "run-a", None) is None
    assert run_script("keep", [str(made / "run-a"), f"{made}/./run-a", "--out", str(out)]) == 2
    assert "two runs are called run-a" in capsys.readouterr().err
    # Without the posts one line says what is not kept.
    shutil.copytree(made / "run-a", tmp_path / "run-c")
    manifest = json.loads((tmp_path / "run-c" / "manifest.json").read_text(encoding="utf-8"))
    manifest["data_root"]["path"] = "/nowhere"
    (tmp_path / "run-c" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert run_script("keep", [str(tmp_path / "run-c"), "--out", str(out)]) == 0
    assert "posts of DR, SAD, MultiWD, Irf not at hand" in capsys.readouterr().err


@pytest.mark.skipif("keep" not in COMMANDS, reason="imhi.cli does not list the command yet")
def test_the_toolkits_command_line_has_it(capsys):
    from imhi.cli import main

    with pytest.raises(SystemExit):
        main(["keep", "--help"])
    assert "without any text" in capsys.readouterr().out


def test_a_run_of_the_released_size_stays_small(tmp_path):
    """8,169 rows with every metric's columns; the values are as random as values get."""
    import random
    from dataclasses import replace

    rng = random.Random(0)
    folder = save_run(tmp_path / "run", {"MultiWD": random_rows("MultiWD", 8169, words=6)})
    run = read_results(folder)
    results = run.datasets["MultiWD"]
    base = results.scores["rouge1"]
    noise = {
        name: replace(base, name=name, rows=[rng.random() for _ in range(8169)])
        for name in ("bert_f1", "bert_precision", "bert_recall", "bart_score")
    }
    results = replace(results, scores={**results.scores, **noise})
    kept = keep_run(replace(run, datasets={"MultiWD": results}), tmp_path / "out")
    assert sum(path.stat().st_size for path in kept.iterdir()) < 600_000


def test_intervals_of_bleu_come_from_its_kept_statistics(made, kept):
    from imhi.report.figures import figures_of

    mine, theirs = (
        figures_of(run, resamples=50).datasets["SAD"].scores["bleu"].value
        for run in (whole(made), read_results(kept / "run-a"))
    )
    assert isinstance(theirs, Interval) and theirs == mine
