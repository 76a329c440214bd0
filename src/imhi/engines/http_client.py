"""One server, one request, one try: JSON over HTTP, and every way in which no answer comes, told apart.

What keeps posts and key where they belong: redirects are not followed and no proxy is used (the address that the user
named is the one that gets the posts, `imhi.remote`); a loopback name is judged again at every connection; of a
server's error message only words that do not repeat the request are passed on, and the key is in nothing but the
header.

What keeps an answer with its row: a connection carries one request at a time and is given up, not used again, after
anything but a complete answer, or if bytes lie on it that nobody asked for.  (aiohttp alone would hand a doubled answer
to the next request on the connection.)  Every request has an ``X-Request-Id`` of its own; vLLM and ``transformers
serve`` make it part of the answer's ``id``, and an answer with the id of another request is refused.  OpenAI's servers
do not repeat it; there the connection alone vouches.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from imhi.remote import Address

if TYPE_CHECKING:
    import aiohttp

__all__ = ["Fault", "HttpClient", "Server", "asked_wait"]

# An answer of a language model is kilobytes; a server gone wrong must not fill the memory.
MOST_BYTES = 64 * 1024 * 1024
# Servers under uvicorn drop a connection after 5 s without a request; one about to be dropped is not taken.
KEPT_ALIVE = 4.0
# A longer wait than this is not sat through: the run ends, and the same command goes on later.
LONGEST_ASKED_WAIT = 3600.0
# So many letters and digits in a row, common to a server's message and the request, count as a repeat of the post.
REPEATED = 12

WRONG_PLACE = "correct --api_base (it usually ends in /v1), --api or --model"
REMEDIES = {
    401: "the key in the environment variable that --api_key_env names (default OPENAI_API_KEY) is missing or not taken",
    402: "the account has no credit left",
    403: "the key may not use this model, or the server does not serve this machine",
    404: WRONG_PLACE,
    405: WRONG_PLACE,
}
# What another try may mend, beside every 5xx.
PASSING = {408, 409, 425, 429}
# Of these, and every 5xx: signs that the server has more to do than it can.
CROWDED = {408, 429}
NO_CREDIT = {"insufficient_quota", "billing_hard_limit_reached"}
# A content filter that turns a prompt away: the codes of OpenAI, Azure and DashScope (400), OpenRouter (403)...
REFUSED = {"content_filter", "content_policy_violation", "data_inspection_failed", "DataInspectionFailed"}
# ... and the words of those that have no code of its own for it: OpenAI's reasoning models, LiteLLM, DeepSeek, DashScope.
REFUSED_WORDS = (
    "violating our usage policy",
    "content management policy",
    "ContentPolicyViolationError",
    "Content Exists Risk",
    "may contain inappropriate content",
)


@dataclass(frozen=True)
class Server:
    """Where requests go, with which key, and for how many seconds a request may take in all, body included."""

    address: Address
    key: str | None = field(default=None, repr=False)
    timeout: float = 120.0


class Fault(Exception):
    """A try that gave no answer.

    Attributes
    ----------
    cause : a short name, for counts: a status, "timeout", "broken_off", "malformed", "content_filter" and so on.
    said : what happened, in words for the user; holds neither key nor post.
    code : the server's own code for it, where it has one ("context_length_exceeded").
    again : whether another try may help.
    crowded : whether it is a sign of too many requests at once.
    stops : whether it would meet every row alike, so that the run must end.
    wait : seconds that the server asks to wait.
    """

    def __init__(
        self,
        cause: str,
        said: str,
        *,
        code: str = "",
        again: bool = True,
        crowded: bool = False,
        stops: bool = False,
        wait: float | None = None,
    ):
        super().__init__(said)
        self.cause = cause
        self.said = said
        self.code = code
        self.again = again and not stops
        self.crowded = crowded
        self.stops = stops
        self.wait = wait


class HttpClient:
    """A server's client, inside one event loop: ``async with HttpClient(server) as client``."""

    def __init__(self, server: Server):
        self._server = server
        self._name = f"{server.address.host}:{server.address.port}"
        self._session: aiohttp.ClientSession
        self._own_ids = "imhi" + secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self._id_pattern = re.compile(self._own_ids + r"-\d+")

    async def __aenter__(self) -> HttpClient:
        import aiohttp

        headers = {"Accept": "application/json", "User-Agent": "imhi"}
        if self._server.key:
            headers["Authorization"] = f"Bearer {self._server.key}"
        resolver = _loopback_resolver() if self._server.address.loopback else None
        self._session = aiohttp.ClientSession(
            # How many requests are under way is the caller's affair.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_ALIVE, resolver=resolver),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            request_class=_request_class(),
            timeout=aiohttp.ClientTimeout(total=self._server.timeout),
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def get(self, path: str) -> Any:
        """What the server answers at `path`; raises `Fault`."""
        return await self._ask("GET", path, None)

    async def post(self, path: str, payload: Mapping[str, Any]) -> Any:
        """The server's answer to `payload`; raises `Fault`."""
        return await self._ask("POST", path, payload)

    async def _ask(self, method: str, path: str, payload: Mapping[str, Any] | None) -> Any:
        import aiohttp

        number = f"{self._own_ids}-{next(self._numbers)}"
        headers = {"X-Request-Id": number}
        data = None
        if payload is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(payload).encode("ascii")
        url = f"{self._server.address.url}/{path}"
        try:
            async with self._session.request(
                method, url, data=data, headers=headers, allow_redirects=False
            ) as response:
                raw = await _body(response)
                if response.status != 200:
                    raise self._refusal(response, raw, payload)
                body = _parsed(raw)
                self._check_id(number, body, response)
                return body
        except asyncio.TimeoutError:
            seconds = f"{self._server.timeout:g}"
            raise Fault(
                "timeout", f"{self._name} gave no answer within {seconds} s (--timeout)", crowded=True
            ) from None
        except aiohttp.ClientConnectorCertificateError:
            said = f"{self._name}: the server's certificate is not trusted by this machine; correct --api_base"
            raise Fault("certificate", said, stops=True) from None
        except aiohttp.ClientConnectorError as error:
            reason = error.os_error.strerror or type(error.os_error).__name__
            raise Fault("no_connection", f"{self._name} cannot be reached ({reason})", crowded=True) from None
        except (aiohttp.ClientError, OSError) as error:
            # Without the error's own words: they may hold pieces of the answer.
            said = f"{self._name}: the connection broke off before the answer was complete ({type(error).__name__})"
            raise Fault("broken_off", said) from None

    def _check_id(self, number: str, body: Any, response: aiohttp.ClientResponse) -> None:
        told = f"{body.get('id') if isinstance(body, dict) else ''} {response.headers.get('X-Request-Id', '')}"
        if any(found != number for found in self._id_pattern.findall(told)):
            raise Fault("foreign_answer", f"{self._name} sent the answer to another request")

    def _refusal(self, response: aiohttp.ClientResponse, raw: bytes, payload: Mapping[str, Any] | None) -> Fault:
        """The fault that a status other than 200 stands for."""
        status, reason = response.status, response.reason or ""
        told = f"{self._name} answered {status} {reason if reason.isascii() else ''}".rstrip()
        if 300 <= status < 400:
            target = _host_of(response.headers.get("Location", ""))
            said = (
                f"{told}, a redirect to {target}; it is not followed, as posts would go where they were not meant to; "
                "give the server's final address as --api_base"
            )
            return Fault(str(status), said, stops=True)
        code, words = _words(raw)
        words = self._harmless(words, payload)
        if status in (402, 429) and code in NO_CREDIT:
            return Fault(str(status), f"{told}: {REMEDIES[402]}", stops=True)
        if (status in (400, 403) and code in REFUSED) or (status == 400 and any(one in words for one in REFUSED_WORDS)):
            # It meets this prompt alone, a 403 too, which otherwise stands for a key that may not do this.
            words = "" if status == 403 else words
            return Fault("content_filter", f"{told} by its content filter{words}", code=code, again=False)
        if status in REMEDIES:
            # What a server says of a refused key may hold parts of the key.
            words = "" if status in (401, 403) else words
            return Fault(str(status), f"{told}{words}; {REMEDIES[status]}", stops=True)
        if status in PASSING or status >= 500:
            wait = asked_wait(response.headers)
            if wait is not None and wait > LONGEST_ASKED_WAIT:
                said = f"{told} and asks to wait {wait:.0f} s; what was answered is kept, the same command goes on then"
                return Fault(str(status), said, stops=True)
            crowded = status in CROWDED or status >= 500
            return Fault(str(status), told + words, code=code, crowded=crowded, wait=wait)
        return Fault(str(status), told + words, code=code, again=False)

    def _harmless(self, words: str, payload: Mapping[str, Any] | None) -> str:
        """A server's words, as far as they hold neither the key nor a piece of the request."""
        if not words:
            return ""
        if self._server.key:
            words = words.replace(self._server.key, "[key]")
        private, said = _private(payload or {}), _bare(words)
        if any(said[at : at + REPEATED] in private for at in range(len(said) - REPEATED + 1)):
            return " (its message repeats parts of the prompt and is left out)"
        return f": {words[:200]}"


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by ``Retry-After``, from 0; None where the header is missing or unreadable.

    A number of seconds or an HTTP date (RFC 9110, section 10.2.3); a date is counted from the answer's own ``Date``, so
    that the two machines' clocks need not agree.  ``retry-after-ms``, which OpenAI's servers send, goes before.
    """
    number = r"\s*(\d+(?:\.\d+)?)\s*"
    if found := re.fullmatch(number, headers.get("retry-after-ms", "")):
        return float(found[1]) / 1000
    told = headers.get("Retry-After", "")
    if found := re.fullmatch(number, told):
        return float(found[1])
    until = _date(told)
    if until is None:
        return None
    return max(0.0, (until - (_date(headers.get("Date", "")) or datetime.now(timezone.utc))).total_seconds())


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or "another path"
    except ValueError:
        return "an address that cannot be read"


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


async def _body(response: aiohttp.ClientResponse) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > MOST_BYTES:
            response.close()
            raise Fault("oversized", f"the answer is longer than {MOST_BYTES} bytes")
    return b"".join(parts)


def _parsed(raw: bytes) -> Any:
    try:
        # JSON is UTF-8 whatever the header says (RFC 8259, section 8.1); json.loads would guess.
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise Fault("not_utf8", "the answer is not whole UTF-8") from None
    except (ValueError, RecursionError):
        raise Fault("malformed", "the answer is not JSON") from None


def _words(raw: bytes) -> tuple[str, str]:
    """(code, message) of an error body in the wordings of OpenAI, vLLM, llama.cpp and FastAPI; "" where there is none.

    Where the cause lies one level deeper (Azure, OpenRouter), the code is OpenAI's for the same.
    """
    try:
        body = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        return "", ""
    if not isinstance(body, dict):
        return "", ""
    error = body.get("error", body)
    if isinstance(error, str):
        return "", _line(error)
    if not isinstance(error, dict):
        return "", ""
    told = error.get("message") or error.get("detail") or ""
    if isinstance(told, list):
        # FastAPI: one entry a field, with the field's place and what is wrong with it.
        entries = [entry for entry in told if isinstance(entry, dict)]
        places = [entry["loc"] if isinstance(entry.get("loc"), list) else [] for entry in entries]
        told = "; ".join(
            f"{'.'.join(map(str, place))}: {entry.get('msg')}" for place, entry in zip(places, entries, strict=True)
        )
    code = "content_policy_violation" if _is_flagged(error) else str(error.get("code") or "")
    return code, _line(told) if isinstance(told, str) else ""


def _is_flagged(error: Mapping[str, Any]) -> bool:
    """Whether an error body says beneath its code that a content filter acted."""
    azure, openrouter = error.get("innererror"), error.get("metadata")
    return (isinstance(azure, dict) and azure.get("code") == "ResponsibleAIPolicyViolation") or (
        isinstance(openrouter, dict) and "flagged_input" in openrouter
    )


def _line(text: str) -> str:
    """`text` in one line without control characters."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def _bare(text: str) -> str:
    """Letters and digits alone, lower-case: what stays of a text however it is quoted."""
    return "".join(filter(str.isalnum, text)).casefold()


def _private(payload: Mapping[str, Any]) -> str:
    """A request's texts, bare, in each of the ways in which a message may quote them: as they are, or escaped."""
    texts = [payload.get("prompt"), *(turn["content"] for turn in payload.get("messages", ()))]
    quoted = [way(text) for text in texts if text for way in (str, repr, ascii, json.dumps)]
    return "\0".join(map(_bare, quoted))


def _request_class() -> type[aiohttp.ClientRequest]:
    import aiohttp

    class OnCleanConnection(aiohttp.ClientRequest):
        """A request that is not sent on a connection on which something lies that nobody asked for."""

        async def send(self, conn: Any) -> aiohttp.ClientResponse:
            if conn.protocol.should_close:
                raise aiohttp.ClientConnectionError("bytes that nobody asked for")
            return await super().send(conn)

    return OnCleanConnection


def _loopback_resolver() -> aiohttp.abc.AbstractResolver:
    import ipaddress

    import aiohttp

    class LoopbackResolver(aiohttp.ThreadedResolver):
        """A name that was this machine's when it was checked must still be when a connection is made."""

        async def resolve(self, *arguments: Any, **options: Any) -> Any:
            found = await super().resolve(*arguments, **options)
            if not all(ipaddress.ip_address(one["host"].partition("%")[0]).is_loopback for one in found):
                raise Fault("moved", "the name of the server does not stand for this machine any more", stops=True)
            return found

    return LoopbackResolver()
