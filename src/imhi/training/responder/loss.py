"""The loss of a responder: cross entropy of the answer's tokens given the prompt and the answer so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imhi.training.responder.encoding import IGNORED

if TYPE_CHECKING:
    import torch

__all__ = ["answer_logits", "answer_loss"]


def answer_logits(model: Any, batch: dict[str, torch.Tensor], *, kind: str) -> torch.Tensor:
    """Logits of every label column of a batch of `encoding.collate`, shape (rows, answer tokens, vocabulary)."""
    labels = batch["labels"]
    if kind == "seq2seq":
        bare = getattr(model, "module", model)
        decoder_input = bare.prepare_decoder_input_ids_from_labels(labels=labels)
        return model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=decoder_input,
            use_cache=False,
        ).logits
    mask = batch["attention_mask"]
    wanted = labels.shape[1] + 1
    logits = model(
        input_ids=batch["input_ids"],
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        logits_to_keep=wanted,
        use_cache=False,
    ).logits
    # The column before an answer's first token predicts it.
    return logits[:, -wanted:-1]


def answer_loss(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, total: torch.Tensor | float | None = None
) -> torch.Tensor:
    """Weighted mean negative log-likelihood per answer token, in nats; lower is better.

    `total` is the sum of weights to divide by, where the batch is a part of a larger step; None: the batch's own.
    """
    import torch

    kept = labels != IGNORED
    losses = torch.nn.functional.cross_entropy(logits[kept].float(), labels[kept], reduction="none")
    weighed = weights[kept]
    return (losses * weighed).sum() / (weighed.sum() if total is None else total)
