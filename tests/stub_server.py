"""A server that speaks OpenAI's protocol on loopback, answers at once, and fails as it is told to.

The answer to a prompt is `answer_to(prompt)`, so that an answer given to another row shows.  Faults are chosen by a
plan: a function of the prompt and of how often it was asked before, to the name of a fault or None.  Everything asked is
in `Stub.log`, with whether its whole, right answer went out.

In a process of its own (``python stub_server.py --port_file FILE``) it keeps no log and fails never: what a benchmark
needs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

Plan = Callable[[str, int], "str | None"]
MODEL = "stub-model"
REASONS = {200: "OK", 308: "Permanent Redirect", 400: "Bad Request", 401: "Unauthorized", 429: "Too Many Requests"}


def answer_to(prompt: str) -> str:
    return f"Yes. Reasoning: {zlib.crc32(prompt.encode()):08x} – \N{SLIGHTLY SMILING FACE}"


@dataclass
class Asked:
    """One request as it came in; `answered` turns true when its whole, right answer has gone out."""

    prompt: str
    fault: str | None
    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    at: float
    answered: bool = False


def mixed(rate: float, kinds: Iterable[str], seed: int = 0) -> Plan:
    """A fault of one of `kinds` with probability `rate`, decided anew for every time that a prompt is asked."""
    kinds = list(kinds)

    def plan(prompt: str, before: int) -> str | None:
        # Seeded by text alone: the same whatever order the requests come in.
        chance = random.Random(f"{seed}:{prompt}:{before}")
        return chance.choice(kinds) if chance.random() < rate else None

    return plan


def first(*faults: str | None) -> Plan:
    """These faults, one after the other, for every prompt; then answers."""
    return lambda prompt, before: faults[before] if before < len(faults) else None


def always(fault: str) -> Plan:
    return lambda prompt, before: fault


class Stub:
    """``with Stub(plan) as stub``: serves at `stub.url` until the block ends.

    Faults: a status ("503", "401"); "429 S" and "503 date S": with Retry-After, in seconds or as a date that lies S
    seconds ahead; "reset" (connection reset in the middle of the body), "hang_up" (closed before the answer),
    "cut" (closed in the middle of the body), "drip" (a byte at a time, for ever), "silent" (nothing, for ever),
    "malformed", "truncated_utf8", "no_choices", "redirect URL", "late S" (the answer after S seconds), "double"
    (the answer twice), "double_later", "of_another" (the answer to another request), "error_in_200",
    "finish REASON" and "say TEXT" (another answer).
    """

    def __init__(
        self,
        plan: Plan | None = None,
        *,
        key: str | None = None,
        logging: bool = True,
        latency: float = 0.0,
        usage: bool = True,
        refusal: Callable[[Asked], Any] | None = None,
        models: Any = None,
    ):
        self.plan = plan or (lambda prompt, before: None)
        self.key = key
        self.logging = logging
        self.latency = latency
        self.usage = usage
        # The body of an error status; None: OpenAI's shape, without the prompt.
        self.refusal = refusal
        self.models = models if models is not None else {"data": [{"id": MODEL, "owned_by": "tests", "created": 1}]}
        self.log: list[Asked] = []
        self.counts: Counter[str] = Counter()
        self.most_at_once = 0
        self.at_once = 0
        self.port = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self.serve()), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def answered(self) -> list[str]:
        """The prompts that were answered, once for each answer."""
        return [asked.prompt for asked in self.log if asked.answered]

    def __enter__(self) -> Stub:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    async def serve(self, port_file: Path | None = None) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self.connections: set[Connection] = set()
        server = await self._loop.create_server(lambda: Connection(self), "127.0.0.1", 0, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        if port_file is not None:
            unfinished = port_file.with_suffix(".unfinished")
            unfinished.write_text(str(self.port), encoding="ascii")
            unfinished.rename(port_file)
        self._ready.set()
        await self._over.wait()
        server.close()
        for connection in list(self.connections):
            connection.transport.abort()


class Connection(asyncio.Protocol):
    """One connection: one request after the other."""

    transport: asyncio.Transport

    def __init__(self, stub: Stub):
        self.stub = stub
        self.received = b""
        self.work: asyncio.Task[None] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stub.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.stub.connections.discard(self)
        if self.work is not None:
            self.work.cancel()

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, found, rest = self.received.partition(b"\r\n\r\n")
        if not found:
            return
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return
        self.received = rest[length:]
        path = lines[0].split(" ")[1]
        if path.endswith("/models"):
            refused = self.stub.key and headers.get("authorization") != f"Bearer {self.stub.key}"
            self.transport.write(
                response(401, {"error": {"message": "no"}}) if refused else response(200, self.stub.models)
            )
            return
        self.answer(path, headers, json.loads(rest[:length]))

    def answer(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> None:
        stub = self.stub
        prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        fault = stub.plan(prompt, stub.counts[prompt])
        if stub.logging:
            stub.counts[prompt] += 1
        if stub.key and headers.get("authorization") != f"Bearer {stub.key}":
            fault = "401"
        asked = Asked(prompt, fault, path, body, headers, time.monotonic())
        if stub.logging:
            stub.log.append(asked)
        if fault is None and not stub.latency:
            self.send(asked, completion(asked, answer_to(prompt), usage=stub.usage))
            return
        stub.at_once += 1
        stub.most_at_once = max(stub.most_at_once, stub.at_once)
        self.work = asyncio.ensure_future(self.fail(asked, fault))

    def send(self, asked: Asked, body: dict[str, Any]) -> None:
        if not self.transport.is_closing():
            self.transport.write(response(200, body))
            asked.answered = True

    async def fail(self, asked: Asked, fault: str | None) -> None:
        try:
            await asyncio.sleep(self.stub.latency)
            await self.act(asked, *(fault or "answer").split(" ", 1))
        finally:
            self.stub.at_once -= 1

    async def act(self, asked: Asked, kind: str, detail: str = "") -> None:
        right = completion(asked, answer_to(asked.prompt), usage=self.stub.usage)
        whole = response(200, right)
        if kind.isdigit():
            refusal = self.stub.refusal(asked) if self.stub.refusal else {"error": {"message": "no", "code": None}}
            self.transport.write(response(int(kind), refusal, **retry_after(detail)))
        elif kind == "redirect":
            self.transport.write(response(308, {}, Location=detail))
        elif kind == "reset":
            self.transport.write(whole[:-20])
            await asyncio.sleep(0.01)
            linger = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.transport.abort()
        elif kind in ("hang_up", "cut"):
            self.transport.write(whole[:-20] if kind == "cut" else b"")
            self.transport.close()
        elif kind == "drip":
            for byte in whole[:-20]:
                self.transport.write(bytes([byte]))
                await asyncio.sleep(0.05)
            await asyncio.sleep(3600)
        elif kind == "silent":
            await asyncio.sleep(3600)
        elif kind == "malformed":
            self.transport.write(raw(200, json.dumps(right).encode()[:-7]))
        elif kind == "truncated_utf8":
            text = json.dumps(right, ensure_ascii=False).encode()
            # The last bytes of the emoji are missing; the rest is whole.
            self.transport.write(raw(200, text.replace("\N{SLIGHTLY SMILING FACE}".encode(), b"\xf0\x9f")))
        elif kind == "no_choices":
            self.transport.write(response(200, {**right, "choices": []}))
        elif kind == "error_in_200":
            self.transport.write(response(200, {"error": {"message": "overloaded", "code": 503}}))
        elif kind == "of_another":
            other = {**right, "id": "chatcmpl-" + asked.headers["x-request-id"].rpartition("-")[0] + "-0"}
            self.transport.write(response(200, other))
        elif kind == "finish":
            self.transport.write(response(200, completion(asked, "half an", finish=json.loads(detail))))
        elif kind == "say":
            self.send(asked, completion(asked, json.loads(detail)))
        elif kind in ("double", "double_later"):
            self.send(asked, right)
            await asyncio.sleep(0.02 if kind == "double_later" else 0)
            self.transport.write(whole)
        else:
            await asyncio.sleep(float(detail or 0))
            self.send(asked, right)


def completion(asked: Asked, text: str | None, *, finish: str | None = "stop", usage: bool = True) -> dict[str, Any]:
    chat = "messages" in asked.body
    said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return {
        "id": "chatcmpl-" + asked.headers.get("x-request-id", ""),
        "object": "chat.completion" if chat else "text_completion",
        "model": f"{asked.body.get('model')}-0613",
        "system_fingerprint": "fp_stub",
        "choices": [{"index": 0, **said, "finish_reason": finish}],
        **({"usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}} if usage else {}),
    }


def response(status: int, body: Any, **headers: str) -> bytes:
    return raw(status, json.dumps(body, ensure_ascii=False).encode(), **headers)


def raw(status: int, body: bytes, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Trouble')}", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}", *(f"{name.replace('_', '-')}: {text}" for name, text in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def retry_after(detail: str) -> dict[str, str]:
    if not detail:
        return {}
    kind, _, seconds = detail.rpartition(" ")
    if kind != "date":
        return {"Retry_After": seconds}
    # A server whose clock is an hour behind: only its own Date tells how long it means.
    now = datetime.now(timezone.utc) - timedelta(hours=1)
    until = now + timedelta(seconds=float(seconds))
    return {"Date": format_datetime(now, usegmt=True), "Retry_After": format_datetime(until, usegmt=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port_file", type=Path, required=True, help="the port is written here once it listens")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before every answer")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(Stub(logging=False, latency=arguments.latency).serve(arguments.port_file))


if __name__ == "__main__":
    main()
