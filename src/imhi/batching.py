"""Batches of rows of similar length, longest first, and the splitting of a batch that failed.

Longest first, so that a memory error comes at once and the progress bar errs on the safe side
(the order of lm-evaluation-harness).  The plan is a pure function of the lengths, so that a resumed run
makes the same batches, and therefore the same floating-point sums, as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

__all__ = ["is_out_of_memory", "padded", "plan_batches", "plan_token_batches", "release_memory", "run_split"]

Result = TypeVar("Result")


def plan_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices into `lengths`, in batches of at most `batch_size`, longest first; ties keep file order.

    Raises ValueError if `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def plan_token_batches(lengths: Sequence[int], budget: int, batch_size: int | None = None) -> list[list[int]]:
    """Indices into `lengths`, longest first, in batches whose padded size is at most `budget`; ties keep file order.

    The padded size is rows times the longest row.  A row that alone exceeds the budget stands alone.  `batch_size`
    limits the rows of a batch as well.  Raises ValueError if either is below 1.
    """
    if budget < 1:
        raise ValueError(f"budget must be at least 1, got {budget}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batches = []
    start = 0
    while start < len(order):
        rows = max(1, budget // max(1, lengths[order[start]]))
        rows = rows if batch_size is None else min(rows, batch_size)
        batches.append(order[start : start + rows])
        start += rows
    return batches


def padded(encoded: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of a batch, shape (rows, longest), padded on the right; the mask is 1 on tokens."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = pad_sequence([torch.tensor(row) for row in encoded], batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(row) for row in encoded])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the GPU or on the host."""
    if type(error).__name__ in {"OutOfMemoryError", "MemoryError"}:
        return True
    text = str(error)
    signs = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def run_split(
    items: Sequence[int],
    work: Callable[[Sequence[int]], Result],
    *,
    on_split: Callable[[int], None] | None = None,
    on_failure: Callable[[int, Exception], Result] | None = None,
) -> Iterator[tuple[Sequence[int], Result]]:
    """Run `work` on `items`; where memory runs out, halve them and go on.

    Yields (items, result) parts that together cover `items` in order.  `on_split` is told the size that did
    not fit.  An out-of-memory error on a single item, and any other error, is raised; with `on_failure`, any
    error of the work halves its batch until the failing item stands alone, whose result is
    ``on_failure(item, error)``, so that one bad row costs no other row.
    """
    waiting = [items]
    while waiting:
        part = waiting.pop()
        out_of_memory = False
        try:
            result = work(part)
        except (RuntimeError, ValueError, LookupError, MemoryError) as error:
            out_of_memory = is_out_of_memory(error)
            splittable = len(part) > 1 and (out_of_memory or on_failure is not None)
            if not splittable:
                if on_failure is None:
                    raise
                result = on_failure(part[0], error)
        else:
            splittable = False
        if not splittable:
            yield part, result
            continue
        # Outside the except block: the traceback would keep the failed batch's tensors alive.
        release_memory()
        if on_split is not None and out_of_memory:
            on_split(len(part))
        middle = (len(part) + 1) // 2
        waiting += [part[middle:], part[:middle]]


def release_memory() -> None:
    """Give back what dropped tensors held, on the host and on the GPU."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
