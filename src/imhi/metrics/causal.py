"""What metrics with a causal language model share: log P(told | read) of token ids, in batches, and who waits for it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imhi.batching import padded, plan_token_batches, run_split
from imhi.checkpoints import EMBEDDED, load_generator, locate_generator
from imhi.cpu import keep_freed_memory, pack_linears
from imhi.devices import pick_dtype
from imhi.errors import UserError
from imhi.metrics.base import digest_of
from imhi.talk import say

if TYPE_CHECKING:
    import torch

    from imhi.checkpoints import Generator

__all__ = ["CausalScorer", "Tally"]

# Padded tokens in a batch.
CPU_TOKENS, GPU_TOKENS = 1024, 16384
# Bytes of float32 logits normalised at once: on a CPU below the size from which glibc fetches fresh pages.
CPU_LOGITS, GPU_LOGITS = 24 << 20, 512 << 20


class CausalScorer:
    """A causal model that says how probable tokens are after others.

    Parameters
    ----------
    model : a causal model: folder, adapter folder, GGUF file, hub id or embedded name.
    metric : the metric's name, for messages.
    device, dtype : where the model runs and what its matrices are multiplied in; log-probabilities are taken in float32
        and added in float64.  Below float32, what layers add to stays in float32, norms and logits too: mixed
        precision (Micikevicius et al., "Mixed Precision Training", ICLR 2018).

    Raises
    ------
    UserError
        No such model, not a causal one.
    """

    def __init__(self, model: str, *, metric: str, device: str, dtype: str):
        self.metric = metric
        self.spec = locate_generator(model)
        if self.spec.kind != "causal":
            raise UserError(f"{metric}: {model} is an encoder-decoder; give a causal model, or use bart_score")
        self.model_name = model if model in EMBEDDED else Path(self.spec.adapter or self.spec.folder).name
        self.device = device
        self.dtype = str(pick_dtype(dtype, device)).removeprefix("torch.")

    @cached_property
    def digest(self) -> str:
        """12 hexadecimal digits that stand for the model's files, and the adapter's where there is one."""
        identity = self.spec.identity()
        return digest_of(identity["model_files"] if identity["adapter_files"] is None else identity)[7:19]

    @cached_property
    def generator(self) -> Generator:
        generator = load_generator(self.spec, device=self.device, dtype=pick_dtype(self.dtype, self.device))
        if self.device == "cpu":
            keep_freed_memory()
        if self.dtype != "float32":
            _widen(generator.model)
        elif self.device == "cpu":
            pack_linears(generator.model)
        return generator

    @property
    def precision(self) -> str:
        """What the model computes in, for a signature."""
        return self.dtype if self.dtype == "float32" else f"{self.dtype}+float32"

    @cached_property
    def start(self) -> int:
        """The token that begins a text.  Raises UserError where the tokenizer has none."""
        tokenizer = self.generator.tokenizer
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise UserError(f"{self.metric}: the tokenizer of {self.model_name} has no token that begins a text")
        return int(start)

    def run(
        self,
        sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
        *,
        batch_size: int | None,
        on_value: Callable[[int, float], object],
    ) -> None:
        """Tell ``on_value(index, nats)`` of every (read, told) pair of token ids, the longest first.

        The nats are -log P(told | read), natural logarithm, 0 where nothing is told; `read` has a token at least.
        Batches hold at most `batch_size` sequences, where it is given, and as many padded tokens as suit the device.
        """
        _ = self.generator  # A model that does not fit is no reason to split batches.

        def on_split(size: int) -> None:
            say(f"{self.metric}: {size} sequences did not fit in memory; going on with {(size + 1) // 2}")

        def work(part: Sequence[int]) -> list[float]:
            return self._nats([sequences[at] for at in part])

        budget = CPU_TOKENS if self.device == "cpu" else GPU_TOKENS
        lengths = [len(read) + len(told) for read, told in sequences]
        for batch in plan_token_batches(lengths, budget, batch_size):
            for part, found in run_split(batch, work, on_split=on_split):
                for at, value in zip(part, found, strict=True):
                    on_value(at, value)

    def _nats(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
        """-log P(told | read) of each (read, told), shape (sequences,)."""
        import torch
        from torch.nn.functional import cross_entropy

        told = [token for _, tokens in sequences for token in tokens]
        if not told:
            return [0.0] * len(sequences)
        pad: Any = self.generator.tokenizer.pad_token_id
        ids, mask = padded([[*read, *tokens] for read, tokens in sequences], pad)
        wanted = torch.zeros_like(mask, dtype=torch.bool)
        for row, (read, tokens) in enumerate(sequences):
            # The logits of a position foretell the next one.
            wanted[row, len(read) - 1 : len(read) - 1 + len(tokens)] = True
        model = self.generator.model
        half = torch.autocast(
            torch.device(self.device).type, pick_dtype(self.dtype, self.device), enabled=self.dtype != "float32"
        )
        with torch.inference_mode():
            with half, _logits_only_at(model, wanted.to(self.device)):
                logits = model(
                    input_ids=ids.to(self.device), attention_mask=mask.to(self.device), use_cache=False
                ).logits
            # Where the model has no head of its own to spare, all positions come back.
            logits = logits[wanted.to(self.device)] if logits.shape[:2] == ids.shape else logits[0]
            held = CPU_LOGITS if self.device == "cpu" else GPU_LOGITS
            rows = max(1, held // (4 * logits.shape[-1]))
            targets = torch.tensor(told, dtype=torch.long, device=logits.device)
            losses = torch.cat(
                [
                    cross_entropy(some.float(), target, reduction="none")
                    for some, target in zip(logits.split(rows), targets.split(rows), strict=True)
                ]
            )
        parts = losses.cpu().double().split([len(tokens) for _, tokens in sequences])
        return [part.sum().item() for part in parts]


def _widen(model: Any) -> None:
    """Hold embeddings, norms and biases in float32, and compute logits in it, in spite of autocast."""
    import torch

    head = model.get_output_embeddings()
    for part in (model.get_input_embeddings(), head):
        if part is not None:
            part.float()
    for parameter in model.parameters():
        if parameter.dim() < 2:
            parameter.data = parameter.data.float()
    if head is not None:
        head.forward = torch.autocast(next(head.parameters()).device.type, enabled=False)(head.forward)


@contextmanager
def _logits_only_at(model: Any, wanted: torch.Tensor) -> Iterator[None]:
    """Let the model's output layer see only the positions in the mask `wanted`, shape (rows, tokens).

    The logits then have shape (1, positions, vocabulary), in order of rows; what a model does with them after its
    output layer (soft caps, scales) is done value by value and stays the same.
    """
    head = model.get_output_embeddings()
    if head is None or wanted.sum() == wanted.numel():
        yield
        return
    hook = head.register_forward_pre_hook(lambda _, given: (given[0][wanted][None], *given[1:]))
    try:
        yield
    finally:
        hook.remove()


class Tally:
    """Tells ``advance`` how many pairs have all they need, as cases that several pairs may need are finished."""

    def __init__(self, needs: Mapping[Hashable, Iterable[Hashable]], advance: Callable[[int], object]):
        self._advance = advance
        self._lacking = {pair: set(cases) for pair, cases in needs.items()}
        self._waiting: dict[Hashable, list[Hashable]] = {}
        for pair, cases in self._lacking.items():
            for case in cases:
                self._waiting.setdefault(case, []).append(pair)
        none_needed = sum(not cases for cases in self._lacking.values())
        if none_needed:
            advance(none_needed)

    def finished(self, case: Hashable) -> None:
        for pair in self._waiting.pop(case, ()):
            self._lacking[pair].discard(case)
            if not self._lacking[pair]:
                self._advance(1)
