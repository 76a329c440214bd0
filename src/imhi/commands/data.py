"""``imhi data``: bring the published IMHI files and audit a folder of them."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from imhi.data import DataRoot, resolve_data_root, write_text_atomically
from imhi.errors import UserError
from imhi.talk import say, table

if TYPE_CHECKING:
    from imhi.audit import Audit, FileAudit, Overlap
    from imhi.fetch import Fetched

DESCRIPTION = "Bring the published IMHI data (`fetch`) and audit a folder of it (`check`)."

SHOWN = 20
"""Lines of one kind that a report prints; the JSON file has them all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="{fetch,check}")

    fetch = actions.add_parser("fetch", help="bring the published snapshot, every file verified")
    fetch.add_argument("--to", required=True, type=Path, metavar="DIR", help="data root to fill; a second call resumes")
    fetch.add_argument(
        "--from",
        dest="source",
        metavar="CHECKOUT|ARCHIVE|URL",
        help="folder, .tar.gz/.zip or http(s) address of one; default: the project's public GitHub archive",
    )
    fetch.add_argument("--force", action="store_true", help="replace files in DIR whose content differs")

    check = actions.add_parser("check", help="audit rows, columns, golds, duplicates, mojibake, shared posts")
    check.add_argument("dir", nargs="?", type=Path, metavar="DIR", help="default: $IMHI_DATA, else the sample rows")
    check.add_argument(
        "--repair",
        action="store_true",
        help="repair mojibake in place; the published files are kept in DIR/.originals",
    )
    check.add_argument("--json", type=Path, metavar="FILE", help="also write the whole audit as JSON")


def run(args: argparse.Namespace) -> int:
    return _fetch(args) if args.action == "fetch" else _check(args)


# --- fetch ----------------------------------------------------------------------------------------------------------


def _fetch(args: argparse.Namespace) -> int:
    from imhi.fetch import COMMIT, LICENCE, REPOSITORY, fetch

    if args.source == "":
        raise UserError("--from is empty; give a folder, an archive or an address, or leave the flag out")
    say(f"the IMHI snapshot of {REPOSITORY}, commit {COMMIT} ({LICENCE} licence)")
    done = fetch(args.to, args.source, force=args.force)
    for line in _fetched_lines(done):
        say(line)
    return 0 if done.complete else 1


def _fetched_lines(done: Fetched) -> list[str]:
    from imhi.benchmark import DATASETS
    from imhi.fetch import published_files

    verified = len(done.placed) + len(done.already)
    total = len(published_files())
    lines = [f"{done.to}: {verified} of {total} files in place and verified ({len(done.placed)} new)"]
    if done.repaired:
        lines.append(f"{len(done.repaired)} files are as `imhi data check --repair` left them, their originals kept")
    lines += _listed("not the published file, so not put in place", [f"{p}: {why}" for p, why in done.failed.items()])
    lines += _listed("in place with other content and left alone (--force replaces them)", done.differing)
    lines += _listed(f"not in {done.source}", done.missing)
    for dataset in DATASETS.values():
        if dataset.released_test_rows is None:
            lines.append(f"missing upstream: {dataset.name} ({dataset.published_test_rows} rows) was never released")
        elif dataset.released_test_rows != dataset.published_test_rows:
            lines.append(
                f"missing upstream: {dataset.published_test_rows - dataset.released_test_rows} of the "
                f"{dataset.published_test_rows} {dataset.name} rows were never released"
            )
    if not done.complete:
        return [*lines, "incomplete: give another source with --from; what is in place stays"]
    folder = shlex.quote(str(done.to.resolve()))
    return [*lines, f"next: export IMHI_DATA={folder}", f"      imhi data check {folder}"]


def _listed(what: str, items: list[str], *, shown: int | None = None) -> list[str]:
    """A heading with a count and the items below it; nothing for no items."""
    if not items:
        return []
    rest = [f"  ... and {len(items) - shown:,} more"] if shown is not None and len(items) > shown else []
    return [f"{len(items):,} {what}:", *(f"  {item}" for item in items[:shown]), *rest]


# --- check ----------------------------------------------------------------------------------------------------------


def _check(args: argparse.Namespace) -> int:
    from imhi.audit import audit_data, repair_data

    root = _data_root(args.dir)
    if args.repair:
        changed = repair_data(root)
        for path, rows in changed.items():
            say(f"repaired {rows:,} rows of {path}")
        kept = f"; the originals are in {root.path / '.originals'}" if changed else ""
        say(f"repaired {sum(changed.values()):,} rows in {len(changed)} files{kept}")
    audit = audit_data(root)
    sys.stdout.write(render(audit) + "\n")
    if args.json is not None:
        try:
            write_text_atomically(args.json, json.dumps(asdict(audit), ensure_ascii=False, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"--json {args.json}: cannot be written ({error.strerror})") from None
    return 1 if audit.errors else 0


def _data_root(given: Path | None) -> DataRoot:
    if given is None:
        return resolve_data_root(None)
    if given.is_dir() and not any((given / top).is_dir() for top in ("test_data", "human_evaluation", "train_data")):
        raise UserError(f"{given}: has none of test_data/, human_evaluation/, train_data/; give the folder above them")
    if not given.is_dir():
        raise UserError(f"{given}: no such folder; `imhi data fetch --to {given}` brings the published data")
    return DataRoot(given, "given")


KINDS = {
    "test": "test files",
    "expert": "expert test files",
    "train": "training files",
    "annotation": "annotations",
    "example": "example responses",
}


def render(audit: Audit) -> str:
    """The audit as text for a terminal."""
    lines = [f"data root: {audit.root}"]
    if audit.is_samples:
        lines.append("made-up sample rows, not the benchmark: their sizes and contents are not the published ones")
    for kind, heading in KINDS.items():
        for form in dict.fromkeys(file.form for file in audit.files if file.kind == kind):
            files = [file for file in audit.files if (file.kind, file.form) == (kind, form)]
            lines += ["", heading + (f", {form} form" if form else ""), _file_table(kind, files)]
            lines += [f"  {file.name}: {', '.join(_facts(file))}" for file in files if _facts(file)]
    lines += [*_overlap_lines(audit.overlaps), ""]
    lines += _listed("stray files (ignored)", audit.stray, shown=SHOWN)
    if not audit.is_samples:
        lines += _listed("published files not here", audit.absent)
    lines.append(f"missing upstream: {', '.join(audit.unreleased)} was never released")
    mojibake = sum(file.mojibake_rows for file in audit.files)
    if mojibake:
        lines.append(f"{mojibake:,} rows hold mojibake (UTF-8 read as Mac Roman); --repair mends them in place")
    lines += _listed("errors", audit.errors, shown=SHOWN) or ["no errors"]
    return "\n".join(lines)


def _file_table(kind: str, files: list[FileAudit]) -> str:
    sized = ["released", "published"] if kind == "test" else ["released"]
    counted = [] if kind == "example" else ["posts", "same row", "same query", "mojibake", "unmatched"]
    rows = []
    for file in files:
        sizes = [file.released_rows, file.published_rows] if kind == "test" else [file.manifest_rows]
        counts = [file.posts, file.duplicate_rows, file.duplicate_queries, file.mojibake_rows, len(file.unmatched)]
        cells = [f"{size:,}" if size is not None else "-" for size in sizes]
        cells += [f"{count:,}" for count in counts[: len(counted)]]
        rows.append([file.name, f"{file.rows:,}", *cells, file.status])
    return table(["file", "rows", *sized, *counted, "file is"], rows)


def _facts(file: FileAudit) -> list[str]:
    """What the table has no column for: label counts, odd writing, warnings."""
    labels = [f"{label} {count:,}" for label, count in file.label_counts.items() if count]
    golds = [f"gold texts with mojibake {file.mojibake_golds}"] if file.mojibake_golds else []
    return [*labels, *golds, *file.quirks, *file.warnings]


RELATIONS = {
    "train-test": "posts of training files that stand in test sets",
    "test-test": "posts that stand in two test sets",
    "expert-test": "posts of expert sets that stand in test sets",
}


def _overlap_lines(overlaps: list[Overlap]) -> list[str]:
    """A table for each relation; pairs that are alike in both forms stand once."""
    lines = []
    for relation, heading in RELATIONS.items():
        forms: dict[tuple[str, ...], list[str]] = {}
        for overlap in overlaps:
            if overlap.relation == relation:
                counts = (overlap.posts, len(overlap.left_rows), len(overlap.right_rows))
                cells = (f"{overlap.left_name} – {overlap.right_name}", *(f"{count:,}" for count in counts))
                forms.setdefault(cells, []).append(overlap.form)
        if forms:
            rows = [[*cells, " and ".join(found)] for cells, found in forms.items()]
            lines += ["", heading, table(["A – B", "posts", "rows of A", "rows of B", "form"], rows)]
    return lines or ["", "no post stands in two files"]
