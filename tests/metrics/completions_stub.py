"""A server of /v1/completions on loopback, whose log-probabilities are a tiny model's; it can be told to fail."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from imhi.metrics.gptscore import GptScore
from imhi.metrics.self_test import PROBES, self_test
from imhi.metrics.server_logprobs import CompletionServer
from imhi.remote import check_address

# What a request meets in place of an answer: gets the handler, returns whether it answered.
Trouble = Callable[[BaseHTTPRequestHandler, dict[str, Any]], bool]


class CompletionsStub:
    """Answers as `manner` says.

    "vllm": a token that begins a text counted as text in the offsets, parts of characters empty but for the last.
    "openai": no token before the text, offsets right, parts of characters as ``bytes:\\x..``.
    "parts": parts of characters as replacement characters, no offsets.
    "ignores echo", "new only", "no logprobs", "shifted", "shifted values", "wrong": the faults of these names.
    "last right": "wrong" but for the last token.  "start valued": the token that begins a text has a value.
    "first certain", "first too probable", "first of another": the value of the first token of a text is 0, or more than
    that of the most probable one, or all there are those of another place.
    "refuses 0": HTTP 400 for max_tokens 0.  "0 is no limit": three new tokens for max_tokens 0.
    """

    def __init__(self, folder: Path, manner: str = "vllm", *, limit: int | None = None):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(str(folder))
        self.model = AutoModelForCausalLM.from_pretrained(str(folder)).eval()
        self.manner, self.limit = manner, limit
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.troubles: list[Trouble] = []
        self.dies_after: int | None = None
        # Texts with these words get an answer whose tokens are not theirs.
        self.spoils: str | None = None
        self._lock = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[str]:
        """The URL up to /v1, while the server runs."""
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = json.loads(self.rfile.read(length))
                with stub._lock:
                    stub.requests.append(body)
                    stub.headers.append(dict(self.headers))
                    trouble = stub.troubles.pop(0) if stub.troubles else None
                    dead = stub.dies_after is not None and len(stub.requests) > stub.dies_after
                if dead:
                    self.close_connection = True
                    return
                if trouble is not None and trouble(self, body):
                    return
                status, answer = stub.answer(body)
                send(self, status, json.dumps(answer).encode())

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """A client that went away is no news."""

        server = Server(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            server.server_close()

    # --- what it answers ----------------------------------------------------------------------------------------------

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        prompt, wanted = body["prompt"], body["max_tokens"]
        if wanted == 0:
            if self.manner == "refuses 0":
                return 400, {"error": {"message": f"max_tokens must be at least 1, got 0 for {prompt!r}"}}
            wanted = 3 if self.manner == "0 is no limit" else 0
        ids = self.tokenizer(prompt)["input_ids"]
        if self.limit is not None and len(ids) + wanted > self.limit:
            return 400, {"error": {"message": f"maximum context length is {self.limit} tokens: {prompt}"}}
        with self._lock:
            rows, new = self._tables(ids), []
            for _ in range(wanted):
                new.append(max(range(len(rows[-1])), key=rows[-1].__getitem__))
                rows = self._tables([*ids, *new])
        echoed = body.get("echo") and self.manner != "ignores echo"
        text = (prompt if echoed else "") + self.tokenizer.decode(new)
        shown = range(len(ids) + len(new)) if echoed and self.manner != "new only" else range(len(ids), len(ids + new))
        if self.spoils is not None and self.spoils in prompt:
            ids = [*ids[:1], *reversed(ids[1:])]
        logprobs = None if self.manner == "no logprobs" else self._logprobs([*ids, *new], rows, shown)
        return 200, {
            "choices": [{"index": 0, "text": text, "logprobs": logprobs, "finish_reason": "length"}],
            "usage": {"prompt_tokens": len(ids), "completion_tokens": len(new)},
        }

    def _tables(self, ids: list[int]) -> list[list[float]]:
        """Log-probabilities of what follows each position."""
        import torch

        with torch.inference_mode():
            return self.model(torch.tensor([ids])).logits[0].double().log_softmax(-1).tolist()

    def _logprobs(self, ids: list[int], rows: list[list[float]], shown: range) -> dict[str, Any]:
        # llama-cpp-python's fault: what follows a token stands for the token itself.
        shift = 0 if self.manner == "shifted" and len(shown) > 1 else 1
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        for at in shown:
            if at == 0:
                values.append(None)
                tops.append(None)
                continue
            row = rows[at - shift]
            best = max(range(len(row)), key=row.__getitem__)
            values.append(row[ids[at]])
            tops.append({self.tokenizer.decode([best]): row[best], self.tokenizer.decode([ids[at]]): row[ids[at]]})
        if self.manner == "shifted values" and len(shown) > 1:
            values, tops = [None, *values[:-1]], [None] * len(values)
        if self.manner == "wrong" and len(shown) > 1:
            values = [value if value is None else value - 1.5 for value in values]
        if self.manner == "last right" and shown.start == 0:
            values = [None if value is None else value - 1.5 for value in values[:-1]] + values[-1:]
        if self.manner == "start valued" and shown.start == 0:
            values[0] = 0.0
        if len(shown) > 2 and shown.start == 0:
            if self.manner == "first certain":
                values[1] = 0.0
            if self.manner == "first too probable":
                values[1], tops[1] = max(rows[0]) + 0.5, {}
            if self.manner == "first of another":
                best = max(range(len(rows[0])), key=rows[0].__getitem__)
                values[1], tops[1] = values[1] - 1.0, {self.tokenizer.decode([best]): rows[0][best] - 1.0}
        tokens, offsets = self._texts(ids)
        kept = [at for at in shown if not (self.manner == "openai" and ids[at] == self.tokenizer.bos_token_id)]
        first = shown.start
        found: dict[str, Any] = {
            "tokens": [tokens[at] for at in kept],
            "token_logprobs": [values[at - first] for at in kept],
            "top_logprobs": [tops[at - first] for at in kept],
        }
        if self.manner != "parts":
            found["text_offset"] = [offsets[at] for at in kept]
        return found

    def _texts(self, ids: list[int]) -> tuple[list[str], list[int]]:
        """Each token's text in the server's manner, and where it says that the token begins."""
        tokens, offsets, at, waiting = [], [], 0, []
        for token in ids:
            text = self.tokenizer.decode([*waiting, token])
            whole = not text.endswith("\N{REPLACEMENT CHARACTER}")
            offsets.append(at)
            if self.manner == "parts":
                text = self.tokenizer.decode([token])
            elif not whole or (waiting and self.manner == "openai"):
                text = "bytes:\\xf0" if self.manner == "openai" else ""
            tokens.append(text)
            if self.manner != "openai":
                at += len(text)
            elif whole and token != self.tokenizer.bos_token_id:
                at += len(self.tokenizer.decode([*waiting, token]))
            waiting = [] if whole else [*waiting, token]
        return tokens, offsets


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def failing(status: int, **headers: str) -> Trouble:
    """An error that repeats the prompt, as servers do."""

    def trouble(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> bool:
        send(handler, status, json.dumps({"error": {"message": f"no: {body['prompt']}"}}).encode(), **headers)
        return True

    return trouble


def half(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> bool:
    """A body that breaks off."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True
    return True


def garbled(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> bool:
    send(handler, 200, b"<html>busy</html>")
    return True


# --- its clients ------------------------------------------------------------------------------------------------------


def metric_of(url: str, **options: Any) -> GptScore:
    """A GPT-score by that server, which waits hardly at all after failures."""
    metric = GptScore(api_base=url, api_model="tiny", **options)
    metric._there.server.first_pause = 0.001
    return metric


def server_of(url: str, **options: float) -> CompletionServer:
    options = {"first_pause": 0.001, **options}
    return CompletionServer(check_address(url, False, "nothing"), "tiny", **options)


def echoes(stub: CompletionsStub) -> list[dict[str, Any]]:
    """Requests but those of the test before the scores."""
    return [body for body in stub.requests if body["echo"] and not body["prompt"].startswith(PROBES)]


def behind_its_test(metric: GptScore) -> GptScore:
    """The metric, its server's test behind it."""
    self_test(metric._there.server)
    metric._there._tested = True
    return metric
