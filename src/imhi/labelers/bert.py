"""The published labeler: one full BERT sequence classifier a dataset, reading the response text alone.

Source: ``label_inference.py`` of Yang et al., "MentaLLaMA", WWW 2024: arg max of the logits over the response,
truncated to 512 tokens; classes in the table's order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imhi.benchmark import Dataset
from imhi.checkpoints import fingerprint, load_model, load_tokenizer, read_config, weight_files
from imhi.errors import UserError
from imhi.labelers.classifier import Classifier
from imhi.labelers.forward import first_token_logits, reads_first_token
from imhi.labelers.settings import FLAG, SETTINGS_FILE
from imhi.talk import some

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["BertLabeler", "check_classifier"]


def check_classifier(folder: Path, dataset: Dataset) -> None:
    """Stop, before anything is loaded, on a checkpoint that cannot be the classifier of `dataset`.

    Checked here: the architecture, the number of classes, their names, and that there are weights at all.  The
    shapes of the weights are checked when they are loaded.
    """
    config = read_config(folder, flag=FLAG)
    architectures = config.get("architectures") or []
    if architectures and not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise UserError(
            f"{FLAG}: {folder} is a {', '.join(architectures)}, not a classifier; expected a "
            f"BertForSequenceClassification with the {len(dataset.labels)} classes of {dataset.name}"
        )
    _check_class_names(folder, dataset, config)
    if not [path for path in weight_files(folder) if path.suffix != ".gguf"]:
        raise UserError(f"{FLAG}: {folder} has no weights (model.safetensors or pytorch_model.bin)")


def _declared_classes(folder: Path, config: dict[str, Any]) -> list[str] | None:
    """Class names of a config in logit order; None where the config states neither names nor their number."""
    names = config.get("id2label")
    if not names:
        count = config.get("num_labels")
        return None if count is None else [f"LABEL_{index}" for index in range(count)]
    if sorted(names) != sorted(str(index) for index in range(len(names))):
        raise UserError(
            f"{FLAG}: {folder / 'config.json'}: id2label has the keys {', '.join(names)}; expected 0, 1, ..."
        )
    return [str(names[str(index)]) for index in range(len(names))]


def _check_class_names(folder: Path, dataset: Dataset, config: dict[str, Any]) -> None:
    found = _declared_classes(folder, config)
    expected = [label.classifier for label in dataset.labels]
    if found is None:
        return
    if len(found) != len(expected):
        raise UserError(
            f"{FLAG}: {folder} has {len(found)} classes ({', '.join(found)}); "
            f"{dataset.name} has {len(expected)} ({', '.join(expected)})"
        )
    if all(re.fullmatch(rf"(?i:label)_{index}|{index}", name) for index, name in enumerate(found)):
        return
    spellings = [{label.classifier.casefold(), label.name.casefold()} for label in dataset.labels]
    if all(name.casefold() in known for name, known in zip(found, spellings, strict=True)):
        return
    known_names = set().union(*spellings)
    if all(name.casefold() in known_names for name in found):
        problem = "has the classes of the table in another order"
        remedy = "reorder the classifier's outputs, or mend id2label if only the names are wrong"
    else:
        problem = "has class names that are not the table's"
        remedy = "if its classes stand in the table's order, write these names into id2label of its config.json"
    raise UserError(
        f"{FLAG}: {folder} {problem}: found {', '.join(found)}; {dataset.name} expects {', '.join(expected)}; {remedy}"
    )


@dataclass(frozen=True)
class BertLabeler(Classifier):
    """A full checkpoint, already checked by `check_classifier`."""

    def identity(self) -> dict[str, Any]:
        files = fingerprint(self.folder)
        # What a labels.json of earlier versions says of the same checkpoint stays true.
        files.pop(SETTINGS_FILE, None)
        own = {"temperature": self.settings.temperature, "unclear_below": self.settings.unclear_below}
        default = (self.settings.temperature, self.settings.unclear_below) == (1.0, None)
        return {
            "labeler": "bert",
            "classifier": files,
            "dtype": str(self.dtype).removeprefix("torch."),
            "max_tokens": self.settings.max_tokens,
            **({} if default else own),
        }

    def load(self, dataset: Dataset) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        return _load(self.folder, dataset, self.dtype), load_tokenizer(self.folder, flag=FLAG)

    def forward(self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        run = first_token_logits if reads_first_token(model) else super().forward
        return run(model, input_ids, attention_mask)


def _load(folder: Path, dataset: Dataset, dtype: torch.dtype) -> PreTrainedModel:
    """The classifier in `folder`; UserError where a class weight is missing or of another shape."""
    from transformers import AutoModelForSequenceClassification

    # A config that states no classes would get transformers' default of two.
    undeclared = _declared_classes(folder, read_config(folder, flag=FLAG)) is None
    options = {"num_labels": len(dataset.labels)} if undeclared else {}
    # Mismatched sizes are let through so that the shapes come back and can be named.
    model, info = load_model(
        AutoModelForSequenceClassification, folder, flag=FLAG, dtype=dtype, ignore_mismatched_sizes=True, **options
    )
    if info["mismatched_keys"]:
        shapes = "; ".join(
            f"{name} is {tuple(found)} where {tuple(expected)} is expected"
            for name, found, expected in sorted(info["mismatched_keys"], reverse=True)
        )
        raise UserError(
            f"{FLAG}: the weights in {folder} do not fit its config.json or the {len(dataset.labels)} classes of "
            f"{dataset.name}: {shapes}"
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise UserError(
            f"{FLAG}: {folder} is no trained classifier: its weights lack {some(missing, 4)}, which would be random; "
            f"expected a BertForSequenceClassification trained for {dataset.name}"
        )
    return model
