import csv
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score
from tiny_classifiers import save_adapter, save_bert_base, save_bert_classifier

from imhi.benchmark import DATASETS, gold_answer
from imhi.commands import run_script
from imhi.data import read_table, write_table
from imhi.labelers import bert, folders

SCRIPT = Path(__file__).parents[1] / "src" / "label_inference.py"
ANSWERS = [
    "Yes, the poster suffers from stress. Reasoning: the post speaks of work.",
    "",
    "no",
    "school " * 600,
    'A "quoted" answer, with\nlines, a back\\slash and a comma',
    "no",
    "None",
    "Reasoning: nothing but a reason.",
]


def write_answers(folder, name, answers=ANSWERS):
    folder.mkdir(parents=True, exist_ok=True)
    labels = DATASETS[name].labels
    goldens = [gold_answer(labels[row % len(labels)], "instruction", f"made-up {row}") for row in range(len(answers))]
    write_table(folder / f"{name}.csv", ["goldens", "generated_text"], zip(goldens, answers, strict=True))
    return goldens


@pytest.fixture(scope="session")
def classifiers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifiers")
    save_bert_classifier(folder / "DR", "DR", seed=3)
    save_bert_classifier(folder / "SAD", "SAD", weights="bin")
    return folder


@pytest.fixture
def answers(tmp_path):
    for name in ("DR", "SAD"):
        write_answers(tmp_path / "answers", name)
    return tmp_path / "answers"


@pytest.fixture
def label(capsys):
    """Run the script's command; gives exit code, stdout, stderr."""

    def call(*flags):
        capsys.readouterr()
        code = run_script("label", [str(flag) for flag in flags])
        seen = capsys.readouterr()
        return code, seen.out, seen.err

    return call


@pytest.fixture
def loads(monkeypatch):
    """The datasets whose classifier was loaded, in order."""
    loaded = []
    load = bert._load
    monkeypatch.setattr(
        bert, "_load", lambda folder, dataset, dtype: loaded.append(dataset.name) or load(folder, dataset, dtype)
    )
    return loaded


def flags_for(classifiers, answers, out):
    return ["--model_path", classifiers, "--data_path", answers, "--data_output_path", out]


def test_a_folder_is_labelled(classifiers, answers, tmp_path, label):
    (answers / "scores").mkdir()
    (answers / "manifest.json").write_text("{}")
    (answers / "notes.csv").write_text("a,b\n1,2\n")
    shutil.copytree(answers, answers / "older")
    out = tmp_path / "made" / "with" / "parents"
    code, stdout, stderr = label(*flags_for(classifiers, answers, out), "--batch_size", 3, "--calculate")
    assert code == 0
    assert "not named after a dataset, ignored: notes.csv" in stderr
    assert "folders inside it are not read: older" in stderr
    assert sorted(path.name for path in out.iterdir() if path.name != ".lock") == [
        "DR.csv",
        "SAD.csv",
        "correctness.json",
        "labels.json",
    ]
    for name in ("DR", "SAD"):
        with (out / f"{name}.csv").open(encoding="utf-8", newline="") as handle:
            rows = list(csv.DictReader(handle))
        assert list(rows[0]) == ["goldens", "generated_text", "labels", "label_confidence"]
        assert [row["generated_text"].rstrip(" ") for row in rows] == [answer.rstrip(" ") for answer in ANSWERS]
        assert {row["labels"] for row in rows} <= {known.classifier for known in DATASETS[name].labels}
        assert all(1 / len(DATASETS[name].labels) <= float(row["label_confidence"]) <= 1 for row in rows)
        again = pd.read_csv(out / f"{name}.csv")
        assert again["label_confidence"].dtype == float
        assert again["generated_text"].isna().tolist() == [answer == "" for answer in ANSWERS]
        record = json.loads((out / "labels.json").read_text())["datasets"][name]
        assert record["counts"] == {"rows": 8, "distinct": 7, "empty": 1, "truncated": 1, "unparsed": 0}
        assert record["key"]["dtype"] == "float32"
        assert set(record["key"]["classifier"]) >= {"config.json", "vocab.txt"}
        assert "training_args.bin" not in record["key"]["classifier"]
        assert record["environment"]["libraries"]["torch"]
    assert not list(classifiers.glob("*/exploded"))
    line = next(line for line in stdout.splitlines() if line.startswith("Dataset: SAD"))
    rows = read_table(out / "SAD.csv")
    gold = [DATASETS["SAD"].labels[row].classifier for row in range(8)]
    assert line == published_line("SAD", gold, rows.column("labels"))
    figures = json.loads((out / "correctness.json").read_text())
    assert figures["datasets"]["SAD"]["n"] == 8
    assert sum(sum(row.values()) for row in figures["datasets"]["DR"]["confusion"].values()) == 8
    # Later, from the files alone.
    code, again, _ = label("--calculate", "--labelled", "--data_path", out)
    assert code == 0
    assert [row for row in again.splitlines() if row.startswith("Dataset:")] == [
        row for row in stdout.splitlines() if row.startswith("Dataset:")
    ]


def published_line(name, gold, predicted):
    """The published line, from scikit-learn alone."""
    figures = [accuracy_score(gold, predicted)]
    figures += [f1_score(gold, predicted, average=average) for average in ("weighted", "micro", "macro")]
    return "Dataset: {}, average acc:{}, weighted F1 {}, micro F1 {}, macro F1 {}".format(
        name, *(round(figure * 100, 2) for figure in figures)
    )


@pytest.fixture(scope="session")
def adapters(tmp_path_factory):
    """Adapters of SAD and DR, the latter without a threshold, and their base."""
    folder = tmp_path_factory.mktemp("adapters")
    base = save_bert_base(folder / "base")
    save_adapter(folder / "ten" / "SAD", "SAD", base)
    save_adapter(folder / "ten" / "DR", "DR", base, unclear_below=None)
    return folder / "ten"


def test_without_model_path_the_packaged_adapters_label(adapters, answers, tmp_path, label, monkeypatch):
    monkeypatch.setattr(folders, "PACKAGED", adapters)
    out = tmp_path / "out"
    flags = ["--data_path", answers, "--data_output_path", out, "--calculate"]
    code, stdout, stderr = label(*flags)
    assert code == 0
    assert "the toolkit's own" in stderr
    assert [line.split(",")[0] for line in stdout.splitlines() if line.startswith("Dataset:")] == [
        "Dataset: DR",
        "Dataset: SAD",
    ]
    sad, dr = read_table(out / "SAD.csv"), read_table(out / "DR.csv")
    assert dr.columns == ("goldens", "generated_text", "labels", "label_confidence")
    assert sad.columns == (*dr.columns, "clear_label")
    confidences = [float(cell) for cell in sad.column("label_confidence")]
    expected = [
        said if confidence >= 0.35 and text.strip() else "unclear"
        for said, confidence, text in zip(sad.column("labels"), confidences, sad.column("generated_text"), strict=True)
    ]
    assert sad.column("clear_label") == expected
    assert 0 < expected.count("unclear") < len(expected)
    counts = json.loads((out / "labels.json").read_text())["datasets"]
    assert counts["SAD"]["counts"]["unclear"] == expected.count("unclear")
    assert "unclear" not in counts["DR"]["counts"]
    assert "unclear" in stdout.splitlines()[0]
    # The figures are those of the labels column; the extra column is kept out of them.
    gold = [DATASETS["SAD"].labels[row].classifier for row in range(8)]
    assert published_line("SAD", gold, sad.column("labels")) in stdout

    before = {path.name: path.read_bytes() for path in out.glob("*.csv")}
    assert label(*flags)[2].count("already labelled") == 2
    assert label("--calculate", "--labelled", "--data_path", out)[0] == 0
    assert {path.name: path.read_bytes() for path in out.glob("*.csv")} == before
    # The same folder, given by name.
    assert label(*flags, "--model_path", adapters)[2].count("already labelled") == 2


def test_an_adapter_of_another_temperature_labels_again(adapters, answers, tmp_path, label):
    models = shutil.copytree(adapters, tmp_path / "models")
    flags = [*flags_for(models, answers, tmp_path / "out"), "--datasets", "SAD"]
    assert label(*flags)[0] == 0
    record = json.loads((models / "SAD" / "labeler.json").read_text())
    (models / "SAD" / "labeler.json").write_text(json.dumps({**record, "temperature": 2.8, "training": {}}))
    assert "SAD: temperature changed since" in label(*flags)[2]


def test_a_folder_of_four_columns_goes_on_with_five(classifiers, adapters, answers, tmp_path, label):
    """Files of an earlier version are ours: recorded ones, and one that a killed run left without its record."""
    out = tmp_path / "out"
    assert label(*flags_for(classifiers, answers, out))[0] == 0
    (out / "labels.json").unlink()
    code, _, stderr = label(*flags_for(adapters, answers, out))
    assert (code, "does not list it" in stderr) == (0, False)
    assert len(read_table(out / "SAD.csv").columns) == 5
    (out / "labels.json").unlink()
    assert label(*flags_for(adapters, answers, out))[0] == 0
    edited = (out / "SAD.csv").read_text().replace("unclear", "work", 1)
    (out / "SAD.csv").write_text(edited)
    assert "SAD.csv was changed after it was labelled" in fails(label, *flags_for(adapters, answers, out))


def test_checkpoints_and_adapters_mixed(classifiers, adapters, answers, tmp_path, label):
    models = tmp_path / "models"
    models.mkdir()
    (models / "DR").symlink_to(classifiers / "DR")
    (models / "SAD").symlink_to(adapters / "SAD")
    assert label(*flags_for(models, answers, tmp_path / "out"))[0] == 0
    columns = [len(read_table(tmp_path / "out" / f"{name}.csv").columns) for name in ("DR", "SAD")]
    assert columns == [4, 5]


def test_nothing_is_computed_twice(classifiers, answers, tmp_path, label, loads):
    flags = flags_for(classifiers, answers, tmp_path / "out")
    assert label(*flags)[0] == 0
    assert loads == ["DR", "SAD"]
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    code, stdout, stderr = label(*flags, "--batch_size", 2)
    assert code == 0
    assert loads == ["DR", "SAD"]
    assert "DR: already labelled" in stderr and "SAD: already labelled" in stderr
    assert "SAD" in stdout
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before

    write_answers(answers, "DR", ["yes", "no"])
    _, _, stderr = label(*flags)
    assert loads == ["DR", "SAD", "DR"]
    assert "DR: input changed since" in stderr
    assert len(read_table(tmp_path / "out" / "DR.csv")) == 2

    (tmp_path / "out" / "SAD.csv").unlink()
    assert "SAD: SAD.csv vanished since" in label(*flags)[2]
    assert loads == ["DR", "SAD", "DR", "SAD"]

    assert "DR: dtype changed since" in label(*flags, "--dtype", "bfloat16", "--datasets", "dr")[2]
    assert loads[4:] == ["DR"]
    label(*flags, "--overwrite")
    assert loads[5:] == ["DR", "SAD"]


@pytest.mark.parametrize(
    ("given", "device", "asked"),
    [([], "cpu", "float32"), ([], "cuda:0", "auto"), (["--dtype", "float16"], "cuda:0", "float16")],
)
def test_the_number_format_suits_the_device(classifiers, answers, tmp_path, label, monkeypatch, given, device, asked):
    from imhi.errors import UserError

    def stop(*pair):
        raise UserError(f"asked for {pair}")

    monkeypatch.setattr("imhi.devices.pick_device", lambda **_: device)
    monkeypatch.setattr("imhi.devices.pick_dtype", stop)
    code, _, stderr = label(*flags_for(classifiers, answers, tmp_path / "out"), *given)
    assert code == 2 and f"asked for {(asked, device)}" in stderr


def test_another_classifier_labels_again(classifiers, answers, tmp_path, label, loads):
    models = shutil.copytree(classifiers, tmp_path / "models")
    flags = [*flags_for(models, answers, tmp_path / "out"), "--datasets", "DR"]
    label(*flags)
    save_bert_classifier(models / "DR", "DR", seed=4)
    assert "DR: classifier changed since" in label(*flags)[2]
    assert loads == ["DR", "DR"]


def test_a_killed_run_goes_on_with_the_next_dataset(classifiers, answers, tmp_path, label, loads, monkeypatch):
    flags = flags_for(classifiers, answers, tmp_path / "out")
    classify = bert.BertLabeler._classify

    def killed(self, dataset, texts, weights):
        if dataset.name == "SAD":
            raise KeyboardInterrupt
        return classify(self, dataset, texts, weights)

    with monkeypatch.context() as patch:
        patch.setattr(bert.BertLabeler, "_classify", killed)
        code, _, stderr = label(*flags)
    assert code == 130
    assert "the same command goes on" in stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name != ".lock") == [
        "DR.csv",
        "labels.json",
    ]
    # Killed between a CSV and its record: the file is ours, and is computed again without a question.
    shutil.copy(tmp_path / "out" / "DR.csv", tmp_path / "out" / "SAD.csv")
    assert label(*flags)[0] == 0
    assert loads == ["DR", "SAD"]


def test_killed_between_a_new_csv_and_its_record(classifiers, answers, tmp_path, label, loads, monkeypatch):
    flags = [*flags_for(classifiers, answers, tmp_path / "out"), "--datasets", "DR"]
    label(*flags)
    write_answers(answers, "DR", ["yes", "no", "perhaps"])

    def killed():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("imhi.labelling.now", killed)  # the last thing asked for before the record is written
        assert label(*flags)[0] == 130
    assert len(read_table(tmp_path / "out" / "DR.csv")) == 3
    assert label(*flags)[0] == 0
    assert loads == ["DR"] * 3


def test_figures_of_other_datasets_stay(classifiers, answers, tmp_path, label):
    out = tmp_path / "out"
    flags = [*flags_for(classifiers, answers, out), "--calculate"]
    label(*flags, "--datasets", "SAD")
    label(*flags, "--datasets", "DR")
    assert list(json.loads((out / "correctness.json").read_text())["datasets"]) == ["DR", "SAD"]
    # Figures of a file that is no longer the same are dropped.
    write_answers(answers, "SAD", ["work", "school"])
    label(*flags[:-1], "--datasets", "SAD")
    label(*flags, "--datasets", "DR")
    assert list(json.loads((out / "correctness.json").read_text())["datasets"]) == ["DR"]


def test_missing_classifiers_are_listed(classifiers, answers, tmp_path, label):
    for name in ("Irf", "CAMS"):
        write_answers(answers, name)
    flags = flags_for(classifiers, answers, tmp_path / "out")
    code, _, stderr = label(*flags)
    assert code == 2
    assert "no classifier folder for CAMS, Irf (found DR, SAD); add them or pass --skip_missing" in stderr
    assert not (tmp_path / "out").exists()
    code, stdout, stderr = label(*flags, "--skip_missing", "--calculate")
    assert code == 0
    assert "CAMS, Irf" in stderr
    assert [line.split(",")[0] for line in stdout.splitlines() if line.startswith("Dataset:")] == [
        "Dataset: DR",
        "Dataset: SAD",
    ]


HEAD_RULES = {
    # (substring of the gold head, class) in an order that resolves every released instruction-form gold.
    "SAD": ["school", "financial", "family", "social", "work", "health", "emotion", "decision", "other"],
    "CAMS": ["no causes", "bias", "jobs", "medication", "relationship", "alienation"],
    "t-sid": ["depression", "suicide", "ptsd", "no mental"],
}


def test_figures_equal_the_published_ones_on_released_golds(real_data, tmp_path, label):
    """Random labels against the released golds: our line, and the line scikit-learn gives on substrings."""
    random.seed(1)
    expected = {}
    for path in sorted((real_data / "test_data" / "test_instruction").glob("*.csv")):
        dataset = DATASETS[path.stem]
        rules = HEAD_RULES.get(dataset.name, ["no", "yes"])
        goldens = read_table(path).column("gpt-3.5-turbo")
        gold = []
        for text in goldens:
            head = text.split("Reasoning:")[0].lower()
            order = ["yes", "no"] if rules == ["no", "yes"] else rules
            gold.append(rules.index(next(part for part in order if part in head)))
        said = [right if random.random() < 0.7 else random.randrange(len(rules)) for right in gold]
        classes = [dataset.labels[index].classifier for index in said]
        pd.DataFrame({"goldens": goldens, "generated_text": "x", "labels": classes}).to_csv(
            tmp_path / path.name, index=False, escapechar="\\"
        )
        expected[dataset.name] = published_line(dataset.name, gold, said)
    assert len(expected) >= 8
    code, stdout, _ = label("--calculate", "--labelled", "--data_path", tmp_path)
    assert code == 0
    lines = [line for line in stdout.splitlines() if line.startswith("Dataset: ")]
    assert lines == [expected[name] for name in DATASETS if name in expected]


def write_labelled(folder, name, labels):
    dataset = DATASETS[name]
    goldens = [gold_answer(dataset.labels[row % 2], "completion", "made-up") for row in range(len(labels))]
    folder.mkdir(exist_ok=True)
    write_table(
        folder / f"{name}.csv",
        ["goldens", "generated_text", "labels"],
        zip(goldens, ["x"] * len(labels), labels, strict=True),
    )


def test_labelled_takes_classifier_and_canonical_names_and_unparsed(tmp_path, label):
    folder = tmp_path / "labelled"
    write_labelled(folder, "CAMS", ["none", "Bias or abuse", "job", "bias", "unparsed"])
    code, stdout, _ = label("--calculate", "--labelled", "--data_path", folder, "--data_output_path", tmp_path / "out")
    assert code == 0
    assert stdout.startswith("Dataset: CAMS, average acc:60.0, ")
    figures = json.loads((tmp_path / "out" / "correctness.json").read_text())["datasets"]["CAMS"]
    assert (figures["n"], figures["unparsed"]) == (5, 1)
    assert figures["confusion"] == {
        "bias or abuse": {"bias or abuse": 2},
        "none": {"none": 1, "jobs and career": 1, "unparsed": 1},
    }
    assert not (folder / "correctness.json").exists()


def test_labelled_needs_no_model_and_no_torch(tmp_path):
    write_labelled(tmp_path / "in", "DR", ["no", "yes", "yes"])
    code = (
        "import sys; from imhi.commands import run_script; "
        "code = run_script('label', ['--calculate', '--labelled', '--data_path', 'in']); "
        "heavy = {'torch', 'transformers'} & set(sys.modules); sys.exit(code or (f'imported {heavy}' if heavy else 0))"
    )
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Dataset: DR, average acc:66.67, weighted F1 66.67, micro F1 66.67, macro F1 66.67\n")


def test_script_runs_from_anywhere_and_helps_at_once(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    took = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(SCRIPT), "--help"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        took.append(time.perf_counter() - started)
    assert done.returncode == 0
    assert "--data_output_path" in done.stdout
    assert min(took) < 0.3
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--calculate"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == ("error: --data_path is missing; needed are --data_path and --data_output_path\n")


def fails(label, *flags):
    """The one line that a mistake gives; exit status 2, nothing on stdout."""
    code, stdout, stderr = label(*flags)
    assert (code, stdout) == (2, "")
    *talk, line = stderr.splitlines()
    assert line.startswith("error: ")
    assert not [said for said in talk if "Traceback" in said]
    return line


def test_mistakes_in_flags(classifiers, answers, tmp_path, label):
    flags = flags_for(classifiers, answers, tmp_path / "out")
    assert "is the folder of --data_path" in fails(label, *flags_for(classifiers, answers, answers / ".." / "answers"))
    assert "--data_path is missing" in fails(label, "--model_path", classifiers)
    assert "--data_output_path is missing" in fails(label, "--data_path", answers)
    assert "--skip_missing has no effect without --model_path" in fails(label, *flags[2:], "--skip_missing")
    assert "--model_path is empty" in fails(label, *flags_for("", answers, tmp_path / "out"))
    assert "add --calculate" in fails(label, "--labelled", "--data_path", answers)
    assert "leave --model_path out" in fails(label, *flags, "--labelled", "--calculate")
    assert "--data_path is missing" in fails(label, "--labelled", "--calculate")
    assert "no dataset 'SADD'; did you mean SAD?" in fails(label, *flags, "--datasets", "SADD")
    assert "no file for CAMS; present: DR, SAD" in fails(label, *flags, "--datasets", "CAMS")
    assert "'tpu' is not cpu" in fails(label, *flags, "--device", "tpu")
    assert "no file or folder" in fails(label, *flags_for(tmp_path / "nowhere", answers, tmp_path / "out"))
    assert "no such folder" in fails(label, *flags_for(classifiers, tmp_path / "nowhere", tmp_path / "out"))
    assert "is a file; expected a folder" in fails(label, *flags_for(classifiers, answers / "DR.csv", tmp_path / "out"))
    assert "is a file; give a folder" in fails(label, *flags_for(classifiers, answers, answers / "DR.csv"))
    assert "cannot be created (Not a directory)" in fails(
        label, *flags_for(classifiers, answers, answers / "DR.csv" / "out")
    )
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit) as caught:
        label(*flags, "--batch_size", 0)
    assert caught.value.code == 2


def test_mistakes_in_model_path(classifiers, answers, tmp_path, label):
    def tell(model):
        return fails(label, *flags_for(model, answers, tmp_path / "out"))

    assert "one single BertForSequenceClassification, but the data holds DR, SAD" in tell(classifiers / "DR")
    (tmp_path / "empty").mkdir()
    assert "no classifier folder for DR, SAD (found none)" in tell(tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    assert "is a file; expected a folder with one classifier" in tell(tmp_path / "file")
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    (swapped / "DR").symlink_to(classifiers / "SAD")
    (swapped / "SAD").symlink_to(classifiers / "DR")
    assert "has 9 classes (LABEL_0, " in tell(swapped)
    nested = tmp_path / "nested"
    shutil.copytree(classifiers / "DR", nested / "DR" / "checkpoint-30")
    shutil.copytree(classifiers / "SAD", nested / "SAD")
    assert "did you mean" in tell(nested)
    assert not (tmp_path / "out").exists()


def test_a_generator_is_no_classifier(answers, tmp_path, label, tiny_llama):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "DR").symlink_to(tiny_llama)
    flags = flags_for(tmp_path / "models", answers, tmp_path / "out")
    assert "is a LlamaForCausalLM, not a classifier" in fails(label, *flags, "--datasets", "DR")
    flags[1] = tiny_llama
    assert "is a LlamaForCausalLM, not a classifier" in fails(label, *flags, "--datasets", "DR")
    assert "one single LlamaForCausalLM, but the data holds DR, SAD" in fails(label, *flags)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("goldens,labels\nNo.,no\n", "DR.csv: no column 'generated_text' (found goldens, labels)"),
        ("goldens,generated_text\n", "DR.csv: a header but no rows"),
        ("", "DR.csv: the file is empty"),
        ('goldens,generated_text\n"No.","no\n', "DR.csv, row 1: not valid CSV"),
        ("goldens,generated_text\nNo.,no\nyes,no,maybe\n", "DR.csv, row 2: 3 fields where the header has 2"),
        ("goldens,generated_text\nNo.,no\nPerhaps.,no\n", "DR.csv, row 2: the gold text names no label of DR"),
    ],
)
def test_mistakes_in_answers(classifiers, tmp_path, label, content, message):
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "DR.csv").write_text(content)
    assert message in fails(label, *flags_for(classifiers, tmp_path / "answers", tmp_path / "out"), "--calculate")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["no", "maybe"], "DR.csv, row 2: 'maybe' in column labels is no label of DR (no, yes)"),
        (["no", ""], "DR.csv, row 2: '' in column labels is no label of DR"),
        (["1", "0"], "DR.csv, row 1: '1' in column labels"),
    ],
)
def test_mistakes_in_labels(tmp_path, label, labels, message):
    write_labelled(tmp_path / "in", "DR", labels)
    assert message in fails(label, "--calculate", "--labelled", "--data_path", tmp_path / "in")


def test_labelled_without_labels(answers, label):
    assert "DR.csv: no column 'labels'" in fails(label, "--calculate", "--labelled", "--data_path", answers)


def test_files_of_others_are_not_overwritten(classifiers, answers, tmp_path, label):
    out = tmp_path / "out"
    write_answers(out, "SAD", ["somebody's"])
    flags = flags_for(classifiers, answers, out)
    stranger = (out / "SAD.csv").read_bytes()
    assert "SAD.csv exists and labels.json beside it does not list it" in fails(label, *flags)
    assert [path.name for path in out.iterdir() if path.name != ".lock"] == ["SAD.csv"]
    assert (out / "SAD.csv").read_bytes() == stranger
    assert label(*flags, "--overwrite")[0] == 0

    edited = (out / "DR.csv").read_text() + '"No.","x","no",0.9\n'
    (out / "DR.csv").write_text(edited)
    assert "DR.csv was changed after it was labelled" in fails(label, *flags)
    assert (out / "DR.csv").read_text() == edited

    (out / "labels.json").write_text("{")
    assert "labels.json is not JSON" in fails(label, *flags)
    (out / "labels.json").write_text("[]")
    assert "labels.json is not a record of this toolkit" in fails(label, *flags)

    (out / "correctness.json").write_text('{"labeler": "rules", "datasets": {}}')
    assert "holds figures of another labeler (rules)" in fails(label, *flags, "--calculate")
    assert (
        "holds figures of another labeler (rules)"
        in label("--labelled", "--calculate", "--data_path", out, "--data_output_path", out)[2]
    )


def test_rule_figures_of_other_datasets_stay(tmp_path):
    from imhi.rule_labelling import label_folder_by_rules

    write_answers(tmp_path, "SAD", ["work. Reasoning: x"])
    write_answers(tmp_path, "DR", ["yes. Reasoning: x"])
    (tmp_path / "results.txt").write_text("my own notes")
    label_folder_by_rules(tmp_path)
    label_folder_by_rules(tmp_path, datasets=["SAD"])
    kept = json.loads((tmp_path / "correctness.json").read_text())["datasets"]
    assert list(kept) == ["DR", "SAD"]
    assert (tmp_path / "results.txt").read_text() == "my own notes"
    write_answers(tmp_path, "DR", ["no. Reasoning: x"])
    label_folder_by_rules(tmp_path, datasets=["SAD"])
    assert list(json.loads((tmp_path / "correctness.json").read_text())["datasets"]) == ["SAD"], "of other answers now"
