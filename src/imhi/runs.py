"""A run folder: what ran (``manifest.json``), every response as it came (``responses.jsonl``), the CSV exports.

``responses.jsonl`` is append-only and the truth; the CSVs are written from it.  A group of responses is one
``write`` followed by ``fsync``, so a killed process loses at most the group in flight; a torn last line is cut
off when the run is resumed.  A folder belongs to one configuration; a process holds a lock while it writes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from imhi.data import Row, write_table, write_text_atomically
from imhi.engines import Completion
from imhi.errors import UserError
from imhi.provenance import environment, now

__all__ = ["Run", "read_manifest"]

MANIFEST = "manifest.json"
JOURNAL = "responses.jsonl"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a run folder, None where there is none; UserError where it is not readable."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); --overwrite starts the run anew") from None
    if not isinstance(manifest, dict) or not {"configuration", "sessions"} <= manifest.keys():
        raise UserError(f"{path}: not the manifest of a run; choose another folder, or --overwrite starts anew")
    return manifest


class Run:
    """One run folder, opened for writing; use it as a context manager.

    Parameters
    ----------
    folder : created with its parents.
    configuration : everything that decides the responses; a folder with another one is refused.
    overwrite : discard what the folder holds of an earlier run, as soon as `begin_session` is called: a model that
        does not load costs nothing.

    Raises
    ------
    UserError
        Another configuration (naming what differs), a damaged journal, another process at work, response files
        that are not of a run.
    """

    def __init__(self, folder: Path, configuration: dict[str, Any], *, overwrite: bool = False):
        self.folder = folder
        self.configuration = json.loads(json.dumps(configuration))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(folder)
        except FileExistsError:
            raise UserError(f"{folder}: is a file; a run needs a folder (--model_output_path)") from None
        except OSError as error:
            raise UserError(
                f"--model_output_path: {folder} cannot be written ({error.strerror}); choose another folder"
            ) from None
        self._overwrite = overwrite
        earlier = None if overwrite else read_manifest(folder)
        if earlier is not None:
            self._refuse_difference(earlier["configuration"])
        elif not overwrite and (found := _strangers(folder)):
            raise UserError(
                f"{folder}: has {', '.join(found)} but no {MANIFEST}; --overwrite replaces them, or choose another folder"
            )
        self.manifest: dict[str, Any] = earlier or {
            "configuration": self.configuration,
            "started": now(),
            "sessions": [],
        }
        self.completions = {} if overwrite else self._read_journal()
        # Opened with the first append: a journal never exists without the manifest that `begin_session` writes.
        self._journal: TextIO | None = None

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._journal is not None:
            self._journal.close()
        self._lock.close()

    @property
    def done(self) -> frozenset[str]:
        """Ids of rows that have a response; failed rows are not done and are tried again."""
        return frozenset(id for id, completion in self.completions.items() if completion.error is None)

    @property
    def failed(self) -> list[Completion]:
        return [completion for completion in self.completions.values() if completion.error is not None]

    def begin_session(self, facts: dict[str, Any]) -> None:
        """Record that this process works on the run: environment, device, batch plan, rows found done."""
        if self._overwrite:
            self._discard()
            self._overwrite = False
        self.manifest["sessions"].append(
            {**environment(), "started": now(), "ended": None, "rows_found_done": len(self.done), **facts}
        )
        self.write_manifest()

    def append(self, completions: Sequence[Completion]) -> None:
        """Journal a group of responses durably."""
        if self._journal is None:
            self._journal = (self.folder / JOURNAL).open("a", encoding="utf-8", newline="")
        self._journal.write(
            "".join(json.dumps(asdict(completion), ensure_ascii=False) + "\n" for completion in completions)
        )
        self._journal.flush()
        os.fsync(self._journal.fileno())
        self.completions.update((completion.id, completion) for completion in completions)

    def finish(self, rows: Sequence[Row], facts: dict[str, Any]) -> list[Path]:
        """Write ``DATASET.csv`` for every dataset and close the session in the manifest; returns the CSV paths."""
        by_dataset: dict[str, list[tuple[str, str]]] = {}
        for row in rows:
            by_dataset.setdefault(row.dataset, []).append((row.gold, self.completions[row.id].text))
        paths = []
        for name, pairs in by_dataset.items():
            path = self.folder / f"{name}.csv"
            write_table(path, ("goldens", "generated_text"), pairs)
            paths.append(path)
        self.end_session(rows, facts)
        return paths

    def end_session(self, rows: Sequence[Row], facts: dict[str, Any]) -> None:
        """Close the open session in the manifest: end time, counts, facts known only now."""
        self.manifest["sessions"][-1].update(ended=now(), **facts)
        self.manifest["counts"] = self.counts(rows)
        complete = all(row.id in self.done for row in rows)
        self.manifest["ended"] = now() if complete else None
        self.write_manifest()

    def counts(self, rows: Iterable[Row]) -> dict[str, dict[str, int]]:
        """Per dataset: rows, done, failed, empty, ended by a limit, prompts cut, and tokens."""
        counts: dict[str, dict[str, int]] = {}
        keys = ("rows", "done", "failed", "empty", "length_limited", "prompt_truncated", "prompt_tokens", "new_tokens")
        for row in rows:
            count = counts.setdefault(row.dataset, dict.fromkeys(keys, 0))
            count["rows"] += 1
            completion = self.completions.get(row.id)
            if completion is None:
                continue
            failed = completion.error is not None
            count["failed"] += failed
            count["done"] += not failed
            count["empty"] += not failed and not completion.text
            count["length_limited"] += completion.finish_reason == "length"
            count["prompt_truncated"] += completion.prompt_truncated
            count["prompt_tokens"] += completion.prompt_tokens
            count["new_tokens"] += completion.new_tokens
        return counts

    def write_manifest(self) -> None:
        write_text_atomically(self.folder / MANIFEST, json.dumps(self.manifest, indent=1, ensure_ascii=False) + "\n")

    def _refuse_difference(self, earlier: dict[str, Any]) -> None:
        differing = _differences(earlier, self.configuration)
        if differing:
            shown = "; ".join(f"{key}: {before} there, {after} here" for key, before, after in differing[:4])
            more = f" (and {len(differing) - 4} more)" if len(differing) > 4 else ""
            raise UserError(
                f"{self.folder} holds a run with another configuration: {shown}{more}; "
                "choose another --model_output_path, or discard that run with --overwrite"
            )

    def _read_journal(self) -> dict[str, Completion]:
        """Responses by id, the last record of an id winning; a torn last line is cut off the file."""
        path = self.folder / JOURNAL
        if not path.exists():
            return {}
        raw = path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        completions: dict[str, Completion] = {}
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                completion = Completion(**json.loads(line))
            except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
                raise UserError(
                    f"{path}, line {number}: not a response record ({error}); remove that line to have its row generated again"
                ) from None
            completions[completion.id] = completion
        if len(whole) < len(raw):
            with path.open("r+b") as handle:
                handle.truncate(len(whole))
        return completions

    def _discard(self) -> None:
        """Remove what an earlier run, its labels and its scores left in the folder, and nothing else."""
        from imhi.benchmark import DATASETS

        names = [
            MANIFEST,
            JOURNAL,
            "correctness.json",
            "results.txt",
            "scores.json",
            *(f"{name}.csv" for name in DATASETS),
        ]
        names += [f"scores/{name}.csv" for name in DATASETS]
        for name in names:
            (self.folder / name).unlink(missing_ok=True)


def _strangers(folder: Path) -> list[str]:
    """Files that a run would write and that are there already, in a folder that holds no run."""
    from imhi.benchmark import DATASETS

    return [name for name in (JOURNAL, *(f"{name}.csv" for name in DATASETS)) if (folder / name).exists()]


def _differences(before: Any, after: Any, key: str = "") -> list[tuple[str, str, str]]:
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            difference
            for name in dict.fromkeys([*before, *after])
            for difference in _differences(before.get(name), after.get(name), f"{key}.{name}" if key else name)
        ]
    return [] if before == after else [(key, _short(before), _short(after))]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _lock(folder: Path) -> Any:
    """An exclusive lock on the folder, held until the returned file is closed (or the process dies)."""
    handle = (folder / ".lock").open("w")
    try:
        import fcntl
    except ImportError:
        # Windows has no flock; two processes on one folder are the user's own doing there.
        return handle
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise UserError(
            f"{folder}: another process is writing this run; wait for it or choose another folder"
        ) from None
    return handle
