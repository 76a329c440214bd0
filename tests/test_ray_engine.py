"""The Ray engine: chunks, losses and doubles with a stand-in pool; real clusters where Ray is installed.

Real clusters run under $IMHI_TEST_RAY_PYTHON, or under this Python if it has Ray.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from fake_pool import FakePool
from tiny import ROOT, sample_texts, save_llama

from imhi.checkpoints import load_tokenizer
from imhi.commands import run_script
from imhi.data import samples_root
from imhi.engines import Completion, Decoding, EngineRequest, Prompt, ray_engine
from imhi.engines.ray_engine import Chunk, RayEngine, prepare
from imhi.errors import UserError


@pytest.fixture(autouse=True)
def ray_installed(monkeypatch):
    monkeypatch.setattr(ray_engine, "require_ray", lambda: "2.60.0")


def made_up_prompts(count: int) -> list[Prompt]:
    return [Prompt(f"DR/{index}", sample_texts()[index % 90]) for index in range(count)]


class Echo:
    """An engine that answers a prompt with its id; what it was given is kept."""

    def complete(self, prompts, *, done=(), on_step=None) -> Iterator[list[Completion]]:
        for prompt in prompts:
            if prompt.id not in done:
                yield [Completion(prompt.id, prompt.id, 3, 1, "stop")]

    def check(self, prompts) -> None:
        pass

    def describe(self) -> dict:
        return {"class": "Echo", "batch_plan": {"batching": "in-flight"}}


def echo_opened(*given):
    return echoed


def echoed(chunk):
    for group in Echo().complete(chunk.prompts, done=chunk.done):
        yield "worker-1", Echo().describe(), group


def engine_of(folder: Path, pool: FakePool, monkeypatch, *, rows: int | None = None, **request) -> RayEngine:
    monkeypatch.setattr(ray_engine, "open_engine", echo_opened)
    options = {"workers": pool.workers, **({"rows_per_task": rows} if rows else {})}
    prepared = prepare(EngineRequest(model=str(folder), dtype="float32", options=options, **request))
    return RayEngine(prepared, load_tokenizer(folder), pool)


def answers(engine: RayEngine, prompts: list[Prompt], done: frozenset[str] = frozenset()) -> dict[str, Completion]:
    found = [completion for group in engine.complete(prompts, done=done) for completion in group]
    assert len(found) == len({completion.id for completion in found})
    return {completion.id: completion for completion in found}


def ids(chunk: Chunk) -> set[str]:
    return {prompt.id for prompt in chunk.prompts}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"options": {}}, "needs --workers N"),
        ({"options": {"workers": 2, "tensor_parallel_size": 2}}, "--tensor_parallel_size has no effect"),
        ({"options": {"workers": 2}, "device": "cuda:3"}, "Ray gives each worker its own GPU"),
        (
            {"options": {"workers": 2}, "decoding": Decoding(do_sample=True), "batching": "buckets"},
            "whole batches are drawn batch by batch",
        ),
    ],
)
def test_flags_without_effect_are_refused(request_, message, tiny_llama):
    with pytest.raises(UserError, match=message):
        prepare(EngineRequest(model=str(tiny_llama), **request_))


def test_an_encoder_decoder_is_not_drawn_in_batches_that_change(tiny_t5):
    with pytest.raises(UserError, match="whole batches are drawn"):
        prepare(EngineRequest(model=str(tiny_t5), options={"workers": 2}, decoding=Decoding(do_sample=True)))


def test_the_configuration_is_the_inner_engines_and_workers_may_change(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_llama.parent)
    two, four = (prepare(EngineRequest(model=tiny_llama.name, dtype="float32", options={"workers": n})) for n in (2, 4))
    assert two.configuration() == four.configuration()
    assert two.configuration()["inner_engine"] == "transformers"
    assert "model.safetensors" in two.configuration()["model_files"]
    assert (two.session()["workers"], four.session()["workers"]) == (2, 4)
    # Workers run in other folders.
    assert two.request.model == str(tiny_llama)


def test_every_row_is_answered_once(tiny_llama, monkeypatch):
    engine = engine_of(tiny_llama, FakePool(), monkeypatch, rows=7)
    prompts = made_up_prompts(40)
    assert answers(engine, prompts).keys() == {prompt.id for prompt in prompts}
    facts = engine.describe()
    assert facts["rows_by_worker"] == {"worker-1": 40}
    assert (facts["rows_doubled"], facts["worker"]["class"]) == (0, "Echo")
    assert sorted(len(chunk.prompts) for chunk in engine.pool.sent[0]) == [5, 7, 7, 7, 7, 7]


def test_chunks_are_cut_from_all_rows_whatever_is_done(tiny_llama, monkeypatch):
    prompts = made_up_prompts(30)
    first = engine_of(tiny_llama, FakePool(), monkeypatch, rows=6)
    answers(first, prompts)
    done = frozenset(ids(first.pool.sent[0][1]) | set(list(ids(first.pool.sent[0][3]))[:2]))
    second = engine_of(tiny_llama, FakePool(), monkeypatch, rows=6)
    found = answers(second, prompts, done)
    assert found.keys() == {prompt.id for prompt in prompts} - done
    plan, rest = ([ids(chunk) for chunk in engine.pool.sent[0]] for engine in (first, second))
    assert rest == [chunk for at, chunk in enumerate(plan) if at != 1]


def test_prompts_that_begin_alike_share_a_chunk(tiny_llama, monkeypatch):
    prompts = [Prompt(f"MultiWD/{at}", f"post {at % 5}: a quiet day. Question: {at}?") for at in range(30)]
    engine = engine_of(tiny_llama, FakePool(), monkeypatch, rows=6)
    answers(engine, prompts)
    for chunk in engine.pool.sent[0]:
        assert len({prompt.text.partition(":")[0] for prompt in chunk.prompts}) == 1


@pytest.mark.parametrize(
    ("rows", "workers", "batch_size", "expected"),
    [
        (100, 2, None, 50),  # a share each, where that is not far more than a worker answers at once
        (400, 2, None, 200),
        (8000, 2, None, 1000),  # several chunks a worker, so that none waits long
        (100_000, 2, None, 1024),
        (400, 2, 8, 50),
        (3, 4, None, 1),
    ],
)
def test_chunks_keep_workers_busy(rows, workers, batch_size, expected, tiny_llama, monkeypatch):
    engine = engine_of(tiny_llama, FakePool(workers), monkeypatch, batch_size=batch_size)
    prompts = [Prompt(f"DR/{at}", str(at)) for at in range(rows)]
    chunks = engine._cut(prompts, frozenset())
    assert sorted(prompt.id for chunk in chunks for prompt in chunk.prompts) == sorted(prompt.id for prompt in prompts)
    assert max(len(chunk.prompts) for chunk in chunks) == pytest.approx(expected, rel=0.01, abs=1)
    assert len(chunks) % workers == 0 or rows < workers


def test_long_posts_do_not_all_go_to_one_worker(tiny_llama, monkeypatch):
    """Sorted by their words, as the posts of one source stand together."""
    prompts = [Prompt(f"DR/{at}", f"a {at}") for at in range(100)]
    prompts += [Prompt(f"Irf/{at}", f"b {at} " + "long " * 400) for at in range(100)]
    engine = engine_of(tiny_llama, FakePool(2), monkeypatch)
    first, second = (
        sum(500 + len(prompt.text) for prompt in chunk.prompts) for chunk in engine._cut(prompts, frozenset())
    )
    assert first == pytest.approx(second, rel=0.03)


def test_a_worker_that_dies_costs_what_it_had_at_work(tiny_llama, monkeypatch):
    dying = {"DR/7"}

    def fate(number: int, chunk: Chunk) -> int | None:
        return 4 if number == 1 and ids(chunk) & dying else None

    engine = engine_of(tiny_llama, FakePool(fate=fate), monkeypatch, rows=10)
    prompts = made_up_prompts(40)
    assert answers(engine, prompts).keys() == {prompt.id for prompt in prompts}
    (again,) = engine.pool.sent[1]
    lost = next(chunk for chunk in engine.pool.sent[0] if ids(chunk) & dying)
    assert [prompt.id for prompt in again.prompts] == [prompt.id for prompt in lost.prompts[4:]]
    assert engine.describe()["chunks_lost"] == 1


def test_a_row_that_kills_every_worker_is_found_and_costs_no_other_row(tiny_llama, monkeypatch):
    def fate(number: int, chunk: Chunk) -> int | None:
        at = next((at for at, prompt in enumerate(chunk.prompts) if prompt.id == "DR/7"), None)
        return None if at is None else at

    engine = engine_of(tiny_llama, FakePool(fate=fate), monkeypatch, rows=20)
    prompts = made_up_prompts(60)
    found = answers(engine, prompts)
    assert found.keys() == {prompt.id for prompt in prompts}
    assert [id for id, answer in found.items() if answer.error] == ["DR/7"]
    assert "the worker that had this row died" in found["DR/7"].error
    assert found["DR/7"].finish_reason == "error"
    assert engine.pool.passes < 8


def test_a_row_that_never_comes_is_no_success(tiny_llama, monkeypatch):
    class Losing(FakePool):
        def stream(self, make, chunks, again):
            yield from list(super().stream(make, chunks, again))[1:]

    engine = engine_of(tiny_llama, Losing(), monkeypatch, rows=5)
    with pytest.raises(UserError, match="1 of 20 rows did not come back, the first DR/") as caught:
        answers(engine, made_up_prompts(20))
    assert caught.value.code == 1


def test_a_machine_with_another_model_answers_nothing(tiny_llama):
    request = EngineRequest(model=str(tiny_llama), dtype="float32")
    wanted = prepare(replace(request, options={"workers": 2})).prepared.configuration()
    expected = json.dumps({"imhi": "0.0", **wanted, "dtype": "bfloat16"}, sort_keys=True)
    with pytest.raises(UserError, match=r"would answer otherwise .*\(dtype: float32 there, bfloat16 here; imhi: "):
        ray_engine.open_engine("transformers", request, expected)


def test_an_answer_that_comes_twice_is_counted_and_kept_once(tiny_llama, monkeypatch):
    class Twice(FakePool):
        def stream(self, make, chunks, again):
            for part in super().stream(make, chunks, again):
                yield part
                yield part

    engine = engine_of(tiny_llama, Twice(), monkeypatch, rows=5)
    assert len(answers(engine, made_up_prompts(20))) == 20
    assert engine.describe()["rows_doubled"] == 20


def test_prompts_are_those_of_the_inner_engine(tiny_llama, monkeypatch):
    engine = engine_of(tiny_llama, FakePool(), monkeypatch)
    (prompt,) = made_up_prompts(1)
    assert engine.prompt_token_ids(prompt) == load_tokenizer(tiny_llama)(prompt.text)["input_ids"]
    engine.close()
    assert engine.pool.closed


# --- real clusters ---------------------------------------------------------------------------------------------------

RAY_PYTHON = os.environ.get("IMHI_TEST_RAY_PYTHON") or (sys.executable if find_spec("ray") else None)
needs_ray = pytest.mark.skipif(
    RAY_PYTHON is None, reason="Ray is not installed, and $IMHI_TEST_RAY_PYTHON names no Python that has it"
)
# Seconds: a machine that does other things meanwhile takes minutes to start a cluster.
PATIENCE = 800
LONG = ("--max_new_tokens", "160", "--deterministic", "--datasets", "DR", "SAD", "MultiWD", "Irf")
ROWS = 40


class Marked:
    """Processes that a test starts, and what those start: all carry the test's mark in their environment."""

    def __init__(self) -> None:
        self.mark = f"IMHI_MARK={uuid.uuid4().hex}"
        self.more: dict[str, str] = {}

    def environment(self) -> dict[str, str]:
        name, _, value = self.mark.partition("=")
        path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
        more = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        return {**os.environ, name: value, **more, **self.more}

    def alive(self, named: str = "") -> list[int]:
        """Ids of living processes with the mark whose command line holds `named`."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() not in (entry / "environ").read_bytes().split(b"\0"):
                    continue
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except (OSError, IndexError):
                continue
            if named in line and state != "Z":
                found.append(int(entry.name))
        return sorted(found)

    def kill(self, *pids: int) -> None:
        for pid in pids:
            os.kill(pid, 9)


def wait_for(what: Callable[[], object], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.05)


@pytest.fixture
def marked() -> Iterator[Marked]:
    found = Marked()
    yield found
    # Ray's processes end of themselves, one after the other, when the one that started them is gone.
    deadline = time.monotonic() + PATIENCE / 4
    while found.alive() and time.monotonic() < deadline:
        time.sleep(0.2)
    left = found.alive()
    for pid in left:
        with suppress(ProcessLookupError):
            found.kill(pid)
    assert not left, "processes were left behind"


@pytest.fixture(scope="session")
def slow_llama(tmp_path_factory) -> Path:
    """A LLaMA that takes a while for a row, so that there is time to kill what answers it."""
    return save_llama(
        tmp_path_factory.mktemp("slow_llama"), hidden_size=128, num_hidden_layers=6, initializer_range=0.2
    )


def arguments_of(model: Path, out: Path, *more: str) -> list[str]:
    fixed = ["--data_root", str(samples_root()), "--dtype", "float32", "--max_new_tokens", "24"]
    return ["--model_path", str(model), "--model_output_path", f"{out}", *fixed, *more]


def command(model: Path, out: Path, *more: str, workers: int = 2) -> list[str]:
    flags = ["--engine", "ray", "--workers", str(workers)]
    return [str(RAY_PYTHON), str(ROOT / "src/IMHI.py"), *arguments_of(model, out, *flags, *more)]


def ray_run(marked: Marked, model: Path, out: Path, *more: str, workers: int = 2) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(model, out, *more, workers=workers),
        env=marked.environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def texts(folder: Path) -> dict[str, list[list[str]]]:
    return {path.name: list(csv.reader(path.open(encoding="utf-8"))) for path in sorted(folder.glob("*.csv"))}


def records(folder: Path) -> list[dict]:
    path = folder / "responses.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    # The last line may be half written at this moment.
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def engine_facts(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())["sessions"][-1]["engine"]


@pytest.fixture(scope="session")
def one_process(slow_llama, tmp_path_factory) -> Path:
    """The run of one process that all others must equal."""
    out = tmp_path_factory.mktemp("runs") / "one"
    assert run_script("generate", arguments_of(slow_llama, out, *LONG)) == 0
    return out


def same(run: Path, other: Path) -> None:
    """Every row once, and each as in the other run."""
    rows = records(run)
    assert len(rows) == len({row["id"] for row in rows}) == len(records(other)) >= ROWS
    assert {row["id"]: row for row in rows} == {row["id"]: row for row in records(other)}
    assert texts(run) == texts(other)


@contextmanager
def two_nodes(marked: Marked) -> Iterator[tuple[str, Callable[[], None]]]:
    """A cluster of two nodes with a core each on this machine: its address, and what kills the second node.

    On the loopback interface alone and with a token, which the processes that the test starts afterwards have, too.
    """
    marked.more = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": uuid.uuid4().hex,
    }
    started = subprocess.Popen(
        [str(RAY_PYTHON), str(ROOT / "tests/ray_two_nodes.py")],
        env=marked.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert started.stdin and started.stdout
    try:
        told = json.loads(next(line for line in started.stdout if line.startswith("{")))
        assert told["address"].startswith("127.0.0.1:")

        def kill_second() -> None:
            marked.kill(*(pid for pid in marked.alive() if pid in family(told["second"])))

        yield told["address"], kill_second
    finally:
        started.stdin.close()
        started.wait(timeout=PATIENCE / 4)
        started.stdout.close()


def family(pid: int) -> set[int]:
    """A process and all that it started, and those started."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {pid}
    while grown := {child for child, parent in parents.items() if parent in found} - found:
        found |= grown
    return found


@needs_ray
def test_two_workers_answer_as_one_process_does(marked, slow_llama, one_process, tmp_path):
    done = ray_run(marked, slow_llama, tmp_path / "run", *LONG, "--rows_per_task", "7")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == ""
    same(tmp_path / "run", one_process)
    facts = engine_facts(tmp_path / "run")
    assert len(facts["rows_by_worker"]) == 2
    assert sum(facts["rows_by_worker"].values()) == ROWS
    assert (facts["passes"], facts["chunks_lost"], facts["rows_doubled"]) == (1, 0, 0)
    assert facts["worker"]["torch_threads"] == facts["threads_per_worker"] >= 1
    assert facts["worker"]["class"] == "LlamaForCausalLM"
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["configuration"]["engine"] == "ray"
    # In batches, and with a template of chunks of its own, too.
    assert run_script("generate", arguments_of(slow_llama, tmp_path / "batched")) == 0
    assert ray_run(marked, slow_llama, tmp_path / "ray").returncode == 0
    same(tmp_path / "ray", tmp_path / "batched")


@needs_ray
def test_a_worker_that_is_killed_costs_only_its_rows(marked, slow_llama, one_process, tmp_path):
    out = tmp_path / "run"
    with subprocess.Popen(
        command(slow_llama, out, *LONG, "--rows_per_task", "7"),
        env=marked.environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for(lambda: len(records(out)) >= 6 or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        marked.kill(marked.alive("ray::MapWorker")[0])
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said[-3000:]
    same(out, one_process)
    facts = engine_facts(out)
    assert facts["chunks_lost"] >= 1
    assert facts["passes"] >= 2
    assert facts["rows_doubled"] == 0
    assert len(facts["rows_by_worker"]) >= 2


@needs_ray
def test_a_driver_that_is_killed_leaves_no_process_and_goes_on(marked, slow_llama, one_process, tmp_path):
    out = tmp_path / "run"
    flags = (*LONG, "--rows_per_task", "7")
    with subprocess.Popen(command(slow_llama, out, *flags), env=marked.environment()) as process:
        wait_for(lambda: len(records(out)) >= 6 or process.poll() is not None)
        assert process.poll() is None
        process.kill()
    before = records(out)
    assert 6 <= len(before) < ROWS
    wait_for(lambda: not marked.alive())
    done = ray_run(marked, slow_llama, out, *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    assert records(out)[: len(before)] == before
    same(out, one_process)
    assert sum(engine_facts(out)["rows_by_worker"].values()) == ROWS - len(before)


@needs_ray
def test_two_nodes_answer_as_one_process_does(marked, slow_llama, one_process, tmp_path):
    with two_nodes(marked) as (address, _):
        done = ray_run(marked, slow_llama, tmp_path, *LONG, "--rows_per_task", "7", "--ray_address", address)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"texts are sent to the machines of the cluster at {address}" in done.stderr
    same(tmp_path, one_process)
    facts = engine_facts(tmp_path)
    assert (facts["nodes"], facts["threads_per_worker"]) == (2, 1)
    assert len({worker.partition("-")[0] for worker in facts["rows_by_worker"]}) == 2


@needs_ray
def test_a_node_that_is_killed_costs_only_its_rows(marked, slow_llama, one_process, tmp_path):
    with two_nodes(marked) as (address, kill_second):
        with subprocess.Popen(
            command(slow_llama, tmp_path, *LONG, "--rows_per_task", "8", "--ray_address", address),
            env=marked.environment(),
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            wait_for(lambda: len(records(tmp_path)) >= 6 or process.poll() is not None)
            assert process.poll() is None, process.communicate()
            kill_second()
            _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said[-3000:]
    same(tmp_path, one_process)
    facts = engine_facts(tmp_path)
    assert facts["nodes"] == 1
    assert facts["chunks_lost"] >= 1
    assert facts["rows_doubled"] == 0


@needs_ray
def test_more_workers_than_there_is_room_for_are_refused(marked, slow_llama, tmp_path):
    done = ray_run(marked, slow_llama, tmp_path, workers=500)
    assert done.returncode == 2
    assert "--workers 500: the cluster has room for" in done.stderr.splitlines()[-1]


@needs_ray
def test_an_address_without_a_cluster_is_one_line(marked, slow_llama, tmp_path):
    done = ray_run(marked, slow_llama, tmp_path, "--ray_address", "127.0.0.1:9")
    assert done.returncode == 1
    assert "--ray_address 127.0.0.1:9: no cluster that can be used" in done.stderr.splitlines()[-1]


@needs_ray
def test_a_cluster_of_its_own_is_closed_to_others_and_leaves_nothing(marked, slow_llama, tmp_path):
    import psutil

    before = set(Path("/tmp").glob("imhi-ray-*"))
    with subprocess.Popen(
        command(slow_llama, tmp_path, *LONG), env=marked.environment(), stderr=subprocess.DEVNULL
    ) as process:
        wait_for(lambda: records(tmp_path) or process.poll() is not None)
        (folder,) = set(Path("/tmp").glob("imhi-ray-*")) - before
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        listening = {
            connection.laddr.ip
            for pid in marked.alive()
            for connection in psutil.Process(pid).net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening and listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
        token = next(
            value.partition(b"=")[2].decode()
            for value in Path(f"/proc/{marked.alive('raylet')[0]}/environ").read_bytes().split(b"\0")
            if value.startswith(b"RAY_AUTH_TOKEN=")
        )
        assert len(token) == 64
        for pid in marked.alive():
            assert token.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        process.terminate()
        process.wait(timeout=PATIENCE / 4)
    wait_for(lambda: not marked.alive())
    assert not folder.exists()


@needs_ray
@pytest.mark.parametrize(
    ("what", "message", "code"),
    [
        ("mistake", "error: no such model", 2),
        ("never", "error: --engine ray: workers died 2 times over", 1),
        ("broken", "[2, 4, 6, 8, 10, 12]", 0),
        ("deadly", "[2, 4, 8, 10, 12] without [3]", 0),
    ],
)
def test_what_goes_wrong_in_real_workers(what, message, code, marked):
    done = subprocess.run(
        [str(RAY_PYTHON), str(ROOT / "tests/ray_failures.py"), what],
        env=marked.environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == code, done.stderr[-3000:]
    said = (done.stderr if code else done.stdout).splitlines()
    assert any(line.startswith(message) for line in said)


@needs_ray
def test_labels_over_workers_are_those_of_one_process(marked, tmp_path):
    responses = ROOT / "examples"
    runs = sorted(path.parent for path in responses.rglob("DR.csv"))
    for name, flags in (("one", []), ("ray", ["--engine", "ray", "--workers", "2"])):
        done = subprocess.run(
            [
                str(RAY_PYTHON),
                str(ROOT / "src/label_inference.py"),
                *("--data_path", str(runs[0]), "--data_output_path", str(tmp_path / name), *flags),
            ],
            env=marked.environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, over = (texts(tmp_path / name) for name in ("one", "ray"))
    assert one.keys() == over.keys()
    for name, rows in one.items():
        assert [row[:3] for row in rows] == [row[:3] for row in over[name]]
        for row, other in zip(rows[1:], over[name][1:], strict=True):
            assert float(row[3]) == pytest.approx(float(other[3]), abs=2e-6)
    keys, other_keys = (
        {name: (record["key"], record["counts"]) for name, record in json.loads(path.read_text())["datasets"].items()}
        for path in (tmp_path / "one/labels.json", tmp_path / "ray/labels.json")
    )
    assert keys == other_keys


@needs_ray
def test_scores_over_workers_are_those_of_one_process(marked, tmp_path):
    run = sorted(path.parent for path in (ROOT / "examples").rglob("DR.csv"))[0]
    found = {}
    for name, flags in (("one", []), ("ray", ["--engine", "ray", "--workers", "2"])):
        shutil.copytree(run, tmp_path / name, ignore=shutil.ignore_patterns("scores*"))
        done = subprocess.run(
            [
                str(RAY_PYTHON),
                str(ROOT / "src/score.py"),
                *("--gen_dir_name", str(tmp_path / name), "--score_method", "bert_score"),
                *("--datasets", "DR", "SAD", *flags),
            ],
            env=marked.environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        scores = json.loads((tmp_path / name / "scores.json").read_text())["scores"]["response"]
        found[name] = {dataset: scores[dataset]["bert_score"] for dataset in ("DR", "SAD")}
    for dataset, entry in found["one"].items():
        other = found["ray"][dataset]
        assert other["signature"] == entry["signature"]
        assert other["values"] == pytest.approx(entry["values"], abs=1e-6)
        assert other["rows"] == entry["rows"]
