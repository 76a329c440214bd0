"""Log-probabilities of texts from an OpenAI-compatible server: ``/v1/completions`` with echo and logprobs.

Servers answer such requests wrongly, too: `imhi.metrics.self_test`.

What is sent stands in no message, and no part of a server's answer does either: servers repeat texts in errors.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from imhi.metrics.echoed import Echo, Unusable, choice_of
from imhi.remote import Address, is_loopback
from imhi.talk import say

__all__ = ["CompletionServer", "GaveUp", "TooLong", "Unanswered", "Unscorable"]

# Seconds: for one request, for the first pause after a failure (doubled each time), and for such a pause at most.
TIMEOUT, FIRST_PAUSE, LONGEST_PAUSE = 120.0, 0.5, 60.0
# As in `imhi.engines.http_client`: a longer wait than this is not sat through, and one from here on is told, in seconds.
LONGEST_ASKED_WAIT, TOLD_WAIT = 3600.0, 10.0
ATTEMPTS = 6
# An answer is some hundred bytes a token; a server gone wrong must not fill the memory.
MOST_BYTES = 64 << 20
PASSING = frozenset([408, 409, 425, 429, 500, 502, 503, 504])
# Refusals of what was asked, not of who asks.
OF_THE_TEXT = frozenset([400, 422])
# How servers word that a prompt does not fit, in the body of a 400 or 413.
LENGTH_WORDS = ("context length", "context_length", "context window", "max_model_len", "too long", "too many tokens")


class Unanswered(Exception):
    """Why a text has no value, in words that hold nothing of the texts; of this class itself: no text will get one."""


class GaveUp(Unanswered):
    """A failure that might have passed did not, as often as the text was asked about: its fault, or the server's."""


class Unscorable(Unanswered):
    """The server answers, but has no value for this text; it may have one for others."""


class TooLong(Unscorable):
    """The server says that the text does not fit its model."""


class _Passing(Exception):
    """A failure that may be gone the next time; `wait`: the seconds that the server asks for."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


class CompletionServer:
    """A client of one server, for use from several threads.

    Parameters
    ----------
    address : where it is, as `imhi.remote.check_address` gives it; no redirect is followed, no proxy used.
    model : the model's name there.
    key : sent as a bearer token, if given.
    attempts : requests for one text at most, the failed ones included.
    first_pause, timeout : seconds.
    """

    def __init__(
        self,
        address: Address,
        model: str,
        key: str | None = None,
        *,
        attempts: int = ATTEMPTS,
        first_pause: float = FIRST_PAUSE,
        timeout: float = TIMEOUT,
    ):
        self.address, self.model, self._key = address, model, key
        self.attempts, self.first_pause, self.timeout = attempts, first_pause, timeout
        # What an echo asks to be made anew: nothing, or one token of a server that refuses to make nothing.
        self.new_tokens = 0
        self.retries = 0
        self._stopped = threading.Event()
        self._not_before = 0.0
        self._local = threading.local()
        self._open: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """Host and port, for messages."""
        return f"{self.address.host}:{self.address.port}"

    def nats(self, text: str, boundary: int) -> tuple[float, int]:
        """-log P of `text` from character `boundary` on, given what stands before, and its number of tokens.

        Natural logarithm; a token across the boundary counts.  Raises TooLong, Unscorable, GaveUp, Unanswered.
        """
        try:
            return self.echo(text).nats(boundary)
        except Unusable as error:
            raise Unscorable(str(error)) from None
        except _Refused as error:
            if error.status in OF_THE_TEXT:
                raise Unscorable(str(error)) from None
            raise

    def echo(self, text: str) -> Echo:
        """What the server says of `text`, with as few new tokens as it can be brought to make.

        Raises Unusable, Unanswered, TooLong.
        """
        if not self.new_tokens:
            try:
                answer = self.complete(text, max_tokens=0, echo=True)
                if not _goes_on(answer, text):
                    return Echo.of(answer, text)
                # Some take 0 for "no limit".
            except _Refused as error:
                if error.status not in OF_THE_TEXT:
                    raise
        echo = Echo.of(self.complete(text, max_tokens=1, echo=True), text, 1)
        self.new_tokens = 1
        return echo

    # --- one request --------------------------------------------------------------------------------------------------

    def complete(self, prompt: str, *, max_tokens: int, echo: bool) -> Any:
        """The server's answer, asked for again after failures that may pass.  Raises TooLong, GaveUp, Unanswered."""
        body = json.dumps(
            {
                "model": self.model,
                "prompt": prompt,
                "max_tokens": max_tokens,
                "temperature": 0,
                "logprobs": 1,
                "echo": echo,
            }
        ).encode()
        pause = 0.0
        for attempt in range(1, self.attempts + 1):
            self._wait(pause)
            try:
                return self._request(body)
            except _Passing as error:
                if error.wait > LONGEST_ASKED_WAIT:
                    raise Unanswered(f"{error}, and it asks to wait {error.wait:.0f} s") from None
                self._put_off(error.wait)
                if attempt == self.attempts:
                    raise GaveUp(f"{error}, {attempt} times") from None
                with self._lock:
                    self.retries += 1
                pause = min(LONGEST_PAUSE, self.first_pause * 2 ** (attempt - 1)) * random.uniform(0.5, 1)
        raise AssertionError("unreachable")

    def _put_off(self, seconds: float) -> None:
        """Let no thread send anything for so long: what one is told, the others would be told too."""
        with self._lock:
            tell = seconds >= TOLD_WAIT and self._not_before <= time.monotonic()
            self._not_before = max(self._not_before, time.monotonic() + seconds)
        if tell:
            say(f"{self.address.host} asks to wait {seconds:.0f} s; nothing is sent until then")

    def _wait(self, pause: float) -> None:
        """So many seconds, and until the server takes requests.  Raises Unanswered once nothing more is asked."""
        end = time.monotonic() + pause
        while (rest := max(end, self._not_before) - time.monotonic()) > 0:
            if self._stopped.wait(rest):
                raise Unanswered("not asked any more")

    def _request(self, body: bytes) -> Any:
        if self._stopped.is_set():
            raise Unanswered("not asked any more")
        connection = self._connection()
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "keep-alive"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        late = threading.Event()

        def end() -> None:
            late.set()
            _shut(connection)

        # A socket's own limit begins anew with every byte.
        alarm = threading.Timer(self.timeout, end)
        alarm.daemon = True
        alarm.start()
        try:
            if connection.sock is None:
                self._connect(connection)
            if late.is_set():
                raise TimeoutError
            connection.request("POST", f"{self.address.path}/completions", body, headers)
            response = connection.getresponse()
            payload = b"".join(self._chunks(response))
            # Cut off within headers, or in a body of no stated length, an answer looks whole.
            if late.is_set():
                raise TimeoutError
        except _Passing:
            connection.close()
            raise
        except TimeoutError:
            connection.close()
            raise _Passing(f"no answer within {self.timeout:.0f} s") from None
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            if late.is_set():
                raise _Passing(f"no answer within {self.timeout:.0f} s") from None
            raise _Passing(f"the connection failed ({type(error).__name__})") from None
        finally:
            alarm.cancel()
        if response.status != 200:
            raise self._failure(response.status, response.headers.get("Retry-After"), payload)
        try:
            return json.loads(payload)
        except ValueError:
            raise _Passing("an answer that is not JSON") from None

    def _chunks(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        """The body; TimeoutError where it takes too long as a whole, however steadily it drips."""
        end, size = time.monotonic() + self.timeout, 0
        while chunk := response.read1(1 << 16):
            yield chunk
            size += len(chunk)
            if size > MOST_BYTES:
                raise _Passing(f"an answer longer than {MOST_BYTES} bytes")
            if time.monotonic() > end:
                raise TimeoutError
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        # Read to its end, but a connection knows that only of a response that was closed.
        response.close()

    def _failure(self, status: int, retry_after: str | None, payload: bytes) -> Exception:
        known = status in HTTPStatus.__members__.values()
        words = f"HTTP {status}" + (f" ({HTTPStatus(status).phrase})" if known else "")
        if status in PASSING:
            return _Passing(words, _seconds(retry_after))
        said = payload[: 1 << 16].decode("utf-8", errors="replace").lower()
        if status == 413 or (status in OF_THE_TEXT and any(sign in said for sign in LENGTH_WORDS)):
            return TooLong(f"{words}: the text is longer than its model takes")
        hints = {
            401: ": --gpt_api_key_env names the environment variable with the key",
            403: ": is the key in the variable of --gpt_api_key_env allowed to?",
            404: f": is {self.model} the model's name there, and does --gpt_api_base end in /v1?",
        }
        if 300 <= status < 400:
            hints[status] = ": it points to another address, which is not followed; give that one"
        return _Refused(words + hints.get(status, ""), status)

    def _connection(self) -> http.client.HTTPConnection:
        """This thread's connection."""
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            kind = http.client.HTTPSConnection if self.address.scheme == "https" else http.client.HTTPConnection
            connection = kind(self.address.host, self.address.port, timeout=self.timeout)
            self._local.connection = connection
            with self._lock:
                self._open.append(connection)
        return connection

    def _connect(self, connection: http.client.HTTPConnection) -> None:
        """Connect; raises Unanswered where a name that was this machine's when it was checked leads elsewhere now."""
        connection.connect()
        if self.address.loopback and not is_loopback(connection.sock.getpeername()[0]):
            connection.close()
            raise Unanswered("its name does not stand for this machine any more")

    def stop(self) -> None:
        """Ask for nothing more; what is under way still comes in."""
        self._stopped.set()

    def drop(self) -> None:
        """Ask for nothing more, and end what is under way."""
        self.stop()
        with self._lock:
            for connection in self._open:
                _shut(connection)

    def close(self) -> None:
        """Close all connections, once no thread uses them any more; the next request opens new ones."""
        with self._lock:
            for connection in self._open:
                connection.close()
            self._open.clear()
        self._local = threading.local()
        self._stopped.clear()


def _shut(connection: http.client.HTTPConnection) -> None:
    # One that is closed already is what is wanted.
    with suppress(OSError, AttributeError):
        connection.sock.shutdown(socket.SHUT_RDWR)


class _Refused(Unanswered):
    """The server will not answer this request, however often it is asked."""

    def __init__(self, reason: str, status: int):
        super().__init__(reason)
        self.status = status


def _goes_on(answer: Any, sent: str) -> bool:
    """Whether an answer has text behind the text that was sent."""
    choice, _ = choice_of(answer)
    text = choice.get("text")
    return isinstance(text, str) and len(text) > len(sent) and text.startswith(sent)


def _seconds(retry_after: str | None) -> float:
    """Seconds that a ``Retry-After`` asks for: a number or a date; 0 without one, or with one that is neither."""
    if retry_after is None:
        return 0.0
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(retry_after)
        except ValueError:
            return 0.0
    return max(0.0, date.timestamp() - time.time())
