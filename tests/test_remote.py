"""Which addresses posts may be sent to, and what is said of it; keys from the environment alone."""

from __future__ import annotations

import socket

import pytest

from imhi.errors import UserError
from imhi.remote import check_address, read_key

WHAT = "every prompt, with the post in it,"


def resolving(monkeypatch: pytest.MonkeyPatch, **hosts: list[str]) -> None:
    """Names as a name server of this test's gives them; no other is asked."""

    def getaddrinfo(host, port, **_):
        if host not in hosts:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in hosts[host]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:8000/v1", "http://127.1.2.3", "https://[::1]:8000/v1/", "http://[::ffff:127.0.0.1]:8000"],
)
def test_this_machine_needs_no_leave_and_no_word(url, capsys):
    assert check_address(url, False, WHAT).loopback
    assert capsys.readouterr().err == ""


def test_the_parts_of_an_address():
    found = check_address("http://127.0.0.1:8000/base/v1/", False, WHAT)
    assert (found.url, found.scheme, found.host) == ("http://127.0.0.1:8000/base/v1", "http", "127.0.0.1")
    assert (found.port, found.path) == (8000, "/base/v1")
    assert check_address("https://127.0.0.1", False, WHAT).port == 443


def test_a_name_counts_for_what_it_resolves_to(monkeypatch):
    resolving(monkeypatch, inside=["127.0.0.1"], both=["127.0.0.1", "192.0.2.1"], localhost=["192.0.2.9"])
    assert check_address("http://inside/v1", False, WHAT).loopback
    for name in ("both", "localhost"):
        with pytest.raises(UserError, match=f"{name} is not this machine"):
            check_address(f"http://{name}/v1", False, WHAT)
    with pytest.raises(UserError, match=r"--flag: the host outside cannot be resolved \(Name or service not known\)"):
        check_address("http://outside/v1", True, WHAT, flag="--flag")


@pytest.mark.parametrize("url", ["http://0.0.0.0:8000/v1", "http://192.0.2.1:8000/v1", "http://10.0.0.1/v1"])
def test_another_machine_needs_leave_and_is_named(url, capsys):
    with pytest.raises(UserError, match=r"is not this machine, and every prompt, with the post in it, will be sent to"):
        check_address(url, False, WHAT)
    assert not check_address(url, True, WHAT).loopback
    told = capsys.readouterr().err
    assert told.startswith("--allow_remote: every prompt, with the post in it, will be sent to ")
    assert told.endswith(" without encryption (http)\n")


def test_a_key_that_goes_unencrypted_is_told_too(capsys):
    url = "http://192.0.2.1:8000/v1"
    told = "will be sent to 192.0.2.1 without encryption (http), and so will the key"
    with pytest.raises(UserError) as raised:
        check_address(url, False, WHAT, key=True)
    assert f"{told}; if that is meant" in str(raised.value)
    check_address(url, True, WHAT, key=True)
    assert capsys.readouterr().err == f"--allow_remote: {WHAT} {told}\n"
    check_address("https://192.0.2.1/v1", True, WHAT, key=True)
    assert "key" not in capsys.readouterr().err


def test_an_encrypted_address_is_not_called_otherwise(capsys):
    check_address("https://192.0.2.1/v1", True, WHAT)
    assert capsys.readouterr().err == f"--allow_remote: {WHAT} will be sent to 192.0.2.1\n"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "must be a URL"),
        ("http://a b/v1", "must be a URL"),
        ("http://127.0.0.1/v1\r\nX: y", "must be a URL"),
        ("127.0.0.1:8000/v1", "is not a URL"),
        ("ftp://127.0.0.1/v1", "is not a URL"),
        ("http:///v1", "is not a URL"),
        ("http://127.0.0.1:99999/v1", "is not a URL"),
        ("http://[::1/v1", "is not a URL"),
        ("http://me:sk-secret@127.0.0.1/v1", "holds credentials"),
        ("http://sk-secret@127.0.0.1/v1", "holds credentials"),
        ("http://127.0.0.1/v1?key=sk-secret", "where a key would be seen"),
        ("http://127.0.0.1/v1#sk-secret", "where a key would be seen"),
    ],
)
def test_what_is_no_address_is_one_line_without_secrets(url, message):
    with pytest.raises(UserError, match=message) as raised:
        check_address(url, True, WHAT)
    assert "sk-secret" not in str(raised.value) and "\n" not in str(raised.value)


def test_a_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("IMHI_TEST_KEY", " sk-secret\n")
    assert read_key("IMHI_TEST_KEY") == "sk-secret"
    assert read_key(None) is None


@pytest.mark.parametrize("value", ["", " ", "sk secret", "sk\nsecret", "sk-sécret"])
def test_an_unfit_key_is_one_line_that_does_not_repeat_it(monkeypatch, value):
    monkeypatch.setenv("IMHI_TEST_KEY", value)
    with pytest.raises(UserError, match="--api_key_env: the environment variable") as raised:
        read_key("IMHI_TEST_KEY")
    assert "secret" not in str(raised.value) and "cret" not in str(raised.value)


def test_a_key_in_place_of_the_variable_s_name_is_not_repeated(monkeypatch):
    with pytest.raises(UserError, match="--flag: the environment variable that it names is not set") as raised:
        read_key("sk-secret", flag="--flag")
    assert "secret" not in str(raised.value)
