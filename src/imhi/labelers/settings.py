"""``labeler.json``: what training writes beside the weights of a classifier, and labelling obeys.

A published checkpoint has no such file; the defaults are what the published script did.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imhi.benchmark import Dataset
from imhi.checkpoints import read_json
from imhi.errors import UserError

__all__ = ["FLAG", "FORMAT", "MAX_TOKENS", "SETTINGS_FILE", "Settings", "read_settings"]

FLAG = "--model_path"
SETTINGS_FILE = "labeler.json"
FORMAT = 1
MAX_TOKENS = 512


@dataclass(frozen=True)
class Settings:
    """How one classifier's logits become labels.

    Attributes
    ----------
    base : name of the model that an adapter belongs to; None: as its ``adapter_config.json`` says.
    base_files : file name → digest of that model's weights and config; empty: any are taken.
    layers : which of the base's layers are kept, counted from 0; None: all.
    max_tokens : where texts are cut off.
    temperature : what logits are divided by before the softmax.
    unclear_below : probability under which a text is taken to support no label; None: no such threshold.
    """

    base: str | None = None
    base_files: Mapping[str, str] = field(default_factory=dict)
    layers: Sequence[int] | None = None
    max_tokens: int = MAX_TOKENS
    temperature: float = 1.0
    unclear_below: float | None = None


def read_settings(folder: Path, dataset: Dataset) -> Settings:
    """The settings in `folder`, the defaults where it has none.

    UserError where the file is damaged, of another format, or of a classifier of other classes than `dataset` has.
    """
    path = folder / SETTINGS_FILE
    if not path.exists():
        return Settings()
    content = read_json(path, FLAG)
    if content.get("format") != FORMAT:
        raise UserError(
            f"{FLAG}: {path} has format {content.get('format')!r}, this toolkit reads format {FORMAT}; "
            "take the toolkit that wrote it, or train the classifier again"
        )
    for name, (fits, expected) in _EXPECTED.items():
        if content.get(name) is not None and not fits(content[name]):
            raise UserError(
                f"{FLAG}: {path}: {name} is {json.dumps(content[name])[:60]}, expected {expected}; "
                "mend it, or copy the file again"
            )
    strange = sorted(content.keys() - _EXPECTED.keys() - {"format", "training", "figures"})
    if strange:
        raise UserError(
            f"{FLAG}: {path}: {strange[0]} is not a setting of format {FORMAT}; take the toolkit that wrote it, or train "
            "the classifier again"
        )
    _check_classes(path, content, dataset)
    given = {name: content[name] for name in Settings.__dataclass_fields__ if content.get(name) is not None}
    return Settings(**given)


def _check_classes(path: Path, content: dict[str, Any], dataset: Dataset) -> None:
    if content.get("dataset") not in (None, dataset.name):
        raise UserError(
            f"{FLAG}: {path} is of a classifier of {content['dataset']}, but the data is {dataset.name}; "
            f"give the classifier of {dataset.name}"
        )
    expected = [label.classifier for label in dataset.labels]
    classes = content.get("classes")
    if classes is not None and classes != expected:
        raise UserError(
            f"{FLAG}: {path} has the classes {', '.join(classes)}; {dataset.name} has {', '.join(expected)}, "
            "in this order; train the classifier again"
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "dataset": (lambda value: isinstance(value, str), "the name of a dataset"),
    "classes": (
        lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
        "a list of class names",
    ),
    "base": (lambda value: isinstance(value, str), "a folder, a hub id or embedded:NAME"),
    "base_files": (
        lambda value: isinstance(value, dict) and all(isinstance(digest, str) for digest in value.values()),
        "digests by file name",
    ),
    "layers": (
        lambda value: isinstance(value, list) and bool(value) and all(_is_count(number + 1) for number in value),
        "a list of layer numbers from 0",
    ),
    # A text is at least its two special tokens and one of its own.
    "max_tokens": (lambda value: _is_count(value) and value >= 3, "a number of tokens from 3"),
    "temperature": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    "unclear_below": (lambda value: _is_number(value) and 0 <= value <= 1, "a probability"),
}
