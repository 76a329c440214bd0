"""Tokens and cost over the sessions of a run: exact sums, and gaps that are told."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from imhi.engines.usage import cost_of, recounted, total_told, total_usage

PRICES = {"price_in": 1.0, "price_out": 0.0}


def used(prompt: int, new: int = 0, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": new, "answers_without_usage": 0, **more}


def session(usage: dict[str, Any], *, ended: str | None = "2026-01-01T00:00:00+00:00") -> dict[str, Any]:
    return {"ended": ended, "engine": {"usage": usage}}


def test_costs_are_summed_without_a_rounding_error() -> None:
    total = total_usage([session(used(100_000, **PRICES)) for _ in range(3)])
    assert 0.1 + 0.1 + 0.1 != 0.3
    assert total == {"sessions": 3, **used(300_000), "cost": 0.3}
    # A tenth of a millionth, a million times over.
    small = [session(used(1, price_in=0.1, price_out=5e-07)) for _ in range(1_000_000)]
    assert total_usage(small)["cost"] == 0.1
    # As the price is written, not as its nearest binary fraction.
    assert cost_of(used(0, 3, price_in=1, price_out=1e-07)) == Fraction(3, 10**13)


def test_sessions_may_differ_in_prices_and_one_without_is_told() -> None:
    total = total_usage([session(used(10**6, **PRICES)), session(used(10**6, price_in=3.0, price_out=0.0))])
    assert total["cost"] == 4.0 and "at least" not in total_told(total)
    total = total_usage([session(used(10**6, **PRICES)), session(used(5)), session(used(0))])
    assert (total["cost"], total["sessions_without_price"]) == (1.0, 1)
    assert total_told(total) == (
        "all 3 sessions: 1000005 prompt and 0 new tokens, cost 1 at least (1 of the sessions had no prices)"
    )
    assert "cost" not in total_usage([session(used(5))])


def test_engines_that_count_no_usage_have_no_total() -> None:
    assert total_usage([]) is None
    assert total_usage([{"ended": None}, {"ended": None, "engine": {"batch_plan": {}}}]) is None


def test_a_killed_session_counts_with_its_records_or_is_told() -> None:
    records = [
        {"prompt_tokens": 70, "new_tokens": 5, "error": None},
        {"prompt_tokens": 30, "new_tokens": 1, "error": "content_filter"},
        {"prompt_tokens": 0, "new_tokens": 0, "error": None},
        {"prompt_tokens": 0, "new_tokens": 0, "error": "503"},
    ]
    found = recounted(used(0, cost=0.0, **PRICES), records)
    assert found == {**used(100, 6), "answers_without_usage": 1, **PRICES, "cost": 0.0001, "from_journal": True}
    total = total_usage([session(found, ended=None), session(used(0), ended=None)])
    assert (total["prompt_tokens"], total["sessions_from_journal"], total["sessions_not_counted"]) == (100, 1, 1)
    assert "1 answers came without token counts" in total_told(total) and "are not counted" in total_told(total)
