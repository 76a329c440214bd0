"""Metrics: pairs of texts in, per-row values, an aggregate and a signature out; one file a metric."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imhi.metrics.base import Metric

__all__ = ["METRICS", "summed_metric"]


def _bleu(**options: Any) -> Metric:
    from imhi.metrics.bleu import Bleu

    return Bleu(**options)


def _rouge(**options: Any) -> Metric:
    from imhi.metrics.rouge import Rouge

    return Rouge(**options)


def _bert_score(**options: Any) -> Metric:
    from imhi.metrics.bertscore import BertScore

    return BertScore(**options)


def _bart_score(**options: Any) -> Metric:
    from imhi.metrics.bartscore import BartScore

    return BartScore(**options)


def _info_gain(**options: Any) -> Metric:
    from imhi.metrics.information import InformationGain

    return InformationGain(**options)


def _coverage(**options: Any) -> Metric:
    from imhi.metrics.coverage import Coverage

    return Coverage(**options)


def _gpt_score(**options: Any) -> Metric:
    from imhi.metrics.gptscore import GptScore

    return GptScore(**options)


# Name (``--score_method``) → constructor, in the order in which "all" runs them: cheapest first.
METRICS: dict[str, Callable[..., Metric]] = {
    "bleu": _bleu,
    "rouge": _rouge,
    "bert_score": _bert_score,
    "bart_score": _bart_score,
    "coverage": _coverage,
    "info_gain": _info_gain,
    "gpt_score": _gpt_score,
}


def summed_metric(name: str) -> Any:
    """The metric of this name if its corpus value is one of sums over rows, and not the mean of row values; else None.

    Its ``values_of_sums`` takes sums of its statistics, shape (samples, statistics), and returns shape (samples,).
    """
    return _bleu() if name == "bleu" else None
