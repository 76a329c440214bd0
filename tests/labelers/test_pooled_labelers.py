"""Labelers over a pool of workers: the same labels, counts and identity, whatever comes first."""

from __future__ import annotations

import random

import pytest
from fake_pool import FakePool
from tiny import sample_texts

from imhi.benchmark import DATASETS
from imhi.errors import UserError
from imhi.labelers.folders import open_labelers
from imhi.labelers.pooled import LEAST_ROWS, MOST_ROWS, cut, over_workers

NAMES = ["DR", "SAD", "MultiWD"]


def opened():
    import torch

    return open_labelers(None, [DATASETS[name] for name in NAMES], device="cpu", dtype=torch.float32)


def others():
    from dataclasses import replace

    return {
        name: replace(labeler, settings=replace(labeler.settings, max_tokens=7)) for name, labeler in opened().items()
    }


@pytest.fixture(scope="module")
def labelers():
    return opened()


def responses(count: int) -> list[str]:
    # Some empty, many more than once, one longer than a classifier reads.
    texts = [f"{answer} Reasoning: {text}" for text, answer in zip(sample_texts(), ["Yes.", "No."] * 99, strict=False)]
    drawn = random.Random(count).choices(texts, k=count - 4)
    return random.Random(0).sample(["", "", *["so tired " * 900] * 2, *drawn], k=count)


class Shuffled(FakePool):
    """Parts come in another order than chunks were sent, those of all datasets mixed."""

    def stream(self, make, chunks, again):
        parts = list(super().stream(make, chunks, again))
        random.Random(1).shuffle(parts)
        yield from parts


def test_labels_counts_and_identity_are_those_of_one_process(labelers, monkeypatch):
    monkeypatch.setattr("imhi.labelers.pooled.LEAST_ROWS", 7)
    texts = {name: responses(60 + at) for at, name in enumerate(NAMES)}
    pooled = over_workers(labelers, opened, texts, Shuffled(3))
    for name in NAMES:
        expected, found = (which[name].label(DATASETS[name], texts[name]) for which in (labelers, pooled))
        assert (found.labels, found.clear, found.counts) == (expected.labels, expected.clear, expected.counts)
        assert found.counts["truncated"] == found.counts["empty"] == 2
        assert found.confidences == pytest.approx(expected.confidences, abs=2e-6)
        assert pooled[name].identity() == labelers[name].identity()


def test_one_start_of_the_workers_serves_all_datasets(labelers):
    pool = FakePool()
    texts = {name: responses(20) for name in NAMES}
    pooled = over_workers(labelers, opened, texts, pool)
    for name in NAMES:
        pooled[name].label(DATASETS[name], texts[name])
    assert pool.passes == 1
    assert {chunk.dataset for chunk in pool.sent[0]} == set(NAMES)


def test_a_chunk_that_is_lost_is_labelled_again(labelers):
    pool = FakePool(fate=lambda number, chunk: 0 if number == 1 and chunk.dataset == "SAD" else None)
    texts = {name: responses(20) for name in NAMES}
    pooled = over_workers(labelers, opened, texts, pool)
    for name in NAMES:
        expected = labelers[name].label(DATASETS[name], texts[name])
        assert pooled[name].label(DATASETS[name], texts[name]).labels == expected.labels
    assert pool.passes == 2


def test_a_result_whose_worker_died_behind_it_is_not_taken_twice(labelers, monkeypatch):
    monkeypatch.setattr("imhi.labelers.pooled.LEAST_ROWS", 7)
    pool = FakePool(
        fate=lambda number, chunk: (1 if len(pool.sent[0]) and chunk.rows[0] % 2 else 0) if number == 1 else None
    )
    texts = {name: responses(40) for name in NAMES[:2]}
    pooled = over_workers(labelers, opened, texts, pool)
    for name, given in texts.items():
        expected, found = (which[name].label(DATASETS[name], given) for which in (labelers, pooled))
        assert (found.labels, found.counts) == (expected.labels, expected.counts)
    came = [chunk for chunk in pool.sent[0] if chunk.rows[0] % 2]
    assert came and len(pool.sent[1]) == len(pool.sent[0]) - len(came)


def test_a_machine_with_other_classifiers_labels_nothing(labelers):
    pooled = over_workers(labelers, others, {name: ["Yes."] for name in NAMES}, FakePool())
    with pytest.raises(UserError, match="has other classifiers of DR, SAD, MultiWD than this machine"):
        pooled["DR"].label(DATASETS["DR"], ["Yes."])


def test_no_text_stands_in_two_chunks_and_every_row_in_one():
    texts = responses(4 * LEAST_ROWS)
    chunks = cut("DR", texts, 2)
    assert len(chunks) > 2
    assert sorted(row for chunk in chunks for row in chunk.rows) == list(range(len(texts)))
    assert all([texts[row] for row in chunk.rows] == list(chunk.texts) for chunk in chunks)
    assert sum(len(set(chunk.texts)) for chunk in chunks) == len(set(texts))
    assert [len(chunk.texts[0]) for chunk in chunks] == sorted((len(chunk.texts[0]) for chunk in chunks), reverse=True)


def test_a_chunk_ends_long_before_ray_takes_its_worker_for_stuck():
    chunks = cut("DR", [str(at) for at in range(40_000)], 1)
    assert max(len(chunk.rows) for chunk in chunks) == MOST_ROWS


def test_a_row_that_never_comes_is_no_label(labelers):
    class Losing(FakePool):
        def stream(self, make, chunks, again):
            yield from list(super().stream(make, chunks, again))[1:]

    pooled = over_workers(labelers, opened, {"DR": ["Yes."]}, Losing())
    with pytest.raises(UserError, match="1 rows of DR did not come back"):
        pooled["DR"].label(DATASETS["DR"], ["Yes."])


def test_other_responses_than_the_pool_was_given_are_no_labels(labelers):
    pooled = over_workers(labelers, opened, {"DR": ["Yes."]}, FakePool())
    with pytest.raises(ValueError, match="other responses of DR"):
        pooled["DR"].label(DATASETS["DR"], ["No."])


def test_workers_are_heard_to_the_end(labelers):
    """A cluster that ends while a worker's last word is under way ends badly."""
    ended = []

    class Watched(FakePool):
        def stream(self, make, chunks, again):
            yield from super().stream(make, chunks, again)
            ended.append(True)

    pooled = over_workers(labelers, opened, {"DR": ["Yes."], "SAD": ["School."]}, Watched())
    pooled["DR"].label(DATASETS["DR"], ["Yes."])
    assert not ended
    pooled["SAD"].label(DATASETS["SAD"], ["School."])
    assert ended
