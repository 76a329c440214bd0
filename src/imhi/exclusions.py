"""Test rows that a reader may want left out of the figures: posts that stand in training files, and posts asked twice.

Both are facts of the released files (``imhi data check`` lists them); leaving the rows out changes what a figure is of,
so it is asked for by name and said beside the figures.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from imhi.audit import TRAIN_FOLDERS, leaked_rows, overlaps, shared_rows
from imhi.benchmark import DATASETS
from imhi.errors import UserError
from imhi.results import RunResults
from imhi.talk import say

__all__ = ["REASONS", "Exclusions", "find_exclusions", "leave_out"]

# Reason → what it means, in words for people.
REASONS = {
    "leaked": "the post stands in a training file",
    "shared": "the post stands in another test set, before this one in the table of datasets",
    "repeated": "the same prompt stands earlier in the same test set",
}


@dataclass(frozen=True)
class Exclusions:
    """Rows of one suite to leave out.

    Attributes
    ----------
    rows : reason, a key of `REASONS` → dataset → 0-based positions in the test file; a row stands under its first reason.
    """

    rows: Mapping[str, Mapping[str, Collection[int]]]

    def of(self, results: RunResults) -> dict[str, dict[str, int]]:
        """Reason → dataset → how many of a run's rows it concerns; a reason that was looked for stands here with {}."""
        counts: dict[str, dict[str, int]] = {reason: {} for reason in self.rows}
        for reason, by_dataset in self.rows.items():
            for name, one in results.datasets.items():
                concerned = len(frozenset(by_dataset.get(name, ())) & frozenset(one.index))
                if concerned:
                    counts[reason][name] = concerned
        return counts

    def applied(self, results: RunResults) -> RunResults:
        """The run without these rows; a dataset without another row is left out, UserError where all are."""
        gone: dict[str, set[int]] = {}
        for by_dataset in self.rows.values():
            for name, positions in by_dataset.items():
                gone.setdefault(name, set()).update(positions)
        return results.without(gone)


def find_exclusions(results: RunResults, *, drop_leaked: bool = False, dedup_posts: bool = False) -> Exclusions:
    """The rows of a run's suite to leave out.

    Parameters
    ----------
    drop_leaked : rows whose post stands in a training file of the data root.
    dedup_posts : rows whose post stands in a test set before their own (the table's order), and rows whose prompt stands
        earlier in their own set.  Several questions about one post, as MultiWD asks, stay.

    Raises
    ------
    UserError
        Where the test files that the rows come from are not at hand, or no training file is.
    """
    if not (drop_leaked or dedup_posts):
        return Exclusions({})
    flag = "--drop_leaked" if drop_leaked else "--dedup_posts"
    root, suite = results.data_root, results.suite
    unknown = [name for name, one in results.datasets.items() if one.queries is None]
    if root is None or suite is None or unknown:
        which = f" of {', '.join(unknown)}" if unknown else ""
        raise UserError(
            f"{flag}: the posts{which} behind the answers in {results.folder} are not known; "
            "give the data root that they were generated from with --data_root"
        )
    if drop_leaked and not any(any((root.path / folder).rglob("*.csv")) for folder in TRAIN_FOLDERS.values()):
        raise UserError(f"--drop_leaked: {root.path} has no training files, so that nothing can be said to be leaked")
    asked = [*(["leaked"] if drop_leaked else []), *(["shared", "repeated"] if dedup_posts else [])]
    found: dict[str, dict[str, set[int]]] = {reason: {} for reason in asked}
    seen: dict[str, set[int]] = {}

    def take(reason: str, name: str, positions: Collection[int]) -> None:
        fresh = set(positions) - seen.setdefault(name, set())
        if fresh:
            found[reason][name] = fresh
            seen[name] |= fresh

    between = overlaps(root)
    if drop_leaked:
        for name, rows in leaked_rows(between, suite).items():
            take("leaked", name, rows.keys())
    if dedup_posts:
        place = {name: at for at, name in enumerate(DATASETS)}
        for name, shared in shared_rows(between, suite).items():
            take("shared", name, [at for at, sets in shared.items() if any(place[one] < place[name] for one in sets)])
        for name, one in results.datasets.items():
            queries = one.queries or []
            first: dict[str, int] = {}
            repeated = [
                index
                for index, query in zip(one.index, queries, strict=True)
                if first.setdefault(query, index) != index
            ]
            take("repeated", name, repeated)
    return Exclusions(found)


def leave_out(
    results: RunResults, *, drop_leaked: bool = False, dedup_posts: bool = False
) -> tuple[RunResults, dict[str, dict[str, int]]]:
    """The run without the rows of `find_exclusions`, and reason, in words → dataset → how many those were; says so."""
    exclusions = find_exclusions(results, drop_leaked=drop_leaked, dedup_posts=dedup_posts)
    counts = {REASONS[reason]: by_dataset for reason, by_dataset in exclusions.of(results).items()}
    for reason, by_dataset in counts.items():
        listed = ", ".join(f"{name} {rows}" for name, rows in by_dataset.items()) or "none"
        say(f"{results.name}: {sum(by_dataset.values())} rows left out, {reason} ({listed})")
    rest = exclusions.applied(results)
    if gone := [name for name in results.datasets if name not in rest.datasets]:
        say(f"{results.name}: no row is left of {', '.join(gone)}, which the figures are therefore without")
    return rest, counts
