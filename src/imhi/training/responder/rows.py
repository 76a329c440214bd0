"""Training rows: which released answers a responder may learn from, and which it is validated on.

A responder is measured on the test files, so no row goes into its training whose post stands in a test or expert file
of the data root, in either form (`imhi.audit.post_key`, and `stem_of` for posts that are cut off differently), nor one
whose explanation does.  The same question about the same post counts once.  Rows of ``val`` files are for validation;
a set that has only them gives a tenth of its posts, chosen by digest, and learns from the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imhi.audit import TRAIN_FOLDERS, post_key, repaired, stem_of
from imhi.benchmark import DATASETS, FORMS, SUITES, Dataset, gold_answer, question, split_reasoning
from imhi.data import DataRoot, gold_label, load_suite, read_query_rows, sha256_of
from imhi.errors import UserError
from imhi.training.corpus import is_validation, training_files

__all__ = ["REASONS", "TrainingRow", "TrainingRows", "in_test_form", "read_training_rows"]

# Why a row is left out, in words for people.
REASONS = {
    "leaked": "the post stands in a test or expert file",
    "explained": "the explanation stands in a test or expert file",
    "repeated": "the same question about the same post stands before it",
    "in training": "a validation row whose post is a training post",
}
# File names of the published layout that hold validation rows.
VALIDATION_STEMS = ("val", "valid", "reddit_valid")


@dataclass(frozen=True)
class TrainingRow:
    """One question with its gold answer.

    Attributes
    ----------
    query : the prompt exactly as a test file has it: in the completion form two spaces before ``Question:`` and one at
        its end, where released training files have one and, in places, none.
    answer : the gold answer; its head spelled as in the table of datasets (released completion heads vary), mojibake of
        the explanation repaired.
    label : canonical label name.
    made_up : whether the row is one of the toolkit's own.
    """

    dataset: str
    aspect: str
    query: str
    answer: str
    label: str
    made_up: bool = False


@dataclass
class TrainingRows:
    """Rows of one form.

    Attributes
    ----------
    training, validation : per dataset, in file order.
    left_out : reason, a key of `REASONS` → dataset → rows.
    files : path relative to its root → SHA-256 of every file read, test and expert files included; those of the
        toolkit's own rows under ``made-up/``.
    """

    form: str
    training: dict[str, list[TrainingRow]] = field(default_factory=dict)
    validation: dict[str, list[TrainingRow]] = field(default_factory=dict)
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def note(self, reason: str, dataset: str) -> None:
        counts = self.left_out.setdefault(reason, {})
        counts[dataset] = counts.get(dataset, 0) + 1


def read_training_rows(
    root: DataRoot, form: str, *, datasets: Sequence[str] = (), made_up: DataRoot | None = None
) -> TrainingRows:
    """The rows of `form` ("instruction" or "completion") that a responder may learn from.

    Parameters
    ----------
    datasets : only these; none: all that have training files.
    made_up : the root of the toolkit's own rows, for the sets that `root` has no training file of; None: without them.

    Raises
    ------
    UserError
        Where the root has no training files of this form, a gold names no label, or a query is not in the published form.
    """
    held_out, explained, files = _test_posts(root)
    rows = TrainingRows(form, files=files)
    _read_files(rows, root, datasets, held_out, explained)
    if made_up is not None:
        have = {*rows.training, *rows.validation}
        wanted = [name for name in (datasets or DATASETS) if name not in have]
        _read_files(rows, made_up, wanted, held_out, explained, made_up=True)
    if not rows.training:
        raise UserError(
            f"{root.path / TRAIN_FOLDERS[form]}: no training rows"
            + (f" of {', '.join(datasets)}" if datasets else "")
            + f" (`imhi data check {root.path}` tells what is there)"
        )
    return rows


def _test_posts(root: DataRoot) -> tuple[set[str], set[str], dict[str, str]]:
    """Stems of the posts and folded explanations of every test and expert file, in both forms; and the files."""
    stems: set[str] = set()
    explained: set[str] = set()
    files: dict[str, str] = {}
    for suite, described in SUITES.items():
        if (root.path / described.folder).is_dir():
            loaded = load_suite(root, suite)
            files |= {_relative(root, path): sha256_of(path) for path in loaded.files.values()}
            stems |= {stem_of(post_key(row.query)) for row in loaded.rows}
            explained |= {_folded(split_reasoning(row.gold)[1]) for row in loaded.rows}
    return stems, explained, files


def _read_files(
    rows: TrainingRows,
    root: DataRoot,
    datasets: Sequence[str],
    held_out: set[str],
    explained: set[str],
    *,
    made_up: bool = False,
) -> None:
    for dataset, paths in training_files(root.path / TRAIN_FOLDERS[rows.form]):
        if (datasets or made_up) and dataset.name not in datasets:
            continue
        has_training_file = any(not _is_validation_file(path) for path in paths)
        taught: set[str] = set()
        seen: set[tuple[str, str]] = set()
        for path in sorted(paths, key=_is_validation_file):
            rows.files[("made-up/" if made_up else "") + _relative(root, path)] = sha256_of(path)
            for index, (query, gold) in enumerate(read_query_rows(path)):
                label = gold_label(dataset, path, index, gold)
                aspect, prompt = in_test_form(dataset, rows.form, query, where=f"{path}, row {index + 1}")
                post = post_key(query)
                explanation = repaired(split_reasoning(gold)[1])
                if stem_of(post) in held_out:
                    rows.note("leaked", dataset.name)
                elif _folded(explanation) in explained:
                    rows.note("explained", dataset.name)
                elif (aspect, post) in seen:
                    rows.note("repeated", dataset.name)
                else:
                    seen.add((aspect, post))
                    answer = gold_answer(dataset.label_named(label), rows.form, explanation)
                    row = TrainingRow(dataset.name, aspect, prompt, answer, label, made_up)
                    for_validation = _is_validation_file(path) if has_training_file else False
                    for_validation = for_validation or (_only_one_split(paths) and is_validation(post))
                    if not for_validation:
                        taught.add(stem_of(post))
                        rows.training.setdefault(dataset.name, []).append(row)
                    elif stem_of(post) in taught:
                        rows.note("in training", dataset.name)
                    else:
                        rows.validation.setdefault(dataset.name, []).append(row)


def _is_validation_file(path: Path) -> bool:
    return path.stem.lower() in VALIDATION_STEMS


def _only_one_split(paths: Sequence[Path]) -> bool:
    return len({_is_validation_file(path) for path in paths}) == 1


def in_test_form(dataset: Dataset, form: str, query: str, *, where: str = "") -> tuple[str, str]:
    """(aspect, prompt) of a training query: the same post and question, spaced as the test files have them.

    Raises UserError, which names `where`, for a query that does not ask the dataset's question.
    """
    before, mark, asked = query.rpartition("Question:")
    aspect = next((one for one in dataset.aspects if asked.split() == question(dataset, form, one).split()), None)
    opening, closing = FORMS[form].partition("{post}")[::2]
    closing = closing.partition("Question:")[0]
    post = before.rstrip()
    if not mark or aspect is None or not post.startswith(opening) or not post.endswith(closing.strip()):
        expected = FORMS[form].format(post="POST", question=question(dataset, form, dataset.aspects[0]))
        raise UserError(f"{where}: the query is not of the {form} form of {dataset.name}; expected {expected!r}")
    post = post.removeprefix(opening).removesuffix(closing.strip())
    return aspect, FORMS[form].format(post=post, question=question(dataset, form, aspect))


def _folded(explanation: str) -> str:
    return " ".join(repaired(explanation).casefold().split())


def _relative(root: DataRoot, path: Path) -> str:
    return path.relative_to(root.path).as_posix()
