"""A server at fault is refused before it gets a text, with a message that names the fault."""

from __future__ import annotations

import pytest
import torch
from completions_stub import CompletionsStub, echoes, metric_of, server_of

from imhi.errors import UserError
from imhi.metrics.self_test import PROBES, self_test


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads of a tiny model only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("manner", ["vllm", "openai", "parts", "refuses 0", "0 is no limit"])
def test_a_right_server_passes_and_gets_made_up_texts_alone(tiny_llama, manner):
    stub = CompletionsStub(tiny_llama, manner)
    with stub.running() as url:
        self_test(server_of(url))
    assert all(not body["prompt"] or body["prompt"].startswith(PROBES) for body in stub.requests)


@pytest.mark.parametrize(
    ("manner", "message"),
    [
        ("ignores echo", "it ignores echo"),
        ("new only", "it echoes the text, but gives log-probabilities of new tokens only"),
        ("no logprobs", r"it gives no log-probabilities \(logprobs\)"),
        ("shifted", "are shifted by one token"),
        ("shifted values", "are shifted by one token"),
        ("wrong", r"log-probability is -\d.* when it is chosen and -\d.* when it is echoed \(more than 0\.2 apart\)"),
        ("last right", r"of several tokens in a row, the log-probability of number 1 is -\d.* when all are echoed"),
        ("start valued", "the token that its model puts before a text has a log-probability of its own"),
        ("first certain", r"the first token of a text has the log-probability 0\.000: no text begins"),
        (
            "first too probable",
            "the first token of an echoed text has the log-probability -.* chosen to begin a text -",
        ),
        ("first of another", "the first token of an echoed text has the log-probability -.* chosen to begin a text -"),
    ],
)
def test_a_server_at_fault_is_refused_before_any_text_is_sent(tiny_llama, manner, message):
    stub = CompletionsStub(tiny_llama, manner)
    expected = f"--gpt_api_base: 127.0.0.1:.* cannot score texts: .*{message}"
    with stub.running() as url, pytest.raises(UserError, match=expected) as raised:
        metric_of(url).statistics(["They sleep."], ["They cannot sleep."])
    assert "\n" not in str(raised.value) and raised.value.code == 1
    assert not echoes(stub)


def test_a_server_that_takes_no_empty_prompt_passes_and_its_certain_beginning_does_not(tiny_llama, monkeypatch):
    for manner, passes in (("vllm", True), ("first certain", False)):
        stub = CompletionsStub(tiny_llama, manner)
        answer = stub.answer
        monkeypatch.setattr(
            stub, "answer", lambda body, answer=answer: answer(body) if body["prompt"] else (400, {"error": "empty"})
        )
        with stub.running() as url:
            if passes:
                self_test(server_of(url))
                assert "" in [body["prompt"] for body in stub.requests]
            else:
                with pytest.raises(UserError, match="no text begins with that certainty"):
                    self_test(server_of(url))


def test_a_server_that_answers_no_prompt_with_a_whole_token_cannot_be_tested(tiny_llama, monkeypatch):
    stub = CompletionsStub(tiny_llama)
    monkeypatch.setattr(stub.tokenizer, "decode", lambda ids: "\n")
    with stub.running() as url, pytest.raises(UserError, match=r"could not be tested: of \d+ made-up prompts, 0"):
        self_test(server_of(url))
