"""A run folder: what ran (``manifest.json``), every response as it came (``responses.jsonl``), the CSV exports.

``responses.jsonl`` is append-only and the truth; the CSVs are written from it.  A group of responses is one
``write`` followed by ``fsync``, so a killed process loses at most the group in flight; a torn last line is cut
off when the run is resumed.  A folder belongs to one configuration; a process holds a lock while it writes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from imhi.benchmark import DATASETS
from imhi.data import Row, write_table, write_text_atomically
from imhi.engines import Completion
from imhi.engines.usage import recounted, total_usage
from imhi.errors import UserError
from imhi.locks import only_process
from imhi.provenance import environment, now

__all__ = ["JOURNAL", "Run", "find_run", "open_run", "read_completions", "read_manifest", "run_folder"]

MANIFEST = "manifest.json"
JOURNAL = "responses.jsonl"
COMPLETION_FIELDS = tuple(field.name for field in fields(Completion))


def output_home() -> Path:
    """The ``model_output`` folder that names of runs stand for."""
    checkout = Path(__file__).parents[2]
    return (checkout if (checkout / "pyproject.toml").exists() else Path.cwd()) / "model_output"


def run_folder(name: str, *, flag: str = "--model_output_path") -> Path:
    """Where a run of this name lies: a plain name is a folder under ``model_output/``, anything with a slash is a path.

    ``model_output/`` is the repository's own, as published, when the toolkit runs from a checkout, else the one in
    the working directory.
    """
    if not name.strip():
        raise UserError(f"{flag} is empty; give the name of a run, or a folder")
    if "/" in name or name in {".", "..", "~"}:
        return Path(name).expanduser()
    return output_home() / name


def find_run(name: str, *, flag: str) -> Path:
    """The existing folder that `name` means.

    A path, or for a plain name the run that `run_folder` names; failing that a run under ``model_output/`` of the
    working directory or the one above it (the published scripts ran in ``src/``), or a folder of that name.  Raises
    UserError, with what there is, where none exists.
    """
    folder = run_folder(name, flag=flag)
    candidates = [folder]
    if folder != Path(name).expanduser():
        candidates += [Path("model_output", name), Path("..", "model_output", name), Path(name)]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    if any(candidate.exists() for candidate in candidates):
        raise UserError(f"{flag}: {name} is a file; expected a folder of DATASET.csv files")
    homes = [candidate.parent for candidate in candidates[:3] if candidate.parent.is_dir()]
    siblings = sorted({child.name for home in homes for child in home.iterdir() if child.is_dir()})
    close = get_close_matches(folder.name, siblings, n=1)
    hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(siblings[:8]) or 'none'}"
    raise UserError(f"{flag}: no such folder {folder}{hint}")


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


@contextmanager
def open_run(folder: Path, configuration: dict[str, Any], *, overwrite: bool = False) -> Iterator[Run]:
    """Open a run folder for writing, for the length of a with-block.

    Parameters
    ----------
    folder : created with its parents.
    configuration : everything that decides the responses; a folder with another one is refused.
    overwrite : discard what the folder holds of an earlier run, as soon as `Run.begin_session` is called: a model
        that does not load costs nothing.

    Raises
    ------
    UserError
        Another configuration (naming what differs), a damaged journal, another process at work, response files
        that are not of a run.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()
    except FileExistsError:
        raise UserError(f"{folder}: is a file; a run needs a folder (--model_output_path)") from None
    except OSError as error:
        raise UserError(
            f"--model_output_path: {folder} cannot be written ({error.strerror}); choose another folder"
        ) from None
    with only_process(folder, "writing this run"):
        run = Run(folder, configuration, overwrite=overwrite)
        try:
            yield run
        finally:
            run.close()


class Run:
    """One run folder while it is written; made by `open_run`, which holds its lock."""

    def __init__(self, folder: Path, configuration: dict[str, Any], *, overwrite: bool):
        self.folder = folder
        self.configuration = json.loads(json.dumps(configuration))
        self._overwrite = overwrite
        found = [] if (folder / MANIFEST).exists() else _strangers(folder)
        # A journal can only be ours; CSV files alone may be anybody's.
        if found and not (overwrite and JOURNAL in found):
            remedy = "choose another folder" + (", or discard them with --overwrite" if JOURNAL in found else "")
            raise UserError(f"{folder}: has {', '.join(found)} but no {MANIFEST} of a run; {remedy}")
        earlier = None if overwrite else read_manifest(folder)
        if earlier is not None:
            self._refuse_difference(earlier["configuration"])
        self.manifest: dict[str, Any] = earlier or {
            "configuration": self.configuration,
            "started": now(),
            "sessions": [],
        }
        self.completions = {} if overwrite else self._read_journal()
        # Opened with the first append: a journal never exists without the manifest that `begin_session` writes.
        self._journal: TextIO | None = None

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()

    @property
    def done(self) -> frozenset[str]:
        """Ids of rows that have a response; failed rows are not done and are tried again."""
        return frozenset(id for id, completion in self.completions.items() if completion.error is None)

    @property
    def failed(self) -> list[Completion]:
        return [completion for completion in self.completions.values() if completion.error is not None]

    @property
    def refused(self) -> frozenset[str]:
        """Ids of failed rows that a server's content filter refused: asked again they would be paid for again."""
        return frozenset(completion.id for completion in self.failed if completion.finish_reason == "refused")

    def begin_session(self, facts: dict[str, Any]) -> None:
        """Record that this process works on the run: environment, device, batch plan, rows and records found."""
        if self._overwrite:
            self._discard()
            self._overwrite = False
        records = sum(1 for _ in self._journal_lines())
        self._recount_killed_sessions(records)
        found = {"rows_found_done": len(self.done), "records_found": records}
        self.manifest["sessions"].append({**environment(), "started": now(), "ended": None, **found, **facts})
        self.write_manifest()

    def append(self, completions: Sequence[Completion]) -> None:
        """Journal a group of responses durably."""
        if self._journal is None:
            self._journal = (self.folder / JOURNAL).open("a", encoding="utf-8", newline="")
        self._journal.write("".join(_record(completion) + "\n" for completion in completions))
        self._journal.flush()
        os.fsync(self._journal.fileno())
        for completion in completions:
            # A row tried again moves to the end: `failed` lists failures in the order in which they happened.
            self.completions.pop(completion.id, None)
            self.completions[completion.id] = completion

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
        """Close the open session in the manifest: end time, counts, usage of all sessions, facts known only now."""
        self.manifest["sessions"][-1].update(ended=now(), **facts)
        self.manifest["counts"] = self.counts(rows)
        if (usage := total_usage(self.manifest["sessions"])) is not None:
            self.manifest["usage"] = usage
        settled = self.done | self.refused
        complete = all(row.id in settled for row in rows)
        self.manifest["ended"] = (self.manifest.get("ended") or now()) if complete else None
        self.write_manifest()

    def counts(self, rows: Iterable[Row]) -> dict[str, dict[str, int]]:
        """Per dataset: rows, done, failed, of these refused, empty, ended by a limit, prompts cut, and tokens."""
        counts: dict[str, dict[str, int]] = {}
        keys = ["rows", "done", "failed", "refused", "empty", "length_limited", "prompt_truncated"]
        keys += ["prompt_tokens", "new_tokens"]
        for row in rows:
            count = counts.setdefault(row.dataset, dict.fromkeys(keys, 0))
            count["rows"] += 1
            completion = self.completions.get(row.id)
            if completion is None:
                continue
            failed = completion.error is not None
            count["failed"] += failed
            count["refused"] += completion.finish_reason == "refused"
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
        """`read_completions`; a torn last line is cut off the file, so that the next record begins a line."""
        completions = read_completions(self.folder)
        path = self.folder / JOURNAL
        if path.exists():
            raw = path.read_bytes()
            whole = raw.rfind(b"\n") + 1
            if whole < len(raw):
                with path.open("r+b") as handle:
                    handle.truncate(whole)
        return completions

    def _journal_lines(self) -> Iterator[bytes]:
        path = self.folder / JOURNAL
        if path.exists():
            with path.open("rb") as lines:
                yield from lines

    def _recount_killed_sessions(self, records: int) -> None:
        """Usage from the journal for sessions that never came to write down their own."""
        sessions = self.manifest["sessions"]
        ends = [session.get("records_found") for session in sessions[1:]] + [records]
        # Without an earlier session there is an end and no begin.
        for session, end in zip(sessions, ends, strict=False):
            usage, begin = session.get("engine", {}).get("usage"), session.get("records_found")
            known = None not in (usage, begin, end) and "from_journal" not in usage
            if session["ended"] is None and known:
                lines = islice(self._journal_lines(), begin, end)
                session["engine"]["usage"] = recounted(usage, map(json.loads, lines))

    def _discard(self) -> None:
        """Remove what an earlier run, its labels and its scores left in the folder, and nothing else."""
        names = [
            MANIFEST,
            JOURNAL,
            "correctness.json",
            "results.txt",
            "scores.json",
            "pipeline.json",
            *(f"report.{kind}" for kind in ("html", "md", "tex", "json")),
            *(f"{name}.csv" for name in DATASETS),
        ]
        names += [f"scores/{name}.csv" for name in DATASETS]
        names += [str(path.relative_to(self.folder)) for path in self.folder.glob("scores/*.jsonl")]
        for name in names:
            (self.folder / name).unlink(missing_ok=True)


def read_completions(folder: Path) -> dict[str, Completion]:
    """The responses of a run folder by id, the last record of an id winning; {} without a journal.

    A torn last line is left aside: its row has no response yet.  Raises UserError at a line that is no record.
    """
    path = folder / JOURNAL
    if not path.exists():
        return {}
    raw = path.read_bytes()
    completions: dict[str, Completion] = {}
    for number, line in enumerate(raw[: raw.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            record = json.loads(line)
            completion = Completion(**{name: record[name] for name in COMPLETION_FIELDS})
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError) as error:
            raise UserError(
                f"{path}, line {number}: not a response record ({error}); remove that line to have its row generated again"
            ) from None
        completions[completion.id] = completion
    return completions


def _record(completion: Completion) -> str:
    """A line of the journal: the completion, with its dataset and row spelled out for who reads it with pandas."""
    dataset, _, row = completion.id.rpartition("/")
    return json.dumps({"dataset": dataset, "row": int(row), **asdict(completion)}, ensure_ascii=False)


def _strangers(folder: Path) -> list[str]:
    """Files named as a run's that are there already, in a folder without a manifest."""
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
