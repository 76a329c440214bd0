"""The engine for servers that speak OpenAI's protocol: OpenAI itself, vLLM, ``transformers serve``, llama.cpp, others.

``--api chat`` sends the prompt as a user's turn, with examples as turns before it, and the server applies the model's
template; ``--api completions`` sends raw text, joined as the other engines join it.  Decoding is greedy by temperature 0
unless sampling is asked for; a server may add what the checkpoint's generation config says (vLLM does, a repetition
penalty for instance, unless it is started with ``--generation-config vllm``).  Tokens are counted by the server, which
for most includes the end-of-sequence token.

Posts leave the machine only with ``--allow_remote`` (`imhi.remote`), never through a proxy or a redirect
(`imhi.engines.http_client`).  The key comes from an environment variable and is in nothing but the requests.
"""

from __future__ import annotations

import argparse
import os
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from imhi.engines import Completion, Decoding, EngineRequest, OnStep, Prompt
from imhi.engines.prompt_ids import chat_turns, raw_text
from imhi.engines.usage import cost_of
from imhi.errors import UserError
from imhi.provenance import library_versions
from imhi.remote import check_address, read_key
from imhi.talk import say

# The client is imported where it is used: asyncio would slow --help.
if TYPE_CHECKING:
    from imhi.engines.exchange import Limits
    from imhi.engines.http_client import Fault, Server

__all__ = ["APIS", "OpenAIEngine", "Served", "add_arguments", "prepare"]

# --api → what is asked for, below --api_base.
APIS = {"chat": "chat/completions", "completions": "completions"}
DEFAULT_KEY = "OPENAI_API_KEY"
# finish_reason of the protocol → of a completion; an answer with any other is an error.
FINISH = {"stop": "stop", "length": "length"}
# What its content filter left of an answer is no answer, and is the same when the row is asked again.
FILTERED = "content_filter"
# A prompt that alone fills the model: OpenAI's code, and vLLM's and llama.cpp's words.
NO_ROOM_CODES = {"context_length_exceeded"}
NO_ROOM_WORDS = ("maximum context length", "context size", "maximum model length")
# Distinct names kept of what servers say of themselves.
MOST_NAMES = 20
# A server that takes longer to name its models is asked for answers without.
IDENTIFY_SECONDS = 10.0


@dataclass(frozen=True)
class Served:
    """A model as a server offers it, and how it is asked.

    Attributes
    ----------
    model : the server's name of it.
    api : a key of `APIS`.
    max_tokens_field : the name under which the server takes the limit of an answer.
    request_seed : sent as ``seed`` with greedy requests, for servers that are not the same twice without; None: not
        sent.
    price_in, price_out : currency per million prompt and new tokens; None: cost is not computed.
    """

    model: str
    api: str = "chat"
    max_tokens_field: str = "max_tokens"
    request_seed: int | None = None
    price_in: float | None = None
    price_out: float | None = None


class OpenAIEngine:
    """Asks a server, many rows at once (`imhi.engines.exchange`).

    Parameters
    ----------
    server : where, with which key.
    served : which model, asked how.
    identity : what the server says of the model, for the manifest.
    """

    name = "openai"

    def __init__(
        self, server: Server, served: Served, decoding: Decoding, limits: Limits, identity: dict[str, Any] | None = None
    ):
        from imhi.engines.exchange import Traffic

        self.server = server
        self.served = served
        self.decoding = decoding
        self.limits = limits
        self.identity = identity or {}
        self.traffic = Traffic()
        self.usage: Counter[str] = Counter(prompt_tokens=0, completion_tokens=0, answers_without_usage=0)
        self._seen: dict[str, dict[str, None]] = {"model": {}, "system_fingerprint": {}}

    def describe(self) -> dict[str, Any]:
        return {
            "server": self.identity,
            "answered_by": {name: list(seen) for name, seen in self._seen.items()},
            "usage": self._usage(),
            "traffic": asdict(self.traffic),
            "client": library_versions(("aiohttp",)),
        }

    def prompt_token_ids(self, prompt: Prompt) -> None:
        """None: the server makes them."""

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Nothing is known of the server's limits before it is asked."""

    def complete(
        self, prompts: Sequence[Prompt], *, done: Collection[str] = (), on_step: OnStep | None = None
    ) -> Iterator[list[Completion]]:
        """Completions as they come, in groups.

        A row that failed by an error comes only when no request is under way, so that a caller who stops there leaves
        behind nothing that was paid for.  Ctrl-C while this waits, and what ends the run (a refused key), first hand over what is
        under way.

        Raises
        ------
        UserError
            401, 402, 403, 404, a redirect, an untrusted certificate, an exhausted account: whatever meets every row.
        """
        from imhi.engines.exchange import Exchange

        exchange: Exchange[Prompt, Completion] = Exchange(
            self.server,
            APIS[self.served.api],
            ((prompt, self.payload(prompt)) for prompt in prompts if prompt.id not in done),
            read=self._completion,
            give_up=_given_up,
            failed=lambda completion: completion.finish_reason == "error",
            limits=self.limits,
            traffic=self.traffic,
        )
        try:
            yield from exchange.groups(on_wait=(lambda rows: on_step(rows, 0)) if on_step else None)
        finally:
            self._say_totals()

    def close(self) -> None:
        """Nothing outlives a call."""

    def payload(self, prompt: Prompt) -> dict[str, Any]:
        """The body of the request for a prompt."""
        decoding, served = self.decoding, self.served
        asked: dict[str, Any] = {"model": served.model}
        asked |= {"messages": chat_turns(prompt)} if served.api == "chat" else {"prompt": raw_text(prompt)}
        asked[served.max_tokens_field] = decoding.max_new_tokens
        if decoding.do_sample:
            asked |= {"temperature": decoding.temperature, "top_p": decoding.top_p}
            # One of its own for each row: rows drawn with the same numbers would not be independent.
            asked["seed"] = zlib.crc32(f"{decoding.seed}:{prompt.id}".encode()) & 0x7FFFFFFF
            if decoding.top_k:
                asked["top_k"] = decoding.top_k
        else:
            asked |= {"temperature": 0, "top_p": 1}
            if served.request_seed is not None:
                asked["seed"] = served.request_seed
        return asked

    def _completion(self, prompt: Prompt, body: Any) -> Completion:
        """The answer in a response; raises `Fault` where there is none in it."""
        from imhi.engines.http_client import Fault

        choices = body.get("choices") if isinstance(body, dict) else None
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            found = len(choices) if isinstance(choices, list) else "no"
            raise Fault("no_choice", f"the answer has {found} choices, where one is expected")
        # Before anything is found wrong with the answer: it is paid for whatever is in it.
        prompt_tokens, new_tokens = self._count(body.get("usage"))
        reason = choices[0].get("finish_reason")
        text = "" if reason == FILTERED else _text(choices[0], chat=self.served.api == "chat")
        for name, seen in self._seen.items():
            if len(seen) < MOST_NAMES and isinstance(body.get(name), str):
                seen[body[name][:100]] = None
        if not isinstance(reason, str) or reason not in FINISH:
            error = f"the server ended the answer by finish_reason {reason!r:.60}"
            how = "refused" if reason == FILTERED else "error"
            return Completion(prompt.id, "", prompt_tokens, new_tokens, how, error=error)
        return Completion(prompt.id, text, prompt_tokens, new_tokens, FINISH[reason])

    def _count(self, usage: Any) -> tuple[int, int]:
        """Add a response's usage to the totals; (prompt tokens, new tokens), 0 where the server does not count."""
        counts = [
            usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")
        ]
        prompt_tokens, new_tokens = (count if isinstance(count, int) and count >= 0 else 0 for count in counts)
        self.usage["answers_without_usage"] += None in counts
        self.usage["prompt_tokens"] += prompt_tokens
        self.usage["completion_tokens"] += new_tokens
        return prompt_tokens, new_tokens

    def _usage(self) -> dict[str, Any]:
        """The session's usage (`imhi.engines.usage`)."""
        used = {**self.usage, "price_in": self.served.price_in, "price_out": self.served.price_out}
        cost = cost_of(used)
        return dict(self.usage) if cost is None else {**used, "cost": float(cost)}

    def _say_totals(self) -> None:
        used = self._usage()
        cost = f", cost {used['cost']:.4g}" if "cost" in used else ""
        retries = ", ".join(f"{cause} {count}" for cause, count in sorted(self.traffic.retries.items()))
        say(
            f"{self.server.address.host}: {self.traffic.requests} requests, {self.usage['prompt_tokens']} prompt and "
            f"{self.usage['completion_tokens']} new tokens{cost}" + (f"; tried again: {retries}" if retries else "")
        )


def _text(choice: dict[str, Any], *, chat: bool) -> str:
    """The new text of a choice, "" where it is null: a model may say nothing.  Raises `Fault` where none can be read."""
    from imhi.engines.http_client import Fault

    if chat:
        message = choice.get("message")
        if not isinstance(message, dict):
            raise Fault("no_choice", "the answer has no message")
        text = message.get("content") or message.get("refusal") or ""
        if isinstance(text, list):
            text = "".join(str(part.get("text") or "") for part in text if isinstance(part, dict))
    else:
        text = choice.get("text")
    if not isinstance(text, str):
        raise Fault("no_choice", "the answer has no text")
    # Half a character, where a limit cut it in two, cannot be written as UTF-8; a tokenizer decodes it to this, too.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").strip()


def _given_up(prompt: Prompt, fault: Fault, tries: int) -> Completion:
    filled = fault.code in NO_ROOM_CODES or (fault.cause == "400" and any(w in fault.said for w in NO_ROOM_WORDS))
    how = "refused" if fault.cause == "content_filter" else "no_room" if filled else "error"
    error = fault.said + (f" ({tries} tries)" if tries > 1 else "")
    return Completion(prompt.id, "", 0, 0, how, error=error[:500])


# --- the engine by its name -----------------------------------------------------------------------------------------


def add_arguments(parser: Any) -> None:
    def add(flag: str, **settings: Any) -> None:
        parser.add_argument(flag, default=argparse.SUPPRESS, **settings)

    add("--api_base", metavar="URL", help="the server, such as http://127.0.0.1:8000/v1 (required)")
    add("--model", metavar="NAME", help="the server's name of the model (required)")
    add("--api", choices=list(APIS), help="chat: prompts as a user's turn (default); completions: raw text")
    add(
        "--api_key_env",
        metavar="NAME",
        help=f"environment variable that holds the key (default {DEFAULT_KEY});\nnone is needed on this machine",
    )
    add("--allow_remote", action="store_true", help="posts may be sent to a server that is not this machine")
    add("--concurrency", type=_whole(1), metavar="N", help="requests at once, at most (default 32)")
    add("--timeout", type=_seconds, metavar="SECONDS", help="limit of one request (default 120)")
    add("--max_retries", type=_whole(0), metavar="N", help="further tries of a row (default 8)")
    add("--max_tokens_field", metavar="NAME", help="the limit's name (default max_tokens; or max_completion_tokens)")
    add("--request_seed", type=_whole(0), metavar="S", help="seed sent with greedy requests (default: none)")
    add("--price_in", type=_price, metavar="X", help="price of a million prompt tokens, for the cost")
    add("--price_out", type=_price, metavar="X", help="price of a million new tokens")


def prepare(request: EngineRequest) -> PreparedOpenAI:
    """Check flags, address and key; raises UserError on anything the user can mend.  Nothing is sent yet."""
    from imhi.engines.exchange import Limits
    from imhi.engines.http_client import Server

    if request.model is not None:
        raise UserError("--model_path has no effect with --engine openai; name the server's model with --model")
    refused = ("lora_path", "llama", "cuda", "device", "dtype", "batch_size", "batching", "deterministic")
    request.refuse("openai", *refused)
    options, decoding = request.options, request.decoding
    if decoding.chat_template:
        raise UserError("--chat_template: the server applies its own with --api chat, the default; leave it out")
    if decoding.max_length is not None:
        raise UserError("--max_length: a server has no such limit; give --max_new_tokens")
    for name in ("api_base", "model"):
        if not options.get(name):
            raise UserError(f"--engine openai needs --{name}")
    if decoding.do_sample and "request_seed" in options:
        raise UserError("--request_seed is for greedy decoding; with --do_sample, --seed says how answers are drawn")
    if ("price_in" in options) != ("price_out" in options):
        raise UserError("--price_in and --price_out go together")
    what = "the prompt of every row, with the post in it,"
    named = options.get("api_key_env") or (DEFAULT_KEY if os.environ.get(DEFAULT_KEY, "").strip() else None)
    address = check_address(options["api_base"], options.get("allow_remote", False), what, key=named is not None)
    if address.path.endswith(tuple(APIS.values())):
        raise UserError("--api_base is the part before /chat/completions or /completions; leave that off")
    if named is None and not address.loopback:
        raise UserError(
            f"{address.host} needs a key in the environment variable {DEFAULT_KEY}, or in one that --api_key_env names; "
            "any word will do for a server that asks for none"
        )
    key = read_key(named)
    served = {name: options[name] for name in Served.__dataclass_fields__ if name in options}
    limits = {name: options[name] for name in ("concurrency", "max_retries") if name in options}
    return PreparedOpenAI(
        Server(address, key, options.get("timeout", Server.timeout)), Served(**served), Limits(**limits), decoding
    )


@dataclass(frozen=True)
class PreparedOpenAI:
    """A checked address, and what will be asked there."""

    server: Server
    served: Served
    limits: Limits
    decoding: Decoding

    @property
    def model(self) -> str:
        return self.served.model

    @property
    def adapter(self) -> None:
        return None

    def configuration(self) -> dict[str, Any]:
        address, served = self.server.address, self.served
        host = f"[{address.host}]" if ":" in address.host else address.host
        return {
            "api_base": f"{address.scheme}://{host}:{address.port}{address.path}",
            "api": served.api,
            "served_model": served.model,
            "max_tokens_field": served.max_tokens_field,
            "request_seed": served.request_seed,
        }

    def session(self) -> dict[str, Any]:
        limits = self.limits
        return {"concurrency": limits.concurrency, "timeout": self.server.timeout, "max_retries": limits.max_retries}

    def caution(self, form: str) -> None:
        return None

    def load(self) -> OpenAIEngine:
        """The engine, once the server has been asked for its models.

        Raises
        ------
        UserError
            Nothing answers at the address, or the key is refused; no post has been sent then.
        """
        return OpenAIEngine(self.server, self.served, self.decoding, self.limits, self._identify())

    def _identify(self) -> dict[str, Any]:
        """What the server says of the model at ``/models``: its entry there, or why there is none."""
        import asyncio
        from concurrent.futures import ThreadPoolExecutor

        from imhi.engines.http_client import Fault

        with ThreadPoolExecutor(1) as thread:  # the caller may be in an event loop of its own
            server = replace(self.server, timeout=min(self.server.timeout, IDENTIFY_SECONDS))
            found = thread.submit(asyncio.run, _models(server)).result()
        if isinstance(found, Fault):
            if found.cause in ("401", "402", "403", "no_connection", "certificate", "moved"):
                raise UserError(f"--api_base: {found.said}")
            return {"models": f"not told ({found.cause})"}
        listed = found.get("data") if isinstance(found, dict) else None
        entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
        for entry in entries:
            if entry.get("id") == self.served.model:
                kept = ("id", "owned_by", "created", "root", "parent", "max_model_len")
                return {name: entry[name] for name in kept if isinstance(entry.get(name), str | int)}
        return {"models": f"{len(entries)} listed, not this one"}


async def _models(server: Server) -> Any:
    from imhi.engines.http_client import Fault, HttpClient

    try:
        async with HttpClient(server) as client:
            return await client.get("models")
    except Fault as fault:
        return fault


def _whole(least: int) -> Any:
    def number(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{text} is not {least} or more")
        return value

    return number


def _seconds(text: str) -> float:
    if not 0 < (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a time above 0")
    return value


def _price(text: str) -> float:
    if not 0 <= (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a price from 0")
    return value
