"""BART-score: the mean log-probability that a BART gives one text of a pair, token by token, after reading the other.

Definition: Yuan, Neubig, Liu, "BARTScore: evaluating generated text as text generation", NeurIPS 2021, as in the
authors' ``bart_score.py``: both texts cut to 1024 tokens, ``<s>`` and ``</s>`` of the target counted, the sum of the
target's log-probabilities divided by its tokens.  The IMHI scripts call ``score(generated, gold)``, that is
log P(gold | generated): what the BARTScore paper calls recall.  (They turn an empty answer into the text "nan"; here
it is empty.)

The same sums are reached with less work: pairs stand in batches that pad little on either side, a batch encodes a text
once however often it is read, and the vocabulary is scored on the tokens of the targets alone, not on padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from imhi.batching import padded, run_split
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
from imhi.cpu import keep_freed_memory, pack_linears
from imhi.devices import pick_dtype
from imhi.errors import UserError
from imhi.metrics.base import Metric, Signature, Statistics, digest_of
from imhi.talk import say

if TYPE_CHECKING:
    import torch

__all__ = ["DIRECTIONS", "BartScore", "plan_pair_batches"]

FLAG = "--bart_model"
DIRECTIONS = {"published": "gold-given-generated", "reverse": "generated-given-gold", "both": "both"}
MAX_TOKENS = 1024

# Padded tokens of both sides in a batch: on a CPU enough that a batch's work outweighs the reading of the weights, on
# a GPU enough to keep it busy.
CPU_TOKENS, GPU_TOKENS = 1024, 16384
# Bytes of float32 logits held at once: on a CPU below the size from which glibc fetches fresh pages (`imhi.cpu`).
CPU_LOGITS, GPU_LOGITS = 24 << 20, 512 << 20

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
    batch_size : pairs in a batch at most; None: no limit but `token_budget`.
    token_budget : padded tokens of both sides in a batch at most; None: what suits the device.
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
        batch_size: int | None = None,
        token_budget: int | None = None,
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
        self.token_budget = token_budget or (CPU_TOKENS if device == "cpu" else GPU_TOKENS)
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
        return {"device": self.device, "batch_size": self.batch_size, "token_budget": self.token_budget}

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
        tokens = self._tokens(list(dict.fromkeys(text for pair in pairs for text in pair)))
        generated, golds = ([len(tokens[text]) for text in side] for side in zip(*pairs, strict=True))
        rows: Statistics = [()] * len(pairs)

        def work(part: Sequence[int]) -> Statistics:
            return self._batch([pairs[at] for at in part], tokens)

        def on_split(size: int) -> None:
            say(f"bart_score: {size} pairs did not fit in memory; going on with {(size + 1) // 2}")

        for batch in plan_pair_batches(generated, golds, self.token_budget, self.batch_size):
            for part, found in run_split(batch, work, on_split=on_split):
                for at, row in zip(part, found, strict=True):
                    rows[at] = row
                advance(len(part))
        return rows

    def _tokens(self, texts: list[str]) -> dict[str, list[int]]:
        """Text → its token ids, ``<s>`` and ``</s>`` included."""
        encoded = self._tokenizer(texts, truncation=True, max_length=self.max_tokens)["input_ids"]
        return dict(zip(texts, encoded, strict=True))

    def _batch(self, pairs: Sequence[tuple[str, str]], tokens: Mapping[str, list[int]]) -> Statistics:
        """The statistics of (generated, gold) pairs, shape (pairs, directions)."""
        import torch

        asked = []
        if self.direction != "reverse":
            asked.append(list(pairs))
        if self.direction != "published":
            asked.append([(gold, generated) for generated, gold in pairs])
        states: dict[str, torch.Tensor] = {}
        columns = []
        with torch.inference_mode():
            for directed in asked:
                # A direction at a time: its sources are of similar length, those of both are not.
                new = [text for text in dict.fromkeys(source for source, _ in directed) if text not in states]
                if new:
                    states |= zip(new, self._encode([tokens[text] for text in new]), strict=True)
                columns.append(
                    self._mean_log_probabilities(
                        [states[source] for source, _ in directed], [tokens[target] for _, target in directed]
                    )
                )
        return list(zip(*columns, strict=True))

    def _encode(self, sources: list[list[int]]) -> list[torch.Tensor]:
        """The encoder's states of each source, shape (tokens, width)."""
        ids, mask = padded(sources, self._tokenizer.pad_token_id)
        states = self._model.model.encoder(
            input_ids=ids.to(self.device), attention_mask=mask.to(self.device)
        ).last_hidden_state
        return [state[: len(source)] for state, source in zip(states, sources, strict=True)]

    def _mean_log_probabilities(self, states: list[torch.Tensor], targets: list[list[int]]) -> list[float]:
        """log P(target | source) / tokens of the target, shape (pairs,), from the encoder's states of the sources."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        pad = self._tokenizer.pad_token_id
        target, target_mask = padded(targets, pad)
        _, source_mask = padded([[0] * len(state) for state in states], 0)
        start = torch.full_like(target[:, :1], self._model.config.decoder_start_token_id)
        decoded = self._model.model.decoder(
            # Teacher forcing: each position has read the start token and the target before it.
            input_ids=torch.cat([start, target[:, :-1]], dim=1).to(self.device),
            encoder_hidden_states=pad_sequence(states, batch_first=True),
            encoder_attention_mask=source_mask.to(self.device),
            use_cache=False,
        ).last_hidden_state
        # "<pad>" spelled out in a text is a token that counts but adds nothing, as in the paper's code.
        scored = target_mask.bool() & (target != pad)
        found = torch.zeros(target.shape, dtype=torch.float64)
        found[scored] = self._log_probabilities(
            decoded[scored.to(self.device)], target[scored].to(self.device)
        ).double()
        return (found.sum(dim=1) / target_mask.sum(dim=1)).tolist()

    def _log_probabilities(self, decoded: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Log-probability of each of `ids`, shape (tokens,), float32 on the host, from the decoder's states."""
        import torch
        from torch.nn.functional import cross_entropy

        bias = self._model.final_logits_bias
        held = CPU_LOGITS if self.device == "cpu" else GPU_LOGITS
        rows = max(1, held // (4 * bias.shape[-1]))
        found = []
        for some_decoded, some_ids in zip(decoded.split(rows), ids.split(rows), strict=True):
            logits = self._model.lm_head(some_decoded).add_(bias)
            found.append(-cross_entropy(logits.float(), some_ids, reduction="none"))
        return torch.cat(found).cpu()


def plan_pair_batches(
    sources: Sequence[int], targets: Sequence[int], budget: int, batch_size: int | None = None
) -> list[list[int]]:
    """Indices of pairs, in batches whose padded size on both sides is at most `budget`, the longest batch first.

    A pair that alone exceeds the budget stands alone.  All pairs are halved, and halved again, each time by the
    length of the side that would be padded more, until they fit: ordered by the sum of both lengths, long sources
    would stand beside short ones, and a fifth of the work would go into padding.  A pure function of the lengths;
    ties keep file order.

    Parameters
    ----------
    sources, targets : tokens of each pair's two sides, shape (pairs,).
    budget : tokens; the padded size is the rows times the sum of the longest source and the longest target.
    batch_size : rows of a batch at most; None: no limit.

    Raises
    ------
    ValueError
        If `budget` or `batch_size` is below 1.
    """
    for name, limit in (("budget", budget), ("batch_size", batch_size)):
        if limit is not None and limit < 1:
            raise ValueError(f"{name} must be at least 1, got {limit}")

    def longest(batch: list[int]) -> tuple[int, int]:
        return max(sources[at] for at in batch), max(targets[at] for at in batch)

    waiting, batches = [list(range(len(sources)))] if sources else [], []
    while waiting:
        batch = waiting.pop()
        widths = longest(batch)
        fits = len(batch) * sum(widths) <= budget and (batch_size is None or len(batch) <= batch_size)
        if fits or len(batch) == 1:
            batches.append(batch)
            continue
        padding = [
            len(batch) * width - sum(side[at] for at in batch)
            for width, side in zip(widths, (sources, targets), strict=True)
        ]
        side = sources if padding[0] >= padding[1] else targets
        batch.sort(key=lambda at: (-side[at], at))
        middle = (len(batch) + 1) // 2
        waiting += [batch[middle:], batch[:middle]]
    return sorted(batches, key=lambda batch: (-sum(longest(batch)), min(batch)))


def _load_bart(folder: Path, weights: Path | None, device: str, dtype: str) -> Any:
    from transformers import BartForConditionalGeneration

    model, info = load_model(BartForConditionalGeneration, folder, flag=FLAG, dtype=pick_dtype(dtype, device))
    refuse_missing(info["missing_keys"], folder, flag=FLAG)
    if weights is not None:
        _load_state_dict(model, weights)
    model = model.to(device).eval()
    if device == "cpu":
        keep_freed_memory()
        pack_linears(model)
    return model


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
