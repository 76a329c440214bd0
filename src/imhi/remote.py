"""Servers that posts would be sent to: which address is this machine's own, which needs leave, and the key for it.

Posts are sensitive.  An address is judged by what its name resolves to, before anything is sent; a client must not
follow redirects and must not take a proxy from the environment, or the judgement holds for another address than the
one that gets the posts.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from imhi.errors import UserError
from imhi.talk import say

__all__ = ["Address", "check_address", "is_loopback", "read_key"]

PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Address:
    """A server's checked address.

    Attributes
    ----------
    url : scheme, host, port and path, without a slash at the end; holds no credentials.
    path : the path alone, "" or "/v1"; what is asked for is appended to it.
    loopback : whether every address that `host` resolves to is this machine's own.
    """

    url: str
    scheme: str
    host: str
    port: int
    path: str
    loopback: bool


def check_address(
    url: str,
    allow_remote: bool,
    what: str,
    *,
    key: bool = False,
    flag: str = "--api_base",
    leave: str = "--allow_remote",
) -> Address:
    """The parts of a server's URL, once it is clear that `what` may go there.

    Parameters
    ----------
    url : ``http://HOST[:PORT][/PATH]`` or https.
    allow_remote : whether the user gave leave by `leave` to send posts off this machine; then one line on stderr says
        what goes where.
    what : what will be sent, in words, for the line the user reads ("every prompt, with the post in it").
    key : whether a key goes along; without encryption the line says that it can be read on the way, too.
    flag : the flag that holds the URL.

    Raises
    ------
    UserError
        Not such a URL; credentials or a query in it (neither is repeated); a host that cannot be resolved; a host
        other than this machine without `allow_remote`.
    """
    if not url or any(character.isspace() or not character.isprintable() for character in url):
        raise UserError(f"{flag} must be a URL such as http://127.0.0.1:8000/v1, without spaces")
    try:
        parts = urlsplit(url)
        port = parts.port
        host = parts.hostname
    except ValueError:
        raise UserError(f"{flag} is not a URL; expected one such as http://127.0.0.1:8000/v1") from None
    if parts.username is not None or parts.password is not None:
        raise UserError(f"{flag} holds credentials (the part before the @); a key goes into an environment variable")
    if parts.query or parts.fragment:
        raise UserError(
            f"{flag} holds a ? or # part, where a key would be seen; give scheme, host, port and path alone"
        )
    if parts.scheme not in PORTS or not host:
        raise UserError(f"{flag}: {url} is not a URL; expected one such as http://127.0.0.1:8000/v1")
    port = PORTS[parts.scheme] if port is None else port
    loopback = _is_loopback(host, port, flag)
    if not loopback:
        line = f"{what} will be sent to {host}"
        if parts.scheme == "http":
            line += " without encryption (http)" + (", and so will the key" if key else "")
        if not allow_remote:
            raise UserError(f"{flag}: {host} is not this machine, and {line}; if that is meant, add {leave}")
        say(f"{leave}: {line}")
    path = parts.path.rstrip("/")
    return Address(f"{parts.scheme}://{parts.netloc}{path}", parts.scheme, host, port, path, loopback)


def _is_loopback(host: str, port: int, flag: str) -> bool:
    """Whether a name or number stands for this machine under every address it resolves to."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a host name"
        raise UserError(f"{flag}: the host {host} cannot be resolved ({reason})") from None
    return bool(found) and all(is_loopback(str(entry[4][0])) for entry in found)


def is_loopback(number: str) -> bool:
    """Whether an IP address, of either version, is this machine's own."""
    address = ipaddress.ip_address(number.partition("%")[0])
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def read_key(variable: str | None, *, flag: str = "--api_key_env") -> str | None:
    """The API key that the environment variable of this name holds; None where no variable is named.

    Neither the variable's name nor its value is repeated in an error: a key given by mistake in place of the name
    would stand in the terminal's log.  Raises UserError where it is unset, empty or unfit for a header.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"{flag}: the environment variable that it names is not set or empty")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"{flag}: the environment variable holds characters that no key has")
    return key
