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
SPAN = 16
# Queries of a prompt that are attended at once: fewer waste less on what the mask hides, more start fewer calls.
CPU_BLOCK, GPU_BLOCK = 64, 1024


def rounded(tokens: int) -> int:
    """`tokens`, rounded up to whole spans."""
    return -(-tokens // SPAN) * SPAN


class SlotCache:
    """Keys and values of the rows at work: for each layer two tensors of shape (slots, heads, tokens, width).

    Layers are made when they are first written, in the shape that the model writes, or all at once by `allocate`.
    """

    def __init__(self, slots: int, tokens: int):
        self.slots = slots
        self.tokens = rounded(tokens)
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def layer(self, index: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer; `key` and `value`, shape (1, heads, tokens, width), tell what it looks like."""
        if index not in self._layers:
            self._layers[index] = (_zeros(key, self.slots, self.tokens), _zeros(value, self.slots, self.tokens))
        return self._layers[index]

    def allocate(self, like: SlotCache) -> None:
        """Make all layers that `like` has; where memory runs out, none is kept."""
        try:
            for index, (keys, values) in like._layers.items():
                self.layer(index, keys, values)
        except BaseException:
            self._layers.clear()
            raise

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` of one slot into another."""
        for keys, values in self._layers.values():
            keys[target, :, :tokens] = keys[source, :, :tokens]
            values[target, :, :tokens] = values[source, :, :tokens]

    def clear(self, slot: int) -> None:
        """Forget what a row left that may not be numbers."""
        for keys, values in self._layers.values():
            keys[slot].zero_()
            values[slot].zero_()

    def resize(self, slots: int, tokens: int, kept: int) -> None:
        """More slots, of fewer tokens; the first `kept` slots keep what fits.

        A tensor at a time, so that old and new never lie in memory together.  Where memory runs out all the same, the
        slots stay as many as they were: each tensor still has them, and the tokens that are asked for.
        """
        tokens = rounded(tokens)
        self.tokens = tokens
        for index in list(self._layers):
            for part in (0, 1):
                pair = list(self._layers[index])
                new = _zeros(pair[part], slots, tokens)
                new[:kept] = pair[part][:kept, :, :tokens]
                pair[part] = new
                self._layers[index] = (pair[0], pair[1])
        self.slots = slots

    @property
    def bytes_per_token(self) -> int:
        """Of all layers, for one row."""
        return sum(
            tensor.shape[1] * tensor.shape[3] * tensor.element_size()
            for pair in self._layers.values()
            for tensor in pair
        )


def _zeros(like: torch.Tensor, slots: int, tokens: int) -> torch.Tensor:
    # Zeros: what is masked is still multiplied, and what memory happens to hold may not be a number.
    return like.new_zeros(slots, like.shape[1], tokens, like.shape[3])


@dataclass(frozen=True)
class Segment:
    """Tokens `first` to `last` of the line: positions from `start` of the rows in `slots`, which all hold them.

    With `inherits`, the positions before `start` are those of `Step.beginning`, and are copied from there.
    """

    first: int
    last: int
    slots: Sequence[int]
    start: int = 0
    inherits: bool = False


@dataclass
class Step:
    """What one forward pass computes: the next token of some rows, and segments of prompts.

    Attributes
    ----------
    cache : where keys and values lie.
    slots : the first slot and the end of the rows that get their next token; they stand first in the line, in order.
    places : positions of these tokens.
    positions : the same on the device, shape (rows,).
    segments : what follows in the line.
    call_tokens : how many of a row's tokens cost as much as one more call of attention.
    beginning : keys and values, in its first slot, of what all prompts of the run begin with.
    windows : how far layers have looked back: None for all that is there.
    """

    cache: SlotCache
    slots: tuple[int, int]
    places: Sequence[int]
    positions: torch.Tensor
    segments: Sequence[Segment]
    call_tokens: int = 128
    beginning: SlotCache | None = None
    windows: set[int | None] = field(default_factory=set)
    _masks: dict[tuple[int, int, int | None], torch.Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return len(self.places)

    @cached_property
    def runs(self) -> list[tuple[int, int, int]]:
        """Neighbouring rows that are attended together: first row, end, and positions that the longest looks back at."""
        found: list[tuple[int, int, int]] = []
        for row, place in enumerate(self.places):
            span = min(rounded(place + 1), self.cache.tokens)
            if found:
                first, last, wide = found[-1]
                together = max(wide, span) * (last + 1 - first)
                if together <= wide * (last - first) + span + self.call_tokens:
                    found[-1] = (first, row + 1, max(wide, span))
                    continue
            found.append((row, row + 1, span))
        return found

    @property
    def tokens_read(self) -> int:
        """Keys (and values) of a layer that the rows read, masked ones included."""
        return sum((last - first) * span for first, last, span in self.runs)

    @cached_property
    def slot_indices(self) -> torch.Tensor:
        import torch

        return torch.arange(*self.slots, device=self.positions.device)

    def row_mask(self, run: tuple[int, int, int], window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """What to add to the scores of a run, shape (rows, 1, 1, span)."""
        first, last, span = run
        if (first, -1, window) not in self._masks:
            mask = _to_add(self.positions[first:last, None], span, window, dtype)
            self._masks[first, -1, window] = mask[:, None, None, :]
        return self._masks[first, -1, window]

    def prompt_mask(
        self, first: int, last: int, end: int, copies: int, window: int | None, dtype: torch.dtype
    ) -> torch.Tensor:
        """What to add to the scores of positions `first` to `last` of a prompt, shape (copies x positions, end)."""
        import torch

        if (first, last, window) not in self._masks:
            rows = torch.arange(first, last, device=self.positions.device)[:, None]
            self._masks[first, last, window] = _to_add(rows, end, window, dtype).repeat(copies, 1)
        return self._masks[first, last, window]


def _to_add(positions: torch.Tensor, end: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """0 where a position may look at one below `end`, else minus infinity; positions: shape (rows, 1)."""
    import torch

    columns = torch.arange(end, device=positions.device)
    seen = columns <= positions
    if window is not None:
        seen &= columns > positions - window
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


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
    position_bias: Any = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function as transformers calls it; query, key, value: shape (1, heads, tokens, width)."""
    import torch

    if softcap is not None or s_aux is not None or position_bias is not None:
        raise NotImplementedError("attention with capped scores, sinks or a bias")
    flat.windows.add(sliding_window)
    keys, values = flat.cache.layer(module.layer_idx, key, value)
    found = []
    if flat.rows:
        found.append(_rows(flat, query, key, value, keys, values, scaling, sliding_window))
    for segment in flat.segments:
        if segment.inherits and flat.beginning is not None:
            before = flat.beginning.layer(module.layer_idx, key, value)
            for slot in segment.slots:
                keys[slot, :, : segment.start] = before[0][0, :, : segment.start]
                values[slot, :, : segment.start] = before[1][0, :, : segment.start]
        found.append(_segment(flat, segment, query, key, value, keys, values, scaling, sliding_window))
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
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    rows, heads, width = flat.rows, query.shape[1], query.shape[3]
    keys[flat.slot_indices, :, flat.positions] = key[0, :, :rows].transpose(0, 1)
    values[flat.slot_indices, :, flat.positions] = value[0, :, :rows].transpose(0, 1)
    # The heads that share keys stand where a longer query's tokens would: keys are read once and never repeated.
    grouped = query[0, :, :rows].transpose(0, 1).reshape(rows, key.shape[1], heads // key.shape[1], width)
    slot = flat.slots[0]
    found = [
        scaled_dot_product_attention(
            grouped[first:last],
            keys[slot + first : slot + last, :, :span],
            values[slot + first : slot + last, :, :span],
            attn_mask=flat.row_mask((first, last, span), window, query.dtype),
            scale=scaling,
        )
        for first, last, span in flat.runs
    ]
    states = found[0] if len(found) == 1 else torch.cat(found)
    return states.reshape(rows, heads, value.shape[3])


def _segment(
    flat: Step,
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
    from torch.nn.functional import scaled_dot_product_attention

    span = slice(segment.first, segment.last)
    queries, own_keys, own_values = query[:, :, span], key[:, :, span], value[:, :, span]
    end = segment.start + segment.last - segment.first
    for slot in segment.slots:
        keys[slot, :, segment.start : end] = own_keys[0]
        values[slot, :, segment.start : end] = own_values[0]
    if query.device.type == "cpu" or segment.start or (window is not None and end > window):
        own = slice(segment.slots[0], segment.slots[0] + 1)
        return _in_blocks(flat, queries[0], keys[own], values[own], segment.start, scaling, window)
    states = scaled_dot_product_attention(
        queries, own_keys, own_values, is_causal=True, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return states[0].transpose(0, 1)


def _in_blocks(
    flat: Step,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    start: int,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """The same with a mask, block by block with the keys that a block sees.

    A CPU's kernel computes what a mask hides, a GPU's fast kernels take no mask with heads that share keys: queries of
    such heads go one behind the other, as those of one head.  `keys` and `values` are a whole slot's, of which a block
    takes whole spans; blocks end at the same positions wherever a segment begins.  So a position's sums are the same
    whether its beginning is read with it or was read before, for other rows too.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    heads, tokens, width = queries.shape
    shared = keys.shape[1]
    size = CPU_BLOCK if queries.device.type == "cpu" else GPU_BLOCK
    found = []
    first = start
    while first < start + tokens:
        last = min((first // size + 1) * size, start + tokens)
        end = min(rounded(last), keys.shape[2])
        block = queries[:, first - start : last - start].reshape(1, shared, -1, width)
        mask = flat.prompt_mask(first, last, end, heads // shared, window, queries.dtype)
        states = scaled_dot_product_attention(
            block, keys[:, :, :end], values[:, :, :end], attn_mask=mask, scale=scaling
        )
        found.append(states.reshape(heads, last - first, values.shape[3]).transpose(0, 1))
        first = last
    return found[0] if len(found) == 1 else torch.cat(found)
