"""One process at a time on a folder: an advisory lock on a file in it, released when the process ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imhi.errors import UserError

__all__ = ["only_process"]


@contextmanager
def only_process(folder: Path, doing: str = "") -> Iterator[None]:
    """Hold the lock of `folder` (its ``.lock``) for the length of a with-block.

    With `doing` ("writing this run"), a folder that another process holds raises UserError at once; without it, the
    call waits its turn.
    """
    with (folder / ".lock").open("w") as handle:
        try:
            import fcntl
        except ImportError:
            # Windows has no flock; two processes on one folder are the user's own doing there.
            yield
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if doing else 0))
        except BlockingIOError:
            raise UserError(f"{folder}: another process is {doing}; wait for it or choose another folder") from None
        yield
