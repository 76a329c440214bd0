"""The command line as a user meets it: help, flags, streams, Ctrl-C, pipes, and the installed package."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from imhi.cli import COMMANDS, main
from imhi.commands import run_script
from imhi.runs import run_folder

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
SCRIPTS = {"generate": "IMHI.py", "label": "label_inference.py", "score": "score.py"}
# What takes seconds to import, or is no part of the standard library: never for help or an argument error.
HEAVY = ("torch", "transformers", "numpy", "pandas", "sklearn", "peft", "huggingface_hub", "tqdm")

# The flags of the published scripts, which people have in their own scripts.
PUBLISHED = {
    "generate": [
        *("--model_path", "--model_output_path", "--test_dataset", "--batch_size"),
        *("--llama", "--cuda", "--lora", "--lora_path", "--rule_calculate"),
    ],
    "label": ["--model_path", "--data_path", "--data_output_path", "--calculate", "--cuda"],
    "score": ["--gen_dir_name", "--score_method", "--cuda"],
}
PUBLISHED_CHOICES = {
    ("generate", "--test_dataset"): ["IMHI", "IMHI-completion", "expert"],
    ("score", "--score_method"): ["bart_score", "bert_score", "bleu", "rouge", "GPT3_score"],
}


def environment(**changes: str) -> dict[str, str]:
    """The environment of a user's shell: nothing of this test run's but what `changes` says."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONUNBUFFERED")}
    return {**kept, **changes}


def started(*arguments: str | Path, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment(**changes), capture_output=True, text=True, check=False, timeout=300
    )


# --- help and argument errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [*SCRIPTS.values(), "-m imhi.cli"])
def test_help_is_instant(arguments: str, tmp_path: Path) -> None:
    program = arguments.split() if arguments.startswith("-m") else [SOURCE / arguments]
    took = []
    # The smallest of five: other work on the machine only adds.  On a machine that is busy throughout, of more.
    while len(took) < 5 or (min(took) >= 0.3 and len(took) < 25):
        begun = time.perf_counter()
        done = started(*program, "--help", cwd=tmp_path, PYTHONPATH=str(SOURCE) if "-m" in program else "")
        took.append(time.perf_counter() - begun)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("usage: ")
    assert min(took) < 0.3, took


@pytest.mark.parametrize(
    "arguments", [[], *([command] for command in COMMANDS), ["data", "fetch"], ["data", "check"]], ids=" ".join
)
def test_every_command_helps(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--help"])
    told = capsys.readouterr()
    assert (ended.value.code, told.err) == (0, "")
    assert told.out.startswith(" ".join(["usage: imhi", *arguments]))
    for command in COMMANDS if not arguments else ():
        assert f"\n    {command} " in told.out
    assert "%(" not in told.out


def test_the_scripts_are_three_of_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """The same flags with the same help, apart from the program's name."""

    def options(call: object, *arguments: object) -> str:
        with pytest.raises(SystemExit):
            call(*arguments)
        return capsys.readouterr().out.partition("\noptions:")[2]

    for command in SCRIPTS:
        assert options(run_script, command, ["--help"]) == options(main, [command, "--help"]) != ""


ARGUMENT_ERRORS = [
    ["generate"],
    ["generate", "--model_output_path", "x", "--no_such_flag"],
    ["generate", "--model_output_path", "x", "--test_dataset", "IMHI2"],
    ["generate", "--model_output_path", "x", "--max_new_tokens", "0"],
    ["generate", "--model_output_path", "x", "--batch_size", "many"],
    ["generate", "--model_output_path", "x", "--lora"],
    ["generate", "--model_output_path", "x", "--temperature", "0.5"],
    ["generate", "--model_output_path", "x", "--datasets", "SADD"],
    ["generate", "--model_output_path", "x", "--data_root", "nowhere"],
    ["generate", "--model_output_path", "x", "--model_path", "./nowhere"],
    ["label"],
    ["label", "--no_such_flag"],
    ["label", "--labelled"],
    ["label", "--rules", "nowhere"],
    ["score"],
    ["score", "--gen_dir_name", "x", "--no_such_flag"],
    ["score", "--gen_dir_name", "x", "--score_method", "rogue"],
    ["score", "--gen_dir_name", "x", "--score_method", "GPT3_score"],
    ["ask", "post"],
    ["ask", " ", "--dataset", "DR"],
    ["ask", "post", "--dataset", "DR", "--no_such_flag"],
    ["data"],
    ["data", "fetch"],
    ["data", "check", "nowhere"],
    ["demo", "--no_such_flag"],
    ["no_such_command"],
    ["--no_such_flag"],
    [],
]


@pytest.mark.parametrize("arguments", ARGUMENT_ERRORS, ids=" ".join)
def test_argument_errors_have_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        status: object = main(arguments)
    except SystemExit as ended:
        status = ended.code
    told = capsys.readouterr()
    assert (status, told.out) == (2, "")
    assert len([line for line in told.err.splitlines() if "error: " in line]) == 1
    assert "Traceback" not in told.err
    assert list(tmp_path.iterdir()) == []


def test_help_and_argument_errors_import_nothing_heavy(tmp_path: Path) -> None:
    """In one process that only ever adds imports: the first command line after which something heavy is there."""
    helps = [["--help"], *([command, "--help"] for command in COMMANDS), ["data", "fetch", "--help"]]
    code = f"""
import contextlib, io, json, sys
from imhi.cli import main
from imhi.commands import run_script
for arguments in json.loads(sys.argv[1]):
    calls = [lambda: main(arguments)]
    if arguments and arguments[0] in {tuple(SCRIPTS)!r}:
        calls.append(lambda: run_script(arguments[0], arguments[1:]))
    for call in calls:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                call()
            except SystemExit:
                pass
    if heavy := sorted(set({HEAVY!r}) & set(sys.modules)):
        sys.exit(f"{{arguments}} imports {{heavy}}")
"""
    done = started("-c", code, json.dumps([*helps, *ARGUMENT_ERRORS]), cwd=tmp_path, PYTHONPATH=str(SOURCE))
    assert (done.returncode, done.stderr) == (0, "")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from imhi import __version__

    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"imhi {__version__}\n")


# --- flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", PUBLISHED)
def test_published_flags_are_accepted(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each alone and all together, with a value where the published one has a value."""
    from importlib import import_module

    seen: list[object] = []
    monkeypatch.setattr(import_module(f"imhi.commands.{command}"), "run", lambda given: seen.append(given) or 0)
    required = {"generate": ["--model_output_path", "x"], "label": [], "score": ["--gen_dir_name", "x"]}[command]
    switches = {"--llama", "--cuda", "--lora", "--rule_calculate", "--calculate"}

    def words(flag: str) -> list[str]:
        if flag in switches:
            return [flag]
        return [flag, "4" if flag == "--batch_size" else PUBLISHED_CHOICES.get((command, flag), ["x"])[0]]

    lines = [[*required, *words(flag)] for flag in PUBLISHED[command]]
    lines.append([*required, *(word for flag in PUBLISHED[command] for word in words(flag))])
    for (_, flag), choices in ((key, value) for key, value in PUBLISHED_CHOICES.items() if key[0] == command):
        lines += [[*required, flag, choice] for choice in choices]
    for line in lines:
        assert run_script(command, line) == 0
        assert main([command, *line]) == 0
    assert len(seen) == 2 * len(lines)
    assert capsys.readouterr().err == ""
    everything = vars(seen[2 * len(PUBLISHED[command])])
    assert all(everything[flag.removeprefix("--")] for flag in PUBLISHED[command])


# --- from anywhere ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS.values())
def test_scripts_run_from_any_working_directory(script: str, tmp_path: Path) -> None:
    from_source = started(script, "--help", cwd=SOURCE)
    from_elsewhere = started(SOURCE / script, "--help", cwd=tmp_path)
    assert from_source.returncode == from_elsewhere.returncode == 0
    assert from_source.stdout == from_elsewhere.stdout != ""
    assert from_source.stderr == from_elsewhere.stderr == ""


def test_paths_are_those_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is the user's; a plain name is a run under the checkout's model_output/, from wherever it is called."""
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "DR.csv").write_text("goldens,generated_text\nNo. Reasoning: made up,No.\n")
    done = started(SOURCE / "label_inference.py", "--rules", "./answers", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "answers" / "correctness.json").is_file()
    for folder in (tmp_path, SOURCE, ROOT):
        monkeypatch.chdir(folder)
        assert run_folder("run") == ROOT / "model_output" / "run"
        assert run_folder("./run").resolve() == folder / "run"


# --- streams ----------------------------------------------------------------------------------------------------------


def test_results_on_stdout_and_talk_on_stderr(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--model_path", str(tiny_llama), "--model_output_path", str(tmp_path / "run"), "--rule_calculate"]
    arguments = [*line, "--datasets", "SAD", "DR", "--limit", "2", "--max_new_tokens", "4"]
    capsys.readouterr()
    assert run_script("generate", arguments) == 0
    told = capsys.readouterr()
    headers, rule, *rows = told.out.splitlines()
    assert headers.split()[:3] == ["dataset", "rows", "unparsed"]
    assert set(rule) == {"-", " "}
    assert [row.split()[:2] for row in rows[:2]] == [["DR", "2"], ["SAD", "2"]]
    assert rows[2].startswith("unparsed answers count as wrong")
    assert rows[3] == "4 answers ended by the length limit (DR 2, SAD 2)" and len(rows) == 4
    for talk in ("data root: ", "made-up sample rows", "IMHI: 4 rows", "generating", "4 answers in ", "figures in "):
        assert talk in told.err and talk not in told.out
    # Without a table to print there is nothing on stdout at all.
    arguments.remove("--rule_calculate")
    assert run_script("generate", arguments) == 0
    assert capsys.readouterr().out == ""


def test_an_answer_is_on_stdout_alone(tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["ask", "my rent went up", "--dataset", "SAD", "--model_path", str(tiny_llama), "--max_new_tokens", "8"]
    capsys.readouterr()
    assert main(arguments) == 0
    told = capsys.readouterr()
    assert told.out.strip() and "my rent went up" not in told.out
    assert "my rent went up" in told.err and "label by rule: " in told.err


@pytest.mark.parametrize("command", ["data check", "label --rules {answers}"])
def test_a_reader_that_goes_away_is_no_crash(command: str, tmp_path: Path) -> None:
    """``imhi ... | head``: the read end of the pipe is closed before the first result."""
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "DR.csv").write_text("goldens,generated_text\nNo. Reasoning: made up,No.\n")
    arguments = command.format(answers=tmp_path / "answers").split()
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "imhi.cli", *arguments],
            stdout=writing,
            stderr=subprocess.PIPE,
            env=environment(PYTHONPATH=str(SOURCE)),
            cwd=tmp_path,
            text=True,
            check=False,
            timeout=300,
        )
    finally:
        os.close(writing)
    assert done.stderr == ""
    assert done.returncode not in (0, 1, 2)


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------

# A child of a background job ignores SIGINT; a user's shell does not start programs so.
AT_A_TERMINAL = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_ctrl_c_is_one_line_and_the_run_goes_on(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shared = ["--model_path", str(tiny_llama), "--model_output_path", str(folder), "--max_new_tokens", "120"]
    shared += ["--datasets", "DR", "SAD", "CAMS"]
    # One row a batch and a thread: seconds of work, of which the first row is enough.
    command = [sys.executable, "-c", AT_A_TERMINAL, str(SOURCE / "IMHI.py"), *shared, "--batch_size", "1"]
    journal = folder / "responses.jsonl"
    with (tmp_path / "stderr").open("w") as stderr:
        child = subprocess.Popen(command, env=environment(OMP_NUM_THREADS="1"), stdout=subprocess.PIPE, stderr=stderr)
        try:
            until = time.monotonic() + 240
            while not (journal.exists() and journal.stat().st_size) and time.monotonic() < until:
                assert child.poll() is None, (tmp_path / "stderr").read_text()
                time.sleep(0.005)
            child.send_signal(signal.SIGINT)
            out, _ = child.communicate(timeout=120)
        finally:
            child.kill()
    told = (tmp_path / "stderr").read_text()
    assert (child.returncode, out) == (130, b""), told
    assert "Traceback" not in told and "KeyboardInterrupt" not in told
    assert told.splitlines()[-1].startswith("interrupted: what was finished is saved; the same command goes on")
    assert told.count("interrupted: ") == 1
    kept = journal.read_bytes()
    assert 1 <= kept.count(b"\n") < 27 and not list(folder.glob("*.csv"))
    assert run_script("generate", [*shared, "--batch_size", "32"]) == 0
    assert journal.read_bytes().startswith(kept), "what was finished is not generated again"
    ids = [json.loads(line)["id"] for line in journal.read_text(encoding="utf-8").splitlines()]
    assert len(ids) == len(set(ids)) == 27
    assert len(list(folder.glob("*.csv"))) == 3


# --- the package ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("hatchling", "pip"):
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed: no wheel can be built without a network")
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    done = started("-m", "pip", "wheel", *options, "--wheel-dir", folder, ROOT, cwd=folder)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("imhi-*.whl")
    return built


def test_the_wheel_carries_the_package_and_the_samples(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(SOURCE).as_posix() for path in (SOURCE / "imhi").rglob("*.py")}
    assert modules <= names
    assert "imhi/published_snapshot.csv" in names
    carried = ("labelers/packaged", "labelers/challenge", "training/writing")
    files = {path for folder in carried for path in (SOURCE / "imhi" / folder).rglob("*") if path.is_file()}
    files = {path.relative_to(SOURCE).as_posix() for path in files if "__pycache__" not in path.parts}
    assert "imhi/labelers/packaged/SAD/adapter_model.safetensors" in files and files <= names
    tops = ("test_data", "train_data", "human_evaluation")
    samples = {path.relative_to(ROOT).as_posix() for top in tops for path in (ROOT / top).rglob("*") if path.is_file()}
    assert "test_data/test_instruction/SAD.csv" in samples
    assert {name.removeprefix("imhi/samples/") for name in names if name.startswith("imhi/samples/")} == samples
    top = {name.partition("/")[0] for name in names}
    assert len(top) == 2 and "imhi" in top, f"nothing but the package and its .dist-info: {top}"
    (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "imhi = imhi.cli:main" in zipfile.ZipFile(wheel).read(entry_points).decode()


def test_the_unpacked_wheel_finds_its_samples(wheel: Path, tmp_path: Path) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    zipfile.ZipFile(wheel).extractall(site)
    work.mkdir()
    code = (
        "from imhi.data import samples_root, resolve_data_root; from imhi.runs import run_folder\n"
        "print(samples_root(), resolve_data_root(None).is_samples, run_folder('run'), sep='\\n')"
    )
    done = started("-c", code, cwd=work, PYTHONPATH=str(site))
    expected = [str(site / "imhi" / "samples"), "True", str(work / "model_output" / "run")]
    assert (done.stdout.splitlines(), done.stderr) == (expected, "")
    done = started("-m", "imhi.cli", "data", "check", cwd=work, PYTHONPATH=str(site))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"data root: {site / 'imhi' / 'samples'}\nmade-up sample rows")
    assert done.stdout.endswith("no errors\n")
    assert list(work.iterdir()) == []
