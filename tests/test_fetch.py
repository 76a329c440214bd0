"""Fetching: every source kind, resume, verification, refusals.  Servers are on loopback; nothing leaves the machine."""

from __future__ import annotations

import hashlib
import io
import socket
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from imhi import fetch as fetching
from imhi.commands import run_script
from imhi.data import read_table, samples_root
from imhi.errors import UserError
from imhi.fetch import PublishedFile, blob_sha1, fetch, published_files

CONTENTS = {
    "test_data/test_instruction/DR.csv": b"query,gpt-3.5-turbo\nfirst,one\n",
    "test_data/test_complete/DR.csv": b"query,gpt-3.5-turbo\r\nsecond,two\r\n",
    "train_data/instruction_data/DR/train.csv": bytes(range(256)) * 4000,
    "examples/label_data_examples/DR.csv": b"goldens,generated_text\na,b\n",
}
NO_SIZE = "test_data/test_complete/DR.csv"  # like swmh in the real manifest: known hash, unknown size
TOP = "MentalLLaMA-42cd29d0000000"


@pytest.fixture(autouse=True)
def manifest(monkeypatch: pytest.MonkeyPatch) -> dict[str, PublishedFile]:
    """A small published snapshot in place of the real one."""
    files = {}
    for path, content in CONTENTS.items():
        sha1 = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        files[path] = PublishedFile(path, sha1, None if path == NO_SIZE else len(content), 1)
    monkeypatch.setattr(fetching, "published_files", lambda: files)
    return files


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "data root"


def write_folder(folder: Path, contents: dict[str, bytes] = CONTENTS) -> Path:
    for path, content in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def tar_bytes(contents: dict[str, bytes] = CONTENTS, *, top: str = f"{TOP}/", mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for path, content in contents.items():
            member = tarfile.TarInfo(top + path)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def zip_bytes(contents: dict[str, bytes] = CONTENTS, *, top: str = f"{TOP}/") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as members:
        for path, content in contents.items():
            members.writestr(top + path, content)
    return buffer.getvalue()


def files_under(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- the manifest ---------------------------------------------------------------------------------------------------


def test_manifest_of_the_package() -> None:
    files = published_files()
    assert len(files) == 57
    assert all(len(bytes.fromhex(file.blob_sha1)) == 20 for file in files.values())
    assert files["test_data/test_instruction/loneliness.csv"].rows == 528
    assert files["test_data/test_instruction/swmh.csv"].size is None
    assert not any("CLP" in path for path in files)


def test_manifest_states_what_the_shared_one_states() -> None:
    given = Path(__file__).parents[2] / "shared/imhi/MANIFEST.csv"
    if not given.is_file():
        pytest.skip(f"no {given}")
    ours = read_table(Path(fetching.__file__).with_name("published_snapshot.csv"))
    assert [record[:4] for record in read_table(given).records] == ours.records


def test_blob_sha1_is_what_git_hash_object_prints(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"hello\n")
    assert blob_sha1(tmp_path / "f") == "ce013625030ba8dba906f756967f9e9ca394464a"


# --- sources --------------------------------------------------------------------------------------------------------

ARCHIVES = {
    "github.tar.gz": tar_bytes(),
    "github.zip": zip_bytes(),
    "no-top.tgz": tar_bytes(top=""),
    "dot.tar": tar_bytes(top="./", mode="w"),
    "no-top.zip": zip_bytes(top=""),
    "name-without-suffix": tar_bytes(mode="w:xz"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives(name: str, to: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(ARCHIVES[name])
    done = fetch(to, str(tmp_path / name))
    assert done.complete and sorted(done.placed) == sorted(CONTENTS)
    assert files_under(to) == dict(sorted(CONTENTS.items()))


@pytest.mark.parametrize("inside", ["", TOP])
def test_folders(inside: str, to: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "given" / inside)
    assert fetch(to, str(tmp_path / "given")).complete
    assert files_under(to) == dict(sorted(CONTENTS.items()))


def test_folder_without_or_with_two_checkouts(to: Path, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    with pytest.raises(UserError, match="holds none of test_data/"):
        fetch(to, str(tmp_path / "given"))
    write_folder(tmp_path / "given/one")
    write_folder(tmp_path / "given/two")
    with pytest.raises(UserError, match=r"holds 2 checkouts \(one, two\)"):
        fetch(to, str(tmp_path / "given"))


def test_members_that_climb_out_or_are_links_are_never_written(to: Path, tmp_path: Path) -> None:
    path = "test_data/test_instruction/DR.csv"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in (f"../{path}", f"/{path}", f"a/../{path}", "../../evil.csv", f"{TOP}/README.md"):
            member = tarfile.TarInfo(name)
            member.size = len(CONTENTS[path])
            tar.addfile(member, io.BytesIO(CONTENTS[path]))
        link = tarfile.TarInfo(f"{TOP}/{path}")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    (tmp_path / "evil.tar").write_bytes(buffer.getvalue())
    done = fetch(to, str(tmp_path / "evil.tar"))
    assert sorted(done.missing) == sorted(CONTENTS) and not done.placed
    assert set(files_under(tmp_path)) == {"evil.tar"}


# --- verification, resume, files in place ---------------------------------------------------------------------------


def test_what_fails_verification_is_never_put_in_place(to: Path, tmp_path: Path) -> None:
    longer, other = "test_data/test_instruction/DR.csv", "examples/label_data_examples/DR.csv"
    wrong = {**CONTENTS, longer: CONTENTS[longer] + b"x", other: b"G" + CONTENTS[other][1:], NO_SIZE: b"anything"}
    done = fetch(to, str(write_folder(tmp_path / "given", wrong)))
    assert set(done.failed) == {longer, other, NO_SIZE} and not done.complete
    assert "31 bytes, the published file has 30" in done.failed[longer]
    assert "not the published one" in done.failed[other] and "core.autocrlf" in done.failed[other]
    assert set(files_under(to)) == {"train_data/instruction_data/DR/train.csv"}  # and no .part


def test_a_second_call_brings_only_what_is_missing(to: Path, tmp_path: Path) -> None:
    first = dict(list(CONTENTS.items())[:2])
    done = fetch(to, str(write_folder(tmp_path / "part", first)))
    assert sorted(done.placed) == sorted(first) and len(done.missing) == 2 and not done.complete
    stamps = {path: (to / path).stat().st_mtime_ns for path in first}
    done = fetch(to, str(write_folder(tmp_path / "all")))
    assert sorted(done.already) == sorted(first) and len(done.placed) == 2 and done.complete
    assert stamps == {path: (to / path).stat().st_mtime_ns for path in first}


def test_nothing_is_requested_when_everything_is_in_place(to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(to)
    monkeypatch.setattr(fetching, "_open_url", lambda *_: pytest.fail("a request was made"))
    assert fetch(to).complete


def test_other_content_in_place_is_left_alone_without_force(to: Path, tmp_path: Path) -> None:
    path = "test_data/test_instruction/DR.csv"
    source = str(write_folder(tmp_path / "all"))
    write_folder(to, {path: b"my own rows"})
    done = fetch(to, source)
    assert done.differing == [path] and not done.complete and len(done.placed) == 3
    assert (to / path).read_bytes() == b"my own rows"
    assert fetch(to, source, force=True).complete
    assert (to / path).read_bytes() == CONTENTS[path]


def test_force_keeps_the_file_in_place_if_the_source_has_nothing_better(to: Path, tmp_path: Path) -> None:
    path = "test_data/test_instruction/DR.csv"
    write_folder(to, {path: b"my own rows"})
    fetch(to, str(write_folder(tmp_path / "bad", {path: b"worse"})), force=True)
    assert (to / path).read_bytes() == b"my own rows"


def test_files_repaired_here_are_kept(to: Path, tmp_path: Path) -> None:
    path = "test_data/test_instruction/DR.csv"
    write_folder(to, {path: b"repaired", f"{fetching.ORIGINALS}/{path}": CONTENTS[path]})
    done = fetch(to, str(write_folder(tmp_path / "all")))
    assert done.repaired == [path] and done.complete and (to / path).read_bytes() == b"repaired"


# --- refusals: one line each ----------------------------------------------------------------------------------------


def test_refusals(to: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="own sample rows"):
        fetch(samples_root(), str(tmp_path))
    with pytest.raises(UserError, match="is a file"):
        fetch(tmp_path / "file", str(tmp_path))
    with pytest.raises(UserError, match="no such file or folder"):
        fetch(to, str(tmp_path / "absent"))
    with pytest.raises(UserError, match="only http"):
        fetch(to, "ftp://example.org/x.tar.gz")
    with pytest.raises(UserError, match="neither a tar nor a zip archive"):
        fetch(to, str(tmp_path / "file"))
    assert not any("test_data" in name for name in files_under(tmp_path))


@pytest.mark.parametrize("data", [tar_bytes()[:-800], zip_bytes()[:60] + b"\xff" * 80 + zip_bytes()[140:]])
def test_damaged_archives(data: bytes, to: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged").write_bytes(data)
    with pytest.raises(UserError, match="damaged or cut short") as caught:
        fetch(to, str(tmp_path / "damaged"))
    assert "\n" not in str(caught.value) and caught.value.code == 1
    assert not [name for name in files_under(to) if name.endswith(".part")]


def test_a_file_where_a_folder_must_be(to: Path, tmp_path: Path) -> None:
    to.mkdir()
    (to / "test_data").write_text("in the way")
    with pytest.raises(UserError, match="test_data"):
        fetch(to, str(write_folder(tmp_path / "all")))


# --- URL ------------------------------------------------------------------------------------------------------------


class Server:
    """A loopback server of one body; knobs for what real servers do."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.etag: str | None = '"v1"'
        self.ranges = True
        self.cut_after: int | None = None
        self.chunked = False
        self.requests: list[dict[str, str]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append({"path": self.path, **{k.lower(): v for k, v in self.headers.items()}})
                if self.path == "/moved.tar.gz":
                    self.send_response(302)
                    self.send_header("Location", "/data.tar.gz")
                    self.end_headers()
                elif self.path == "/data.tar.gz":
                    server.answer(self)
                else:
                    self.send_error(404)

            def log_message(self, *_: object) -> None:
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_port}/data.tar.gz"
        self.thread = threading.Thread(target=self.httpd.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        start, condition = 0, handler.headers.get("If-Range")
        wanted = handler.headers.get("Range")
        if wanted and self.ranges and condition in (None, self.etag):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(self.body):
            handler.send_error(416)
            return
        body = self.body[start:]
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        if self.etag:
            handler.send_header("ETag", self.etag)
        if not self.chunked:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: self.cut_after])

    def stop(self) -> None:
        self.httpd.shutdown()
        self.httpd.server_close()
        self.thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server(tar_bytes(mode="w"))
    yield running
    running.stop()


def test_url(server: Server, to: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch(to, server.url).complete
    assert files_under(to) == dict(sorted(CONTENTS.items()))  # nothing left of .fetch either
    assert f"fetching {server.url}" in capsys.readouterr().err
    assert len(server.requests) == 1
    assert set(server.requests[0]) <= {"path", "accept-encoding", "host", "user-agent", "connection"}


def test_url_redirected_and_of_unknown_length(server: Server, to: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.chunked = True
    assert fetch(to, server.url.replace("data.tar", "moved.tar")).complete
    assert f"redirected to {server.url}" in capsys.readouterr().err


def cut(server: Server, to: Path, after: int = 5000) -> None:
    """A first download that ends early."""
    server.cut_after = after
    with pytest.raises(UserError, match=f"ended after {after:,} of .* goes on from there") as caught:
        fetch(to, server.url)
    assert caught.value.code == 1
    assert (to / ".fetch/archive.part").stat().st_size == after
    server.cut_after = None
    server.requests.clear()


def test_url_goes_on_where_it_was_cut(server: Server, to: Path) -> None:
    cut(server, to)
    assert fetch(to, server.url).complete
    (request,) = server.requests
    assert request["range"] == "bytes=5000-" and request["if-range"] == '"v1"'
    assert files_under(to) == dict(sorted(CONTENTS.items()))


def test_url_goes_on_without_an_etag_if_the_length_is_the_same(server: Server, to: Path) -> None:
    server.etag = None
    cut(server, to)
    assert fetch(to, server.url).complete
    assert [request.get("range") for request in server.requests] == ["bytes=5000-"]
    assert "if-range" not in server.requests[0]


def test_url_begins_again_when_the_file_changed(server: Server, to: Path) -> None:
    cut(server, to)
    server.etag, server.body = '"v2"', tar_bytes(top="", mode="w:gz")
    assert fetch(to, server.url).complete


def test_url_begins_again_when_the_length_changed(server: Server, to: Path) -> None:
    server.etag = None
    cut(server, to)
    server.body = tar_bytes(dict(reversed(CONTENTS.items())), mode="w") + b"\0" * 10240
    assert fetch(to, server.url).complete
    assert [request.get("range") for request in server.requests] == ["bytes=5000-", None]


def test_url_begins_again_when_the_server_knows_no_ranges(server: Server, to: Path) -> None:
    server.ranges = False
    cut(server, to)
    assert fetch(to, server.url).complete
    assert len(server.requests) == 1


def test_url_begins_again_when_the_part_is_too_long(server: Server, to: Path) -> None:
    server.etag = None
    cut(server, to)
    with (to / ".fetch/archive.part").open("ab") as handle:
        handle.write(b"x" * 2_000_000)
    assert fetch(to, server.url).complete


def test_url_another_address_takes_up_nothing(server: Server, to: Path) -> None:
    cut(server, to)
    assert fetch(to, server.url.replace("data.tar", "moved.tar")).complete
    assert all("range" not in request for request in server.requests)


def test_url_a_finished_download_is_not_fetched_again(
    server: Server, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "_place_all", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch(to, server.url)
    assert fetch(to, server.url).complete
    assert len(server.requests) == 1


def test_url_a_page_instead_of_an_archive_is_thrown_away(server: Server, to: Path) -> None:
    server.body = b"<!DOCTYPE html><title>Sign in</title>"
    with pytest.raises(UserError, match=r"neither a tar nor a zip archive .*DOCTYPE"):
        fetch(to, server.url)
    server.body = tar_bytes()
    assert fetch(to, server.url).complete


def test_url_errors_are_one_line(server: Server, to: Path) -> None:
    with pytest.raises(UserError, match=r"absent: the server answers 404 Not Found"):
        fetch(to, server.url.replace("data.tar.gz", "absent"))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match=r"cannot be reached \(Connection refused\).*--from"):
            fetch(to, f"http://127.0.0.1:{unused.getsockname()[1]}/x.tar.gz")
    with pytest.raises(UserError, match="cannot be reached"):
        fetch(to, "http://127.0.0.1:notaport/x.tar.gz")


# --- the command ----------------------------------------------------------------------------------------------------


def test_command_when_complete(to: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_folder(tmp_path / "all")
    assert run_script("data", ["fetch", "--to", str(to), "--from", str(source)]) == 0
    said = capsys.readouterr().err
    assert "4 of 4 files in place and verified (4 new)" in said
    assert "missing upstream: CLP (299 rows) was never released" in said
    assert "missing upstream: 3 of the 531 loneliness rows" in said
    assert f"export IMHI_DATA='{to}'" in said and f"imhi data check '{to}'" in said


def test_command_when_incomplete(to: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = list(CONTENTS)
    source = write_folder(tmp_path / "part", {paths[0]: CONTENTS[paths[0]], paths[1]: b"wrong"})
    write_folder(to, {paths[2]: b"mine"})
    assert run_script("data", ["fetch", "--to", str(to), "--from", str(source)]) == 1
    said = capsys.readouterr().err
    assert f"{paths[1]}: its content is not the published one" in said
    assert f"left alone (--force replaces them):\n  {paths[2]}" in said
    assert f"1 not in {source}:\n  {paths[3]}" in said
    assert "export IMHI_DATA" not in said


def test_real_partial_checkout(real_data: Path, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "published_files", published_files)
    here = [path for path in published_files() if (real_data / path).is_file()]
    done = fetch(to, str(real_data))
    assert sorted(done.placed) == sorted(here) and not done.failed
    assert len(done.missing) == 57 - len(here)
