"""Which rows a training step sees: datasets mixed by temperature, batches of like lengths, all planned beforehand.

The plan is a function of the rows, the seed and the numbers below alone; a resumed training takes up the same list of
batches at its step, whatever became of the first process.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

__all__ = ["plan_batches", "rows_per_epoch"]

# Batches of like lengths are cut from so many batches' worth of shuffled rows, as transformers' own sampler does.
BATCHES_A_POOL = 50


def rows_per_epoch(sizes: Mapping[str, int], temperature: float, rows: int | None = None) -> dict[str, int]:
    """How often each dataset is drawn from in an epoch: share ∝ size^(1/temperature).

    Temperature 1 takes every row once; above it, small sets are repeated and large ones thinned (Devlin, "Multilingual
    BERT", 2018; Raffel et al., "Exploring the Limits of Transfer Learning", JMLR 2020, section 3.5.2).

    Parameters
    ----------
    sizes : dataset → training rows.
    temperature : 1 or more; infinity draws from all datasets alike.
    rows : rows of an epoch; None: as many as there are.
    """
    total = sum(sizes.values()) if rows is None else rows
    weights = {name: size ** (1 / temperature) for name, size in sizes.items()}
    exact = {name: total * weight / sum(weights.values()) for name, weight in weights.items()}
    shares = {name: int(share) for name, share in exact.items()}
    # What rounding down left over goes to the largest remainders.
    behind = sorted(exact, key=lambda name: (shares[name] - exact[name], name))
    for name in behind[: total - sum(shares.values())]:
        shares[name] += 1
    return shares


def plan_batches(
    lengths: Mapping[str, Sequence[int]],
    *,
    batch_size: int,
    epochs: int,
    temperature: float,
    seed: int,
    rows: int | None = None,
) -> list[list[tuple[str, int]]]:
    """Every batch of a training, in order: lists of (dataset, row of that dataset).

    Parameters
    ----------
    lengths : dataset → tokens of each of its training rows.
    batch_size : rows of a batch over all devices.  An epoch is a whole number of batches: what a last one would lack
        is drawn in the next epoch.
    epochs, temperature, rows : `rows_per_epoch`; a set that is thinned or repeated goes on, in the next epoch, where it
        stopped, so that all rows of a set are seen equally often, give or take one.
    """
    generator = random.Random(f"{seed} batches")
    sizes = {name: len(found) for name, found in lengths.items()}
    total = sum(sizes.values()) if rows is None else rows
    shares = rows_per_epoch(sizes, temperature, max(total - total % batch_size, batch_size))
    waiting: dict[str, list[int]] = {name: [] for name in lengths}
    batches = []
    for _ in range(epochs):
        drawn: list[tuple[str, int]] = []
        for name, share in shares.items():
            while len(waiting[name]) < share:
                deck = list(range(sizes[name]))
                generator.shuffle(deck)
                waiting[name] += deck
            drawn += [(name, row) for row in waiting[name][:share]]
            waiting[name] = waiting[name][share:]
        generator.shuffle(drawn)
        batches += _grouped(drawn, lengths, batch_size, generator)
    return batches


def _grouped(
    drawn: Sequence[tuple[str, int]], lengths: Mapping[str, Sequence[int]], batch_size: int, generator: random.Random
) -> list[list[tuple[str, int]]]:
    """An epoch's rows in batches of like lengths: the longest first (memory errors come at once), the rest shuffled."""

    def tokens(batch: Sequence[tuple[str, int]]) -> int:
        return lengths[batch[0][0]][batch[0][1]]

    batches = []
    for start in range(0, len(drawn), batch_size * BATCHES_A_POOL):
        pool = sorted(drawn[start : start + batch_size * BATCHES_A_POOL], key=lambda one: -lengths[one[0]][one[1]])
        batches += [pool[at : at + batch_size] for at in range(0, len(pool), batch_size)]
    generator.shuffle(batches)
    longest = max(range(len(batches)), key=lambda at: tokens(batches[at]))
    return [batches.pop(longest), *batches]
