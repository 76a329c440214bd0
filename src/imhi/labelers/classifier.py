"""A sequence classifier over the responses of a dataset: texts in, logits, and with them labels, out.

Texts are tokenised in one call and run in batches of similar length and bounded padded size.  The label does not
depend on the batches beyond floating-point noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imhi.batching import is_out_of_memory, padded, plan_token_batches, release_memory, run_split
from imhi.benchmark import Dataset
from imhi.cpu import keep_freed_memory, pack_linears
from imhi.errors import UserError
from imhi.labelers import LabelResult
from imhi.labelers.settings import FLAG, Settings
from imhi.talk import progress_bar, say

if TYPE_CHECKING:
    import numpy
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Classifier"]

# Padded tokens in a batch: on a CPU enough to fill its caches, on a GPU enough to keep it busy.
CPU_TOKENS, GPU_TOKENS = 2048, 65536


@dataclass(frozen=True)
class Classifier(ABC):
    """The classifier of one dataset.  Its model is in memory only while texts are labelled.

    Attributes
    ----------
    folder : what is on disk, already checked.
    device, dtype : as chosen by `imhi.devices`; the published labels were computed in float32.
    batch_size : texts in a batch at most; None: no limit but `token_budget`.  A batch that does not fit into memory
        is halved.
    token_budget : padded tokens in a batch at most; None: what suits the device.
    settings : temperature, threshold and length limit.
    """

    folder: Path
    device: str
    dtype: torch.dtype
    batch_size: int | None = None
    token_budget: int | None = None
    settings: Settings = field(default_factory=Settings)

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the labels depend on, as JSON."""

    @abstractmethod
    def load(self, dataset: Dataset) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model, on the host and in `dtype`, and its tokenizer; UserError where they do not fit `dataset`."""

    def ready(self, dataset: Dataset) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """What `load` gives, on the device, for inference alone: on a CPU its linear layers are packed."""
        model, tokenizer = self.load(dataset)
        if tokenizer.pad_token_id is None:
            raise UserError(f"{FLAG}: the tokenizer of {self.folder} has no pad token; texts cannot be batched")
        model.to(self.device).eval()
        if self.device == "cpu":
            keep_freed_memory()
            pack_linears(model)
        return model, tokenizer

    def forward(self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits of a batch, shape (rows, classes)."""
        return model(input_ids=input_ids, attention_mask=attention_mask).logits

    def label(self, dataset: Dataset, texts: Sequence[str]) -> LabelResult:
        """Label `texts`, shape (rows,): arg max of the logits and its probability; equal texts are computed once.

        An empty text goes to the classifier like any other, as its special tokens alone.
        """
        distinct, at = _distinct(texts)
        logits, truncated = self._classify(dataset, distinct, _counts(at, len(distinct)))
        chosen = logits.argmax(dim=-1)
        probabilities = (logits / self.settings.temperature).softmax(dim=-1)
        labels = [dataset.labels[index].name for index in chosen.tolist()]
        confidences = probabilities.gather(1, chosen[:, None])[:, 0].tolist()
        counts = {
            "rows": len(texts),
            "distinct": len(distinct),
            "empty": sum(not text.strip() for text in texts),
            "truncated": sum(truncated[index] for index in at),
        }
        clear = None
        if self.settings.unclear_below is not None:
            threshold = self.settings.unclear_below
            # An empty answer supports no label, however sure the classifier is of its special tokens.
            clear = [bool(distinct[index].strip()) and confidences[index] >= threshold for index in at]
            counts["unclear"] = clear.count(False)
        return LabelResult([labels[index] for index in at], [confidences[index] for index in at], counts, clear)

    def logits(self, dataset: Dataset, texts: Sequence[str]) -> numpy.ndarray:
        """Logits of `texts` before the temperature, shape (rows, classes), float32."""
        distinct, at = _distinct(texts)
        logits, _ = self._classify(dataset, distinct, _counts(at, len(distinct)))
        return logits[at].numpy()

    def _classify(self, dataset: Dataset, texts: list[str], weights: list[int]) -> tuple[torch.Tensor, list[bool]]:
        """Logits of each text, and whether it was truncated; `weights` are the rows it counts for in the bar."""
        import torch

        model, tokenizer = self.ready(dataset)
        try:
            positions = getattr(model.config, "max_position_embeddings", self.settings.max_tokens)
            encoded, truncated = _encode(tokenizer, texts, min(self.settings.max_tokens, positions))
            found = torch.empty(len(texts), len(dataset.labels))
            budget = self.token_budget or (CPU_TOKENS if self.device == "cpu" else GPU_TOKENS)
            with progress_bar(sum(weights), dataset.name) as bar:
                for batch in plan_token_batches([len(ids) for ids in encoded], budget, self.batch_size):
                    for part, logits in self._run(model, dataset, encoded, tokenizer.pad_token_id, batch):
                        found[part] = logits
                        bar.update(sum(weights[index] for index in part))
        finally:
            # On the host nothing keeps it alive; a collection there would cost more than a small file's labels.
            del model
            if self.device != "cpu":
                release_memory()
        return found, truncated

    def _run(
        self, model: PreTrainedModel, dataset: Dataset, encoded: list[list[int]], pad: int, batch: list[int]
    ) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        import torch

        def work(part: Sequence[int]) -> torch.Tensor:
            input_ids, attention_mask = padded([encoded[index] for index in part], pad)
            with torch.inference_mode():
                logits = self.forward(model, input_ids.to(self.device), attention_mask.to(self.device)).float().cpu()
            if not bool(torch.isfinite(logits).all()):
                raise UserError(
                    f"{FLAG}: {self.folder} gives logits that are not finite in {str(self.dtype).removeprefix('torch.')} "
                    f"for a text of {dataset.name}; its weights are damaged, or --dtype float32 is needed"
                )
            return logits

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


def _distinct(texts: Sequence[str]) -> tuple[list[str], list[int]]:
    """The distinct texts in order of appearance, and where each of `texts` stands among them."""
    index_of: dict[str, int] = {}
    at = [index_of.setdefault(text, len(index_of)) for text in texts]
    return list(index_of), at


def _counts(at: list[int], size: int) -> list[int]:
    counts = [0] * size
    for index in at:
        counts[index] += 1
    return counts


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], limit: int) -> tuple[list[list[int]], list[bool]]:
    """Token ids of each text, at most `limit`, and whether tokens were left off."""
    if not texts:
        return [], []
    wanted = {"return_attention_mask": False, "return_token_type_ids": False}
    encoded = tokenizer(texts, truncation=True, max_length=limit, **wanted)["input_ids"]
    full = [index for index, ids in enumerate(encoded) if len(ids) == limit]
    truncated = [False] * len(texts)
    if full:
        whole = tokenizer([texts[index] for index in full], verbose=False, **wanted)["input_ids"]
        for index, ids in zip(full, whole, strict=True):
            truncated[index] = len(ids) > limit
    return encoded, truncated
