"""The published labeler: one BERT sequence classifier a dataset, reading the response text alone.

Source: ``label_inference.py`` of Yang et al., "MentaLLaMA", WWW 2024: arg max of the logits over the response,
truncated to 512 tokens; classes in the table's order.  The label does not depend on the batch size beyond
floating-point noise, so the batches here are sorted by length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imhi.batching import is_out_of_memory, plan_batches, release_memory, run_split
from imhi.benchmark import Dataset, dataset_named
from imhi.checkpoints import fingerprint, load_model, load_tokenizer, read_config, weight_files
from imhi.errors import UserError
from imhi.labelers import LabelResult
from imhi.talk import progress_bar, say

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["MAX_TOKENS", "BertLabeler", "check_classifier", "find_classifiers"]

MAX_TOKENS = 512
FLAG = "--model_path"


def find_classifiers(model_path: Path, datasets: Sequence[Dataset], *, skip_missing: bool = False) -> dict[str, Path]:
    """Dataset name → folder of its classifier under `model_path`, each checked by `check_classifier`.

    `model_path` may be one checkpoint itself where there is one dataset.  Missing ones are listed in a UserError,
    or left out with `skip_missing`.
    """
    if model_path.is_file():
        raise UserError(f"{FLAG}: {model_path} is a file; expected a folder with one classifier folder a dataset")
    inside = {child.name: child for child in sorted(model_path.iterdir()) if child.is_dir()}
    if not inside.keys() & {dataset.name for dataset in datasets} and (model_path / "config.json").exists():
        return {datasets[0].name: _single_classifier(model_path, datasets)}
    folded = {name.casefold(): child for name, child in inside.items()}
    found = {}
    for dataset in datasets:
        folder = inside.get(dataset.name) or folded.get(dataset.name.casefold())
        if folder is not None:
            found[dataset.name] = folder
    missing = [dataset.name for dataset in datasets if dataset.name not in found]
    if missing:
        there = f"{model_path} has no classifier folder for {', '.join(missing)} (found {_some(inside)})"
        if not found or not skip_missing:
            remedy = "give the folder that holds DR/, SAD/, ..." if not found else "add them or pass --skip_missing"
            raise UserError(f"{FLAG}: {there}; {remedy}")
        say(f"--skip_missing: {there}; left out")
    for dataset in datasets:
        if dataset.name in found:
            check_classifier(found[dataset.name], dataset)
    return found


def _some(names: Iterable[str], most: int = 12) -> str:
    shown = list(names)
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "") or "none"


def _single_classifier(folder: Path, datasets: Sequence[Dataset]) -> Path:
    architecture = ", ".join(read_config(folder, flag=FLAG).get("architectures") or ["checkpoint"])
    expected = "expected a folder with one classifier folder a dataset (DR/, SAD/, ...)"
    if len(datasets) > 1:
        names = ", ".join(dataset.name for dataset in datasets)
        raise UserError(
            f"{FLAG}: {folder} is one single {architecture}, but the data holds {names}; {expected}, "
            "or choose the dataset it was trained for with --datasets"
        )
    (dataset,) = datasets
    named = dataset_named(folder.resolve().name)
    if named is not None and named.name != dataset.name:
        raise UserError(f"{FLAG}: {folder} is named after {named.name}, but the data is {dataset.name}; {expected}")
    check_classifier(folder, dataset)
    say(f"{FLAG}: {folder} is one single {architecture}; taken as the classifier of {dataset.name}")
    return folder


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
class BertLabeler:
    """The classifier of one dataset.  It is in memory only while `label` runs.

    Attributes
    ----------
    folder : the checkpoint, already checked by `check_classifier`.
    device, dtype : as chosen by `imhi.devices`; the published labels were computed in float32.
    batch_size : texts in a batch, at least 1; a batch that does not fit into memory is halved.
    """

    folder: Path
    device: str
    dtype: torch.dtype
    batch_size: int = 8

    def identity(self) -> dict[str, Any]:
        return {
            "labeler": "bert",
            "classifier": fingerprint(self.folder),
            "dtype": str(self.dtype).removeprefix("torch."),
            "max_tokens": MAX_TOKENS,
        }

    def label(self, dataset: Dataset, texts: Sequence[str]) -> LabelResult:
        """Label `texts`, shape (rows,): arg max and its softmax probability; equal texts are computed once.

        An empty text goes to the classifier like any other, as its special tokens alone.
        """
        rows_of: dict[str, list[int]] = {}
        for row, text in enumerate(texts):
            rows_of.setdefault(text, []).append(row)
        classified = self._classify(dataset, list(rows_of), [len(rows) for rows in rows_of.values()])
        labels: list[str | None] = [None] * len(texts)
        confidences = [0.0] * len(texts)
        for rows, (index, confidence, _) in zip(rows_of.values(), classified, strict=True):
            for row in rows:
                labels[row] = dataset.labels[index].name
                confidences[row] = confidence
        truncated = sum(len(rows) for rows, (_, _, cut) in zip(rows_of.values(), classified, strict=True) if cut)
        counts = {
            "rows": len(texts),
            "distinct": len(rows_of),
            "empty": sum(not text.strip() for text in texts),
            "truncated": truncated,
        }
        return LabelResult(labels, confidences, counts)

    def _classify(self, dataset: Dataset, texts: list[str], weights: list[int]) -> list[tuple[int, float, bool]]:
        """(class, probability, whether truncated) of each text; `weights` are the rows it counts for in the bar."""
        tokenizer = load_tokenizer(self.folder, flag=FLAG)
        if tokenizer.pad_token is None:
            raise UserError(f"{FLAG}: the tokenizer in {self.folder} has no pad token; texts cannot be batched")
        model = _load(self.folder, dataset, self.dtype)
        try:
            limit = min(MAX_TOKENS, getattr(model.config, "max_position_embeddings", MAX_TOKENS))
            encoded, truncated = _encode(tokenizer, texts, limit)
            model.to(self.device).eval()
            found: dict[int, tuple[int, float]] = {}
            with progress_bar(sum(weights), dataset.name) as bar:
                for batch in plan_batches([len(ids) for ids in encoded], self.batch_size):
                    for part, answers in self._run(model, tokenizer, dataset, encoded, batch):
                        found.update(zip(part, answers, strict=True))
                        bar.update(sum(weights[index] for index in part))
        finally:
            del model
            release_memory()
        return [(*found[index], truncated[index]) for index in range(len(texts))]

    def _run(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        dataset: Dataset,
        encoded: list[list[int]],
        batch: list[int],
    ) -> Iterator[tuple[Sequence[int], list[tuple[int, float]]]]:
        import torch

        def work(part: Sequence[int]) -> list[tuple[int, float]]:
            inputs = tokenizer.pad({"input_ids": [encoded[index] for index in part]}, return_tensors="pt")
            with torch.inference_mode():
                logits = model(**inputs.to(self.device)).logits.float()
            if not bool(torch.isfinite(logits).all()):
                raise UserError(
                    f"{FLAG}: {self.folder} gives logits that are not finite in {self.identity()['dtype']} "
                    f"for a text of {dataset.name}; its weights are damaged, or --dtype float32 is needed"
                )
            best = logits.softmax(dim=-1).max(dim=-1)
            return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))

        def tell(size: int) -> None:
            say(f"{dataset.name}: a batch of {size} did not fit into memory; going on with halves")

        try:
            yield from run_split(batch, work, on_split=tell)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"{FLAG}: not even one text fits into memory beside {self.folder} on {self.device}"
            ) from None


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], limit: int) -> tuple[list[list[int]], list[bool]]:
    """Token ids of each text, at most `limit`, and whether tokens were left off."""
    encoded = tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
    truncated = [False] * len(texts)
    for index, ids in enumerate(encoded):
        if len(ids) == limit:
            truncated[index] = len(tokenizer(texts[index], verbose=False)["input_ids"]) > limit
    return encoded, truncated


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
            f"{FLAG}: {folder} is no trained classifier: its weights lack {_some(missing, 4)}, which would be random; "
            f"expected a BertForSequenceClassification trained for {dataset.name}"
        )
    return model
