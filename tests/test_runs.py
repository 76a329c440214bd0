"""A run folder survives what happens to it: kills, torn lines, other configurations, two processes."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from imhi.commands import run_script
from imhi.data import samples_root
from imhi.errors import UserError
from imhi.runs import find_run, open_run, run_folder

ARGUMENTS = ["--data_root", str(samples_root()), "--batch_size", "2", "--max_new_tokens", "24"]


def generate(output: Path, model: Path, *more: str) -> int:
    return run_script("generate", ["--model_path", str(model), "--model_output_path", f"{output}", *ARGUMENTS, *more])


def csv_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv"))}


def journal(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "responses.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(tiny_llama, tmp_path_factory) -> Path:
    import torch

    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert generate(folder, tiny_llama) == 0
    finally:
        torch.set_num_threads(threads)
    return folder


def test_a_run_has_manifest_journal_and_csvs(uninterrupted, tiny_llama):
    manifest = json.loads((uninterrupted / "manifest.json").read_text())
    rows = journal(uninterrupted)
    assert len(rows) == 91 == sum(count["done"] for count in manifest["counts"].values())
    assert all(row["id"] == f"{row['dataset']}/{row['row']}" for row in rows)
    assert set(rows[0]) == {
        "dataset",
        "row",
        "id",
        "text",
        "prompt_tokens",
        "new_tokens",
        "finish_reason",
        "prompt_truncated",
        "error",
    }
    assert len(csv_bytes(uninterrupted)) == 10
    session = manifest["sessions"][-1]
    assert manifest["ended"] and session["ended"]
    assert manifest["first_prompt"]["token_ids"][0] == 0
    assert manifest["data_root"]["made_up_samples"] is True
    assert manifest["configuration"]["decoding"]["do_sample"] is False
    assert set(manifest["configuration"]["data_files"]) == set(manifest["configuration"]["rows"])
    assert session["engine"]["tokenizer"] and session["engine"]["dtype"] in {"float32", "bfloat16"}
    assert session["libraries"]["torch"] and session["device"] == "cpu"
    table = pd.read_csv(uninterrupted / "MultiWD.csv")
    assert list(table.columns) == ["goldens", "generated_text"]
    by_id = {row["id"]: row for row in rows}
    for index, text in enumerate(table["generated_text"].fillna("")):
        assert text == by_id[f"MultiWD/{index}"]["text"]


def test_killed_at_random_points_the_same_command_ends_with_the_same_files(uninterrupted, tiny_llama, tmp_path):
    """SIGKILL, twenty times: children forked from this process, which has the libraries loaded."""
    chance = random.Random(7)
    expected = csv_bytes(uninterrupted)
    kills, finished = 0, 0
    progress = []
    folder = tmp_path / "killed0"
    while kills < 20 or finished == 0:
        child = os.fork()
        if child == 0:
            # Threads do not survive a fork; one torch thread needs none. tqdm's own lock is shared between processes:
            # a child killed while it holds it would leave this process waiting for ever.
            import torch
            from tqdm import tqdm

            torch.set_num_threads(1)
            tqdm.set_lock(threading.RLock())
            signal.alarm(120)  # a child that hangs kills itself, and its status fails the test
            status = 1
            try:
                with Path(os.devnull).open("w") as nothing:
                    os.dup2(nothing.fileno(), 2)
                    status = generate(folder, tiny_llama)
            finally:
                os._exit(status)
        if kills < 20:
            time.sleep(chance.uniform(0.05, 0.9))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            kills += 1
            path = folder / "responses.jsonl"
            progress.append(path.read_bytes().count(b"\n") if path.exists() else 0)
            continue
        assert os.waitstatus_to_exitcode(status) == 0
        assert csv_bytes(folder) == expected
        rows = journal(folder)
        assert len(rows) == len({row["id"] for row in rows}) == 91, "no row is lost or journalled twice"
        finished += 1
        folder = tmp_path / f"killed{finished}"
    assert len({count for count in progress if 0 < count < 91}) >= 3, f"kills must fall into the work: {progress}"


def test_a_torn_line_is_generated_again(uninterrupted, tiny_llama, tmp_path):
    folder = tmp_path / "torn"
    folder.mkdir()
    lines = (uninterrupted / "responses.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "responses.jsonl").write_bytes(b"".join(lines[:40]) + lines[40][:17])
    (folder / "manifest.json").write_bytes((uninterrupted / "manifest.json").read_bytes())
    assert generate(folder, tiny_llama) == 0
    assert csv_bytes(folder) == csv_bytes(uninterrupted)
    assert len(journal(folder)) == 91


def test_a_finished_run_is_not_computed_again(uninterrupted, tiny_llama, capsys):
    before = (uninterrupted / "responses.jsonl").read_bytes()
    assert generate(uninterrupted, tiny_llama) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert (uninterrupted / "responses.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["--max_new_tokens", "25"], "decoding.max_new_tokens: 24 there, 25 here"),
        (["--datasets", "DR", "SAD"], "rows.CLP: 8 there, null here"),
        (["--test_dataset", "IMHI-completion"], 'test_dataset: "IMHI" there, "IMHI-completion" here'),
        (["--dtype", "float16"], "dtype"),
        (["--do_sample"], "decoding.do_sample: false there, true here"),
    ],
)
def test_another_configuration_is_refused_naming_what_differs(uninterrupted, tiny_llama, capsys, changed, named):
    assert generate(uninterrupted, tiny_llama, *changed) == 2
    error = capsys.readouterr().err
    assert named in error
    assert "--overwrite" in error


def test_another_model_is_refused_and_overwrite_starts_anew(tiny_llama, tmp_path, capsys):
    from tiny import save_llama

    folder = tmp_path / "run"
    assert generate(folder, tiny_llama, "--datasets", "SAD") == 0
    first = csv_bytes(folder)
    other = save_llama(tmp_path / "other", seed=5)
    assert generate(folder, other, "--datasets", "SAD") == 2
    assert "model_files.model.safetensors" in capsys.readouterr().err
    assert csv_bytes(folder) == first
    (folder / "notes.txt").write_text("mine")
    assert generate(folder, other, "--datasets", "SAD", "--overwrite") == 0
    assert csv_bytes(folder) != first
    assert (folder / "notes.txt").exists(), "--overwrite removes what the toolkit wrote and nothing else"


def test_batch_size_is_no_part_of_the_configuration(uninterrupted, tiny_llama, capsys):
    assert generate(uninterrupted, tiny_llama, "--batch_size", "7") == 0
    assert "nothing to do" in capsys.readouterr().err


def test_failed_rows_are_tried_again(tiny_llama, tmp_path, monkeypatch, capsys):
    """A row that fails is recorded, the exit status says so, and the same command mends the run."""
    from transformers import LlamaForCausalLM

    generate_text = LlamaForCausalLM.generate

    def failing(self, input_ids, **options):
        if input_ids.shape[0] == 1 or input_ids.shape[1] > 100:
            raise RuntimeError("device-side assert")
        return generate_text(self, input_ids=input_ids, **options)

    whole, mended = tmp_path / "whole", tmp_path / "mended"
    assert generate(whole, tiny_llama, "--datasets", "SAD,t-sid", "--batching", "buckets") == 0
    monkeypatch.setattr(LlamaForCausalLM, "generate", failing)
    assert generate(mended, tiny_llama, "--datasets", "SAD,t-sid", "--batching", "buckets", "--max_errors", "0") == 1
    assert "stopped after" in capsys.readouterr().err
    assert generate(mended, tiny_llama, "--datasets", "SAD,t-sid", "--batching", "buckets", "--max_errors", "1000") == 1
    assert "tries them again" in capsys.readouterr().err
    failed = json.loads((mended / "manifest.json").read_text())["counts"]
    assert sum(count["failed"] for count in failed.values()) > 0
    assert json.loads((mended / "manifest.json").read_text())["ended"] is None
    monkeypatch.undo()
    assert generate(mended, tiny_llama, "--datasets", "SAD,t-sid", "--batching", "buckets") == 0
    assert csv_bytes(mended) == csv_bytes(whole)


def test_one_process_at_a_time(tmp_path):
    refused = pytest.raises(UserError, match="another process is writing this run")
    with open_run(tmp_path / "run", {}), refused, open_run(tmp_path / "run", {}):
        pass
    with open_run(tmp_path / "run", {}):
        pass


def test_a_damaged_journal_or_manifest_is_one_line(uninterrupted, tiny_llama, tmp_path, capsys):
    folder = tmp_path / "damaged"
    folder.mkdir()
    lines = (uninterrupted / "responses.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "manifest.json").write_bytes((uninterrupted / "manifest.json").read_bytes())
    (folder / "responses.jsonl").write_bytes(lines[0] + b"not json\n" + lines[1])
    assert generate(folder, tiny_llama) == 2
    assert "responses.jsonl, line 2: not a response record" in capsys.readouterr().err
    (folder / "manifest.json").write_text("{")
    assert generate(folder, tiny_llama) == 2
    assert "manifest.json: not readable as JSON" in capsys.readouterr().err
    (folder / "manifest.json").unlink()
    assert generate(folder, tiny_llama) == 2
    assert "but no manifest.json" in capsys.readouterr().err


def test_a_name_means_the_same_run_to_whoever_writes_and_reads_it(tmp_path, monkeypatch):
    home, work = tmp_path / "checkout" / "model_output", tmp_path / "work"
    (home / "mentallama").mkdir(parents=True)
    (work / "mentallama").mkdir(parents=True)
    (work / "model_output" / "mentallama").mkdir(parents=True)
    (work / "mine").mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr("imhi.runs.output_home", lambda: home)
    assert find_run("mentallama", flag="--x") == run_folder("mentallama") == home / "mentallama"
    assert find_run("./mentallama", flag="--x").resolve() == work / "mentallama"
    assert find_run(str(work), flag="--x") == work
    assert find_run("mine", flag="--x").resolve() == work / "mine", "a folder here, where no run has that name"
    (home / "elsewhere").mkdir()
    with pytest.raises(UserError, match="no such folder"):
        find_run("./elsewhere", flag="--x")
    with pytest.raises(UserError, match="did you mean mentallama"):
        find_run("mentalama", flag="--x")
    with pytest.raises(UserError, match="--x is empty"):
        find_run(" ", flag="--x")
    (work / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        find_run("file", flag="--x")


def test_a_sampled_run_in_bfloat16_survives_kills_too(tiny_llama, tmp_path):
    """Half-journalled batches are drawn again as before: the journal is cut at every kind of place."""
    more = ["--do_sample", "--seed", "3", "--dtype", "bfloat16", "--datasets", "SAD", "CAMS", "--batch_size", "4"]
    whole = tmp_path / "whole"
    assert generate(whole, tiny_llama, *more) == 0
    lines = (whole / "responses.jsonl").read_bytes().splitlines(keepends=True)
    for cut in (1, 2, 5, 11, 18):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        (folder / "manifest.json").write_bytes((whole / "manifest.json").read_bytes())
        (folder / "responses.jsonl").write_bytes(b"".join(lines[:cut]) + lines[cut][:9])
        assert generate(folder, tiny_llama, *more) == 0
        assert csv_bytes(folder) == csv_bytes(whole)
        found = (folder / "responses.jsonl").read_bytes().splitlines(keepends=True)
        # The order in which rows end depends on what else is at work.
        assert sorted(found) == sorted(lines) and found[:cut] == lines[:cut]


def test_files_that_are_not_of_a_run_are_never_discarded(tiny_llama, tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "DR.csv").write_text("query,gpt-3.5-turbo\nmine,mine\n")
    for more in ([], ["--overwrite"]):
        assert generate(folder, tiny_llama, "--datasets", "SAD", *more) == 2
        assert "no manifest.json of a run; choose another folder" in capsys.readouterr().err
        assert [path.name for path in folder.iterdir() if path.name != ".lock"] == ["DR.csv"]


def test_another_batch_size_is_said_for_greedy_and_refused_for_sampling(tiny_llama, tmp_path, capsys):
    for folder, more in ((tmp_path / "greedy", []), (tmp_path / "sampled", ["--do_sample"])):
        assert generate(folder, tiny_llama, "--datasets", "SAD", *more) == 0
        lines = (folder / "responses.jsonl").read_bytes().splitlines(keepends=True)
        (folder / "responses.jsonl").write_bytes(b"".join(lines[:3]))
        capsys.readouterr()
        status = generate(folder, tiny_llama, "--datasets", "SAD", "--batch_size", "5", *more)
        error = capsys.readouterr().err
        assert (status, "batch_size" in error) == ((2, True) if more else (0, True)), error


def test_a_failed_row_does_not_hide_the_figures(tiny_llama, tmp_path, capsys):
    data = tmp_path / "data" / "test_data" / "test_instruction"
    data.mkdir(parents=True)
    rows = ["query,gpt-3.5-turbo"]
    rows += [f'"{post}",Yes. Reasoning: x' for post in ("a quiet evening", "nobody asked how it went " * 400)]
    (data / "DR.csv").write_text("\n".join(rows) + "\n")
    arguments = ["--model_path", str(tiny_llama), "--model_output_path", f"{tmp_path / 'run'}", "--max_new_tokens", "4"]
    more = ["--data_root", str(tmp_path / "data"), "--rule_calculate", "--max_errors", "0"]
    assert run_script("generate", arguments + more) == 1
    told = capsys.readouterr()
    assert "leave no room" in told.err
    assert "DR" in told.out and "acc" in told.out
    figures = json.loads((tmp_path / "run" / "correctness.json").read_text())["datasets"]["DR"]
    assert (figures["rows"], figures["failed"], figures["empty"]) == (2, 1, 1)
    assert "1 rows failed" in told.out
    lines = (tmp_path / "run" / "responses.jsonl").read_bytes()
    assert run_script("generate", arguments + more) == 1
    assert "a longer --max_length or another model has room" in capsys.readouterr().err
    assert (tmp_path / "run" / "responses.jsonl").read_bytes() == lines, "refused again, journalled once"
