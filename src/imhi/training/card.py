"""The model card of a label classifier: what it is, what it saw, how good it is, and what it is not for."""

from __future__ import annotations

from typing import Any

from imhi.benchmark import DATASETS
from imhi.checkpoints import EMBEDDED

__all__ = ["card", "markdown_table"]


def markdown_table(headers: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (headers, ["---"] * len(headers), *rows)]
    return "\n".join(lines)


def card(name: str, settings: dict[str, Any]) -> str:
    """The text of ``README.md`` beside the classifier of dataset `name`; figures in per cent."""
    dataset, training, figures = DATASETS[name], settings["training"], settings["figures"]
    recipe, sets = training["recipe"], figures["sets"]
    embedded = EMBEDDED.get(recipe["base"])
    origin = embedded.hub if embedded else recipe["base"]
    licence = embedded.licence.lower() if embedded else "other"
    rows = []
    for kind, found in sets.items():
        cells = [_interval(found[figure]) for figure in ("accuracy", "weighted_f1", "macro_f1")]
        errors = [f"{100 * found[key]:.1f}" for key in ("ece", "ece_before_temperature", "called_unclear")]
        rows.append([kind, str(found["answers"]), *cells, *errors])
    challenge = sets["challenge"]
    none = (challenge["says_no_label"], challenge["says_no_label_called_unclear"])
    layers = f"layers {', '.join(map(str, recipe['layers']))} (from 0)" if recipe["layers"] else "all layers"
    kind_of_model = (
        f"LoRA adapter (rank {recipe['rank']}) and head on {layers} of `{origin}`"
        if recipe["rank"]
        else f"BERT sequence classifier, trained from `{origin}`"
    )
    classes = ", ".join(f"{index} {label}" for index, label in enumerate(settings["classes"]))
    confusions = "\n\n".join(
        _confusion(kind, sets[kind]["confusion"], name) for kind in ("gold, no head", "challenge") if kind in sets
    )
    return f"""---
license: {licence}
library_name: {"peft" if recipe["rank"] else "transformers"}
base_model: {origin}
---
# Label classifier for {name}

{kind_of_model}. It reads a model's answer to "{dataset.instruction_question}" and names the label that the answer
gives: {classes}. It does not see the post, and it does not judge whether the label is right.

For research on language models. Not for clinical use: it says nothing about a person. The licence is that of the base.
{_samples(training)}
## What it learned from

{_source(name, training)}

Answers are composed around these explanations and around sentences written for the toolkit (`imhi.training.answers`);
{training["dropped_rows"]} training rows whose post is a test or expert post were left out. Temperature
{settings["temperature"]} and threshold {settings["unclear_below"]} are fitted on {training["calibration_answers"]} validation
answers that say a label and {training["calibration_undecided"]} that say none.
Best of {training["chunks"]} chunks: {training["best_chunk"]}.

## How good it is

Gold rows: {figures["gold_rows"]}. Per cent, with 95 % bootstrap intervals (over posts for gold rows); ECE is the expected
calibration error with 10 bins, with and without the temperature; "unclear" is the share under the threshold, that is
of the texts that name no label in the classifier's eyes. A figure of 100 has an interval without width by this method;
with n answers, all right, the exact lower bound is 0.025^(1/n).

{markdown_table(["answers", "n", "accuracy", "weighted F1", "macro F1", "ECE", "ECE, T = 1", "unclear"], rows)}

Of {none[0]} challenge answers that say no label, {none[1]} are called unclear.
{_contradictions(sets)}
{confusions}

Made by `imhi train labelers`; recipe, versions and figures are in `labeler.json`.
"""


def _samples(training: dict[str, Any]) -> str:
    return (
        "\n**Trained on the toolkit's made-up sample rows: good for a test of the code, for nothing else.**\n"
        if training["sample_rows"]
        else ""
    )


def _interval(figure: dict[str, float]) -> str:
    return f"{100 * figure['value']:.1f} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def _source(name: str, training: dict[str, Any]) -> str:
    labels = ", ".join(f"{label} {count}" for label, count in training["rows_by_label"].items())
    total = f"{training['rows']} gold explanations ({training['validation_rows']} more for validation; with these: {labels})"
    if training["learned_from"] == "its test rows":
        return (
            f"There are no training files for {name}: this classifier saw {total}, which are the released test rows but those "
            "of expert posts; the 0-based test rows that it did not see are `unseen_test_rows` in `labeler.json`. Its gold "
            "figures come from grouped cross-validation over posts and not from this classifier itself."
        )
    if training["learned_from"] == "borrowed rows":
        source = " and ".join(training["borrowed_from"]) or "no other set"
        return (
            f"There are no released rows of {name} to learn from: this classifier saw {total} of {source}, and sentences of "
            f"ours for every label. How well it reads answers about real posts of {name} is not known beyond the figures below."
        )
    return f"Training and validation files of {name}: {total}."


def _contradictions(sets: dict[str, Any]) -> str:
    count = sets.get("gold, no head", {}).get("contradict_their_head", 0)
    return (
        f"\n{count} gold explanations open by contradicting their own head; without the head they count as errors.\n"
        if count
        else ""
    )


def _confusion(kind: str, confusion: dict[str, dict[str, int]], name: str) -> str:
    labels = DATASETS[name].label_names
    rows = [[truth, *(str(confusion.get(truth, {}).get(given, 0)) for given in labels)] for truth in labels]
    return f"### Confusion: {kind} (rows: truth)\n\n{markdown_table(['', *labels], rows)}"
