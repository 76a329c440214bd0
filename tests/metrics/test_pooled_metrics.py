"""A metric over a pool of workers: the same values and signature, whatever comes first."""

from __future__ import annotations

import random

import numpy
import pytest
from fake_pool import FakePool
from tiny import sample_texts

from imhi.errors import UserError
from imhi.metrics import METRICS
from imhi.metrics.pooled import CHUNKS_A_WORKER, MOST_PAIRS, over_workers


class Shuffled(FakePool):
    def stream(self, make, chunks, again):
        parts = list(super().stream(make, chunks, again))
        random.Random(1).shuffle(parts)
        yield from parts


@pytest.fixture
def texts() -> tuple[list[str], list[str]]:
    drawn = random.Random(0).choices(sample_texts(), k=60)
    return ["", *drawn[:29]], [*drawn[29:58], "fine"]


@pytest.mark.parametrize(
    ("name", "options"), [("bleu", {}), ("rouge", {}), ("bert_score", {"model": "embedded:minilm", "device": "cpu"})]
)
def test_values_and_signature_are_those_of_one_process(name, options, texts, monkeypatch):
    monkeypatch.setattr("imhi.metrics.pooled.LEAST_PAIRS", 4)
    metric = METRICS[name](**options)
    pool = Shuffled(2, fate=lambda number, chunk: 0 if number == 1 and 3 in chunk[0] else None)
    spread = over_workers(metric, options, pool)
    advanced: list[int] = []
    numpy.testing.assert_allclose(spread.statistics(*texts, advanced.append), metric.statistics(*texts), atol=1e-6)
    assert sum(advanced) == 30
    assert str(spread.signature) == str(metric.signature)
    assert spread.score(*texts).values == pytest.approx(metric.score(*texts).values, abs=1e-6)
    assert pool.passes == 3
    assert len(pool.sent[0]) > 2


def test_a_result_whose_worker_died_behind_it_counts_once(texts, monkeypatch):
    monkeypatch.setattr("imhi.metrics.pooled.LEAST_PAIRS", 4)
    metric = METRICS["rouge"]()
    pool = FakePool(fate=lambda number, chunk: 1 if number == 1 else None)
    advanced: list[int] = []
    spread = over_workers(metric, {}, pool)
    assert spread.statistics(*texts, advanced.append) == metric.statistics(*texts)
    assert sum(advanced) == 30
    assert pool.passes == 1


def test_a_chunk_ends_long_before_ray_takes_its_worker_for_stuck():
    pool = FakePool(1)
    texts = [f"{at} fine" for at in range(3 * MOST_PAIRS * CHUNKS_A_WORKER)]
    over_workers(METRICS["rouge"](), {}, pool).statistics(texts, texts)
    assert max(len(rows) for rows, _ in pool.sent[0]) == MOST_PAIRS


def test_a_pair_that_never_comes_is_no_score(texts, monkeypatch):
    monkeypatch.setattr("imhi.metrics.pooled.LEAST_PAIRS", 4)

    class Losing(FakePool):
        def stream(self, make, chunks, again):
            yield from list(super().stream(make, chunks, again))[1:]

    with pytest.raises(UserError, match=r"4 of \d+ pairs did not come back"):
        over_workers(METRICS["rouge"](), {}, Losing()).statistics(*texts)


def test_a_machine_with_another_model_scores_nothing(texts):
    metric = METRICS["bert_score"](device="cpu")
    spread = over_workers(metric, {"device": "cpu", "num_layers": 2}, FakePool())
    with pytest.raises(UserError, match=r"would score with bert_score\|.*layer:2.*, and this machine with .*layer:5"):
        spread.statistics(*texts)
