"""The rows that the page's answer browser shows, packed small: columns as JSON, gzip, base64.

Runs of the same rows share their golds.  Posts are in it only where they were asked for.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from typing import Any

from imhi.results import DatasetResults, RunResults

__all__ = ["browser_data", "packed"]

# finish_reason → what the page calls it; everything else is an ordinary end.
FINISHES = {"length": 1, "error": 2}
SCORE_DIGITS, CONFIDENCE_DIGITS = 4, 3


def browser_data(runs: Sequence[RunResults], names: Sequence[str], *, include_posts: bool = False) -> dict[str, Any]:
    """Every row of every run, as plain values; a run that was kept without its texts has no parts.

    Returns
    -------
    dict
        "sets": for each distinct set of rows its dataset, label names, positions, golds and gold labels (as positions
        among the label names), and with `include_posts` the queries, or None where they are unknown; "runs": for each
        run its name and parts; a part has the number of its set, answers, labels by source (-1: unparsed), confidence
        and clearness where there are any, scores by column, ends (0 ordinary, 1 length limit, 2 failed) and lengths in
        tokens.
    """
    sets: list[dict[str, Any]] = []
    known: dict[tuple[str, str], int] = {}
    packed_runs = []
    for run, name in zip(runs, names, strict=True):
        parts = []
        for results in run.datasets.values() if run.has_texts else ():
            key = (results.name, results.rows_digest)
            if key not in known:
                known[key] = len(sets)
                sets.append(_rows(results))
            own = sets[known[key]]
            if include_posts and own["queries"] is None:
                own["queries"] = results.queries
            parts.append({"set": known[key], **_part(results)})
        packed_runs.append({"name": name, "parts": parts})
    return {"sets": sets, "runs": packed_runs}


def _rows(results: DatasetResults) -> dict[str, Any]:
    position = {name: at for at, name in enumerate(results.dataset.label_names)}
    return {
        "dataset": results.name,
        "labels": results.dataset.label_names,
        "index": results.index,
        "golds": results.goldens,
        "gold": [position[name] for name in results.gold],
        "queries": None,
    }


def _part(results: DatasetResults) -> dict[str, Any]:
    position: dict[str | None, int] = {name: at for at, name in enumerate(results.dataset.label_names)}
    labels = {
        source: {
            "said": [position.get(name, -1) for name in labels.predicted],
            "confidence": _rounded(labels.confidence, CONFIDENCE_DIGITS),
            "clear": None if labels.clear is None else [int(clear) for clear in labels.clear],
        }
        for source, labels in results.labels.items()
    }
    return {
        "answers": results.answers,
        "labels": labels,
        "scores": {name: _rounded(column.rows, SCORE_DIGITS) for name, column in results.scores.items()},
        "ends": None if results.finish is None else [FINISHES.get(reason, 0) for reason in results.finish],
        "tokens": results.new_tokens,
    }


def _rounded(values: Sequence[float] | None, digits: int) -> list[float] | None:
    return None if values is None else [round(value, digits) for value in values]


def packed(data: Any) -> str:
    """`data` as base64 of gzipped JSON: letters, digits, ``+/=``, safe inside any element of a page."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode("ascii")
