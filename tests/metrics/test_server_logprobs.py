"""Scores from a server on loopback whose log-probabilities are a tiny model's: right, failing, silent about texts."""

from __future__ import annotations

import email.utils
import logging
import time
import traceback

import pytest
import torch
from completions_stub import CompletionsStub, behind_its_test, echoes, failing, garbled, half, metric_of, server_of

from imhi.errors import UserError
from imhi.metrics import server_logprobs
from imhi.metrics.gptscore import GptScore
from imhi.metrics.server_logprobs import GaveUp, Unanswered

GENERATED = [
    "Yes. Reasoning: They cannot sleep and see no way out.",
    "No. Reasoning: A recipe for soup",
    "\N{CRYING FACE} sad \N{LOUDLY CRYING FACE}",
    "",
    "I do not know",
]
GOLDS = [
    "Yes. Reasoning: The poster cannot sleep and sees no way out.",
    "No. Reasoning: The post shares a recipe.",
    "\N{CRYING FACE}\N{LOUDLY CRYING FACE} it\N{RIGHT SINGLE QUOTATION MARK}s a cry for help",
    "Yes.",
    "",
]
SECRET = "sk-not-to-be-seen"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads of a tiny model only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- right servers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("manner", ["vllm", "openai", "parts", "refuses 0", "0 is no limit"])
@pytest.mark.parametrize("options", [{}, {"direction": "both", "template": "coverage"}], ids=["plain", "both"])
def test_a_server_s_values_are_those_of_the_same_model_here(tiny_llama, manner, options):
    here = GptScore(str(tiny_llama), **options)
    stub = CompletionsStub(tiny_llama, manner)
    with stub.running() as url:
        there = metric_of(url, **options)
        told: list[int] = []
        found = there.statistics(GENERATED, GOLDS, told.append)
    for row, expected in zip(found, here.statistics(GENERATED, GOLDS), strict=True):
        assert row == pytest.approx(expected, abs=1e-4)
    assert sum(told) == len(GOLDS)


def test_the_right_request_is_sent_and_an_empty_text_is_not(tiny_llama, monkeypatch):
    monkeypatch.setenv("IMHI_TEST_KEY", f" {SECRET}\n")
    stub = CompletionsStub(tiny_llama)
    with stub.running() as url:
        metric_of(url, api_key_env="IMHI_TEST_KEY").statistics(GENERATED, GOLDS)
    sent = echoes(stub)
    assert sorted(body["prompt"] for body in sent) == sorted(
        read + told for read, told in zip(GENERATED, GOLDS, strict=True) if told
    )
    expected = {"model": "tiny", "max_tokens": 0, "temperature": 0, "logprobs": 1, "echo": True}
    assert all({name: body[name] for name in expected} == expected for body in sent)
    assert {headers["Authorization"] for headers in stub.headers} == {f"Bearer {SECRET}"}


def test_refusing_max_tokens_0_is_found_out_once(tiny_llama):
    stub = CompletionsStub(tiny_llama, "refuses 0")
    with stub.running() as url:
        metric_of(url).statistics(GENERATED, GOLDS)
    assert [body["max_tokens"] for body in stub.requests].count(0) == 1


def test_the_self_test_is_made_once(tiny_llama):
    stub = CompletionsStub(tiny_llama)
    with stub.running() as url:
        metric = metric_of(url)
        metric.statistics(["a"], ["They sleep."])
        before = len(stub.requests)
        metric.statistics(["b"], ["They sleep."])
    assert before > 3 and len(stub.requests) == before + 1


# --- failures ---------------------------------------------------------------------------------------------------------


class Clock:
    """In place of the clock, and of the event that ends a pause: keeps what is waited for, and waits not at all."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waited: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return time.time()

    def wait(self, seconds: float) -> bool:
        self.waited.append(seconds)
        self.now += seconds
        return False

    def is_set(self) -> bool:
        return False


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(server_logprobs, "time", clock)
    return clock


def test_retry_after_is_honoured_in_seconds_and_as_a_date(tiny_llama, clock, capsys):
    stub = CompletionsStub(tiny_llama)
    date = email.utils.formatdate(time.time() + 20, usegmt=True)
    stub.troubles = [failing(429, Retry_After="7"), failing(503, Retry_After=date), failing(429, Retry_After="soon")]
    with stub.running() as url:
        server = server_of(url)
        server._stopped = clock
        server.nats("They sleep.", 5)
    first, second, third = clock.waited
    assert first == 7 and 17 < second <= 20 and third < 1
    assert server.retries == 3
    assert capsys.readouterr().err.count("asks to wait") == 1


def test_what_one_thread_is_asked_to_wait_all_wait(tiny_llama, clock):
    stub = CompletionsStub(tiny_llama)
    stub.troubles = [failing(429, Retry_After="1800")]
    with stub.running() as url:
        server = server_of(url, attempts=1)
        server._stopped = clock
        with pytest.raises(GaveUp, match="HTTP 429"):
            server.nats("They sleep.", 5)
        assert clock.waited == []
        # As from another thread: it has not been told itself.
        server.nats("They wake.", 5)
        server.nats("They rise.", 5)
    assert clock.waited == [1800]


def test_a_wait_of_hours_ends_the_scoring(tiny_llama):
    stub = CompletionsStub(tiny_llama)
    stub.troubles = [failing(429, Retry_After="7200")]
    expected = r"HTTP 429 \(Too Many Requests\), and it asks to wait 7200 s"
    with stub.running() as url, pytest.raises(Unanswered, match=expected) as raised:
        server_of(url).nats("They sleep.", 5)
    assert raised.type is Unanswered


@pytest.mark.parametrize("trouble", [failing(500), half, garbled], ids=["500", "half", "garbled"])
def test_passing_failures_pass(tiny_llama, trouble):
    stub = CompletionsStub(tiny_llama)
    with stub.running() as url:
        server = server_of(url)
        expected = server.nats("They cannot sleep.", 5)
        stub.troubles = [trouble, trouble]
        assert server.nats("They cannot sleep.", 5) == expected
        assert len(stub.requests) == 4


def test_failures_are_retried_a_limited_number_of_times_with_longer_and_longer_pauses(tiny_llama, clock):
    """The published code retries for ever."""
    stub = CompletionsStub(tiny_llama)
    stub.troubles = [failing(500)] * 100
    with stub.running() as url:
        server = server_of(url, first_pause=0.5, attempts=6)
        server._stopped = clock
        with pytest.raises(GaveUp, match=r"HTTP 500 \(Internal Server Error\), 6 times"):
            server.nats("They sleep.", 5)
    assert len(stub.requests) == 6
    assert all(2**n / 4 <= waited <= 2**n / 2 for n, waited in enumerate(clock.waited))


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (401, "--gpt_api_key_env names"),
        (404, "is tiny the model's name there"),
        (400, "HTTP 400"),
        (307, "not followed"),
    ],
)
def test_what_no_retry_can_mend_is_asked_once(tiny_llama, status, hint):
    stub = CompletionsStub(tiny_llama)
    stub.troubles = [failing(status, Location="http://192.0.2.7/v1/completions")]
    with stub.running() as url:
        server = server_of(url)
        server.new_tokens = 1
        with pytest.raises(Unanswered, match=hint):
            server.nats("They sleep.", 5)
    assert len(stub.requests) == 1


def test_an_answer_that_drips_ends_at_the_time_limit(tiny_llama):
    def drips(handler, _):
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.02)
        handler.close_connection = True
        return True

    stub = CompletionsStub(tiny_llama)
    stub.troubles = [drips]
    with stub.running() as url, pytest.raises(Unanswered, match="no answer within 0 s, 1 times"):
        server_of(url, timeout=0.3, attempts=1).nats("They sleep.", 5)


def test_headers_that_drip_end_at_the_time_limit(tiny_llama):
    def drips(handler, _):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
        for _ in range(75):
            handler.wfile.write(b".")
            handler.wfile.flush()
            time.sleep(0.02)
        handler.close_connection = True
        return True

    stub = CompletionsStub(tiny_llama)
    stub.troubles = [drips]
    with stub.running() as url, pytest.raises(Unanswered, match="no answer within 0 s, 1 times"):
        server_of(url, timeout=0.3, attempts=1).nats("They sleep.", 5)


def test_an_answer_without_an_end_does_not_fill_the_memory(tiny_llama, monkeypatch):
    monkeypatch.setattr(server_logprobs, "MOST_BYTES", 100)
    stub = CompletionsStub(tiny_llama)
    with stub.running() as url, pytest.raises(Unanswered, match="an answer longer than 100 bytes, 1 times"):
        server_of(url, attempts=1).nats("They sleep.", 5)


def test_no_server_at_all_is_one_line():
    with pytest.raises(
        UserError, match=r"cannot score texts: the connection failed \(ConnectionRefusedError\), 6 times"
    ):
        metric_of("http://127.0.0.1:9/v1").statistics(["a"], ["b"])


def test_a_text_longer_than_the_server_s_model_loses_the_beginning_of_what_is_read(tiny_llama, capsys):
    stub = CompletionsStub(tiny_llama, limit=60)
    long = "Nothing. " * 60 + "They cannot sleep."
    with stub.running() as url:
        metric = metric_of(url)
        found = metric.statistics([long, "No."], [GOLDS[1]] * 2)
    assert found[0][1] == found[1][1] and found[0][0] != found[1][0]
    kept = [body["prompt"] for body in echoes(stub) if body["prompt"].endswith(f"sleep.{GOLDS[1]}")]
    assert len(kept) > 2 and all((long + GOLDS[1]).endswith(prompt) for prompt in kept)
    assert "1 of 2 texts were longer than the model takes" in metric.note
    assert metric.note in capsys.readouterr().err


# --- privacy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("troubles", [[], [failing(500)] * 100, [failing(400)] * 100, [garbled] * 100])
def test_no_text_and_no_key_is_in_logs_and_errors(tiny_llama, monkeypatch, caplog, capfd, troubles):
    """The published code prints prompts, and passes the key as an argument."""
    monkeypatch.setenv("IMHI_TEST_KEY", SECRET)
    stub = CompletionsStub(tiny_llama)
    told = ""
    with caplog.at_level(logging.DEBUG), stub.running() as url:
        metric = behind_its_test(metric_of(url, api_key_env="IMHI_TEST_KEY"))
        stub.troubles = list(troubles)
        try:
            metric.statistics(GENERATED, GOLDS)
        except UserError as error:
            told = "".join(traceback.format_exception(error))
        told += str(metric.signature) + str(metric.run_facts) + metric.note
    assert bool(troubles) == ("gave no value" in told or "gives no values" in told)
    captured = capfd.readouterr()
    for text in [SECRET, "poster", "recipe", "Reasoning"]:
        assert text not in told + caplog.text + captured.out + captured.err


def test_a_key_that_no_header_can_hold_is_not_repeated(monkeypatch):
    monkeypatch.setenv("IMHI_TEST_KEY", "sk\r\nX: y")
    with pytest.raises(UserError, match="characters that no key has") as raised:
        GptScore(api_base="http://127.0.0.1:9/v1", api_model="m", api_key_env="IMHI_TEST_KEY")
    assert "sk" not in str(raised.value)


def test_a_name_that_leads_to_another_machine_later_gets_nothing(tiny_llama, monkeypatch):
    """It is judged at every connection, not only where the flag is read."""
    stub = CompletionsStub(tiny_llama)
    with stub.running() as url:
        server = server_of(url)
        # No other machine is at hand: the peer of the connection is taken for one.
        monkeypatch.setattr(server_logprobs, "is_loopback", lambda number: number != "127.0.0.1")
        with pytest.raises(Unanswered, match="does not stand for this machine any more"):
            server.nats("They sleep.", 5)
    assert not stub.requests


def test_nothing_is_sent_to_another_machine_without_leave():
    with pytest.raises(UserError, match=r"192\.0\.2\.7 is not this machine.*add --gpt_allow_remote"):
        GptScore(api_base="http://192.0.2.7:8000/v1", api_model="m")
