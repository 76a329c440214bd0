"""Values that a server is paid for, kept as they come, so that none is asked for twice.

A metric's scores of a dataset are written when all its rows have a value (`imhi.scoring`).  Until then each value
stands in a journal beside them, ``scores/METRIC.DATASET.SIGNATURE.jsonl``: digests of what was asked, and numbers; no
text.  Once the scores are written the journal is removed: they say all that it said, and more.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

from imhi.errors import UserError
from imhi.metrics.base import Metric, digest_of

__all__ = ["KeepsValues", "KeptValue", "Unscored", "ValueJournal", "values_kept"]


class KeptValue(NamedTuple):
    """-log P of a scored text, natural logarithm; its number of tokens; whether a text was cut to fit the model."""

    nats: float
    tokens: int
    cut: bool


class Unscored(UserError):
    """Rows that got no value, by number; all others have one, in the journal where there is one."""


class KeepsValues:
    """A metric that can keep values as they come.

    Attributes
    ----------
    pays : whether its values cost so much that they are kept.
    journal : where they are kept, as `values_kept` sets it; None: nowhere.
    """

    pays: bool = False
    journal: Path | None = None


@contextmanager
def values_kept(metric: Metric, folder: Path, name: str) -> Iterator[None]:
    """For the length of a with-block, in which scores are computed and written, give `metric` a journal in `folder`.

    It is removed at the end, and stays where the block ends with an error.  It is of one signature, so that no other
    scoring removes it.
    """
    if not isinstance(metric, KeepsValues) or not metric.pays:
        yield
        return
    path = folder / f"{name}.{digest_of(str(metric.signature))[7:15]}.jsonl"
    metric.journal = path
    try:
        yield
    finally:
        metric.journal = None
    path.unlink(missing_ok=True)


class ValueJournal:
    """Values by the digest of what was asked; to be used as a context manager, `add` from several threads.

    A value is handed to the operating system when it comes: a killed process loses none.

    Parameters
    ----------
    path : a file of one JSON object a line, made where there is none; None: nothing is kept.

    Attributes
    ----------
    values : what was there already.

    Raises
    ------
    UserError
        A line that is no value (a half-written last one is cut off: its value never came to be used); another process
        at work on the file.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self.values: dict[str, KeptValue] = {}
        self._handle: BinaryIO | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> ValueJournal:
        if self.path is not None:
            self._handle = self.path.open("a+b")
            try:
                self._hold()
                self._read(self._handle)
            except BaseException:
                self._handle.close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            os.fsync(self._handle.fileno())
            self._handle.close()

    def add(self, asked: str, value: KeptValue) -> None:
        if self._handle is None:
            return
        line = json.dumps({"asked": asked, **value._asdict()}).encode() + b"\n"
        with self._lock:
            self._handle.write(line)
            self._handle.flush()

    def _hold(self) -> None:
        """Keep other processes away until the file is closed: both would pay for the same."""
        assert self._handle is not None
        try:
            import fcntl
        except ImportError:
            # Windows has no flock; two processes on one folder are the user's own doing there.
            return
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self.path}: another process is asking for these values; wait for it", code=1) from None

    def _read(self, handle: BinaryIO) -> None:
        handle.seek(0)
        whole = 0
        for number, line in enumerate(handle, 1):
            if not line.endswith(b"\n"):
                handle.truncate(whole)
                return
            whole += len(line)
            try:
                found = json.loads(line)
                value = KeptValue(float(found["nats"]), int(found["tokens"]), bool(found["cut"]))
                self.values[str(found["asked"])] = value
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{self.path}, line {number}: not a kept value; remove that line and score again"
                ) from None
