"""What a run's figures are called, what each depends on, and the sums that they follow from.

A key names one figure of one dataset: "accuracy", "weighted_f1" and "macro_f1" of the labels by rule, the same with
"classifier_" before them, and every score column ("bleu", "rouge1", "rouge1_explanation", ...).  Higher is better.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from imhi import __version__
from imhi.errors import UserError
from imhi.metrics import summed_metric
from imhi.metrics.base import digest_of
from imhi.provenance import LIBRARIES
from imhi.results import RULE, DatasetResults
from imhi.statistics import Summed, label_figures, mean_figures, stacked

__all__ = ["LABEL_FIGURES", "Measure", "chosen_keys", "label_key", "measures_of", "split_signature", "summed_figures"]

# In the order in which they are shown.
LABEL_FIGURES = ("accuracy", "weighted_f1", "macro_f1")
# Fields of a signature that name what computed the value and not how it is defined.
VERSIONS = frozenset([*LIBRARIES, "imhi"])


@dataclass(frozen=True)
class Measure:
    """One figure of one dataset.

    Attributes
    ----------
    definition : what the value depends on beside the rows and answers, versions of software left out.
    versions : of the software that computed it, by name.
    source : the labeller whose labels it is of; "" for a score column.
    metric : the metric of a score column; "" for a figure of labels.
    """

    key: str
    definition: str
    versions: dict[str, str]
    source: str = ""
    metric: str = ""


def label_key(figure: str, source: str) -> str:
    """The key of a figure of one labeller's labels."""
    return figure if source == RULE else f"{source}_{figure}"


def split_signature(signature: str) -> tuple[str, dict[str, str]]:
    """A signature without the versions of the software that computed the value, and these versions by name."""
    metric, *fields = signature.split("|")
    versions = dict(field.split(":", 1) for field in fields if field.partition(":")[0] in VERSIONS)
    return "|".join([metric, *(field for field in fields if field.partition(":")[0] not in VERSIONS)]), versions


def measures_of(results: DatasetResults) -> dict[str, Measure]:
    """Key → measure of what a dataset's results hold, figures of labels first."""
    found = {}
    for source, labels in results.labels.items():
        versions = {"imhi": __version__} if source == RULE else {}
        # A classifier's definition lists the digests of its files; a column without a record is defined by itself.
        by = (
            f"{source}#{digest_of(labels.definition)[7:19]}" if labels.definition.startswith("{") else labels.definition
        )
        for figure in LABEL_FIGURES:
            key = label_key(figure, source)
            found[key] = Measure(key, f"{figure}|labels:{by}|unparsed:wrong", versions, source=source)
    for key, column in results.scores.items():
        definition, versions = split_signature(column.signature)
        found[key] = Measure(key, f"{definition}|value:{key}", versions, metric=column.metric)
    return found


def chosen_keys(wanted: Collection[str], measures: Mapping[str, Measure]) -> list[str]:
    """The keys that `wanted` names, by key or by metric ("rouge" for its three columns); all without any.

    Raises UserError at a name that is neither.
    """
    for name in wanted:
        if name not in measures and all(name != measure.metric for measure in measures.values()):
            raise UserError(f"--metrics {name}: not among the figures of these runs ({', '.join(measures)})")
    return [key for key, measure in measures.items() if not wanted or {key, measure.metric} & set(wanted)]


def summed_figures(results: DatasetResults, keys: Collection[str]) -> Summed:
    """The figures of these keys as sums over the rows: for resampling and tests, all on the same resamples."""
    parts = []
    for source in results.labels:
        names = {figure: label_key(figure, source) for figure in LABEL_FIGURES}
        if kept := {figure: key for figure, key in names.items() if key in keys}:
            gold, predicted = results.coded(source)
            parts.append(_renamed(label_figures(gold, predicted, len(results.dataset.labels)), kept))
    means = {}
    for key, column in results.scores.items():
        if key in keys and column.statistics is None:
            means[key] = column.rows
        elif key in keys:
            parts.append(_corpus_figure(key, column.metric, column.statistics or []))
    if means:
        parts.append(mean_figures(means))
    return stacked(parts)


def _renamed(summed: Summed, names: Mapping[str, str]) -> Summed:
    """The figures of these names only, under new ones."""
    return Summed(
        summed.rows,
        lambda sums: {names[name]: values for name, values in summed.of_sums(sums).items() if name in names},
    )


def _corpus_figure(key: str, metric: str, statistics: list[tuple[float, ...]]) -> Summed:
    import numpy as np

    values_of_sums = summed_metric(metric).values_of_sums
    return Summed(np.asarray(statistics, dtype=float), lambda sums: {key: values_of_sums(sums)})
