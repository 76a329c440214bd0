"""Which gold explanations a classifier may learn from, and which it is measured on.

Posts are shared between the sets of the benchmark, so rows are kept apart by post, over all sets and both forms
(`imhi.audit.post_key`), never by file:

- a post of any test or expert file, in either form, is in nobody's training rows, nor is one that begins like it
  (`stem_of`: the same 100 letters), nor an explanation of one;
- a set without training files has only its test rows: grouped cross-validation over its posts gives its figures, and
  the shipped classifier learns from those rows (no other set's classifier does, except as the table's `borrows` says);
- a set without any rows borrows those of a neighbouring set, label by label.

Validation rows (early stopping, temperature, threshold) are a tenth of the posts, chosen by the post's digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imhi.audit import TRAIN_FOLDERS, post_key, repaired, stem_of
from imhi.benchmark import DATASETS, SUITES, Dataset, dataset_named, split_reasoning
from imhi.data import DataRoot, gold_label, load_suite, read_query_rows, sha256_of
from imhi.errors import UserError
from imhi.labelers.rules import label_by_rule

__all__ = [
    "FOLDS",
    "Corpus",
    "Explained",
    "evaluation_rows",
    "fold_of",
    "is_validation",
    "read_corpus",
    "training_files",
]

FOLDS = 5


@dataclass(frozen=True)
class Explained:
    """A gold answer: its label's name, its explanation, its post, and its 0-based place in its file.

    `says` is the label of the explanation where it names one by itself, in the strict rule's eyes: a few gold
    explanations contradict their own head, and an explanation without its head says what it says.
    """

    dataset: str
    post: str
    label: str
    says: str
    explanation: str
    index: int = -1


@dataclass
class Corpus:
    """The rows of a data root, sorted for training.

    Attributes
    ----------
    training : per dataset, rows of its training files whose post and explanation are in no test and no expert file.
    test : per dataset, its test rows.
    expert : per dataset, its expert rows.
    dropped : per dataset, training rows left out for that.
    files : path relative to the root → SHA-256 of every file read.
    """

    training: dict[str, list[Explained]] = field(default_factory=dict)
    test: dict[str, list[Explained]] = field(default_factory=dict)
    expert: dict[str, list[Explained]] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def is_cross_validated(self, name: str) -> bool:
        """Whether the set has test rows but no training rows."""
        return not self.training.get(name) and bool(self.test.get(name))

    def learnable(self, name: str, *, without_fold: int | None = None) -> list[Explained]:
        """The rows that the classifier of a set may learn from; for a cross-validated set, those of the other folds."""
        own = self.training.get(name, [])
        if self.is_cross_validated(name):
            experts = {stem_of(row.post) for rows in self.expert.values() for row in rows}
            own = [
                row for row in self.test[name] if stem_of(row.post) not in experts and fold_of(row.post) != without_fold
            ]
        measured_on = {stem_of(row.post) for row in [*self.test.get(name, []), *self.expert.get(name, [])]}
        borrowed = [
            Explained(
                name,
                row.post,
                renamed[row.label],
                renamed.get(row.says, renamed[row.label]),
                row.explanation,
                row.index,
            )
            for source, renamed in _borrows(name).items()
            for row in self.learnable(source)
            if row.label in renamed and stem_of(row.post) not in measured_on
        ]
        return [*own, *borrowed]


def _borrows(name: str) -> dict[str, dict[str, str]]:
    return {source: dict(renamed) for source, renamed in DATASETS[name].borrows}


def fold_of(post: str) -> int:
    """The fold of a post and its near-copies, 0 to FOLDS - 1; the same in every set."""
    return _digest(f"fold {stem_of(post)}") % FOLDS


def is_validation(post: str) -> bool:
    """Whether a post's rows, where they may be learnt from, are kept for validation."""
    return _digest(f"validation {stem_of(post)}") % 10 == 0


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def read_corpus(root: DataRoot) -> Corpus:
    """Read every gold answer under `root`; UserError names file and row of a gold that states no label.

    Golds are the same explanations in both forms: learned and measured are those of one, the instruction form first.
    What is held out is held out in both, as a few posts are cut off differently in the other.
    """
    corpus = Corpus()
    held_out: set[str] = set()
    explained: set[str] = set()
    for suite in ("IMHI", "IMHI-completion", "expert"):
        if (root.path / SUITES[suite].folder).is_dir():
            loaded = load_suite(root, suite)
            into = corpus.expert if suite == "expert" else corpus.test
            for name, path in loaded.files.items():
                corpus.files[_relative(root, path)] = sha256_of(path)
                pairs = [(row.query, row.gold) for row in loaded.rows if row.dataset == name]
                rows = _explained(DATASETS[name], path, pairs)
                held_out |= {stem_of(row.post) for row in rows}
                explained |= {_folded(row.explanation) for row in rows}
                into.setdefault(name, rows)
    for below in TRAIN_FOLDERS.values():
        for dataset, paths in training_files(root.path / below):
            if dataset.name in corpus.training:
                continue
            rows = []
            for path in paths:
                corpus.files[_relative(root, path)] = sha256_of(path)
                rows += _explained(dataset, path, read_query_rows(path))
            rows = _distinct(rows)
            corpus.training[dataset.name] = [
                row for row in rows if stem_of(row.post) not in held_out and _folded(row.explanation) not in explained
            ]
            corpus.dropped[dataset.name] = len(rows) - len(corpus.training[dataset.name])
    if not corpus.training and not corpus.test:
        raise UserError(f"{root.path}: neither training nor test files to learn from (`imhi data check {root.path}`)")
    return corpus


def training_files(folder: Path) -> list[tuple[Dataset, list[Path]]]:
    if not folder.is_dir():
        return []
    named = [(dataset_named(child.name), child) for child in sorted(folder.iterdir()) if child.is_dir()]
    return [(dataset, sorted(child.glob("*.csv"))) for dataset, child in named if dataset and list(child.glob("*.csv"))]


def _explained(dataset: Dataset, path: Path, pairs: Sequence[tuple[str, str]]) -> list[Explained]:
    rows = []
    for index, (query, gold) in enumerate(pairs):
        label = gold_label(dataset, path, index, gold)
        explanation = repaired(split_reasoning(gold)[1])
        stated = label_by_rule(dataset, explanation.partition(". ")[0] + ".") if dataset.is_yes_no else None
        rows.append(Explained(dataset.name, post_key(query), label, stated or label, explanation, index))
    return rows


def _folded(explanation: str) -> str:
    return " ".join(explanation.casefold().split())


def _distinct(rows: Iterable[Explained]) -> list[Explained]:
    return list({(row.post, row.label, row.explanation): row for row in rows}.values())


def evaluation_rows(corpus: Corpus, name: str) -> tuple[str, list[Explained]]:
    """What a set's classifier is measured on, and in words which rows these are; ("", []) where there are none."""
    if corpus.test.get(name):
        return f"the {len(corpus.test[name])} test rows", corpus.test[name]
    if corpus.expert.get(name):
        return f"the {len(corpus.expert[name])} expert rows", corpus.expert[name]
    for source, renamed in _borrows(name).items():
        rows = [
            Explained(name, row.post, renamed[row.label], renamed.get(row.says, renamed[row.label]), row.explanation)
            for row in corpus.test.get(source, [])
            if row.label in renamed and not corpus.is_cross_validated(source)
        ]
        if rows:
            return f"the {len(rows)} test rows of {source}, whose question it shares", rows
    return "", []


def _relative(root: DataRoot, path: Path) -> str:
    return path.relative_to(root.path).as_posix()
