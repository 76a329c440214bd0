"""Tokens and cost of a run that a server answers: of a session, and of all sessions of a run together.

A session's usage is what its server counted: ``prompt_tokens``, ``completion_tokens``, ``answers_without_usage`` (answers
that the server did not count), and with prices (currency per million tokens) ``price_in``, ``price_out`` and ``cost``.
Costs are computed from tokens and prices as they are written, in fractions: no rounding adds up over sessions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

__all__ = ["cost_of", "recounted", "total_told", "total_usage"]

COUNTS = ("prompt_tokens", "completion_tokens", "answers_without_usage")


def cost_of(usage: Mapping[str, Any]) -> Fraction | None:
    """What a session's tokens cost, in the prices' currency; None without prices.

    What a discount for cached prompts would save is not taken off.
    """
    if usage.get("price_in") is None or usage.get("price_out") is None:
        return None
    # By way of the text: 0.1 means a tenth, not the nearest binary fraction.
    price_in, price_out = (Fraction(repr(usage[name])) for name in ("price_in", "price_out"))
    return (usage["prompt_tokens"] * price_in + usage["completion_tokens"] * price_out) / 1_000_000


def recounted(usage: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The usage of a killed session from what it journaled, marked by ``from_journal``.

    A lower bound: what was under way when it was killed, and answers that could not be used, are in no journal.
    `usage` is what stood in the manifest, for its prices.
    """
    counts = dict.fromkeys(COUNTS, 0)
    for record in records:
        counts["prompt_tokens"] += record["prompt_tokens"]
        counts["completion_tokens"] += record["new_tokens"]
        counts["answers_without_usage"] += record["error"] is None and not record["prompt_tokens"]
    found = {**usage, **counts}
    cost = cost_of(found)
    return {**found, **({} if cost is None else {"cost": float(cost)}), "from_journal": True}


def total_usage(sessions: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The sums over all sessions of a run that count usage; None where none does.

    Returns
    -------
    dict
        ``sessions`` and the counts; ``cost`` where a session has prices.  Where the sums are lower bounds it says
        why: ``sessions_without_price`` (their tokens have no cost), ``sessions_from_journal`` (`recounted`),
        ``sessions_not_counted`` (killed, and not recounted).
    """
    counted = [one for one in sessions if "usage" in one.get("engine", {})]
    used = [one["engine"]["usage"] for one in counted]
    if not used:
        return None
    total: dict[str, Any] = {"sessions": len(used), **{name: sum(one[name] for one in used) for name in COUNTS}}
    costs = [cost for cost in map(cost_of, used) if cost is not None]
    if costs:
        total["cost"] = float(sum(costs))
    gaps = {
        "sessions_without_price": sum(
            bool(costs and cost_of(one) is None and one["prompt_tokens"] + one["completion_tokens"]) for one in used
        ),
        "sessions_from_journal": sum("from_journal" in one for one in used),
        "sessions_not_counted": sum(
            one["ended"] is None and "from_journal" not in one["engine"]["usage"] for one in counted
        ),
    }
    return {**total, **{name: count for name, count in gaps.items() if count}}


def total_told(total: Mapping[str, Any]) -> str:
    """`total_usage` in one line, with what is missing from it."""
    cost = f", cost {total['cost']:.6g}" if "cost" in total else ""
    gaps = {
        "answers_without_usage": "answers came without token counts",
        "sessions_without_price": "of the sessions had no prices",
        "sessions_from_journal": "were killed and count with what they journaled",
        "sessions_not_counted": "were killed and are not counted",
    }
    missing = [f"{total[name]} {what}" for name, what in gaps.items() if total.get(name)]
    return (
        f"all {total['sessions']} sessions: {total['prompt_tokens']} prompt and {total['completion_tokens']} new "
        f"tokens{cost}" + (f" at least ({', '.join(missing)})" if missing else "")
    )
