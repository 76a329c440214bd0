"""Batches of rows of similar length, longest first, and the splitting of a batch that ran out of memory.

Longest first, so that a memory error comes at once and the progress bar errs on the safe side
(the order of lm-evaluation-harness).  The plan is a pure function of the lengths, so that a resumed run
makes the same batches, and therefore the same floating-point sums, as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

__all__ = ["is_out_of_memory", "plan_batches", "run_split"]

Result = TypeVar("Result")


def plan_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices into `lengths`, in batches of at most `batch_size`, longest first; ties keep file order.

    Raises ValueError if `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the GPU or on the host."""
    if type(error).__name__ in {"OutOfMemoryError", "MemoryError"}:
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def run_split(
    items: Sequence[int],
    work: Callable[[Sequence[int]], Result],
    *,
    on_split: Callable[[int], None] | None = None,
) -> Iterator[tuple[Sequence[int], Result]]:
    """Run `work` on `items`; where memory runs out, halve them and go on.

    Yields (items, result) parts that together cover `items` in order.  `on_split` is told the size that did
    not fit.  An out-of-memory error on a single item, and any other error, is raised.
    """
    try:
        result = work(items)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(items) == 1:
            raise
        failed_size = len(items)
    else:
        yield items, result
        return
    # Outside the except block: the traceback would keep the failed batch's tensors alive.
    _release_memory()
    if on_split is not None:
        on_split(failed_size)
    middle = (len(items) + 1) // 2
    yield from run_split(items[:middle], work, on_split=on_split)
    yield from run_split(items[middle:], work, on_split=on_split)


def _release_memory() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
