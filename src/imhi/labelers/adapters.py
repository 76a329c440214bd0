"""Classifiers of one shared base: per dataset a LoRA adapter with a head, in PEFT's format.

The base is read once and stays as it is.  Each adapter is merged into a copy of its own, so that labelling costs no
more than with a full checkpoint, and no adapter leaves a trace in the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imhi.benchmark import Dataset
from imhi.checkpoints import (
    fingerprint,
    first_line,
    load_errors,
    load_model,
    load_tokenizer,
    locate,
    read_config,
    read_json,
)
from imhi.errors import UserError
from imhi.labelers.classifier import Classifier
from imhi.labelers.forward import first_token_logits, keep_layers
from imhi.labelers.settings import FLAG, Settings
from imhi.talk import some

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "AdapterLabeler",
    "Base",
    "Bases",
    "check_adapter",
    "decisive_files",
    "find_base",
]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# How PEFT names the base's own modules in the file.
PREFIX = "base_model.model."
HEAD = "classifier."


def check_adapter(folder: Path, dataset: Dataset) -> None:
    """Stop, before any model is loaded, on an adapter that cannot be the classifier of `dataset`.

    Checked here: that it is a LoRA adapter of a sequence classifier, that its weights can be read, and that its head
    has the classes of the table.  Whether the weights have a place in the base is checked when they are loaded.
    """
    config = read_json(folder / ADAPTER_CONFIG, FLAG)
    kind, task = config.get("peft_type"), config.get("task_type")
    if (kind, task) != ("LORA", "SEQ_CLS"):
        raise UserError(
            f"{FLAG}: {folder} is a {kind} adapter for {task}; expected a LORA adapter for SEQ_CLS with the "
            f"{len(dataset.labels)} classes of {dataset.name}"
        )
    if not (folder / ADAPTER_WEIGHTS).exists():
        raise UserError(f"{FLAG}: {folder} has no {ADAPTER_WEIGHTS}; copy or download it again")
    shapes = {name: tuple(tensor.shape) for name, tensor in _read_tensors(folder).items()}
    head = shapes.get(f"{PREFIX}{HEAD}weight")
    if head is None:
        raise UserError(
            f"{FLAG}: {folder} has no head ({PREFIX}{HEAD}weight is not in {ADAPTER_WEIGHTS}); expected an adapter of a "
            'BertForSequenceClassification with modules_to_save=["classifier"]'
        )
    if head[0] != len(dataset.labels):
        expected = ", ".join(label.classifier for label in dataset.labels)
        raise UserError(
            f"{FLAG}: {folder} has {head[0]} classes; {dataset.name} has {len(dataset.labels)} ({expected})"
        )


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(folder / ADAPTER_WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{FLAG}: {folder / ADAPTER_WEIGHTS} does not load ({first_line(error)}); copy or download it again"
        ) from error


@dataclass(eq=False)
class Base:
    """The model that adapters belong to: loaded on first use, and never changed.

    Attributes
    ----------
    folder : its checkpoint.
    layers : which of its layers are kept, counted from 0; None: all.
    """

    folder: Path
    layers: tuple[int, ...] | None

    @cached_property
    def files(self) -> dict[str, str]:
        """Its fingerprint."""
        return fingerprint(self.folder)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.folder, flag=FLAG)

    @cached_property
    def loaded(self) -> tuple[PreTrainedModel, set[str]]:
        """The model in float32, with a head of no meaning, and the names of weights that its checkpoint lacks."""
        import torch
        from transformers import BertForSequenceClassification

        model, info = load_model(
            BertForSequenceClassification,
            self.folder,
            flag=FLAG,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            num_labels=2,
        )
        mismatched = [name for name, _, _ in info["mismatched_keys"] if not name.startswith(HEAD)]
        if mismatched:
            raise UserError(
                f"{FLAG}: {len(mismatched)} weights in {self.folder} do not fit its config.json "
                f"({some(mismatched, 3)}); they do not belong together"
            )
        if self.layers is not None:
            keep_layers(model, self.layers, self.folder)
        return model, {name for name in info["missing_keys"] if not name.startswith(HEAD)}


Bases = dict[tuple[Path, "tuple[int, ...] | None"], Base]


def find_base(folder: Path, settings: Settings, bases: Bases) -> Base:
    """The base of the adapter in `folder`: one of `bases`, else found, checked and added to them.

    UserError where it is not on this machine and no hub has it, is no BERT, or is not the one that `settings` names.
    """
    name = settings.base or read_json(folder / ADAPTER_CONFIG, FLAG).get("base_model_name_or_path")
    if not name:
        raise UserError(f"{FLAG}: {folder} names no base model; put base_model_name_or_path into its {ADAPTER_CONFIG}")
    place = locate(name, flag=f"{FLAG} (base of {folder})")
    config = read_config(place, flag=FLAG)
    if config.get("model_type") != "bert":
        raise UserError(f"{FLAG}: {name}, the base of {folder}, is a {config.get('model_type')!r} model, not a BERT")
    present = config.get("num_hidden_layers", 12)
    layers = None if settings.layers is None else tuple(settings.layers)
    if layers is not None and max(layers) >= present:
        chosen = ", ".join(map(str, layers))
        raise UserError(f"{FLAG}: {folder} was trained on layers {chosen} of its base; {name} has {present}, from 0")
    base = bases.setdefault((place.resolve(), layers), Base(place, layers))
    changed = [file for file, digest in decisive_files(settings.base_files).items() if base.files.get(file) != digest]
    if changed:
        raise UserError(
            f"{FLAG}: {name} in {place} is not the model that {folder} was trained on ({some(changed, 3)} differ); "
            "install or download the base again, or train the adapter on this one"
        )
    return base


def decisive_files(files: Mapping[str, str]) -> dict[str, str]:
    """Of a base's fingerprint, the files that logits depend on; other JSON files come and go between downloads."""
    named = ("config.json", "tokenizer.json", "vocab.txt")
    return {file: digest for file, digest in files.items() if file in named or file.endswith((".safetensors", ".bin"))}


@dataclass(frozen=True, kw_only=True)
class AdapterLabeler(Classifier):
    """An adapter folder, already checked by `check_adapter`, on the base that `find_base` gave."""

    base: Base = field(repr=False)

    def identity(self) -> dict[str, Any]:
        files = fingerprint(self.folder)
        return {
            "labeler": "adapter",
            "classifier": {name: files[name] for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)},
            "base": self.base.files,
            "layers": None if self.base.layers is None else list(self.base.layers),
            "dtype": str(self.dtype).removeprefix("torch."),
            "max_tokens": self.settings.max_tokens,
            "temperature": self.settings.temperature,
            "unclear_below": self.settings.unclear_below,
        }

    def load(self, dataset: Dataset) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The base with the adapter merged into it; UserError where a weight of either has no counterpart."""
        import copy
        import warnings

        import torch

        pristine, _ = self.base.loaded
        model = copy.deepcopy(pristine)
        model.classifier = torch.nn.Linear(model.classifier.in_features, len(dataset.labels))
        model.num_labels = model.config.num_labels = len(dataset.labels)
        try:
            with warnings.catch_warnings():
                # What PEFT uses of transformers under names that will change.
                warnings.simplefilter("ignore", FutureWarning)
                merged = self._merge(model)
        except load_errors() as error:
            raise UserError(f"{FLAG}: {self.folder} does not fit {self.base.folder} ({first_line(error)})") from error
        return merged.to(self.dtype), self.base.tokenizer

    def _merge(self, model: PreTrainedModel) -> PreTrainedModel:
        from peft import PeftConfig, PeftModelForSequenceClassification, get_peft_model_state_dict
        from peft.utils import set_peft_model_state_dict

        config = PeftConfig.from_pretrained(str(self.folder))
        config.inference_mode = True
        adapted = PeftModelForSequenceClassification(model, config)
        tensors = _read_tensors(self.folder)
        expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        self._compare(set(tensors), set(expected), self.base.loaded[1])
        set_peft_model_state_dict(adapted, tensors)
        return adapted.merge_and_unload()

    def _compare(self, given: set[str], expected: set[str], missing: set[str]) -> None:
        """Stop where the file has weights that the adapted base has no place for, or lacks some that it needs."""
        for what, names in (
            ("has weights without a place in the base", given - expected),
            ("lacks weights of its own", expected - given),
            ("and its base both lack weights", {PREFIX + name for name in missing} - given),
        ):
            if names:
                raise UserError(
                    f"{FLAG}: {self.folder} {what} {self.base.folder}, layers {self.base.layers or 'all'} "
                    f"({some(sorted(names), 3)}); give the base it was trained on"
                )

    def forward(self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return first_token_logits(model, input_ids, attention_mask)
