"""How a responder is trained: everything that its weights depend on besides the rows."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BEST_BY", "ResponderRecipe"]

# What decides which weights are kept → whether higher is better.
BEST_BY = {"weighted_f1": True, "rougeL": True, "loss": False, "head_loss": False}


@dataclass(frozen=True)
class ResponderRecipe:
    """A training of a responder.

    Attributes
    ----------
    base : path, hub id or ``embedded:`` name of a causal model or an encoder-decoder.
    form : "instruction" or "completion": which training files, and how the prompts are worded.
    chat_template : wrap instruction prompts in the tokenizer's chat template, as ``--chat_template`` does in generation.
    rank : of the LoRA matrices on every linear layer; 0 trains all weights.
    alpha : LoRA's scale is alpha / rank (Hu et al., "LoRA", ICLR 2022).
    dropout : on the input of the LoRA matrices.
    learning_rate : at its peak, after `warmup` of all steps; from there a cosine down to zero.
    epochs, max_steps : length; `max_steps` 0 is no limit.
    batch_size : rows of a step, on all devices and in all its parts together.
    temperature : of the mixture of datasets (`mixture.rows_per_epoch`).
    rows_per_epoch : rows that an epoch draws; 0: as many as there are.
    head_weight : how much a token of the label's sentence weighs in the loss, where one of the explanation weighs 1.
    max_tokens : of prompt and answer together; a longer prompt loses its middle.
    weight_decay, clip : AdamW's decay, and the gradient's largest norm.
    look_every : steps between two looks at the validation rows.
    loss_rows, asked_rows : validation rows a dataset whose loss is computed, and that are answered, at a look.
    max_new_tokens : of such an answer.
    best_by : a key of `BEST_BY`: what decides which weights are kept.
    patience : looks without improvement after which the training ends; 0: never.
    seed : of batches, matrices and dropout.
    """

    base: str = "embedded:smollm2"
    form: str = "instruction"
    chat_template: bool = False
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    learning_rate: float = 1e-3
    warmup: float = 0.05
    epochs: int = 1
    max_steps: int = 0
    batch_size: int = 16
    temperature: float = 2.0
    rows_per_epoch: int = 0
    head_weight: float = 5.0
    max_tokens: int = 1024
    weight_decay: float = 0.0
    clip: float = 1.0
    look_every: int = 200
    loss_rows: int = 24
    asked_rows: int = 16
    max_new_tokens: int = 256
    best_by: str = "weighted_f1"
    patience: int = 0
    seed: int = 0
