"""The openai engine against real servers on loopback: vLLM's and ``transformers serve``, with the real SmolLM2.

Each where an environment of its own is named: $IMHI_TEST_VLLM_PYTHON, a Python with vLLM, and $IMHI_TEST_SERVE_PYTHON,
a Python with ``transformers[serving]``.  The model is the same as the transformers engine's, in float32.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from imhi.checkpoints import locate_generator
from imhi.data import load_suite, resolve_data_root, samples_root
from imhi.engines import Completion, Decoding, EngineRequest, Prompt, Shot
from imhi.engines.openai_engine import OpenAIEngine, prepare
from imhi.engines.transformers_engine import TransformersEngine
from imhi.errors import UserError

SOURCE = Path(__file__).parents[1] / "src"
CHECKPOINT = "embedded:smollm2"
# Seconds, for a machine that is busy otherwise: until a server is up, and for one answer (transformers serve gives one
# at a time).
START_SECONDS, ANSWER_SECONDS = 900, 900
NEW_TOKENS = 24
ROWS = 16
# In float32 two kinds of attention round differently; a near tie may then fall otherwise, and the text goes on from it.
ALLOWED_DIFFERENT = 2
KEY = "sk-real-servers-0123456789"


@dataclass(frozen=True)
class Running:
    """A server at work: its kind, its URL and its name of the model."""

    kind: str
    url: str
    model: str


def vllm_command(python: str, port: int) -> tuple[list[str], str]:
    folder = str(locate_generator(CHECKPOINT).folder)
    command = [
        *(python, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--served-model-name", "smollm2"),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"),
        *("--max-model-len", "2048", "--generation-config", "vllm"),
    ]
    return command, "smollm2"


def serve_command(python: str, port: int) -> tuple[list[str], str]:
    folder = str(locate_generator(CHECKPOINT).folder)
    command = [
        *(python, "-c", "from transformers.cli.transformers import main; main()", "serve", folder),
        *("--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"),
    ]
    return command, folder


KINDS = {
    "vllm": ("IMHI_TEST_VLLM_PYTHON", vllm_command),
    "transformers serve": ("IMHI_TEST_SERVE_PYTHON", serve_command),
}


@contextmanager
def running(kind: str, log: Path, **environment: str) -> Iterator[Running]:
    variable, command_of = KINDS[kind]
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"${variable} names no Python with {kind}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command, model = command_of(python, port)
    # None of this environment's packages and settings.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VLLM", "VIRTUAL"))}
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    # Threads bound to cores would wait for each other wherever another process has one of the cores.
    settings["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    with log.open("wb") as written:
        server = subprocess.Popen(
            command,
            env={**settings, **kept, **environment},
            stdout=written,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + START_SECONDS
        while not is_up(port):
            assert server.poll() is None, f"{kind} ended: {log.read_text(errors='replace')[-2000:]}"
            assert time.monotonic() < end, f"{kind} is not up after {START_SECONDS} s"
            time.sleep(1)
        yield Running(kind, f"http://127.0.0.1:{port}/v1", model)
    finally:
        # vLLM's engine is a process of its own.
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def is_up(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.replace(" ", "_"))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(request.param, tmp_path_factory.mktemp("server") / "server.log") as found:
        yield found


@pytest.fixture(autouse=True)
def no_key_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def engine(server: Running, *, decoding: Decoding | None = None, **options: Any) -> OpenAIEngine:
    given = {"api_base": server.url, "model": server.model, "concurrency": 8, "timeout": ANSWER_SECONDS, **options}
    return prepare(EngineRequest(options=given, decoding=decoding or Decoding(max_new_tokens=NEW_TOKENS))).load()


def prompts() -> list[Prompt]:
    """Made-up sample rows, some with an example before them."""
    rows = load_suite(resolve_data_root(str(samples_root())), "IMHI", limit=3).rows[:ROWS]
    shots = (Shot("Consider this post: all fine here. Question: Is it?", "Yes. Reasoning: the post says so."),)
    return [Prompt(row.id, row.query, shots if number % 4 == 3 else ()) for number, row in enumerate(rows)]


def answered(engine: Any, rows: list[Prompt]) -> dict[str, Completion]:
    return {completion.id: completion for group in engine.complete(rows) for completion in group}


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_answers_are_those_of_the_transformers_engine(
    server: Running, request: pytest.FixtureRequest, api: str
) -> None:
    # Only now, with a server there: it takes seconds to load.
    smollm2 = request.getfixturevalue("smollm2")
    rows = prompts()
    asking = engine(server, api=api)
    found = answered(asking, rows)
    decoding = Decoding(max_new_tokens=NEW_TOKENS, chat_template=api == "chat")
    expected = answered(TransformersEngine(smollm2, decoding), rows)
    assert found.keys() == expected.keys()
    different = [
        (id, completion.text, expected[id].text)
        for id, completion in found.items()
        if completion.text != expected[id].text
    ]
    assert len(different) <= ALLOWED_DIFFERENT, different
    for id, completion in found.items():
        assert completion.error is None
        # The server was given the same tokens, template and special ones included.
        assert completion.prompt_tokens == expected[id].prompt_tokens
        if completion.text == expected[id].text:
            assert completion.finish_reason == expected[id].finish_reason
            # It counts the token that ends an answer.
            assert completion.new_tokens - expected[id].new_tokens in (0, 1)
    told = asking.describe()
    assert told["usage"]["prompt_tokens"] == sum(completion.prompt_tokens for completion in found.values())
    assert told["usage"]["answers_without_usage"] == 0
    assert told["traffic"]["retries"] == {} and told["answered_by"]["model"]


def test_a_server_repeats_the_id_of_the_request_in_its_answer(server: Running) -> None:
    """So that an answer to another request would be seen."""
    seen = []
    from imhi.engines.http_client import HttpClient

    check = HttpClient._check_id

    def watched(self: HttpClient, number: str, body: Any, response: Any) -> None:
        seen.append(number in f"{body.get('id')} {response.headers.get('X-Request-Id')}")
        check(self, number, body, response)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HttpClient, "_check_id", watched)
        rows = prompts()[:4]
        # /models comes first and has no answer to mix up.
        asking = engine(server)
        seen.clear()
        answered(asking, rows)
    assert seen == [True] * len(rows)


def test_sampled_answers_come(server: Running) -> None:
    decoding = Decoding(max_new_tokens=8, do_sample=True, temperature=0.8, top_p=0.9, seed=4)
    found = answered(engine(server, decoding=decoding), prompts()[:6])
    assert all(completion.error is None for completion in found.values())
    assert len({completion.text for completion in found.values()}) > 1


def test_an_unknown_model_stops_the_run_or_fails_its_rows(server: Running) -> None:
    asking = engine(Running(server.kind, server.url, "no-such-model"))
    rows = prompts()[:3]
    if server.kind == "vllm":
        with pytest.raises(UserError, match=r"answered 404 .*--model") as raised:
            answered(asking, rows)
        said = str(raised.value)
    else:
        errors = [str(completion.error) for completion in answered(asking, rows).values()]
        assert all("answered 400" in error for error in errors)
        said = " ".join(errors)
    assert not any(row.text[20:60] in said for row in rows)


def test_a_prompt_longer_than_the_model_has_no_room(server: Running) -> None:
    if server.kind != "vllm":
        pytest.skip("transformers serve has no limit of its own")
    row = Prompt("DR/0", "again and " * 3000)
    found = answered(engine(server), [row])["DR/0"]
    assert found.finish_reason == "no_room" and found.error


def test_a_run_killed_and_resumed_answers_every_row_once(server: Running, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [
        *(sys.executable, "IMHI.py", "--engine", "openai", "--api_base", server.url, "--model", server.model),
        *("--data_root", str(samples_root()), "--limit", "2", "--max_new_tokens", "16", "--concurrency", "4"),
        *("--timeout", str(ANSWER_SECONDS), "--model_output_path", str(out)),
    ]
    journal = out / "responses.jsonl"
    process = subprocess.Popen(command, cwd=SOURCE, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 6):
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = journal.read_bytes()
    before = before[: before.rfind(b"\n") + 1]
    done = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, check=False, timeout=2 * ANSWER_SECONDS)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"going on, \d+ of \d+ rows are done", done.stderr)
    assert journal.read_bytes().startswith(before)
    ids = [json.loads(line)["id"] for line in journal.read_text(encoding="utf-8").splitlines()]
    expected = [row.id for row in load_suite(resolve_data_root(str(samples_root())), "IMHI", limit=2).rows]
    assert sorted(ids) == sorted(expected)


def test_a_server_with_a_key_refuses_who_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running("vllm", tmp_path / "server.log", VLLM_API_KEY=KEY) as server:
        with pytest.raises(UserError, match="answered 401") as raised:
            engine(server)
        assert KEY not in str(raised.value)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        found = answered(engine(server), prompts()[:2])
        assert all(completion.error is None for completion in found.values())
