"""The README's commands, run as written but for the names of things that must be downloaded."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from tiny import save_bart

from imhi.benchmark import DATASETS
from imhi.cli import main
from imhi.commands import run_script

ROOT = Path(__file__).parents[1]
SCRIPTS = {"IMHI.py": "generate", "label_inference.py": "label", "score.py": "score"}


def readme_commands() -> list[list[str]]:
    """Every command in the README's bash blocks, continued lines joined, comments dropped."""
    commands = []
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                commands.append(words)
    return commands


def run_command(words: list[str], replaced: dict[str, list[str]]) -> int:
    """Run a `python SCRIPT.py ...` or `imhi ...` command in this process, words replaced as the table says."""
    arguments = [new for word in words for new in replaced.get(word, [word])]
    if arguments[0] == "python":
        return run_script(SCRIPTS[arguments[1]], arguments[2:])
    assert arguments[0] == "imhi"
    return main(arguments[1:])


def test_the_pipeline_of_the_readme_runs(tmp_path, tiny_llama, monkeypatch):
    """Generation, labels and scores chained, on the sample rows; tiny checkpoints in place of the published ones."""
    import torch
    from transformers import BartForConditionalGeneration

    bart = save_bart(tmp_path / "bart")
    torch.save(BartForConditionalGeneration.from_pretrained(str(bart)).state_dict(), tmp_path / "bart_score.pth")
    run, labels = tmp_path / "run", tmp_path / "labels"
    replaced = {
        "--cuda": [],
        "klyang/MentaLLaMA-chat-7B-hf": [str(tiny_llama), "--max_new_tokens", "16"],
        "mentallama-7b": [f"{run}"],
        "../model_output/mentallama-7b": [f"{run}"],
        "../model_output/mentallama-7b-labels": [f"{labels}"],
        "roberta-large": [str(ROOT / "tests/fixtures/tiny_bert"), "--num_layers", "2"],
        "facebook/bart-large-cnn": [f"{bart}"],
        "bart_score.pth": [f"{tmp_path / 'bart_score.pth'}"],
    }
    monkeypatch.chdir(ROOT / "src")
    ran = [words for words in readme_commands() if words[0] == "python"]
    assert [words[1] for words in ran] == list(SCRIPTS)
    for words in ran:
        assert run_command(words, replaced) == 0, words
    assert json.loads((run / "correctness.json").read_text())["datasets"].keys() == DATASETS.keys()
    assert (run / "results.txt").read_text().startswith("Dataset: DR, average acc:")
    labelled = pd.read_csv(labels / "SAD.csv")
    assert list(labelled.columns) == ["goldens", "generated_text", "labels", "label_confidence", "clear_label"]
    scores = json.loads((run / "scores.json").read_text())["scores"]["response"]
    assert scores.keys() == DATASETS.keys()
    assert set(scores["SAD"]) == {"bleu", "rouge", "bert_score", "bart_score"}
    assert len(pd.read_csv(run / "scores" / "SAD.csv")) == len(labelled) == 10


def test_the_commands_about_results_run(tmp_path, tiny_llama, monkeypatch, capsys):
    """`imhi run`, and what the README says can be done with its folder."""
    monkeypatch.delenv("IMHI_DATA", raising=False)
    run, other = tmp_path / "one", tmp_path / "other"
    small = ["--max_new_tokens", "8", "--limit", "2", "--datasets", "DR", "SAD"]
    found = {words[1]: words for words in readme_commands() if words[0] == "imhi"}
    for folder in (run, other):
        replaced = {
            "--cuda": [],
            "klyang/MentaLLaMA-chat-7B-hf": [str(tiny_llama), "--model_output_path", f"{folder}", *small],
        }
        assert run_command(found["run"], replaced) == 0
    replaced = {
        "RUN": [f"{run}"],
        "[RUN": ["--out"],
        "...]": [f"{tmp_path / 'report'}"],
        "RUN_A": [f"{run}"],
        "RUN_B": [f"{other}"],
        "FILE.json": [f"{tmp_path / 'baseline.json'}"],
        "DIR": [f"{tmp_path / 'humans'}"],
    }
    assert run_command(found["report"], replaced) == 0
    assert (tmp_path / "report" / "report.html").exists()
    assert run_command(found["compare"], replaced) == 0
    assert run_command([*found["check"], "--update"], replaced) == 0
    assert run_command(found["check"], replaced) == 0
    assert run_command(found["humans"], replaced) == 0


def readme_table() -> dict[str, list[str]]:
    """The first command of each row of the README's table of models, as words."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("| model | how |") :].partition("\n\n")[0]
    rows = re.findall(r"^\| ([^|]+?) \| [^|`]*`([^`]+)`", table, flags=re.MULTILINE)
    return {name: shlex.split(command) for name, command in rows}


def test_every_kind_of_model_of_the_readme_runs(tmp_path, tiny_llama, tiny_bart, capsys):
    """The table's flags, each on the script as a user starts it: another process, in `src/`."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    adapter = get_peft_model(
        LlamaForCausalLM.from_pretrained(str(tiny_llama)),
        LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False),
    )
    adapter.save_pretrained(str(tmp_path / "adapter"))
    replaced = {
        "FOLDER_OR_HUB_ID": [str(tiny_llama)],
        "[--llama]": ["--llama"],
        "lmsys/vicuna-33b-v1.3": [str(tiny_llama)],
        "klyang/MentaLLaMA-33B-lora": [str(tmp_path / "adapter")],
        "Tianlin668/MentalBART": [str(tiny_bart)],
    }
    table = readme_table()
    assert [name.split(",")[0] for name in table] == [
        "LLaMA",
        "Vicuna + LoRA",
        "BART",
        "on a CPU",
        "the small one that comes along",
        "one of your own",
        "one post",
    ]
    assert table.pop("one of your own") == ["imhi", "train", "responder"]  # tests/training has its tests
    for number, (name, words) in enumerate(table.items()):
        flags = [new for word in words for new in replaced.get(word, [word])]
        if flags[0] == "imhi":
            assert main([*flags[1:], "--model_path", str(tiny_llama), "--max_new_tokens", "4"]) == 0
            assert "label by rule" in capsys.readouterr().err
            continue
        if "--model_path" not in flags:
            flags += ["--model_path", str(tiny_llama)]
        run = tmp_path / f"run{number}"
        limits = ["--max_new_tokens", "4", "--limit", "1", "--model_output_path", f"{run}"]
        done = subprocess.run(
            [sys.executable, "IMHI.py", *flags, *limits], cwd=ROOT / "src", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (name, done.stderr)
        assert json.loads((run / "manifest.json").read_text())["ended"]


def test_fetch_and_check_of_the_readme_run(tmp_path, real_data, monkeypatch, capsys):
    """The copy beside this repository lacks the large files: fetch brings the rest, names them, and exits with 1."""
    monkeypatch.chdir(tmp_path)
    commands = [words for words in readme_commands() if words[:2] == ["imhi", "data"]]
    assert [words[2] for words in commands] == ["fetch", "check"]
    assert run_command([*commands[0], "--from", str(real_data)], {}) == 1
    assert "CLP" in capsys.readouterr().err
    assert run_command(commands[1], {}) == 0
    assert (tmp_path / "imhi_data/test_data/test_instruction/DR.csv").exists()


def test_flags_named_in_the_readme_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    helps = ""
    commands = ("run", "generate", "label", "score", "report", "compare", "check", "humans")
    for command in (
        *commands,
        "ask",
        "demo",
        "data fetch",
        "data check",
        "train labelers",
        "train responder",
        "export lm-eval",
    ):
        done = subprocess.run(
            [sys.executable, "-m", "imhi.cli", *command.split(), "--help"], capture_output=True, text=True, check=True
        )
        helps += done.stdout
    missing = {flag for flag in re.findall(r"--[a-z_]+", text) if flag not in helps}
    of_others = {"--generation", "--include_path", "--tasks", "--generate", "--node", "--port"}
    assert missing == of_others | {"--address"}


def test_layout_named_in_the_readme_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    layout = text[text.index("## Layout") : text.index("## Ethics")]
    names = set(re.findall(r"\b[\w/]+\.py\b|\b[a-z_]+/(?=[\s,)])", layout))
    assert len(names) > 15
    for name in names:
        inside = ("labelers", "engines", "training")
        places = (ROOT, ROOT / "src", ROOT / "src/imhi", *(ROOT / "src/imhi" / name for name in inside))
        assert any((place / name).exists() for place in places), name


def test_demo_on_one_row_a_dataset(tmp_path):
    """`make demo` in small, as a user runs it: another process, no network, one table."""
    done = subprocess.run(
        [sys.executable, "-m", "imhi.cli", "demo", "--limit", "1", "--model_output_path", f"{tmp_path / 'demo'}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    table = done.stdout.split("\n\n")[0].splitlines()
    assert len(table) == 12
    assert {line.split()[0] for line in table[2:]} == set(DATASETS)
    assert "made-up sample rows" in done.stdout
    assert str(tmp_path / "demo") in done.stdout
    assert "imhi data fetch" in done.stdout


@pytest.mark.parametrize("target", ["demo", "test", "lint"])
def test_make_knows_the_two_commands(target):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
