"""BART-score: the mean log-probability that a BART gives one text of a pair, token by token, after reading the other.

Definition: Yuan, Neubig, Liu, "BARTScore: evaluating generated text as text generation", NeurIPS 2021, as in the
authors' ``bart_score.py``: both texts cut to 1024 tokens, ``<s>`` and ``</s>`` of the target counted, the sum of the
target's log-probabilities divided by its tokens.  The IMHI scripts call ``score(generated, gold)``, that is
log P(gold | generated): what the BARTScore paper calls recall.  (They turn an empty answer into the text "nan"; here
it is empty.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from imhi.batching import padded, plan_batches, run_split
from imhi.checkpoints import (
    fingerprint,
    first_line,
    load_errors,
    load_model,
    load_tokenizer,
    locate,
    read_config,
    refuse_missing,
    weight_files,
)
from imhi.devices import pick_dtype
from imhi.errors import UserError
from imhi.metrics.base import Metric, Signature, Statistics, digest_of
from imhi.talk import say

__all__ = ["DIRECTIONS", "BartScore"]

FLAG = "--bart_model"
DIRECTIONS = {"published": "gold-given-generated", "reverse": "generated-given-gold", "both": "both"}
MAX_TOKENS = 1024

# What older transformers wrote into a state dict and BART never used.
UNUSED_KEYS = frozenset(["model.encoder.version", "model.decoder.version"])


class BartScore(Metric):
    """Mean log P(gold | generated) per token, natural logarithm: below 0, higher is better.

    Parameters
    ----------
    model : folder or hub id of a BART.
    weights : a state dict (``bart_score.pth``) to load over the model's own weights; read as tensors only.
    direction : "published": ``bart_score``, log P(gold | generated); "reverse": ``bart_score_reverse``,
        log P(generated | gold); "both": these two and ``bart_score_mean``, their mean per row.
    batch_size : pairs a batch.
    device, dtype : where and in what the model runs; log-probabilities are taken in float32.

    Raises
    ------
    UserError
        No such model or state dict, not a BART.
    """

    name = "bart_score"
    lowest = None
    highest = 0.0
    empty_rule: ClassVar[str] = "what the model gives for an empty text (<s></s>), as in the paper's code"

    def __init__(
        self,
        model: str = "facebook/bart-large-cnn",
        *,
        weights: str | Path | None = None,
        direction: str = "published",
        batch_size: int = 8,
        device: str = "cpu",
        dtype: str = "float32",
    ):
        if direction not in DIRECTIONS:
            raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}")
        self.folder = locate(model, flag=FLAG)
        config = read_config(self.folder, flag=FLAG)
        if config.get("model_type") != "bart":
            raise UserError(f"{FLAG}: {self.folder} is a {config.get('model_type')!r} checkpoint; expected a BART")
        self.weights = Path(weights).expanduser() if weights is not None else None
        if self.weights is not None and not self.weights.is_file():
            raise UserError(f"--bart_weights: no file {self.weights}")
        if not weight_files(self.folder):
            raise UserError(f"{FLAG}: {self.folder} has no weights (no *.safetensors or *.bin file)")
        self.model_name = Path(model).resolve().name if Path(model).expanduser().exists() else model
        self.direction = direction
        self.batch_size = batch_size
        self.device = device
        self.dtype = str(pick_dtype(dtype, device)).removeprefix("torch.")
        self.max_tokens = min(MAX_TOKENS, int(config.get("max_position_embeddings", MAX_TOKENS)))
        if self.weights is None:
            self.note = (
                f"bart_score: {self.model_name} as it is; the published values add the ParaBank2 weights "
                "(--bart_weights bart_score.pth)"
            )

    @cached_property
    def _digests(self) -> tuple[str, str]:
        own = digest_of(fingerprint(self.folder))[7:19]
        return own, "none" if self.weights is None else digest_of(list(fingerprint(self.weights).values()))[7:19]

    @property
    def signature(self) -> Signature:
        model, weights = self._digests
        return Signature.of(
            self.name,
            {
                "model": self.model_name,
                "weights": model,
                "state_dict": weights,
                "direction": DIRECTIONS[self.direction],
                "max_tokens": self.max_tokens,
                "dtype": self.dtype,
            },
            ["torch", "transformers"],
        )

    @property
    def run_facts(self) -> dict[str, object]:
        return {"device": self.device, "batch_size": self.batch_size}

    @property
    def statistics_columns(self) -> tuple[str, ...]:
        return {
            "published": ("bart_score",),
            "reverse": ("bart_score_reverse",),
            "both": ("bart_score", "bart_score_reverse"),
        }[self.direction]

    def row_values(self, statistics: Statistics) -> dict[str, list[float]]:
        """The direction's values per row; with "both" also their mean."""
        found = super().row_values(statistics)
        if self.direction == "both":
            found["bart_score_mean"] = [(published + reverse) / 2 for published, reverse in statistics]
        return found

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = load_tokenizer(self.folder, flag=FLAG)
        ends = [tokenizer.bos_token_id, tokenizer.eos_token_id]
        if None in ends or tokenizer.encode("") != ends or tokenizer.pad_token_id is None:
            raise UserError(
                f"{FLAG}: the tokenizer in {self.folder} does not put <s> and </s> around a text as BART's does"
            )
        return tokenizer

    @cached_property
    def _model(self) -> Any:
        return _load_bart(self.folder, self.weights, self.device, self.dtype)

    def _statistics(self, pairs: Sequence[tuple[str, str]], advance: Callable[[int], object]) -> Statistics:
        # Loaded before the first batch: a model that does not fit is no reason to split batches.
        _ = self._model
        tokens = {text: self._tokens(text) for text in dict.fromkeys(text for pair in pairs for text in pair)}
        lengths = [len(tokens[generated]) + len(tokens[gold]) for generated, gold in pairs]
        rows: Statistics = [()] * len(pairs)

        def work(part: Sequence[int]) -> Statistics:
            generated = [tokens[pairs[at][0]] for at in part]
            golds = [tokens[pairs[at][1]] for at in part]
            columns = []
            if self.direction != "reverse":
                columns.append(self._mean_log_probabilities(generated, golds))
            if self.direction != "published":
                columns.append(self._mean_log_probabilities(golds, generated))
            return list(zip(*columns, strict=True))

        def on_split(size: int) -> None:
            say(f"bart_score: {size} pairs did not fit in memory; going on with {(size + 1) // 2}")

        for batch in plan_batches(lengths, self.batch_size):
            for part, found in run_split(batch, work, on_split=on_split):
                for at, row in zip(part, found, strict=True):
                    rows[at] = row
                advance(len(part))
        return rows

    def _tokens(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, truncation=True, max_length=self.max_tokens)

    def _mean_log_probabilities(self, sources: list[list[int]], targets: list[list[int]]) -> list[float]:
        """log P(target | source) / tokens of the target, per pair of token lists, shape (pairs,)."""
        import torch

        pad = self._tokenizer.pad_token_id
        source, source_mask = padded(sources, pad)
        target, target_mask = padded(targets, pad)
        start = torch.full_like(target[:, :1], self._model.config.decoder_start_token_id)
        with torch.inference_mode():
            logits = self._model(
                input_ids=source.to(self.device),
                attention_mask=source_mask.to(self.device),
                # Teacher forcing: each position has read the start token and the target before it.
                decoder_input_ids=torch.cat([start, target[:, :-1]], dim=1).to(self.device),
                use_cache=False,
            ).logits
            labels = target.to(self.device)
            # A row at a time: float32 copies of all logits would take twice the memory of the forward pass.
            found = []
            for row, ids, mask in zip(logits, labels, target_mask.to(self.device), strict=True):
                scores = row.float()
                log_probabilities = scores.gather(1, ids.unsqueeze(1)).squeeze(1) - scores.logsumexp(dim=1)
                # "<pad>" spelled out in a text is a token that counts but adds nothing, as in the paper's code.
                kept = mask.bool() & (ids != pad)
                found.append(log_probabilities[kept].sum() / mask.sum())
            return torch.stack(found).tolist()


def _load_bart(folder: Path, weights: Path | None, device: str, dtype: str) -> Any:
    from transformers import BartForConditionalGeneration

    model, info = load_model(BartForConditionalGeneration, folder, flag=FLAG, dtype=pick_dtype(dtype, device))
    refuse_missing(info["missing_keys"], folder, flag=FLAG)
    if weights is not None:
        _load_state_dict(model, weights)
    return model.to(device).eval()


def _load_state_dict(model: Any, weights: Path) -> None:
    """Load a state dict over a model's weights; UserError unless it covers them all."""
    import torch

    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except load_errors() as error:
        raise UserError(f"--bart_weights: {weights} is not a state dict of tensors ({first_line(error)})") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"--bart_weights: {weights} holds something else than a state dict of tensors")
    try:
        report = model.load_state_dict(
            {key: value for key, value in state.items() if key not in UNUSED_KEYS}, strict=False
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()[:200]
        raise UserError(f"--bart_weights: {weights} does not fit the model ({reason})") from error
    # A tied weight has several names; one of them in the file is enough.
    names: dict[int, set[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(tensor.data_ptr(), set()).add(name)
    lacking = [
        name for name in report.missing_keys if not any(name in tied and tied & state.keys() for tied in names.values())
    ]
    if lacking or report.unexpected_keys:
        odd = lacking[0] if lacking else report.unexpected_keys[0]
        raise UserError(
            f"--bart_weights: {weights} does not fit the model ({len(lacking)} weights missing, "
            f"{len(report.unexpected_keys)} unknown, {odd} among them)"
        )
