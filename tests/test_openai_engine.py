"""The engine for OpenAI-compatible servers, against a server on loopback that fails in every way we know."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stub_server import MODEL, Asked, Stub, always, answer_to, completion, first, mixed

from imhi.commands import run_script
from imhi.commands.generate import add_arguments as add_generate_arguments
from imhi.data import DataRoot, load_suite
from imhi.engines import Completion, Decoding, EngineRequest, Prompt, Shot
from imhi.engines.exchange import Exchange, Limits, Traffic
from imhi.engines.http_client import Fault, HttpClient, Server, _words, asked_wait
from imhi.engines.openai_engine import APIS, OpenAIEngine, PreparedOpenAI, Served, prepare
from imhi.errors import UserError
from imhi.remote import check_address
from imhi.runs import read_completions, read_manifest

SOURCE = Path(__file__).parents[1] / "src"
LOCAL = "http://127.0.0.1:9/v1"
NAMES = st.sampled_from(
    [
        "choices",
        "message",
        "content",
        "text",
        "finish_reason",
        "usage",
        "prompt_tokens",
        "error",
        "detail",
        "loc",
        "msg",
        "code",
        "id",
        "model",
        "refusal",
        "innererror",
        "metadata",
    ]
)
POST = "I have not slept since my sister moved out and nobody at work has asked me how I am"
KEY = "sk-test-0123456789abcdefKEY"


@pytest.fixture(autouse=True)
def no_key_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def prepared(url: str, *, decoding: Decoding | None = None, **options: Any) -> PreparedOpenAI:
    return prepare(EngineRequest(options={"api_base": url, "model": MODEL, **options}, decoding=decoding or Decoding()))


def engine(stub: Stub, **options: Any) -> OpenAIEngine:
    """An engine that waits little between tries."""
    found = prepared(stub.url, **options)
    return replace(found, limits=replace(found.limits, first_wait=0.01)).load()


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"DR/{row}", f"Consider this post: {POST}, day {row}. Question: and so?") for row in range(count)]


def day(prompt: str) -> int:
    """The number of the row whose prompt this is."""
    return int(prompt.partition(", day ")[2].partition(".")[0])


def row_of(prompt: str) -> str:
    return f"DR/{day(prompt)}"


def asked_all(engine: OpenAIEngine, rows: list[Prompt], **options: Any) -> dict[str, Completion]:
    """Completions by id; no id twice."""
    found = [completion for group in engine.complete(rows, **options) for completion in group]
    assert len({completion.id for completion in found}) == len(found)
    return {completion.id: completion for completion in found}


def assert_right(found: dict[str, Completion], rows: list[Prompt]) -> None:
    assert {id: completion.text for id, completion in found.items()} == {row.id: answer_to(row.text) for row in rows}
    assert all(completion.error is None for completion in found.values())


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_a_prompt_is_a_users_turn_and_examples_are_turns_before_it() -> None:
    rows = [Prompt("DR/0", "how?", (Shot("who?", "nobody"), Shot("when?", "now")))]
    with Stub() as stub:
        found = asked_all(engine(stub, decoding=Decoding(max_new_tokens=7)), rows)
    assert_right(found, rows)
    assert (found["DR/0"].prompt_tokens, found["DR/0"].new_tokens) == (100, 10)
    (asked,) = stub.log
    assert asked.path == "/v1/chat/completions"
    assert asked.body == {
        "model": MODEL,
        "messages": [
            {"role": "user", "content": "who?"},
            {"role": "assistant", "content": "nobody"},
            {"role": "user", "content": "when?"},
            {"role": "assistant", "content": "now"},
            {"role": "user", "content": "how?"},
        ],
        "max_tokens": 7,
        "temperature": 0,
        "top_p": 1,
    }
    assert "authorization" not in asked.headers


def test_completions_get_raw_text_joined_as_by_the_other_engines() -> None:
    from imhi.engines.prompt_ids import raw_text

    row = Prompt("DR/0", "Post: x  Question: y  ", (Shot("Post: a  Question: b  ", "c"), Shot("d?", "e")))
    with Stub() as stub:
        found = asked_all(engine(stub, api="completions", max_tokens_field="limit", request_seed=3), [row])
    (asked,) = stub.log
    assert asked.path == "/v1/completions"
    assert asked.body["prompt"] == raw_text(row) == "Post: a  Question: b  c\n\nd? e\n\nPost: x  Question: y  "
    assert (asked.body["limit"], asked.body["seed"]) == (512, 3)
    assert not {"messages", "max_tokens"} & asked.body.keys()
    assert found["DR/0"].text == answer_to(raw_text(row))


def test_sampled_rows_are_drawn_each_with_a_seed_of_its_own_and_the_same_again() -> None:
    rows = prompts(3)
    drawn = []
    for seed in (1, 1, 2):
        decoding = Decoding(do_sample=True, temperature=0.7, top_p=0.9, top_k=40, seed=seed)
        with Stub() as stub:
            asked_all(engine(stub, decoding=decoding), rows)
        body = stub.log[0].body
        assert (body["temperature"], body["top_p"], body["top_k"]) == (0.7, 0.9, 40)
        drawn.append({asked.prompt: asked.body["seed"] for asked in stub.log})
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0].values())) == 3


def test_rows_that_are_done_are_not_asked() -> None:
    rows = prompts(6)
    with Stub() as stub:
        found = asked_all(engine(stub), rows, done={"DR/0", "DR/4"})
    assert sorted(found) == ["DR/1", "DR/2", "DR/3", "DR/5"]
    assert sorted(stub.answered) == sorted(row.text for row in rows if row.id in found)


def test_answers_in_another_order_reach_their_rows() -> None:
    rows = prompts(40)
    with Stub(lambda prompt, before: f"late {0.01 * (day(prompt) * 7 % 11)}") as stub:
        groups = list(engine(stub, concurrency=8).complete(rows))
    order = [completion.id for group in groups for completion in group]
    assert order != [row.id for row in rows]
    assert_right({completion.id: completion for group in groups for completion in group}, rows)
    assert stub.most_at_once == 8


# --- faults -----------------------------------------------------------------------------------------------------------

CAUSES = {
    "429": "429",
    "429 0": "429",
    "408": "408",
    "500": "500",
    "503 date 0": "503",
    "529": "529",
    "reset": "broken_off",
    "hang_up": "broken_off",
    "cut": "broken_off",
    "drip": "timeout",
    "silent": "timeout",
    "malformed": "malformed",
    "truncated_utf8": "not_utf8",
    "no_choices": "no_choice",
    "error_in_200": "no_choice",
    "of_another": "foreign_answer",
}


@pytest.mark.parametrize(("fault", "cause"), CAUSES.items(), ids=CAUSES)
def test_a_passing_fault_is_tried_again_and_every_row_answered_once(fault: str, cause: str) -> None:
    rows = prompts(4)
    with Stub(first(fault, fault)) as stub:
        asking = engine(stub, timeout=0.4)
        assert_right(asked_all(asking, rows), rows)
    assert Counter(stub.answered) == Counter(row.text for row in rows)
    assert asking.traffic.retries == {cause: 8}
    assert (asking.traffic.requests, asking.traffic.answers, asking.traffic.failures) == (12, 4, {})
    assert asking.traffic.seconds_waited > 0


def test_a_row_that_gets_no_answer_is_a_failure_with_its_last_reason() -> None:
    rows = prompts(3)
    lost = rows[1].text
    with Stub(lambda prompt, before: "503" if prompt == lost else None) as stub:
        asking = engine(stub, max_retries=2)
        found = asked_all(asking, rows)
    failed = found.pop(rows[1].id)
    assert_right(found, [rows[0], rows[2]])
    assert (failed.finish_reason, failed.text) == ("error", "")
    assert failed.error is not None
    assert re.fullmatch(r"127\.0\.0\.1:\d+ answered 503 Trouble: no \(3 tries\)", failed.error)
    assert stub.counts[lost] == 3 and asking.traffic.failures == {"503": 1}


@pytest.mark.parametrize("status", ["400", "422", "413"])
def test_a_refused_row_is_its_own_error_and_not_asked_again(status: str) -> None:
    rows = prompts(4)
    with Stub(lambda prompt, before: status if prompt == rows[2].text else None) as stub:
        found = asked_all(engine(stub), rows)
    assert f"answered {status}" in str(found[rows[2].id].error)
    del found[rows[2].id]
    assert_right(found, [row for row in rows if row is not rows[2]])
    assert set(stub.counts.values()) == {1}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            {"error": {"message": "max_tokens is\nnot known here", "code": "unsupported"}},
            ": max_tokens is not known here",
        ),
        ({"detail": [{"loc": ["body", "top_k"], "msg": "not allowed", "input": "POST"}]}, ": body.top_k: not allowed"),
        ({"detail": "no such field"}, ": no such field"),
        ({"error": "broken"}, ": broken"),
        ({"error": {"message": "cannot read: POST"}}, " (its message repeats parts of the prompt and is left out)"),
        ({"error": {"message": "PIECE is unfit"}}, " (its message repeats parts of the prompt and is left out)"),
        ({"error": {"message": "cannot read: LINES"}}, " (its message repeats parts of the prompt and is left out)"),
        ({"error": {"message": "cannot read: ESCAPED"}}, " (its message repeats parts of the prompt and is left out)"),
        ({"error": {"message": "the key KEY is new"}}, ": the key [key] is new"),
        ({"error": {"code": 400}}, ""),
        (["?"], ""),
    ],
)
def test_a_servers_words_are_passed_on_without_post_and_key(
    body: Any, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    lines, accents = "I am\nvery\nsad and\nso tired", "c\u00e9 d\u00e9j\u00e0 \u00e9t\u00e9 \u00e0 l\u00e0"
    row = Prompt("DR/0", f"{POST} {lines} {accents}")

    def refusal(asked: Asked) -> Any:
        pieces = {"POST": POST, "PIECE": POST[30:55].upper(), "LINES": lines, "ESCAPED": json.dumps(accents)}
        words = json.dumps(body)
        for name, piece in {**pieces, "KEY": KEY}.items():
            words = words.replace(name, json.dumps(piece)[1:-1])
        return json.loads(words)

    with Stub(always("400"), refusal=refusal) as stub:
        error = asked_all(engine(stub), [row])[row.id].error
    assert error is not None and re.sub(r"^127\.0\.0\.1:\d+ answered 400 Bad Request", "", error) == told


@pytest.mark.parametrize(
    "error",
    [
        {"code": "context_length_exceeded", "message": "too long"},
        {"code": 400, "message": "This model's maximum context length is 64 tokens."},
    ],
)
def test_a_prompt_that_fills_the_model_has_no_room(error: dict[str, Any]) -> None:
    (row,) = prompts(1)
    with Stub(always("400"), refusal=lambda asked: {"error": error}) as stub:
        found = asked_all(engine(stub), [row])
    assert found[row.id].finish_reason == "no_room" and found[row.id].error


STOPS = {
    "401": "OPENAI_API_KEY",
    "403": "may not use this model",
    "404": "--api_base",
    "405": "--api_base",
    "402": "no credit",
    "429 100000": "asks to wait 100000 s",
    "redirect http://elsewhere.example/v1?post=1": "a redirect to elsewhere.example",
}


@pytest.mark.parametrize(("fault", "remedy"), STOPS.items(), ids=STOPS)
def test_what_meets_every_row_stops_the_run_in_one_line_and_loses_no_answer(
    fault: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    rows = prompts(40)
    bad = rows[9].text
    with Stub(lambda prompt, before: fault if prompt == bad else "late 0.05") as stub:
        found: list[Completion] = []
        with pytest.raises(UserError) as raised:
            for group in engine(stub, concurrency=8).complete(rows):
                found += group
    said = str(raised.value)
    assert said.startswith("127.0.0.1:") and fault.split()[0].replace("redirect", "308") in said and remedy in said
    assert "\n" not in said and KEY not in said and POST[:12] not in said
    assert len(stub.log) < 40 and stub.counts[bad] == 1
    # Whatever was sent is answered and handed over: nobody hung up on the server.
    assert sorted([*(done.id for done in found), rows[9].id]) == sorted(row_of(asked.prompt) for asked in stub.log)
    assert_right({done.id: done for done in found}, [rows[int(done.id[3:])] for done in found])


def test_an_exhausted_account_stops_the_run_though_it_is_a_429() -> None:
    with (
        Stub(always("429"), refusal=lambda asked: {"error": {"code": "insufficient_quota", "message": "x"}}) as stub,
        pytest.raises(UserError, match="429 Too Many Requests: the account has no credit left"),
    ):
        asked_all(engine(stub), prompts(3))


def test_a_redirect_gets_nothing() -> None:
    with Stub() as elsewhere, Stub(always(f"redirect {elsewhere.url}/chat/completions")) as stub:
        with pytest.raises(UserError, match="not followed"):
            asked_all(engine(stub), prompts(2))
        assert elsewhere.log == []


def test_no_proxy_of_the_environment_sees_a_post(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = prompts(2)
    with Stub() as proxy, Stub() as stub:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert_right(asked_all(engine(stub), rows), rows)
        assert proxy.log == []


# As Azure, OpenAI's reasoning models, LiteLLM before Azure, OpenRouter, DeepSeek and DashScope send them.
REFUSALS: list[tuple[str, Any]] = [
    ("400", {"message": "The response was filtered due to the prompt", "code": "content_filter", "param": "prompt"}),
    ("400", {"message": "no", "code": None, "innererror": {"code": "ResponsibleAIPolicyViolation"}}),
    ("400", {"message": "no", "code": "content_policy_violation"}),
    ("400", {"message": "your prompt was flagged as potentially violating our usage policy", "code": "invalid_prompt"}),
    ("400", {"message": "the prompt triggering Azure OpenAI's content management policy", "code": "400"}),
    (
        "403",
        {"message": "Input was flagged", "code": 403, "metadata": {"reasons": ["self-harm"], "flagged_input": POST}},
    ),
    ("400", {"message": "Content Exists Risk", "code": "invalid_request_error"}),
    ("400", {"message": "Input text data may contain inappropriate content.", "code": "data_inspection_failed"}),
]


@pytest.mark.parametrize(("status", "error"), REFUSALS)
def test_a_prompt_that_a_content_filter_turns_away_is_refused_and_not_asked_again(status: str, error: Any) -> None:
    rows = prompts(4)
    with Stub(
        lambda prompt, before: status if prompt == rows[2].text else None, refusal=lambda asked: {"error": error}
    ) as stub:
        asking = engine(stub)
        found = asked_all(asking, rows)
    refused = found.pop(rows[2].id)
    assert_right(found, [row for row in rows if row is not rows[2]])
    assert (refused.finish_reason, refused.text) == ("refused", "")
    assert f"answered {status}" in str(refused.error) and "by its content filter" in str(refused.error)
    assert POST[:12] not in str(refused.error)
    assert set(stub.counts.values()) == {1} and asking.traffic.failures == {"content_filter": 1}


@pytest.mark.parametrize("error", [{"message": "no", "code": "invalid_prompt"}, {"message": f"policy? {POST}"}, "no"])
def test_another_refusal_is_an_error(error: Any) -> None:
    (row,) = prompts(1)
    with Stub(always("400"), refusal=lambda asked: {"error": error}) as stub:
        assert asked_all(engine(stub), [row])[row.id].finish_reason == "error"


@pytest.mark.parametrize("said", ["half an", None])
def test_an_answer_that_a_content_filter_cut_is_refused_and_was_paid_for(said: str | None) -> None:
    (row,) = prompts(1)
    with Stub(always('finish "content_filter"')) as stub, pytest.MonkeyPatch.context() as patch:
        patch.setattr("stub_server.completion", without_message if said is None else completion)
        asking = engine(stub)
        found = asked_all(asking, [row])[row.id]
    assert (found.finish_reason, found.text, found.prompt_tokens, found.new_tokens) == ("refused", "", 100, 10)
    assert "content_filter" in str(found.error)
    assert len(stub.log) == 1 and asking.usage["prompt_tokens"] == 100


def without_message(asked: Asked, text: str | None, **options: Any) -> dict[str, Any]:
    found = completion(asked, text, **options)
    found["choices"][0].pop("message")
    return found


def test_refused_rows_do_not_hold_the_others_up() -> None:
    """They are handed over as they come: it is errors that may end a run."""
    rows = prompts(6)
    plan = {rows[0].text: 'finish "content_filter"', **dict.fromkeys((row.text for row in rows[1:]), "late 0.3")}
    with Stub(lambda prompt, before: plan[prompt]) as stub:
        groups = [[one.id for one in group] for group in engine(stub, concurrency=6).complete(rows)]
    assert groups[0] == [rows[0].id]


@pytest.mark.parametrize("reason", ["tool_calls", None])
def test_an_answer_that_did_not_end_by_itself_or_its_limit_is_an_error(reason: str | None) -> None:
    (row,) = prompts(1)
    with Stub(always(f"finish {json.dumps(reason)}")) as stub:
        found = asked_all(engine(stub), [row])[row.id]
    assert (found.finish_reason, found.text, found.prompt_tokens, found.new_tokens) == ("error", "", 100, 10)
    assert str(reason) in str(found.error)
    assert len(stub.log) == 1


def test_an_answer_that_its_limit_ended_says_so() -> None:
    (row,) = prompts(1)
    with Stub(always('finish "length"')) as stub:
        found = asked_all(engine(stub), [row])[row.id]
    assert (found.finish_reason, found.text, found.error) == ("length", "half an", None)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (None, ""),
        (" yes \n", "yes"),
        ("cut \ud83d", "cut �"),
        ("whole \N{SLIGHTLY SMILING FACE}", "whole \N{SLIGHTLY SMILING FACE}"),
        ([{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}], "in parts"),
    ],
)
def test_whatever_a_model_says_can_be_written(said: Any, text: str) -> None:
    (row,) = prompts(1)
    # Through ASCII, as half a character travels.
    with Stub(always(f"say {json.dumps(said)}")) as stub, pytest.MonkeyPatch.context() as patch:
        patch.setattr("stub_server.response", ascii_response)
        found = asked_all(engine(stub), [row])[row.id]
    assert (found.text, found.finish_reason) == (text, "stop")
    found.text.encode("utf-8")


def ascii_response(status: int, body: Any, **headers: str) -> bytes:
    from stub_server import raw

    return raw(status, json.dumps(body).encode("ascii"), **headers)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


def nearly(text: Any, reason: Any, usage: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"content": text}, "text": text, "finish_reason": reason}], "usage": usage}


bodies = anything | st.builds(nearly, anything | st.text(), anything, anything)


@given(body=bodies, api=st.sampled_from(sorted(APIS)))
@settings(max_examples=300, deadline=None)
def test_whatever_a_server_sends_is_an_answer_or_a_fault(body: Any, api: str) -> None:
    asking = OpenAIEngine(Server(check_address(LOCAL, False, "")), Served(MODEL, api), Decoding(), Limits())
    _words(json.dumps(body).encode())
    try:
        found = asking._completion(Prompt("DR/0", "how?"), body)
    except Fault as fault:
        assert fault.again
    else:
        assert found.id == "DR/0" and (found.error is None or found.text == "")
        found.text.encode("utf-8")


@pytest.mark.parametrize("fault", ["double", "double_later"])
def test_a_doubled_answer_is_not_given_to_the_next_row(fault: str) -> None:
    """One connection, one row after the other; the double lies on it when the next row could be sent."""
    rows = prompts(6)

    def plan(prompt: str, before: int) -> str | None:
        time.sleep(0.05)  # the double of the row before has gone out by now
        return fault

    with Stub(plan) as stub:
        found = asked_all(engine(stub, concurrency=1), rows)
    assert_right(found, rows)


def test_a_double_that_waits_on_an_idle_connection_is_not_taken() -> None:
    """Even from a server that does not repeat a request's id."""
    rows = prompts(2)

    async def one_after_the_other(asking: OpenAIEngine) -> list[str]:
        told = []
        async with HttpClient(asking.server) as client:
            for row in (rows[0], rows[1], rows[1]):
                try:
                    answer = await client.post("chat/completions", asking.payload(row))
                    told.append(answer["choices"][0]["message"]["content"])
                except Fault as fault:
                    told.append(fault.cause)
                await asyncio.sleep(0.1)
        return told

    with Stub(first("double_later")) as stub, pytest.MonkeyPatch.context() as patch:
        patch.setattr("stub_server.completion", without_id)
        told = asyncio.run(one_after_the_other(engine(stub)))
    assert told == [answer_to(rows[0].text), "broken_off", answer_to(rows[1].text)]


def without_id(asked: Asked, text: str | None, *, finish: str | None = "stop", usage: bool = True) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish}]}


# --- waiting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["429 1", "503 date 1"])
def test_nothing_is_sent_before_the_time_that_the_server_asks_for(fault: str) -> None:
    rows = prompts(6)
    turned_away = rows[0].text
    with Stub(lambda prompt, before: fault if prompt == turned_away and not before else "late 0.2") as stub:
        assert_right(asked_all(engine(stub, concurrency=2), rows), rows)
    refused_at = stub.log[0].at
    assert stub.log[0].prompt == turned_away
    after = [asked.at - refused_at for asked in stub.log[1:]]
    assert all(seconds < 0.3 or seconds >= 0.95 for seconds in after), after
    assert max(after) >= 0.95


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": " 0.5 "}, 0.5),
        ({"retry-after-ms": "250", "Retry-After": "9"}, 0.25),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:30 GMT", "Date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 30),
        ({"Retry-After": "Wednesday, 21-Oct-15 07:28:30 GMT", "Date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 30),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT", "Date": "Wed, 21 Oct 2015 07:28:30 GMT"}, 0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": ""}, None),
        ({}, None),
    ],
)
def test_the_wait_that_a_server_asks_for(headers: dict[str, str], seconds: float | None) -> None:
    assert asked_wait(headers) == seconds


def test_requests_at_once_follow_the_server() -> None:
    """A server that bears three at once turns the others away; the engine comes down to what it bears."""
    rows = prompts(150)

    with Stub(latency=0.01) as stub:
        stub.plan = lambda prompt, before: "429" if stub.at_once >= 3 else None
        asking = engine(stub, concurrency=24, max_retries=30)
        assert_right(asked_all(asking, rows), rows)
    assert asking.traffic.fewest_at_once is not None and asking.traffic.fewest_at_once <= 3
    turned_away = len(stub.log) - len(rows)
    late = sum(asked.fault == "429" for asked in stub.log[len(stub.log) // 2 :])
    assert late < turned_away / 2


def exchange_over(requests: Iterator[tuple[int, dict[str, Any]]], stub: Stub, concurrency: int) -> Exchange[int, int]:
    return Exchange(
        Server(check_address(stub.url, False, "")),
        "chat/completions",
        requests,
        read=lambda key, body: key,
        give_up=lambda key, fault, tries: -1,
        failed=lambda value: value < 0,
        limits=Limits(concurrency=concurrency),
        traffic=Traffic(),
    )


def test_rows_are_taken_as_there_is_room_and_answers_wait_in_bounded_number() -> None:
    taken = 0

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        nonlocal taken
        while True:
            taken += 1
            yield taken, {"model": "m", "messages": [{"role": "user", "content": str(taken)}]}

    with Stub(logging=False) as stub:
        groups = exchange_over(rows(), stub, 5).groups()
        got = len(next(groups))
        time.sleep(0.5)
        # At work, and answers that the caller has not taken.
        assert taken - got <= 5 + 3 * 5
        got += sum(len(next(groups)) for _ in range(20))
        assert taken - got <= 20
        groups.close()
    assert threading.active_count() < 10


# --- what is paid for is kept -----------------------------------------------------------------------------------------


def test_who_stops_at_a_failed_row_leaves_no_answer_behind() -> None:
    rows = prompts(60)
    with Stub(lambda prompt, before: "400" if "day 10." in prompt else "late 0.1") as stub:
        found: list[Completion] = []
        groups = engine(stub, concurrency=8).complete(rows)
        for group in groups:
            found += group
            if any(completion.error for completion in group):
                break
        time.sleep(0.3)  # nothing goes on behind the caller's back
        groups.close()
    assert sorted(completion.id for completion in found) == sorted(row_of(asked.prompt) for asked in stub.log)
    assert 8 <= len(found) < 40


def test_rows_go_on_behind_failed_ones() -> None:
    rows = prompts(60)
    with Stub(lambda prompt, before: "400" if prompt in {row.text for row in rows[::3]} else "late 0.01") as stub:
        found = asked_all(engine(stub, concurrency=4), rows)
    assert {id for id, completion in found.items() if completion.error} == {row.id for row in rows[::3]}
    assert len(found) == 60


def test_an_error_of_ours_comes_after_what_was_answered() -> None:
    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        for row in range(20):
            if row == 15:
                raise RuntimeError("a fault in the toolkit")
            yield row, {"model": "m", "messages": [{"role": "user", "content": str(row)}]}

    found: list[int] = []
    with Stub(always("late 0.05")) as stub, pytest.raises(RuntimeError, match="a fault in the toolkit"):
        for group in exchange_over(rows(), stub, 4).groups():
            found += group
    assert sorted(found) == sorted(int(prompt) for prompt in stub.answered) != []


# --- flags and the manifest -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "x"}, "--model_path has no effect"),
        ({"lora_path": "x"}, "--lora_path has no effect"),
        ({"llama": True}, "--llama has no effect"),
        ({"cuda": True}, "--cuda has no effect"),
        ({"device": "cpu"}, "--device has no effect"),
        ({"dtype": "float32"}, "--dtype has no effect"),
        ({"batch_size": 4}, "--batch_size has no effect"),
        ({"batching": "buckets"}, "--batching has no effect"),
        ({"deterministic": True}, "--deterministic has no effect"),
        ({"decoding": Decoding(chat_template=True)}, "--chat_template: the server applies its own"),
        ({"decoding": Decoding(max_length=2048)}, "--max_length"),
        ({"api_base": None}, "needs --api_base"),
        ({"model_name": None}, "needs --model"),
        ({"decoding": Decoding(do_sample=True), "request_seed": 1}, "--request_seed is for greedy"),
        ({"price_in": 1.0}, "--price_in and --price_out go together"),
        ({"api_base": LOCAL + "/chat/completions"}, "--api_base is the part before"),
        ({"api_base": "http://me:hunter2@127.0.0.1/v1"}, "holds credentials"),
        ({"api_key_env": "NO_SUCH_KEY"}, "--api_key_env"),
        ({"api_base": "http://10.1.2.3/v1"}, "the prompt of every row, with the post in it, will be sent to 10.1.2.3"),
        ({"api_base": "http://0.0.0.0:8000/v1"}, "--allow_remote"),
        ({"api_base": "http://10.1.2.3/v1", "allow_remote": True}, "10.1.2.3 needs a key"),
    ],
)
def test_bad_flags_are_told_in_one_line(changes: dict[str, Any], told: str) -> None:
    common = {name: changes[name] for name in EngineRequest.__dataclass_fields__ if name in changes}
    options = {"api_base": LOCAL, "model": MODEL, **{k: v for k, v in changes.items() if k not in common}}
    if "model_name" in changes:
        options["model"] = None
    with pytest.raises(UserError, match=re.escape(told)) as raised:
        prepare(EngineRequest(**common, options=options))
    assert "\n" not in str(raised.value) and "hunter2" not in str(raised.value)


def test_with_leave_it_is_said_what_goes_where(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    found = prepared("http://10.1.2.3/v1", allow_remote=True)
    said = capsys.readouterr().err
    assert "with the post in it, will be sent to 10.1.2.3 without encryption (http), and so will the key" in said
    assert found.server.key == KEY and KEY not in said + repr(found)


def test_the_configuration_is_what_decides_answers_and_holds_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    found = prepared("http://127.0.0.1:9/v1/", api_key_env="MY_KEY", concurrency=5, timeout=9.0, api="completions")
    assert found.configuration() == {
        "api_base": LOCAL,
        "api": "completions",
        "served_model": MODEL,
        "max_tokens_field": "max_tokens",
        "request_seed": None,
    }
    assert found.session() == {"concurrency": 5, "timeout": 9.0, "max_retries": 8}
    assert (found.model, found.adapter, found.caution("instruction")) == (MODEL, None, None)
    assert found.server.key == KEY and KEY not in repr(found)


def test_the_server_says_what_it_is_and_what_was_used_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with Stub(first("503")) as stub:
        asking = engine(stub, price_in=2.0, price_out=8.0)
        assert asking.prompt_token_ids(prompts(1)[0]) is None
        asked_all(asking, prompts(50))
        told = asking.describe()
    assert told["server"] == {"id": MODEL, "owned_by": "tests", "created": 1}
    assert told["answered_by"] == {"model": [f"{MODEL}-0613"], "system_fingerprint": ["fp_stub"]}
    # 50 * (100 * 2 + 10 * 8) / 1e6
    assert told["usage"] == {
        "prompt_tokens": 5000,
        "completion_tokens": 500,
        "answers_without_usage": 0,
        "price_in": 2.0,
        "price_out": 8.0,
        "cost": 0.014,
    }
    assert told["traffic"]["retries"] == {"503": 50} and told["traffic"]["requests"] == 100
    assert told["client"]["aiohttp"]
    assert json.loads(json.dumps(told)) == told
    assert "100 requests, 5000 prompt and 500 new tokens, cost 0.014; tried again: 503 50" in capsys.readouterr().err


def test_an_answer_that_cannot_be_used_is_counted_too() -> None:
    """It was paid for."""
    with Stub(first("say 7")) as stub:
        asking = engine(stub)
        asked_all(asking, prompts(3))
    assert asking.traffic.retries == {"no_choice": 3}
    assert asking.usage["prompt_tokens"] == 600 and asking.usage["completion_tokens"] == 60


def test_a_server_that_does_not_count_tokens_is_noted() -> None:
    with Stub(usage=False) as stub:
        asking = engine(stub)
        found = asked_all(asking, prompts(3))
    assert asking.describe()["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "answers_without_usage": 3}
    assert {completion.new_tokens for completion in found.values()} == {0}


@pytest.mark.parametrize(
    ("models", "told"),
    [
        ({"data": [{"id": "other"}]}, {"models": "1 listed, not this one"}),
        ({"data": "?"}, {"models": "0 listed, not this one"}),
        ([], {"models": "0 listed, not this one"}),
        ({"data": [{"id": MODEL, "max_model_len": 64, "permission": [{}]}]}, {"id": MODEL, "max_model_len": 64}),
    ],
)
def test_the_list_of_models_may_have_any_form(models: Any, told: dict[str, Any]) -> None:
    with Stub(models=models) as stub:
        assert prepared(stub.url).load().identity == told


def test_where_nothing_listens_no_run_begins() -> None:
    with pytest.raises(UserError, match=r"--api_base: 127\.0\.0\.1:9 cannot be reached"):
        prepared(LOCAL).load()


def test_a_refused_key_is_told_before_any_post_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "wrong-" + KEY)
    with Stub(key=KEY) as stub:
        with pytest.raises(UserError, match="answered 401 Unauthorized; the key") as raised:
            prepared(stub.url).load()
        assert KEY not in str(raised.value) and stub.log == []


# --- whole runs through IMHI.py ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root of 10,000 made-up rows, no two alike."""
    root = tmp_path_factory.mktemp("many")
    folder = root / "test_data" / "test_instruction"
    folder.mkdir(parents=True)
    with (folder / "DR.csv").open("w", encoding="utf-8", newline="") as handle:
        print("query,gpt-3.5-turbo", file=handle)
        for row in range(10_000):
            post = f'Consider this post: ""{POST}, day {row}."" Question: Does the poster suffer from depression?'
            print(f'"{post}","Yes. Reasoning: the post speaks of day {row}."', file=handle)
    return root


def command(stub: Stub, root: Path, out: Path, *flags: str) -> list[str]:
    given = ["--engine", "openai", "--api_base", stub.url, "--model", MODEL, "--data_root", str(root)]
    return [sys.executable, "IMHI.py", *given, "--model_output_path", str(out), *flags]


def run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        arguments, cwd=SOURCE, env=kept | environment, capture_output=True, text=True, check=False, timeout=300
    )


def journal(out: Path) -> list[dict[str, Any]]:
    lines = (out / "responses.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


# Signs of overload come in storms; between them, what breaks an answer is more frequent.
BROKEN = ("reset", "hang_up", "cut", "malformed", "truncated_utf8", "no_choices")
WEATHER = [*BROKEN * 5, "429", "503 0", "500", "drip"]


def test_ten_thousand_rows_through_all_faults_none_lost_none_doubled_none_asked_again(
    many_rows: Path, tmp_path: Path
) -> None:
    weather = mixed(0.04, WEATHER)
    storms = {1500: "429 0.2", 4000: "503", 6500: "429", 9000: "429 date 1"}
    until, storm = 0.0, ""

    def plan(prompt: str, before: int) -> str | None:
        nonlocal until, storm
        if len(stub.log) in storms:
            until, storm = time.monotonic() + 0.5, storms[len(stub.log)]
        return storm if time.monotonic() < until else weather(prompt, before)

    with Stub(plan) as stub:
        done = run(command(stub, many_rows, tmp_path / "run", "--concurrency", "48", "--timeout", "1"))
    assert done.returncode == 0, done.stderr[-2000:]
    records = journal(tmp_path / "run")
    assert len(records) == len({record["id"] for record in records}) == 10_000
    assert all(record["error"] is None for record in records)
    expected = {row_of(prompt): answer_to(prompt) for prompt in stub.counts}
    assert {record["id"]: record["text"] for record in records} == expected
    assert Counter(stub.answered) == Counter(dict.fromkeys(stub.counts, 1))
    told = read_manifest(tmp_path / "run")["sessions"][-1]["engine"]["traffic"]
    assert told["answers"] == 10_000 and told["requests"] == len(stub.log) > 10_200
    assert {"429", "503", "500", "broken_off", "malformed", "not_utf8", "no_choice"} <= told["retries"].keys()


def test_a_killed_run_asks_for_nothing_that_its_journal_holds(many_rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ["--limit", "1500", "--concurrency", "16", "--timeout", "1"]
    with Stub(mixed(0.05, WEATHER[:-1]), latency=0.005) as stub:
        asking = command(stub, many_rows, out, *flags)
        held: set[str] = set()
        for rows in (200, 700):
            process = subprocess.Popen(asking, cwd=SOURCE, stderr=subprocess.DEVNULL)
            while process.poll() is None and (not (out / "responses.jsonl").exists() or len(journal_ids(out)) < rows):
                time.sleep(0.01)
            process.kill()
            assert process.wait() == -signal.SIGKILL
            kept = journal_ids(out)
            assert len(kept) >= rows
            # What was under way, and what waited to be journaled.
            assert len(set(map(row_of, stub.answered)) - kept) <= 4 * 16
            # Since the kill before, no row that was in the journal then.
            assert not held & set(map(row_of, stub.answered))
            stub.log.clear()
            held = kept
        done = run(asking)
        assert done.returncode == 0, done.stderr[-2000:]
        assert not held & set(map(row_of, stub.answered))
    records = journal(out)
    assert len(records) == len({record["id"] for record in records}) == 1500
    texts = {completion.text for completion in read_completions(out).values()}
    assert texts == {answer_to(prompt) for prompt in stub.counts} and len(texts) == 1500


def journal_ids(out: Path) -> set[str]:
    raw = (out / "responses.jsonl").read_bytes()
    return {json.loads(line)["id"] for line in raw[: raw.rfind(b"\n") + 1].splitlines()}


def test_ctrl_c_waits_for_what_is_under_way_and_journals_it(many_rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Stub(always("late 0.4")) as stub:
        asking = command(stub, many_rows, out, "--limit", "200", "--concurrency", "10")
        # A shell's background job, as the tests may be, hands on that it ignores the signal.
        heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        process = subprocess.Popen(asking, cwd=SOURCE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
        while len(stub.log) < 25:
            time.sleep(0.01)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130, said[-2000:]
        assert "requests under way (Ctrl-C again drops them)" in said and "interrupted: what was finished" in said
        time.sleep(0.5)
        assert sorted(row_of(asked.prompt) for asked in stub.log) == sorted(journal_ids(out))
        # No more were sent; how many until the signal arrived is the machine's affair.
        assert len(stub.log) < 200


def test_too_many_failures_end_a_run_with_every_paid_answer_in_the_journal(many_rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Stub(lambda prompt, before: "400" if row_of(prompt).endswith("5") else "late 0.05") as stub:
        flags = ["--limit", "300", "--concurrency", "8", "--max_errors", "3"]
        done = run(command(stub, many_rows, out, *flags))
        time.sleep(0.2)
    assert done.returncode == 1 and "failed rows (--max_errors 3)" in done.stderr
    assert sorted(row_of(asked.prompt) for asked in stub.log) == sorted(read_completions(out))
    assert len(stub.log) < 300


def test_a_run_is_resumed_with_the_same_server_and_settings_alone(many_rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Stub() as stub:
        assert run(command(stub, many_rows, out, "--limit", "3")).returncode == 0
        asked = len(stub.log)
        again = run(command(stub, many_rows, out, "--limit", "3", "--concurrency", "2"))
        assert again.returncode == 0 and "nothing to do" in again.stderr
        other = run(command(stub, many_rows, out, "--limit", "3", "--api", "completions"))
        assert other.returncode == 2 and "api: " in other.stderr
        assert len(stub.log) == asked == 3
    manifest = read_manifest(out)
    assert manifest["configuration"]["served_model"] == MODEL
    assert manifest["configuration"]["engine"] == "openai"
    assert [session["model"] for session in manifest["sessions"]] == [MODEL, MODEL]
    assert "sha256" in manifest["first_prompt"]


def test_what_was_used_stands_in_the_manifest_of_a_run_that_was_stopped(many_rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Stub(lambda prompt, before: "402" if day(prompt) == 40 else None) as stub:
        done = run(command(stub, many_rows, out, "--limit", "60", "--price_in", "2", "--price_out", "8"))
    assert done.returncode == 1 and "no credit" in done.stderr
    session = read_manifest(out)["sessions"][-1]
    answered = len(read_completions(out))
    assert answered >= 20 and session["engine"]["usage"]["prompt_tokens"] == 100 * answered
    assert session["engine"]["usage"]["cost"] > 0 and session["ended"]


def test_what_a_content_filter_refused_ends_no_run_and_is_asked_again_only_on_demand(
    many_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, mended = tmp_path / "run", False

    def plan(prompt: str, before: int) -> str | None:
        if day(prompt) == 7 and not before:
            return "422"
        return None if mended or day(prompt) % 3 else ["400", 'finish "content_filter"'][day(prompt) % 2]

    with Stub(plan, refusal=lambda asked: {"error": {"message": "filtered", "code": "content_filter"}}) as stub:
        asking = [*command(stub, many_rows, out, "--limit", "40", "--max_errors", "1")[2:], "--rule_calculate"]

        def asked_again(*flags: str) -> tuple[int, list[int], str]:
            stub.log.clear()
            status = run_script("generate", [*asking, *flags])
            return status, sorted(day(asked.prompt) for asked in stub.log), capsys.readouterr().err

        third = list(range(0, 40, 3))
        status, asked, said = asked_again()
        assert status == 1 and asked == list(range(40))
        assert "1 of 40 rows failed" in said and "14 of 40 rows were refused by the server's content filter" in said
        assert "1 failed rows, 14 rows refused by the server's content filter" in said
        assert "the same command tries them again" in said and "--retry_refused asks them again" in said
        assert read_manifest(out)["ended"] is None
        # The row that failed, and no other.
        status, asked, said = asked_again()
        assert (status, asked) == (1, [7]) and "14 rows that the server's content filter refused" in said
        (counts,) = read_manifest(out)["counts"].values()
        assert (counts["done"], counts["failed"], counts["refused"], counts["rows"]) == (26, 14, 14, 40)
        assert read_manifest(out)["ended"]
        held = (out / "responses.jsonl").read_bytes()
        status, asked, said = asked_again()
        assert (status, asked) == (1, []) and "all but 14 of 40 rows were generated before; nothing to do" in said
        assert "14 of 40 rows were refused" in said and (out / "responses.jsonl").read_bytes() == held
        assert {record["finish_reason"] for record in journal(out) if record["row"] in third} == {"refused"}
        figures = json.loads((out / "correctness.json").read_text())["datasets"]["DR"]
        assert (figures["rows"], figures["failed"], figures["empty"]) == (40, 14, 14)
        mended = True
        status, asked, said = asked_again("--retry_refused")
        assert (status, asked) == (0, third) and "refused" not in said
    assert all(completion.text for completion in read_completions(out).values())


def test_tokens_and_cost_of_all_sessions_are_in_the_manifest_and_told(
    many_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a session that was killed, what it journaled; of one that stopped by itself, all."""
    out = tmp_path / "run"
    prices = ["--price_in", "0.1", "--price_out", "0.7"]
    with Stub(always("late 0.05")) as stub:
        asking = [*command(stub, many_rows, out, "--limit", "200", "--concurrency", "4")]
        process = subprocess.Popen([*asking, *prices], cwd=SOURCE, stderr=subprocess.DEVNULL)
        while not (out / "responses.jsonl").exists() or len(journal_ids(out)) < 20:
            time.sleep(0.01)
        process.kill()
        process.wait()
        kept = len(journal_ids(out))
        # "no credit" ends the second session; one answer of it cannot be used, and is paid for.
        stub.plan = lambda prompt, before: ["say 7", "402"][before] if day(prompt) == 190 and before < 2 else None
        assert run_script("generate", [*asking[2:], *prices]) == 1
        between, said = read_manifest(out)["usage"], capsys.readouterr().err
        stub.plan = lambda prompt, before: None
        assert run_script("generate", asking[2:]) == 0
        last_said = capsys.readouterr().err
    manifest = read_manifest(out)
    first, second, third = (session["engine"]["usage"] for session in manifest["sessions"])
    assert first["from_journal"] and (first["prompt_tokens"], first["completion_tokens"]) == (100 * kept, 10 * kept)
    journaled = sum(completion.prompt_tokens for completion in read_completions(out).values())
    assert manifest["usage"]["prompt_tokens"] == journaled + 100
    assert between == {
        "sessions": 2,
        "prompt_tokens": first["prompt_tokens"] + second["prompt_tokens"],
        "completion_tokens": first["completion_tokens"] + second["completion_tokens"],
        "answers_without_usage": 0,
        "cost": 17 * (kept + second["completion_tokens"] // 10) / 10**6,
        "sessions_from_journal": 1,
    }
    assert f"all 2 sessions: {between['prompt_tokens']} prompt" in said
    assert f"cost {between['cost']:.6g} at least (1 were killed and count with what they journaled)" in said
    total = manifest["usage"]
    assert (total["sessions"], total["sessions_without_price"], total["cost"]) == (3, 1, between["cost"])
    assert total["prompt_tokens"] == between["prompt_tokens"] + third["prompt_tokens"]
    assert "all 3 sessions" in last_said and "1 of the sessions had no prices" in last_said


def test_a_run_that_goes_on_says_where_the_server_has_another_model(many_rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    models = {"data": [{"id": MODEL, "root": "a-model", "created": 1}]}
    with Stub(lambda prompt, before: "400" if day(prompt) == 1 and not before else None, models=models) as stub:
        asking = command(stub, many_rows, out, "--limit", "3")
        assert run(asking).returncode == 1
        models["data"][0] |= {"root": "another-model", "created": 2}
        done = run(asking)
    assert done.returncode == 0 and "'root': 'a-model'" in done.stderr and "'root': 'another-model'" in done.stderr


@pytest.mark.parametrize("fault", [None, "400", "503", "401", "reset"])
def test_the_key_is_in_the_request_and_nowhere_else(fault: str | None, many_rows: Path, tmp_path: Path) -> None:
    """Not in the run folder, what is said, the command line that other users of the machine can read, or an error."""
    out = tmp_path / "run"

    def refusal(asked: Asked) -> Any:
        return {"error": {"message": f"what about {asked.headers['authorization']}?"}}

    def plan(prompt: str, before: int) -> str | None:
        if (listed := Path("/proc")).exists():
            for place in listed.glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    lines.append(place.read_bytes())
        return fault

    lines: list[bytes] = []
    with Stub(plan, refusal=refusal) as stub:
        flags = ["--limit", "2", "--api_key_env", "A_KEY", "--max_retries", "1", "--max_errors", "0"]
        done = run(command(stub, many_rows, out, *flags), A_KEY=KEY)
    assert (done.returncode == 0) is (fault is None)
    assert stub.log and all(asked.headers["authorization"] == f"Bearer {KEY}" for asked in stub.log)
    assert any(b"--api_key_env" in line for line in lines) or not lines
    files = [path.read_bytes() for path in out.rglob("*") if path.is_file()]
    assert len(files) >= 2
    told = [*files, *lines, done.stdout.encode(), done.stderr.encode()]
    assert not any(KEY.encode() in text or KEY[3:20].encode() in text for text in told)
    # Nor a post, in what is said.
    assert POST[:20] not in done.stderr + done.stdout


def test_the_flags_of_the_engine_have_help_without_a_client_being_loaded() -> None:
    told = subprocess.run(
        [sys.executable, "-X", "importtime", "IMHI.py", "--help"],
        cwd=SOURCE,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--allow_remote" in told.stdout and "--price_out" in told.stdout
    assert "aiohttp" not in told.stderr and "asyncio" not in told.stderr


def test_flags_are_checked_where_they_are_read() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    add_generate_arguments(parser)
    start = ["--model_output_path", "x", "--engine", "openai"]
    given = parser.parse_args([*start, "--price_in", "0.5", "--timeout", "3", "--max_retries", "0"])
    assert (given.price_in, given.timeout, given.max_retries) == (0.5, 3.0, 0)
    for flags in (["--concurrency", "0"], ["--timeout", "0"], ["--timeout", "inf"], ["--price_in", "-1"]):
        with pytest.raises(SystemExit), contextlib.redirect_stderr(io.StringIO()):
            parser.parse_args([*start, *flags])


# --- the benchmark ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmark() -> Any:
    folder = SOURCE.parent / "benchmarks"
    spec = importlib.util.spec_from_file_location("benchmark_openai_client", folder / "openai_client.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        # As where the script is run: its folder first, for `measuring`.
        patch.setattr(sys, "path", [str(folder), *sys.path])
        spec.loader.exec_module(module)
    return module


def test_the_benchmark_counts_every_answer_of_every_side(benchmark: Any, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "made" / "out.json"
    flags = ["--rows", "300", "--repeats", "1", "--concurrency", "8", "--memory_rows", "50", "--out", str(out)]
    assert benchmark.run(benchmark.parse(flags)) == 0
    result = json.loads(out.read_text(encoding="utf-8"))
    assert list(result["sides"]) == list(benchmark.SIDES) == [turn["side"] for turn in result["turns"]]
    for figures in result["sides"].values():
        assert figures["peak_memory"] > 10**7
        assert figures["requests_per_second"] == pytest.approx(300 / figures["seconds"], rel=0.05)
    assert list(result["memory"]) == list(benchmark.MEMORY_SIDES)
    assert all(list(found["peak_memory"]) == ["50"] for found in result["memory"].values())
    assert result["versions"]["aiohttp"] and result["environment"]["python"]
    told = capsys.readouterr().out
    assert "openai engine, journaled" in told and "peak MiB at rows" in told


def test_the_benchmarks_ratios_are_those_of_the_medians(benchmark: Any) -> None:
    turns = [
        {"side": side, "seconds": 2 * cpu, "cpu_seconds": cpu, "peak_memory": 10**6}
        for floor, own in ((1.0, 4.0), (2.0, 1.0), (9.0, 5.0))
        for side, cpu in (("aiohttp", floor), ("engine", own))
    ]
    found = benchmark.summary(turns, 1000)
    assert found["sides"]["engine"]["requests_per_second"] == 125.0
    assert found["sides"]["aiohttp"]["requests_per_cpu_second"] == 500.0
    assert found["share_of_the_floor"] == {"engine": 0.5}


def test_the_benchmarks_memory_is_told_by_rows_and_as_bytes_a_row(benchmark: Any) -> None:
    turns = [
        {"side": side, "rows": rows, "peak_memory": peak}
        for side, rows, peak in (("run", 1000, 10**6), ("run", 100, 10**5), ("engine", 100, 7))
    ]
    assert benchmark.memory_summary(turns) == {
        "run": {"peak_memory": {"100": 10**5, "1000": 10**6}, "bytes_per_row": 1000.0},
        "engine": {"peak_memory": {"100": 7}, "bytes_per_row": None},
    }


def test_the_benchmarks_test_file_asks_what_the_other_sides_ask(benchmark: Any, tmp_path: Path) -> None:
    benchmark.write_data_root(tmp_path, 3)
    rows = load_suite(DataRoot(tmp_path, "test"), "IMHI").rows
    assert [(row.id, row.query) for row in rows] == [(prompt.id, prompt.text) for prompt in benchmark.Prompts(3)]
