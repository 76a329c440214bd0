"""Batches: longest first, a pure function of the lengths; failing batches are halved."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imhi.batching import is_out_of_memory, plan_batches, plan_token_batches, run_split


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 9))
def test_a_plan_covers_every_row_once_longest_first(lengths, batch_size):
    plan = plan_batches(lengths, batch_size)
    order = [row for batch in plan for row in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[row] for row in order] == sorted(lengths, reverse=True)
    assert all(len(batch) == batch_size for batch in plan[:-1])
    assert plan == plan_batches(lengths, batch_size)


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 2000), st.none() | st.integers(1, 9))
def test_a_token_plan_keeps_to_its_budget(lengths, budget, batch_size):
    plan = plan_token_batches(lengths, budget, batch_size)
    order = [row for batch in plan for row in batch]
    assert order == sorted(range(len(lengths)), key=lambda row: -lengths[row]), "longest first, ties in file order"
    for batch in plan:
        longest = max(1, lengths[batch[0]])
        padded = len(batch) * longest
        assert len(batch) == 1 or padded <= budget
        assert batch_size is None or len(batch) <= batch_size
        if batch is not plan[-1] and len(batch) != batch_size:
            assert padded + longest > budget, "room was left for another row"


def test_batch_size_must_be_positive():
    with pytest.raises(ValueError, match="at least 1"):
        plan_batches([1], 0)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        plan_token_batches([1], 10, 0)
    with pytest.raises(ValueError, match="budget must be at least 1"):
        plan_token_batches([1], 0)


@settings(deadline=None, max_examples=15)  # a split collects garbage, which takes its time
@given(st.integers(1, 40), st.integers(1, 40))
def test_splitting_keeps_order_and_loses_nothing(count, fits):
    splits: list[int] = []

    def work(part):
        if len(part) > fits:
            raise RuntimeError("CUDA out of memory")
        return [item * 2 for item in part]

    done = list(run_split(list(range(count)), work, on_split=splits.append))
    assert [item for part, _ in done for item in part] == list(range(count))
    assert [value for _, result in done for value in result] == [item * 2 for item in range(count)]
    assert bool(splits) == (count > fits)


def test_errors_that_are_not_memory_are_raised_without_a_handler():
    def work(part):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        list(run_split([1, 2], work))

    def hungry(part):
        raise MemoryError

    with pytest.raises(MemoryError):
        list(run_split([1, 2], hungry))


def test_a_handler_gets_the_item_that_fails_alone():
    def work(part):
        if 5 in part:
            raise ValueError("five")
        return list(part)

    done = list(run_split(list(range(9)), work, on_failure=lambda item, error: [f"{item}: {error}"]))
    assert [value for _, result in done for value in result] == [0, 1, 2, 3, 4, "5: five", 6, 7, 8]


def test_what_counts_as_out_of_memory():
    import torch

    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
