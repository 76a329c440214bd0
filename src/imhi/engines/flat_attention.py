"""Attention over rows that lie end to end, each with its keys and values in a slot of its own: no padding is computed.

A forward pass gets its tokens as one line, shape (1, tokens): first one token of each row that is being answered,
then the segments of prompts that are being read.  Every layer but attention treats tokens one by one; attention finds
in a `Step` which tokens belong together and where their earlier keys and values lie.  It is registered with
transformers under `NAME` and works for every architecture whose attention transformers lets one exchange.

Rows in a batch with other rows, and prompts with a shared beginning: Kwon et al., "Efficient Memory Management for Large
Language Model Serving with PagedAttention", SOSP 2023 (here slots, not pages: the rows of a benchmark come sorted by
length, so that slots are filled almost to their ends).  Heads that share keys read them once: Ainslie et al., "GQA:
Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints", EMNLP 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["NAME", "Segment", "SlotCache", "Step", "register", "rounded"]

NAME = "imhi_flat"
# Whole vectors of masked positions add exact zeros, so that a row's sums do not depend on its neighbours' lengths.
SPAN = 64


def rounded(tokens: int) -> int:
    """`tokens`, rounded up to whole spans."""
    return -(-tokens // SPAN) * SPAN


class SlotCache:
    """Keys and values of the rows at work: for each layer two tensors of shape (slots, heads, tokens, width).

    Layers are made when they are first written, in the shape that the model writes.
    """

    def __init__(self, slots: int, tokens: int):
        self.slots = slots
        self.tokens = rounded(tokens)
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def layer(self, index: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer; `key` and `value`, shape (1, heads, tokens, width), tell what it looks like."""
        if index not in self._layers:
            self._layers[index] = (self._empty(key), self._empty(value))
        return self._layers[index]

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        # Zeros: what is masked is still multiplied, and what memory happens to hold may not be a number.
        return like.new_zeros(self.slots, like.shape[1], self.tokens, like.shape[3])

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` of one slot into another."""
        for keys, values in self._layers.values():
            keys[target, :, :tokens] = keys[source, :, :tokens]
            values[target, :, :tokens] = values[source, :, :tokens]

    def resize(self, slots: int, tokens: int, kept: int) -> None:
        """Another number of slots, another length; the first `kept` slots keep what fits.  A layer at a time."""
        self.slots, self.tokens = slots, rounded(tokens)
        for index, pair in list(self._layers.items()):
            self._layers[index] = (self._resized(pair[0], kept), self._resized(pair[1], kept))

    def _resized(self, old: torch.Tensor, kept: int) -> torch.Tensor:
        new = self._empty(old)
        length = min(self.tokens, old.shape[2])
        new[:kept, :, :length] = old[:kept, :, :length]
        return new

    @property
    def bytes_per_token(self) -> int:
        """Of all layers, for one row."""
        return sum(
            tensor.shape[1] * tensor.shape[3] * tensor.element_size()
            for pair in self._layers.values()
            for tensor in pair
        )


@dataclass(frozen=True)
class Segment:
    """Tokens `first` to `last` of the line: positions from `start` of the rows in `slots`, which all begin with them."""

    first: int
    last: int
    slots: Sequence[int]
    start: int = 0


@dataclass
class Step:
    """What one forward pass computes: the next token of some rows, and segments of prompts.

    Attributes
    ----------
    cache : where keys and values lie.
    slots : the first slot and the end of the rows that get their next token; they stand first in the line, in order.
    positions : of these tokens, shape (rows,).
    longest : the highest of them.
    segments : what follows in the line.
    """

    cache: SlotCache
    slots: tuple[int, int]
    positions: torch.Tensor
    longest: int
    segments: Sequence[Segment]
    _masks: dict[tuple[int | None, torch.dtype], torch.Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return self.slots[1] - self.slots[0]

    @cached_property
    def span(self) -> int:
        """Positions that the rows look back at, whole spans."""
        return min(rounded(self.longest + 1), self.cache.tokens)

    @cached_property
    def slot_indices(self) -> torch.Tensor:
        import torch

        return torch.arange(*self.slots, device=self.positions.device)

    def row_mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """What to add to the rows' scores, shape (rows, 1, 1, span): 0 on what a token may look at, else minus infinity."""
        import torch

        if (window, dtype) not in self._masks:
            columns = torch.arange(self.span, device=self.positions.device)
            seen = columns <= self.positions[:, None]
            if window is not None:
                seen &= columns > self.positions[:, None] - window
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
            self._masks[window, dtype] = mask[:, None, None, :]
        return self._masks[window, dtype]


def register() -> None:
    """Make `NAME` known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    *,
    flat: Step,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Any = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function as transformers calls it; query, key, value: shape (1, heads, tokens, width)."""
    import torch

    if softcap is not None or s_aux is not None:
        raise NotImplementedError("attention with capped scores or sinks")
    keys, values = flat.cache.layer(module.layer_idx, key, value)
    found = []
    if flat.rows:
        found.append(_rows(flat, query, key, value, keys, values, scaling, sliding_window))
    for segment in flat.segments:
        found.append(_segment(segment, query, key, value, keys, values, scaling, sliding_window))
    return torch.cat(found).unsqueeze(0), None


def _rows(
    flat: Step,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """One token a row, against its slot; shape (rows, heads, width)."""
    from torch.nn.functional import scaled_dot_product_attention

    rows, heads, width = flat.rows, query.shape[1], query.shape[3]
    keys[flat.slot_indices, :, flat.positions] = key[0, :, :rows].transpose(0, 1)
    values[flat.slot_indices, :, flat.positions] = value[0, :, :rows].transpose(0, 1)
    # The heads that share keys stand where a longer query's tokens would: keys are read once and never repeated.
    grouped = query[0, :, :rows].transpose(0, 1).reshape(rows, key.shape[1], heads // key.shape[1], width)
    first, last = flat.slots
    states = scaled_dot_product_attention(
        grouped,
        keys[first:last, :, : flat.span],
        values[first:last, :, : flat.span],
        attn_mask=flat.row_mask(window, query.dtype),
        scale=scaling,
    )
    return states.reshape(rows, heads, value.shape[3])


def _segment(
    segment: Segment,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """A part of a prompt, against itself and what its row holds before it; shape (tokens, heads, width)."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    span = slice(segment.first, segment.last)
    queries, own_keys, own_values = query[:, :, span], key[:, :, span], value[:, :, span]
    end = segment.start + segment.last - segment.first
    for slot in segment.slots:
        keys[slot, :, segment.start : end] = own_keys[0]
        values[slot, :, segment.start : end] = own_values[0]
    mask = None
    if segment.start:
        slot = segment.slots[0]
        own_keys, own_values = keys[slot : slot + 1, :, :end], values[slot : slot + 1, :, :end]
    if segment.start or (window is not None and end > window):
        columns = torch.arange(end, device=query.device)
        rows = columns[segment.start :, None]
        mask = columns <= rows
        if window is not None:
            mask &= columns > rows - window
    states = scaled_dot_product_attention(
        queries, own_keys, own_values, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
    )
    return states[0].transpose(0, 1)
