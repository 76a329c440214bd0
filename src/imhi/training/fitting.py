"""Fitting one classifier to composed answers: a LoRA adapter, or a whole model, resumable and reproducible.

Every step's answers are drawn from the seed and the step's number, so that a resumed fit sees what an uninterrupted
one sees; there is no dropout, as hardly an answer comes twice.  On a CPU, equal seeds, threads and number formats give
equal weights, bit for bit.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imhi.batching import is_out_of_memory, padded
from imhi.benchmark import DATASETS
from imhi.checkpoints import load_model, load_tokenizer, read_config
from imhi.errors import UserError
from imhi.labelers.forward import check_layers, first_token_logits, keep_layers
from imhi.talk import progress_bar
from imhi.training.lessons import Lesson, Lessons

if TYPE_CHECKING:
    import torch

__all__ = ["Fitted", "Recipe", "check_base", "fit", "head_of_dataset", "save", "set_weights", "weights_of"]

FLAG = "--base"
# Answers are drawn and sorted by length in chunks of so many batches.
BATCHES_A_CHUNK = 4


@dataclass(frozen=True)
class Recipe:
    """How classifiers are trained; everything that their weights depend on besides the rows.

    Attributes
    ----------
    base : path, hub id or ``embedded:`` name of a BERT encoder.
    layers : which of its layers are kept, counted from 0; None: all.
    rank : of the LoRA matrices on every linear layer; 0 trains all weights of the model.
    learning_rate : of the fit on all datasets, at its peak.
    own_rate : of each dataset's own fit, at its peak; higher ones forget what the first fit learned.
    common_chunks, chunks : how long the fit on all datasets together, and that on each dataset, may take; a chunk is
        `BATCHES_A_CHUNK` batches.
    batch : answers a step.
    max_tokens : where training answers are cut off; labelling reads 512.
    check_every : chunks between two looks at the validation answers.
    patience : looks without improvement after which a fit ends.
    seed : of answers, head and matrices.
    """

    base: str = "embedded:minilm"
    layers: tuple[int, ...] | None = (0, 3, 5)
    rank: int = 8
    learning_rate: float = 1e-3
    own_rate: float = 3e-4
    common_chunks: int = 320
    chunks: int = 20
    batch: int = 32
    max_tokens: int = 320
    check_every: int = 10
    patience: int = 12
    seed: int = 0


@dataclass
class Fitted:
    """What a fit leaves: a model in memory with its best weights, and how it got there."""

    model: Any
    tokenizer: Any
    best_chunk: int
    chunks: int
    validation: list[tuple[int, float]]
    seconds: float


def check_base(base: Path, recipe: Recipe) -> None:
    """Stop, before anything is written, on a base that the recipe cannot be cooked with."""
    config = read_config(base, flag=FLAG)
    if config.get("model_type") != "bert":
        raise UserError(f"{FLAG}: {base} is a {config.get('model_type')!r} model; expected a BERT encoder")
    if recipe.layers is not None:
        check_layers(recipe.layers, config.get("num_hidden_layers", 12), base)


def fit(
    lessons: Lessons,
    validation: Sequence[Lesson],
    recipe: Recipe,
    *,
    base: Path,
    name: str,
    chunks: int,
    learning_rate: float,
    checkpoint: Path,
    start: dict[str, torch.Tensor] | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Fitted:
    """Fit a classifier with the classes of all datasets of `lessons`, in the table's order, one behind the other.

    Parameters
    ----------
    validation : the answers whose mean loss decides which weights are kept and when the fit ends.
    name : of the fit; its answers are drawn under it, and the progress bar has it.
    chunks, learning_rate : how long the fit may take, and its peak rate.
    checkpoint : file that holds the state of an interrupted fit.
    start : weights to begin with, as `weights_of` gives them; None: LoRA's own start and a random head.
    dtype : bfloat16 computes in it where that is safe (autocast); None or float32 computes in float32.
    """
    import torch

    torch.manual_seed(recipe.seed)
    names = list(lessons.rows)
    spans = _spans(names)
    model, tokenizer = _build(base, recipe, sum(len(DATASETS[name].labels) for name in names))
    if start is not None:
        set_weights(model, start)
    model.to(device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.01)
    limit = min(recipe.max_tokens, model.config.max_position_embeddings)
    held = _encoded(tokenizer, validation, limit)
    state: dict[str, Any] = {"chunk": 0, "best_loss": math.inf, "best_chunk": 0, "best": None, "validation": []}
    state["seconds"] = 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        set_weights(model, state["weights"])
        optimizer.load_state_dict(state["optimizer"])
    steps = chunks * BATCHES_A_CHUNK
    with progress_bar(chunks, name, unit="chunk", initial=state["chunk"]) as bar:
        while state["chunk"] < chunks and not _is_over(state, recipe):
            drawn = lessons.draw(f"{name} {state['chunk']}", recipe.batch * BATCHES_A_CHUNK)
            began = time.perf_counter()
            encoded = _encoded(tokenizer, drawn, limit)
            order = sorted(range(len(drawn)), key=lambda index: len(encoded[index]))
            for batch in range(BATCHES_A_CHUNK):
                part = order[batch * recipe.batch : (batch + 1) * recipe.batch]
                rate = _rate(state["chunk"] * BATCHES_A_CHUNK + batch, steps)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * rate
                try:
                    with _computing(device, dtype):
                        logits = _logits(model, [encoded[index] for index in part], tokenizer.pad_token_id, device)
                    loss = _loss(logits, [drawn[index] for index in part], spans)
                    loss.backward()
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    raise UserError(
                        f"--batch_size {recipe.batch}: {len(part)} answers do not fit into memory on {device}; take less"
                    ) from None
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad()
            if not bool(torch.isfinite(loss)):
                raise UserError(
                    f"--learning_rate {learning_rate:g}: the loss of {name} is no longer finite; take a lower one"
                )
            state["chunk"] += 1
            state["seconds"] += time.perf_counter() - began
            bar.update()
            if state["chunk"] % recipe.check_every == 0 or state["chunk"] == chunks:
                began = time.perf_counter()
                with torch.no_grad(), _computing(device, dtype):
                    held_loss = _mean_loss(model, held, validation, tokenizer.pad_token_id, spans, device)
                state["validation"].append((state["chunk"], held_loss))
                bar.set_postfix_str(f"validation loss {held_loss:.4f}")
                if held_loss < state["best_loss"]:
                    state |= {"best_loss": held_loss, "best_chunk": state["chunk"], "best": weights_of(model)}
                state["seconds"] += time.perf_counter() - began
                _keep({**state, "weights": weights_of(model), "optimizer": optimizer.state_dict()}, checkpoint)
    set_weights(model, state["best"])
    return Fitted(model.eval(), tokenizer, state["best_chunk"], state["chunk"], state["validation"], state["seconds"])


def _is_over(state: dict[str, Any], recipe: Recipe) -> bool:
    behind = [chunk for chunk, _ in state["validation"] if chunk > state["best_chunk"]]
    return len(behind) >= recipe.patience


def _keep(state: dict[str, Any], checkpoint: Path) -> None:
    import torch

    temporary = checkpoint.with_name(checkpoint.name + ".part")
    torch.save(state, temporary)
    temporary.replace(checkpoint)


def _rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: a short rise, then half a cosine down to a fiftieth."""
    rise = max(1.0, 0.06 * steps)
    return min(1.0, (step + 1) / rise) * max(0.02, 0.5 * (1 + math.cos(math.pi * step / steps)))


# --- the model ------------------------------------------------------------------------------------------------------


def _build(base: Path, recipe: Recipe, classes: int) -> tuple[Any, Any]:
    """The base with a new head, on the host in float32, and its tokenizer; with a rank, wrapped by PEFT."""
    import torch
    from transformers import BertForSequenceClassification

    options = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    model, info = load_model(
        BertForSequenceClassification,
        base,
        flag=FLAG,
        dtype=torch.float32,
        num_labels=classes,
        ignore_mismatched_sizes=True,
        **options,
    )
    if "classifier.weight" not in info["missing_keys"]:
        # A classifier may be the base of another: its head is not.
        torch.nn.init.normal_(model.classifier.weight, std=model.config.initializer_range)
        torch.nn.init.zeros_(model.classifier.bias)
    new = ("classifier.", "bert.pooler.")
    mismatched = [key for key, _, _ in info["mismatched_keys"]]
    lost = [key for key in [*info["missing_keys"], *mismatched] if not key.startswith(new)]
    if lost:
        raise UserError(f"{FLAG}: {base} lacks {len(lost)} weights ({', '.join(sorted(lost)[:3])}); copy it again")
    if recipe.layers is not None:
        keep_layers(model, recipe.layers, base)
    tokenizer = load_tokenizer(base, flag=FLAG)
    if not recipe.rank:
        return model, tokenizer
    from peft import LoraConfig, TaskType, get_peft_model

    kept = (
        ["classifier", "pooler"]
        if any(key.startswith("bert.pooler.") for key in info["missing_keys"])
        else ["classifier"]
    )
    model.name_or_path = recipe.base  # what PEFT writes down as the base, instead of a path of this machine
    adapted = get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.SEQ_CLS,
            base_model_name_or_path=recipe.base,
            r=recipe.rank,
            lora_alpha=2 * recipe.rank,
            lora_dropout=0.0,
            target_modules=["query", "key", "value", "dense"],
            modules_to_save=kept,
        ),
    )
    return adapted, tokenizer


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """A copy of the trained weights, on the host: the adapter and head of a PEFT model, all weights of another."""
    return {key: tensor.detach().cpu().clone() for key, tensor in _state(model).items()}


def _state(model: Any) -> dict[str, torch.Tensor]:
    if not hasattr(model, "peft_config"):
        return dict(model.state_dict())
    from peft import get_peft_model_state_dict

    return dict(get_peft_model_state_dict(model, save_embedding_layers=False))


def set_weights(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Put weights of `weights_of` into a model of the same shape."""
    if not hasattr(model, "peft_config"):
        model.load_state_dict(weights)
        return
    from peft.utils import set_peft_model_state_dict

    set_peft_model_state_dict(model, weights)


def head_of_dataset(weights: dict[str, torch.Tensor], names: Sequence[str], dataset: str) -> dict[str, torch.Tensor]:
    """Weights of a classifier of `names`, with the classes of `dataset` alone."""
    begin, end = _spans(names)[dataset]
    return {key: tensor[begin:end].clone() if "classifier." in key else tensor for key, tensor in weights.items()}


def save(fitted: Fitted, folder: Path, *, dataset: str, recipe: Recipe) -> None:
    """Write the classifier of one dataset: PEFT's adapter files in bfloat16, or a whole checkpoint.

    The adapter's matrices are rounded to bfloat16, which halves the file and moves no figure; the head stays float32.
    """
    import torch

    labels = [label.classifier for label in DATASETS[dataset].labels]
    if not recipe.rank:
        model = copy.deepcopy(fitted.model).cpu()
        model.config.id2label, model.config.label2id = dict(enumerate(labels)), {v: k for k, v in enumerate(labels)}
        model.save_pretrained(folder)
        fitted.tokenizer.save_pretrained(folder)
        return
    from safetensors.torch import save_file

    stored = {
        key: (tensor if "classifier" in key else tensor.to(torch.bfloat16)).contiguous()
        for key, tensor in weights_of(fitted.model).items()
    }
    settings = copy.deepcopy(fitted.model.peft_config["default"])
    settings.base_model_name_or_path, settings.inference_mode = recipe.base, True
    settings.save_pretrained(folder)
    weights = folder / "adapter_model.safetensors"
    save_file(stored, str(weights), metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors writes it for its owner alone


# --- one batch ------------------------------------------------------------------------------------------------------


def _spans(names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Where each dataset's classes lie among the outputs."""
    spans, end = {}, 0
    for name in names:
        begin, end = end, end + len(DATASETS[name].labels)
        spans[name] = (begin, end)
    return spans


def _encoded(tokenizer: Any, lessons: Sequence[Lesson], limit: int) -> list[list[int]]:
    texts = [lesson.text for lesson in lessons]
    return list(tokenizer(texts, truncation=True, max_length=limit)["input_ids"]) if texts else []


def _computing(device: str, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    import torch

    return torch.autocast(device.partition(":")[0], dtype=torch.bfloat16, enabled=dtype is torch.bfloat16)


def _logits(model: Any, encoded: Sequence[list[int]], pad: int, device: str) -> torch.Tensor:
    ids, mask = padded(encoded, pad)
    plain = model.base_model.model if hasattr(model, "peft_config") else model
    return first_token_logits(plain, ids.to(device), mask.to(device)).float()


def _loss(logits: torch.Tensor, lessons: Sequence[Lesson], spans: dict[str, tuple[int, int]]) -> torch.Tensor:
    """Mean cross-entropy over each row's own classes; an answer that says no label has all of them as its target.

    The uniform target is outlier exposure (Hendrycks et al., "Deep Anomaly Detection with Outlier Exposure", ICLR
    2019): it teaches low confidence where there is nothing to be confident of.
    """
    import torch

    losses = []
    for row, lesson in zip(logits, lessons, strict=True):
        begin, end = spans[lesson.dataset]
        likelihood = row[begin:end].log_softmax(dim=-1)
        if lesson.label is None:
            losses.append(-likelihood.mean())
        else:
            losses.append(-likelihood[DATASETS[lesson.dataset].label_names.index(lesson.label)])
    return torch.stack(losses).mean()


def _mean_loss(
    model: Any,
    encoded: list[list[int]],
    lessons: Sequence[Lesson],
    pad: int,
    spans: dict[str, tuple[int, int]],
    device: str,
) -> float:
    order = sorted(range(len(lessons)), key=lambda index: len(encoded[index]))
    total = 0.0
    for begin in range(0, len(order), 64):
        part = order[begin : begin + 64]
        logits = _logits(model, [encoded[index] for index in part], pad, device)
        total += float(_loss(logits, [lessons[index] for index in part], spans)) * len(part)
    return total / len(order)
