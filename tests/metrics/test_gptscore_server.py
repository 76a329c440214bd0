"""GPT-score by a real vLLM server against the same model here, where $IMHI_TEST_VLLM_PYTHON has one (minutes)."""

from __future__ import annotations

import http.client
import itertools
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imhi.checkpoints import locate_generator
from imhi.data import load_suite, resolve_data_root
from imhi.metrics.gptscore import GptScore
from imhi.talk import say

MODEL = "embedded:smollm2"
PAIRS = 100
MADE_UP = [
    ("\N{CRYING FACE} I can\N{RIGHT SINGLE QUOTATION MARK}t", "\N{LOUDLY CRYING FACE}\N{CRYING FACE} they say"),
    ("", "Yes. Reasoning: They cannot sleep."),
    ("No.", "Caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{CJK UNIFIED IDEOGRAPH-4E00} and no more"),
]
START_SECONDS = 900


@pytest.fixture(scope="module")
def vllm_python() -> str:
    """The Python with vLLM, in an environment of its own."""
    found = os.environ.get("IMHI_TEST_VLLM_PYTHON")
    if not found:
        pytest.skip("$IMHI_TEST_VLLM_PYTHON names no Python with vLLM (make test-vllm)")
    return found


@contextmanager
def vllm_server(python: str, dtype: str, log: Path) -> Iterator[str]:
    """The URL up to /v1 of a vLLM server with the embedded model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(locate_generator(MODEL).folder)),
        *("--served-model-name", "smollm2", "--host", "127.0.0.1", "--port", str(port), "--dtype", dtype),
        *("--enforce-eager", "--max-model-len", "2048", "--generation-config", "vllm"),
    ]
    # None of this environment's packages and settings.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VLLM", "VIRTUAL"))}
    # Threads bound to cores would wait for each other wherever another process has one of the cores.
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    environment = {**settings, "HF_HUB_OFFLINE": "1", **kept}
    with log.open("wb") as written:
        server = subprocess.Popen(
            command, env=environment, stdout=written, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        end = time.monotonic() + START_SECONDS
        while not _is_up(port):
            assert server.poll() is None, f"vLLM ended: {log.read_text(errors='replace')[-2000:]}"
            assert time.monotonic() < end, f"vLLM is not up after {START_SECONDS} s"
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        # Its engine is a process of its own.
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _is_up(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@pytest.fixture(scope="module")
def pairs(real_data: Path) -> list[tuple[str, str]]:
    """Golds of all datasets, each after the gold of the row before; and made-up ones with characters of many bytes."""
    rows = load_suite(resolve_data_root(real_data), "IMHI", limit=2 + PAIRS // 8).rows
    golds: dict[str, list[str]] = {}
    for row in rows:
        golds.setdefault(row.dataset, []).append(row.gold)
    found = [pair for texts in golds.values() for pair in itertools.pairwise(texts)][:PAIRS]
    assert len(found) == PAIRS
    return [*found, *MADE_UP]


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 1e-4), ("bfloat16", 2e-2)])
def test_a_vllm_server_s_values_are_those_of_the_model_here(vllm_python, pairs, tmp_path, dtype, allowed):
    generated, golds = map(list, zip(*pairs, strict=True))
    here = GptScore(MODEL, dtype=dtype)
    expected = here.statistics(generated, golds)
    with vllm_server(vllm_python, dtype, tmp_path / "vllm.log") as url:
        there = GptScore(api_base=url, api_model="smollm2")
        found = there.statistics(generated, golds)
    # The same tokens count, and their mean log-probability is the same.
    assert [tokens for _, tokens in found] == [tokens for _, tokens in expected]
    apart = [
        abs(one - other)
        for one, other in zip(there.row_values(found)["gpt_score"], here.row_values(expected)["gpt_score"], strict=True)
    ]
    real, made_up = apart[:PAIRS], apart[PAIRS:]
    say(f"{dtype}: {PAIRS} pairs, {max(real):.2e} apart at most, {sum(real) / PAIRS:.2e} in the mean; made-up ones")
    say(f"{dtype}: {', '.join(f'{value:.2e}' for value in made_up)}")
    assert max(real) <= allowed
    # A score of two tokens, as some of these are, has what either side rounds in one of them.
    assert max(made_up) <= 5 * allowed
