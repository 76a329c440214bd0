"""Worked examples for few-shot prompts: which training rows stand before a prompt, the same for every row of a set.

Few-shot prompting (Brown et al., "Language Models are Few-Shot Learners", NeurIPS 2020) shows a model some prompts with
their answers before the one that it shall answer.  Here every label of a set has the same number of examples, in an
order that no label closes always: models lean towards the more frequent and the last label of their examples (Zhao et
al., "Calibrate Before Use", ICML 2021).  Rows are chosen by digests of a seed and their own text, so that a row more in
a training file moves little.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from imhi.audit import TRAIN_FOLDERS, post_key, post_of, stem_of
from imhi.benchmark import DATASETS, SUITES, Dataset, aspect_of, dataset_named, query
from imhi.data import DataRoot, dataset_files, gold_label, read_query_rows, samples_root
from imhi.engines import Shot
from imhi.errors import UserError

__all__ = ["MADE_UP", "DatasetShots", "choose_shots", "held_out_posts", "shots_of_datasets"]

MADE_UP = "made-up sample rows"


@dataclass(frozen=True)
class DatasetShots:
    """The examples of one dataset.

    Attributes
    ----------
    dataset, form : whose they are.
    by_aspect : the examples of each aspect's question, in the order in which they stand in a prompt; "" for a question
        that is none of the aspects'.
    files : the training files that they come from, relative to the data root; ["made-up sample rows"] where the data
        root has none for this dataset.
    """

    dataset: str
    form: str
    by_aspect: Mapping[str, tuple[Shot, ...]]
    files: tuple[str, ...]

    @property
    def are_made_up(self) -> bool:
        return self.files == (MADE_UP,)

    def before(self, prompt: str) -> tuple[Shot, ...]:
        """The examples that stand before a prompt of this dataset."""
        return self.by_aspect[aspect_of(DATASETS[self.dataset], self.form, prompt) or ""]

    def facts(self) -> dict[str, Any]:
        """For a manifest: where the examples come from, and a SHA-256 of their texts; no text."""
        texts = {aspect: [[shot.query, shot.answer] for shot in shots] for aspect, shots in self.by_aspect.items()}
        digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
        return {"from": list(self.files), "sha256": f"sha256:{digest}"}


@dataclass(frozen=True)
class _Example:
    shot: Shot
    label: str
    post: str
    aspect: str
    path: Path


def shots_of_datasets(
    root: DataRoot, names: Iterable[str], form: str, per_label: int, seed: int
) -> dict[str, DatasetShots]:
    """`choose_shots` for several datasets, the held-out posts read once."""
    held_out = held_out_posts(root)
    return {name: choose_shots(root, DATASETS[name], form, per_label, seed, held_out=held_out) for name in names}


def choose_shots(
    root: DataRoot,
    dataset: Dataset,
    form: str,
    per_label: int,
    seed: int,
    *,
    held_out: Collection[str] | None = None,
) -> DatasetShots:
    """`per_label` examples of every label of `dataset`, worded exactly as a test prompt of `form` is.

    They come from the root's training files of this dataset and form; from the toolkit's made-up sample rows where it
    has none.  No post of any test or expert file (`held_out_posts`) is used, nor one post twice.  Rows that ask about
    the prompt's own aspect come first; then those that are no longer (in characters) than the median row of the set,
    all alike; then the shorter ones: a long example would cost every row of a run.

    Parameters
    ----------
    form : "instruction" or "completion".
    per_label : at least 1.
    seed : another seed, other examples.
    held_out : what `held_out_posts` returns for this root; None: read here.

    Raises
    ------
    UserError
        A label with fewer usable rows; a training row whose question or gold text the benchmark does not know.
    """
    files, made_up = _training_files(root.path, dataset, form), False
    if not files:
        files, made_up = _training_files(samples_root(), dataset, form), True
    stems = held_out_posts(root) if held_out is None else held_out
    read = [example for path in files for example in _examples(dataset, form, path)]
    usable = [example for example in read if stem_of(example.post) not in stems]
    chosen = {
        aspect: _chosen(dataset, usable, read, files, aspect, per_label, seed)
        for aspect in dict.fromkeys(("", *dataset.aspects))
    }
    top = samples_root() if made_up else root.path
    used = {example.path.relative_to(top).as_posix() for examples in chosen.values() for example in examples}
    return DatasetShots(
        dataset.name,
        form,
        {aspect: tuple(example.shot for example in examples) for aspect, examples in chosen.items()},
        (MADE_UP,) if made_up else tuple(sorted(used)),
    )


def held_out_posts(root: DataRoot) -> frozenset[str]:
    """What the posts of all test and expert files of the root, in both forms, begin with: no example begins like it."""
    stems = set()
    for suite in SUITES.values():
        folder = root.path / suite.folder
        for path in dataset_files(folder)[0].values() if folder.is_dir() else ():
            stems |= {stem_of(post_key(text)) for text, _ in read_query_rows(path)}
    return frozenset(stems)


def _training_files(root: Path, dataset: Dataset, form: str) -> list[Path]:
    folder = root / TRAIN_FOLDERS[form]
    if not folder.is_dir():
        return []
    own = [child for child in sorted(folder.iterdir()) if child.is_dir() and dataset_named(child.name) == dataset]
    return [path for child in own for path in sorted(child.glob("*.csv"))]


def _examples(dataset: Dataset, form: str, path: Path) -> list[_Example]:
    found = []
    for index, (text, gold) in enumerate(read_query_rows(path)):
        aspect = aspect_of(dataset, form, text)
        if aspect is None:
            raise UserError(
                f"{path}, row {index + 1}: the question is not {dataset.name}'s in the {form} form: "
                f"{text.rpartition('Question:')[2].strip()[:80]!r}; mend the row, or leave --shots out"
            )
        label = gold_label(dataset, path, index, gold)
        # Training files of the completion form have one space before the question where the test has two.
        prompt = query(dataset, form, post_of(text), aspect)
        found.append(_Example(Shot(prompt, gold.strip()), label, post_key(text), aspect, path))
    return found


def _chosen(
    dataset: Dataset,
    usable: Sequence[_Example],
    read: Sequence[_Example],
    files: Sequence[Path],
    aspect: str,
    per_label: int,
    seed: int,
) -> list[_Example]:
    """The examples of one aspect, in their order."""
    middle = median([len(example.shot.query) for example in usable] or [0])

    def preference(example: _Example) -> tuple[bool, float, str, str]:
        length = max(float(len(example.shot.query)), middle)
        # The wording apart, as one prompt may have two answers in the training files.
        return (
            aspect not in ("", example.aspect),
            length,
            _digest(f"{seed} {example.shot.query}"),
            example.shot.answer,
        )

    posts = {name: {example.post for example in usable if example.label == name} for name in dataset.label_names}
    preferred = sorted(usable, key=preference)
    chosen: list[_Example] = []
    taken: set[str] = set()
    # The label with the fewest posts first: another label must not take the posts that it needs.
    for name in sorted(dataset.label_names, key=lambda name: len(posts[name])):
        own = [example for example in preferred if example.label == name]
        picked: list[_Example] = []
        for example in own:
            if len(picked) < per_label and example.post not in taken:
                picked.append(example)
                taken.add(example.post)
        if len(picked) < per_label:
            rows = sum(example.label == name for example in read)
            raise UserError(
                f"--shots {per_label}: {dataset.name} has {len(picked)} usable examples of {name!r} in "
                f"{', '.join(map(str, files))} ({rows} rows, {rows - len(own)} of them with a post of a test file); "
                f"give fewer, or leave {dataset.name} out with --datasets"
            )
        chosen += picked
    # A digest of its own: the smallest of many digests are smaller than those of few, so the rarest label would close.
    return sorted(chosen, key=lambda example: _digest(f"{seed} order {example.shot.query}"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
