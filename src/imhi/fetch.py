"""Bring the published IMHI snapshot into a data root, every file verified.

The package carries the snapshot's manifest (``published_snapshot.csv``: git blob SHA-1, bytes, rows), so a file is
the published one or it is not put in place, wherever it came from: a folder, an archive or a URL.  Nothing leaves
the machine except the GET of that URL.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import lzma
import os
import re
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import IO

from imhi import __version__
from imhi.data import read_table, samples_root, write_text_atomically
from imhi.errors import UserError
from imhi.talk import progress_bar, say

__all__ = [
    "COMMIT",
    "LICENCE",
    "ORIGINALS",
    "REPOSITORY",
    "SOURCE_URL",
    "Fetched",
    "PublishedFile",
    "blob_sha1",
    "fetch",
    "is_published",
    "published_files",
]

REPOSITORY = "https://github.com/SteveKGYang/MentalLLaMA"
COMMIT = "42cd29d"
SOURCE_URL = f"{REPOSITORY}/archive/{COMMIT}.tar.gz"
LICENCE = "MIT"

ORIGINALS = ".originals"
"""Folder of a data root that keeps published files as they were before ``imhi data check --repair``."""

DOWNLOADS = ".fetch"
TOPS = ("test_data", "train_data", "human_evaluation")
CHUNK = 1 << 18
TIMEOUT_S = 60

_READ_ERRORS = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, gzip.BadGzipFile, EOFError, OSError)


@dataclass(frozen=True)
class PublishedFile:
    """One line of the manifest; `size` (bytes) and `rows` are None where nobody measured them."""

    path: str
    blob_sha1: str
    size: int | None
    rows: int | None


@cache
def published_files() -> dict[str, PublishedFile]:
    """Every CSV of the published snapshot by its path in the repository."""
    table = read_table(Path(__file__).with_name("published_snapshot.csv"))
    listed = (
        PublishedFile(path, sha1, int(size) if size else None, int(rows) if rows else None)
        for path, sha1, size, rows in table.records
    )
    return {published.path: published for published in listed}


def _blob_digest(size: int) -> hashlib._Hash:
    """A SHA-1 begun as git begins a blob of `size` bytes."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def blob_sha1(path: Path) -> str:
    """What ``git hash-object`` prints for a file."""
    with path.open("rb") as handle:
        digest = _blob_digest(path.stat().st_size)
        while chunk := handle.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def is_published(path: Path, published: PublishedFile) -> bool:
    """Whether the file at `path` is the published one, byte for byte."""
    if published.size not in (None, path.stat().st_size):
        return False
    return blob_sha1(path) == published.blob_sha1


@dataclass
class Fetched:
    """What a fetch did, by path in the repository.

    `repaired` files were changed by ``imhi data check --repair`` and their published originals are kept; `differing`
    files were in place with other content and were left alone; `failed` maps a path to why it was not put in place.
    """

    to: Path
    source: str
    placed: list[str] = field(default_factory=list)
    already: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return not (self.differing or self.failed or self.missing)


def fetch(to: Path, source: str | None = None, *, force: bool = False) -> Fetched:
    """Put the published files into `to`; what is there and verified is skipped, so a second call resumes.

    Parameters
    ----------
    source : a folder (checkout), an archive or an http(s) URL of one; None means the project's public archive.
    force : replace files in place whose content differs; without it they are left alone.
    """
    if to.resolve() == samples_root().resolve():
        raise UserError(f"--to {to}: holds the toolkit's own sample rows; give another folder")
    if to.exists() and not to.is_dir():
        raise UserError(f"--to {to}: is a file; give a folder")
    source = source or SOURCE_URL
    is_url = source.startswith(("http://", "https://"))
    if not is_url and re.match(r"\w+://", source):
        raise UserError(f"--from {source}: only http:// and https:// addresses, folders and archives can be read")
    if not is_url and not Path(source).expanduser().exists():
        raise UserError(f"--from {source}: no such file or folder")

    done = Fetched(to, source)
    wanted = _sort_what_is_there(done, force)
    if not wanted:
        return done
    with _disk(to):
        to.mkdir(parents=True, exist_ok=True)
    if is_url:
        archive = _download(source, to / DOWNLOADS)
        try:
            _place_all(done, _archive_offers(archive, source, wanted), wanted, folder=False)
        except UserError:
            archive.unlink(missing_ok=True)  # a damaged download must not be taken up again
            raise
        _discard_downloads(to / DOWNLOADS)
    elif (local := Path(source).expanduser()).is_dir():
        _place_all(done, _folder_offers(local, wanted), wanted, folder=True)
    else:
        _place_all(done, _archive_offers(local, source, wanted), wanted, folder=False)
    return done


def _sort_what_is_there(done: Fetched, force: bool) -> dict[str, PublishedFile]:
    """Fill `already`, `repaired` and `differing`; return what is still to be brought."""
    wanted = {}
    for path, published in published_files().items():
        target, original = done.to / path, done.to / ORIGINALS / path
        with _disk(target):
            if not target.exists():
                wanted[path] = published
            elif target.is_file() and is_published(target, published):
                done.already.append(path)
            elif force:
                wanted[path] = published
            elif original.is_file() and is_published(original, published):
                done.repaired.append(path)
            else:
                done.differing.append(path)
    return wanted


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Turn a disk's refusal (no permission, no space) into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror or error}", code=1) from None


# What a source offers: a path of the manifest, the size of the content, and how to open it.
Offer = tuple[str, int, Callable[[], IO[bytes]]]


def _place_all(done: Fetched, offers: Iterator[Offer], wanted: dict[str, PublishedFile], *, folder: bool) -> None:
    offered = set()
    with progress_bar(len(wanted), "placing", unit="file") as bar:
        for path, size, opener in offers:
            if path in done.placed:
                continue
            offered.add(path)
            reason = _place(opener, size, done.to / path, wanted[path], done.source)
            if reason is None:
                done.placed.append(path)
                done.failed.pop(path, None)
                bar.update()
            else:
                hint = "; did git convert its line ends (core.autocrlf)? Then give the archive" if folder else ""
                done.failed[path] = reason + hint
    done.missing.extend(path for path in wanted if path not in offered)


def _place(
    opener: Callable[[], IO[bytes]], size: int, target: Path, published: PublishedFile, source: str
) -> str | None:
    """Write one offered file and move it into place if it is the published one; else say why it is not."""
    if published.size not in (None, size):
        return f"{size:,} bytes, the published file has {published.size:,}"
    part = target.with_name(target.name + ".part")
    digest = _blob_digest(size)
    with _disk(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as handle:
                for chunk in _chunks(opener, f"{source}: {published.path}"):
                    digest.update(chunk)
                    handle.write(chunk)
                handle.flush()
                os.fsync(handle.fileno())
            if digest.hexdigest() != published.blob_sha1:
                return "its content is not the published one"
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    return None


def _chunks(opener: Callable[[], IO[bytes]], what: str) -> Iterator[bytes]:
    try:
        with opener() as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
    except _READ_ERRORS as error:
        raise UserError(f"{what}: cannot be read ({error}); is the file damaged or cut short?", code=1) from None


def _folder_offers(folder: Path, wanted: dict[str, PublishedFile]) -> Iterator[Offer]:
    """Files of a checkout, or of the one checkout inside `folder`."""
    roots = [folder] if _has_layout(folder) else [child for child in sorted(folder.iterdir()) if _has_layout(child)]
    if not roots:
        raise UserError(
            f"--from {folder}: holds none of {', '.join(f'{top}/' for top in TOPS)}; give the checkout itself"
        )
    if len(roots) > 1:
        raise UserError(f"--from {folder}: holds {len(roots)} checkouts ({', '.join(p.name for p in roots)}); name one")
    for path in wanted:
        file = roots[0] / path
        if file.is_file():
            yield path, file.stat().st_size, partial(_open, file)


def _open(file: Path) -> IO[bytes]:
    return file.open("rb")


def _has_layout(folder: Path) -> bool:
    return any((folder / top).is_dir() for top in TOPS)


def _archive_offers(archive: Path, source: str, wanted: dict[str, PublishedFile]) -> Iterator[Offer]:
    """Members of a tar or zip file whose names, with or without one folder on top, are paths of the manifest."""
    try:
        is_tar, is_zip = tarfile.is_tarfile(archive), zipfile.is_zipfile(archive)
        if is_tar:
            yield from _tar_offers(archive, wanted)
        elif is_zip:
            yield from _zip_offers(archive, wanted)
    except _READ_ERRORS as error:
        raise UserError(f"{source}: cannot be read ({error}); is the file damaged or cut short?", code=1) from None
    if not is_tar and not is_zip:
        with archive.open("rb") as handle:
            head = handle.read(40)
        raise UserError(f"{source}: neither a tar nor a zip archive (it begins with {head!r})")


def _tar_offers(archive: Path, wanted: dict[str, PublishedFile]) -> Iterator[Offer]:
    with tarfile.open(archive) as tar:
        for member in tar:
            path = _manifest_path(member.name, wanted)
            if path is not None and member.isreg():
                yield path, member.size, partial(_opened, tar, member)


def _opened(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    stream = tar.extractfile(member)
    assert stream is not None  # extractfile gives None only for members that are not regular files
    return stream


def _zip_offers(archive: Path, wanted: dict[str, PublishedFile]) -> Iterator[Offer]:
    with zipfile.ZipFile(archive) as members:
        for member in members.infolist():
            path = _manifest_path(member.filename, wanted)
            if path is None:
                continue
            if member.flag_bits & 0x1:
                raise UserError(f"{archive}: its members are encrypted; unpack it and give the folder")
            yield path, member.file_size, partial(members.open, member)


def _manifest_path(name: str, wanted: dict[str, PublishedFile]) -> str | None:
    """The wanted path that a member's name stands for; names that climb out of the archive stand for none."""
    parts = PurePosixPath(name).parts
    if ".." in parts or name.startswith("/"):
        return None
    return next((path for path in ("/".join(parts), "/".join(parts[1:])) if path in wanted), None)


def _download(url: str, folder: Path) -> Path:
    """Stream `url` to ``folder/archive``; a part that an earlier call left is continued where the server allows it."""
    archive, part, note = folder / "archive", folder / "archive.part", folder / "archive.json"
    with _disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        known = _read_note(note)
        if known.get("url") != url:
            archive.unlink(missing_ok=True)
            part.unlink(missing_ok=True)
        if archive.is_file():
            say(f"{url}: already downloaded")
            return archive
        start = part.stat().st_size if part.is_file() else 0
    say(f"fetching {url}" + (f" (going on from {start:,} bytes)" if start else ""))
    response = _open_url(url, start, known)
    with response:
        if response.url != url:
            say(f"redirected to {response.url}")
        if response.status != 206:
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None and length.isdigit() else None
        validator = _validator(response.headers)
        with _disk(part):
            write_text_atomically(note, json.dumps({"url": url, "validator": validator, "total": total}))
            with part.open("ab" if start else "wb") as handle:
                got = _stream(response, handle, url, start, total)
    if total is not None and got < total:
        raise UserError(
            f"{url}: the connection ended after {got:,} of {total:,} bytes; the same command goes on from there", code=1
        )
    with _disk(archive):
        part.replace(archive)
    return archive


def _stream(response: http.client.HTTPResponse, handle: IO[bytes], url: str, start: int, total: int | None) -> int:
    """Copy the body to `handle`; return how many bytes the file then has."""
    got = start
    with progress_bar(total or 0, "downloading", unit="B", initial=start) as bar:
        bar.unit_scale, bar.total = True, total
        while True:
            try:
                chunk = response.read(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                handle.flush()
                raise UserError(
                    f"{url}: the download stopped after {got:,} bytes ({_reason(error)}); "
                    "the same command goes on from there",
                    code=1,
                ) from None
            if not chunk:
                return got
            handle.write(chunk)
            got += len(chunk)
            bar.update(len(chunk))


def _open_url(url: str, start: int, known: dict[str, str | int | None]) -> http.client.HTTPResponse:
    """Open `url`, from byte `start` on where the server still has the same file, else from its beginning."""
    headers = {"User-Agent": f"imhi/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if known.get("validator"):
            headers["If-Range"] = str(known["validator"])
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if start and error.code == 416:  # the part is longer than the file: begin again
            return _open_url(url, 0, {})
        raise UserError(f"{url}: the server answers {error.code} {error.reason}", code=1) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(
            f"{url}: cannot be reached ({_reason(error)}); a checkout or an archive brought by other means "
            "can be given with --from",
            code=1,
        ) from None
    if response.status == 206 and not _continues(response.headers, start, known):
        response.close()
        return _open_url(url, 0, {})
    return response


def _continues(headers: http.client.HTTPMessage, start: int, known: dict[str, str | int | None]) -> bool:
    """Whether a 206 answer holds the rest of the file of which we have `start` bytes."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
    if match is None or int(match[1]) != start:
        return False
    if known.get("validator") is None:
        return known.get("total") is not None and match[2] == str(known["total"])
    return known["validator"] == _validator(headers)


def _validator(headers: http.client.HTTPMessage) -> str | None:
    """What names this version of the file: a strong ETag, else the time it was changed."""
    etag = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _reason(error: BaseException) -> str:
    inner = getattr(error, "reason", error)
    return str(getattr(inner, "strerror", None) or inner or type(error).__name__)


def _read_note(note: Path) -> dict[str, str | int | None]:
    """What the last download wrote about itself; {} if there is none or a crash cut it short."""
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _discard_downloads(folder: Path) -> None:
    with _disk(folder):
        for name in ("archive", "archive.part", "archive.json"):
            (folder / name).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()
