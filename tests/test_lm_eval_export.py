"""The benchmark as tasks of lm-evaluation-harness: what is written, and a run of the harness itself.

The harness needs an environment of its own: IMHI_TEST_LM_EVAL_PYTHON names its Python (lm_eval 0.4.13 was tried).
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from imhi.benchmark import DATASETS, FORMS
from imhi.commands import run_script
from imhi.data import DataRoot, load_suite, samples_root, write_table
from imhi.errors import UserError
from imhi.lm_eval_export import FORM_SUITES, METRICS, RECORD, export_lm_eval
from imhi.rule_labelling import label_folder_by_rules

SAMPLES = DataRoot(samples_root(), "test")
SOURCE = Path(__file__).parents[1] / "src"


class Loader(yaml.SafeLoader):
    """Reads ``!function utils.name`` as that name."""


Loader.add_constructor("!function", lambda loader, node: f"function {node.value}")


def parsed(path: Path) -> dict:
    return yaml.load(path.read_text(encoding="utf-8"), Loader)  # a SafeLoader


def rows_of(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def utils_of(folder: Path):
    spec = importlib.util.spec_from_file_location("exported_utils", folder / "utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm_eval") / "tasks"
    export_lm_eval(folder, SAMPLES, max_new_tokens=24)
    return folder


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_group_has_a_task_for_every_dataset_and_averages_them_alike(samples, form):
    group = parsed(samples / f"imhi_{form}.yaml")
    assert group["group"] == f"imhi_{form}"
    assert group["task"] == [f"imhi_{form}_{name}" for name in DATASETS]
    assert [entry["metric"] for entry in group["aggregate_metric_list"]] == list(METRICS)
    assert all(entry["weight_by_size"] is False for entry in group["aggregate_metric_list"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", DATASETS)
def test_a_task_asks_to_the_letter_greedily_and_with_no_stop_of_its_own(samples, form, name):
    task = parsed(samples / f"imhi_{form}_{name}.yaml")
    assert task["task"] == f"imhi_{form}_{name}"
    # The name of a field, which the harness takes as it is; a template would lose white space.
    assert task["doc_to_text"] == "query"
    assert task["target_delimiter"] == ""
    assert task["num_fewshot"] == 0
    assert task["generation_kwargs"] == {"until": [], "do_sample": False, "max_gen_toks": 24}
    assert (samples / task["dataset_kwargs"]["rows_file"]).is_file()
    utils = utils_of(samples)
    functions = [task["custom_dataset"], task["process_results"], *(one["aggregation"] for one in task["metric_list"])]
    assert all(callable(getattr(utils, called.removeprefix("function utils."))) for called in functions)
    assert {one["metric"]: one["higher_is_better"] for one in task["metric_list"]} == METRICS


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("data", ["samples", "real"])
def test_prompts_and_golds_come_back_to_the_letter(tmp_path, form, data, request):
    root = SAMPLES if data == "samples" else DataRoot(request.getfixturevalue("real_data"), "test")
    export_lm_eval(tmp_path / "tasks", root)
    suite = load_suite(root, FORM_SUITES[form])
    for name in suite.files:
        written = rows_of(tmp_path / "tasks" / "rows" / form / f"{name}.jsonl")
        assert written == [
            {"id": row.id, "dataset": name, "query": row.query, "gold": row.gold, "label": row.gold_label}
            for row in suite.rows
            if row.dataset == name
        ]
        assert all(row["query"].endswith(" ") for row in written) == (form == "completion")


def test_a_smaller_export_has_what_was_asked_for(tmp_path, capsys):
    arguments = ["lm-eval", str(tmp_path / "tasks"), "--data_root", str(samples_root())]
    assert (
        run_script("export", [*arguments, "--datasets", "sad", "t-sid", "--limit", "2", "--max_new_tokens", "9"]) == 0
    )
    assert "imhi_completion: 4 rows (t-sid 2, SAD 2)" in capsys.readouterr().err
    names = {path.name for path in tmp_path.rglob("*.yaml")}
    assert names == {f"imhi_{form}{of}.yaml" for form in FORMS for of in ("", "_SAD", "_t-sid")}
    assert parsed(tmp_path / "tasks" / "imhi_completion_SAD.yaml")["generation_kwargs"]["max_gen_toks"] == 9


def test_a_data_root_with_one_form_gives_that_form_and_says_so(tmp_path, capsys):
    table = tmp_path / "root" / "test_data" / "test_instruction" / "DR.csv"
    table.parent.mkdir(parents=True)
    write_table(table, ("query", "gpt-3.5-turbo"), [("How?", "Yes. Reasoning: so.")])
    arguments = ["lm-eval", str(tmp_path / "tasks"), "--data_root", str(tmp_path / "root")]
    assert run_script("export", arguments) == 0
    assert "imhi_completion: no such test files" in capsys.readouterr().err
    assert not (tmp_path / "tasks" / "imhi_completion.yaml").exists()
    assert "posts of people" in (tmp_path / "tasks" / "README.md").read_text(encoding="utf-8")
    assert "made-up" not in (tmp_path / "tasks" / "README.md").read_text(encoding="utf-8")
    table.unlink()
    table.parent.rmdir()
    assert run_script("export", [*arguments, "--overwrite"]) == 2
    assert "no test files of either form" in capsys.readouterr().err


# --- files in the way -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["utils.py", "imhi_instruction_SAD.yaml", "rows/completion/SAD.jsonl", RECORD])
def test_a_file_that_no_export_wrote_is_never_replaced(tmp_path, name):
    mine = tmp_path / "tasks" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine", encoding="utf-8")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=f"{name} was not written by"):
            export_lm_eval(tmp_path / "tasks", SAMPLES, datasets=["SAD"], overwrite=overwrite)
    assert contents(tmp_path / "tasks") == {name: b"mine"}


def test_an_earlier_export_is_replaced_when_asked_for_and_other_files_stay(tmp_path):
    folder = tmp_path / "tasks"
    export_lm_eval(folder, SAMPLES, datasets=["SAD", "DR"])
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    before = contents(folder)
    with pytest.raises(UserError, match="holds an export already; --overwrite replaces it"):
        export_lm_eval(folder, SAMPLES, datasets=["SAD"])
    assert contents(folder) == before
    export_lm_eval(folder, SAMPLES, datasets=["SAD"], overwrite=True)
    assert set(before) - set(contents(folder)) == {
        f"{part}DR.{ending}"
        for form in FORMS
        for part, ending in ((f"imhi_{form}_", "yaml"), (f"rows/{form}/", "jsonl"))
    }
    assert (folder / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_crash_leaves_an_export_that_can_be_replaced(tmp_path, monkeypatch):
    folder = tmp_path / "tasks"
    export_lm_eval(folder, SAMPLES, datasets=["DR"])
    from imhi import lm_eval_export

    write = lm_eval_export.write_text_atomically

    def dying(path: Path, text: str) -> None:
        if path.suffix == ".jsonl":
            raise KeyboardInterrupt
        write(path, text)

    monkeypatch.setattr(lm_eval_export, "write_text_atomically", dying)
    with pytest.raises(KeyboardInterrupt):
        export_lm_eval(folder, SAMPLES, datasets=["SAD"], overwrite=True)
    monkeypatch.undo()
    export_lm_eval(folder, SAMPLES, datasets=["CAMS"], overwrite=True)
    assert not [name for name in contents(folder) if "SAD" in name or "DR." in name]


def test_a_record_that_names_files_elsewhere_removes_none_of_them(tmp_path):
    folder, mine = tmp_path / "tasks", tmp_path / "mine.txt"
    mine.write_text("mine", encoding="utf-8")
    export_lm_eval(folder, SAMPLES, datasets=["DR"])
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    record["files"] |= {"../mine.txt": "sha256:0", str(mine): "sha256:0"}
    (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")
    export_lm_eval(folder, SAMPLES, datasets=["DR"], overwrite=True)
    assert mine.read_text(encoding="utf-8") == "mine"


# --- the metrics ------------------------------------------------------------------------------------------------------


def test_the_metrics_are_the_rules_figures(samples, tmp_path):
    utils = utils_of(samples)
    for name, dataset in DATASETS.items():
        rows = rows_of(samples / "rows" / "instruction" / f"{name}.jsonl")
        heads = [label.instruction for label in dataset.labels]
        # Right, wrong, unreadable and empty answers, spaced as a model may.
        said = [
            row["gold"]
            if at % 2
            else f" {heads[at % len(heads)]} Reasoning: a.\n"
            if at % 5
            else ("", "Hm.")[at % 10 > 0]
            for at, row in enumerate(rows)
        ]
        folder = tmp_path / name
        folder.mkdir()
        write_table(
            folder / f"{name}.csv",
            ("goldens", "generated_text"),
            [(row["gold"], text.strip()) for row, text in zip(rows, said, strict=True)],
        )
        (ours,) = label_folder_by_rules(folder)
        figures = [utils.process_results(row, [text]) for row, text in zip(rows, said, strict=True)]
        theirs = {metric: getattr(utils, metric)([each[metric] for each in figures]) for metric in METRICS}
        assert theirs == {
            "rule_accuracy": ours.strict.accuracy,
            "rule_weighted_f1": ours.strict.weighted_f1,
            "rule_unparsed": ours.strict.unparsed / ours.strict.n,
        }
        assert 0 < theirs["rule_unparsed"] < theirs["rule_accuracy"] < 1


def test_without_the_toolkit_the_tasks_say_what_is_missing(samples):
    code = f"import sys; sys.path.insert(0, {str(samples)!r}); sys.modules['imhi'] = None; import utils"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode
    assert "ImportError: the IMHI tasks read answers by the rule of the imhi toolkit" in done.stderr
    assert "install it in lm_eval's environment" in done.stderr


# --- the harness itself -----------------------------------------------------------------------------------------------


def run_lm_eval(model: str, tasks: Path, form: str, out: Path) -> tuple[dict, dict[str, str]]:
    """(results by task, answers by row id) of the harness on one group."""
    python = os.environ.get("IMHI_TEST_LM_EVAL_PYTHON")
    if not python:
        pytest.skip("IMHI_TEST_LM_EVAL_PYTHON does not name the Python of an environment with lm_eval")
    command = [python, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={model},dtype=float32"]
    command += ["--device", "cpu", "--batch_size", "1", "--include_path", str(tasks), "--tasks", f"imhi_{form}"]
    command += ["--output_path", str(out), "--log_samples"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "HF_HUB_OFFLINE": "1", "HF_HOME": str(out / "home")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = out.rglob("results_*.json")
    answers = {
        sample["doc"]["id"]: sample["resps"][0][0] for path in out.rglob("samples_*.jsonl") for sample in rows_of(path)
    }
    # Nothing of the posts in the caches of the libraries.
    assert not [path for path in (out / "home").rglob("*") if path.suffix in (".arrow", ".jsonl")]
    return json.loads(results.read_text(encoding="utf-8"))["results"], answers


def assert_answers_and_figures_agree(folder: Path, form: str, model: str, lm_eval_model: str, limits: list[str]) -> int:
    """Runs both on the same rows; the number of rows."""
    assert run_script("export", ["lm-eval", str(folder / "tasks"), *limits]) == 0
    results, answers = run_lm_eval(lm_eval_model, folder / "tasks", form, folder / "out")
    arguments = ["--model_path", model, "--model_output_path", f"{folder / 'run'}", *limits]
    arguments += ["--test_dataset", FORM_SUITES[form], "--dtype", "float32", "--deterministic", "--rule_calculate"]
    assert run_script("generate", arguments) == 0
    ours = {row["id"]: row["text"] for row in rows_of(folder / "run" / "responses.jsonl") if "text" in row}
    assert {row: answer.strip() for row, answer in answers.items()} == ours
    assert len(set(ours.values())) > len(ours) / 5, "answers that are all alike would prove little"

    figures = json.loads((folder / "run" / "correctness.json").read_text(encoding="utf-8"))["datasets"]
    for name, figure in figures.items():
        theirs = results[f"imhi_{form}_{name}"]
        assert theirs["rule_accuracy,none"] == figure["strict"]["accuracy"]
        assert theirs["rule_weighted_f1,none"] == figure["strict"]["weighted_f1"]
        assert theirs["rule_unparsed,none"] == figure["unparsed_share"]
    unparsed = [figure["unparsed_share"] for figure in figures.values()]
    assert results[f"imhi_{form}"]["rule_unparsed,none"] == pytest.approx(sum(unparsed) / len(unparsed))
    return len(ours)


@pytest.mark.parametrize("form", FORMS)
def test_the_harness_answers_as_we_do_and_its_metric_is_our_figure(tmp_path, form):
    from tiny import save_llama

    model = str(save_llama(tmp_path / "model", max_position_embeddings=4096))
    limits = ["--limit", "5", "--max_new_tokens", "24", "--data_root", str(samples_root())]
    assert assert_answers_and_figures_agree(tmp_path, form, model, model, limits) == 50


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("form", FORMS)
def test_the_harness_answers_real_rows_with_a_real_model_as_we_do(tmp_path, form, real_data):
    from imhi.checkpoints import locate_generator

    converted = str(locate_generator("embedded:smollm2").folder)
    limits = ["--limit", "7", "--max_new_tokens", "48", "--data_root", str(real_data)]
    rows = assert_answers_and_figures_agree(tmp_path, form, "embedded:smollm2", converted, limits)
    assert rows >= 50


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("form", FORMS)
def test_the_harness_finds_the_labels_of_a_trained_adapter_as_we_do(tmp_path, form, real_data):
    from imhi.checkpoints import locate_generator

    spec = locate_generator("embedded:imhi-smollm2")
    limits = ["--limit", "7", "--max_new_tokens", "16", "--data_root", str(real_data)]
    lm_eval_model = f"{spec.folder},peft={spec.adapter}"
    assert assert_answers_and_figures_agree(tmp_path, form, "embedded:imhi-smollm2", lm_eval_model, limits) >= 50
    figures = json.loads((tmp_path / "run" / "correctness.json").read_text(encoding="utf-8"))["datasets"]
    accuracies = {figure["strict"]["accuracy"] for figure in figures.values()}
    assert len(accuracies) > 2, "figures that are all alike would prove little"
