"""The strict rule on answers of every style, and the published rule to the last digit."""

from __future__ import annotations

import pytest

from imhi.benchmark import DATASETS, SUITES
from imhi.data import load_suite, resolve_data_root
from imhi.labelers.rules import label_by_rule, published_rule
from imhi.metrics.correctness import correctness

STATED = [
    # The template, both forms.
    ("DR", "Yes, the poster suffers from depression. Reasoning: they say so.", "yes"),
    ("DR", "no. Reasoning: nothing here says yes.", "no"),
    ("CLP", "yes. Reasoning: hopeless for months.", "yes"),
    ("loneliness", "No, the poster does not suffer from loneliness.", "no"),
    ("MultiWD", "No, this wellness dimension does not exist in the post. Reasoning: x", "no"),
    ("MultiWD", "The post does not contain any intellectual wellness dimensions. The post is a story", "no"),
    ("Irf", "yes, the post does show a risk of thwarted belongingness. Reasoning: x", "yes"),
    (
        "SAD",
        "This post shows the stress cause related to emotion turmoil. Reasoning: work is fine",
        "emotional turmoil",
    ),
    ("SAD", "This post shows other stress causes. Reasoning: school and work are not named", "other causes"),
    ("SAD", "other causes.", "other causes"),
    ("CAMS", "This post shows no causes of depression. Reasoning: x", "none"),
    ("CAMS", "none. Reasoning: x", "none"),
    ("CAMS", "This post shows causes of depression related to bias or abuse.", "bias or abuse"),
    ("swmh", "This post shows no mental disorder symptoms.", "no mental disorders"),
    ("swmh", "bipolar disorder. Reasoning: x", "bipolar disorder"),
    ("t-sid", "This post shows suicide or self-harm tendency.", "suicide or self-harm tendency"),
    ("t-sid", "PTSD", "ptsd"),
    # Around the template.
    ("DR", "\n\nAnswer: Yes. Reasoning: x", "yes"),
    ("DR", "**No**, the poster does not suffer from depression.", "no"),
    ("DR", 'The answer to the question "Does the poster suffers from depression?" is yes. Reasoning: x', "yes"),
    ("DR", "Does the poster suffer from depression? No. Reasoning: x", "no"),
    ("DR", "The poster is not depressed. Reasoning: x", "no"),
    ("DR", "The poster suffers from depression.", "yes"),
    ("DR", "No doubt the poster suffers from depression. Reasoning: x", "yes"),
    ("DR", "There is no evidence of depression. REASONING: x", "no"),
    ("dreaddit", "The poster doesn't suffer from stress. Reasoning: x", "no"),
    ("SAD", "The appropriate label for this post is Work. The boss is also family.", "work"),
    ("SAD", "not work but health issues", "health issues"),
    ("SAD", "related to work, not school. Reasoning: x", "work"),
    ("SAD", "financial problem rather than family issues. Reasoning: x", "financial problem"),
    ("CAMS", "This post does not show any causes of depression. Reasoning: x", "none"),
    ("t-sid", "The post does not show any signs of mental disorders. Reasoning: x", "no mental disorders"),
]

UNSTATED = [
    ("DR", ""),
    ("DR", "   \n"),
    ("DR", "I do not know."),
    ("DR", "Yesterday I felt fine."),
    ("DR", "Reasoning: Yes, the poster suffers from depression."),
    ("DR", "Yes or no? Hard to say."),
    ("DR", "yes/no. Reasoning: x"),
    ("DR", "Yes, the poster does not suffer from depression. Reasoning: x"),
    ("DR", "It is unclear whether the poster suffers from depression."),
    ("DR", "I cannot say that the poster suffers from depression. Reasoning: x"),
    ("DR", "The poster is tired. Yes, very tired."),
    ("SAD", "A) School\nB) Work\n\nReasoning: the post mentions school."),
    ("SAD", "not work"),
    ("SAD", "not only work but also school. Reasoning: x"),
    ("SAD", "workshop schooling unhealthy"),
    ("SAD", "anything other than work"),
    ("t-sid", "The post does not show depression. Reasoning: x"),
    ("t-sid", "depression and ptsd. Reasoning: x"),
    ("CAMS", "This post shows causes of depression. Reasoning: x"),
]


@pytest.mark.parametrize(("dataset", "text", "label"), STATED)
def test_stated_labels_are_read(dataset, text, label):
    assert label_by_rule(DATASETS[dataset], text) == label


@pytest.mark.parametrize(("dataset", "text"), UNSTATED)
def test_no_label_is_read_where_none_or_several_are_stated(dataset, text):
    assert label_by_rule(DATASETS[dataset], text) is None


@pytest.mark.parametrize("suite", list(SUITES))
def test_the_strict_rule_reads_every_released_gold(real_data, suite):
    rows = load_suite(resolve_data_root(real_data), suite).rows
    assert rows
    assert [row.id for row in rows if label_by_rule(DATASETS[row.dataset], row.gold) != row.gold_label] == []


@pytest.mark.parametrize(("dataset", "accuracy"), [("MultiWD", 63.66), ("t-sid", 52.24)])
def test_the_published_rule_credits_empty_answers(real_data, dataset, accuracy):
    """The figures in the data's description: what a model gets that returns nothing at all."""
    gold = [row.gold_label for row in load_suite(resolve_data_root(real_data), "IMHI", datasets=[dataset]).rows]
    labels = [published_rule(DATASETS[dataset], "") for _ in gold]
    assert all(default for _, default in labels)
    figures = correctness(gold, [label for label, _ in labels])
    assert round(100 * figures.accuracy, 2) == accuracy
    assert correctness(gold, [None] * len(gold)).accuracy == 0


@pytest.mark.parametrize(
    ("dataset", "text", "label", "default"),
    [
        ("DR", "I do not know.", "no", False),
        ("DR", "Yesterday I felt fine.", "yes", False),
        ("DR", "Reasoning: yes", "no", True),
        ("DR", "reasoning: yes", "yes", False),
        ("SAD", "not work but health issues", "work", False),
        ("SAD", "emotion turmoil", "other causes", True),
        ("SAD", "emotional work at school", "school", False),
        ("CAMS", "This post shows no causes of depression.", "none", True),
        ("CAMS", "bias in a relationship", "bias or abuse", False),
        ("swmh", "no mental disorder but suicide", "no mental disorders", False),
        ("t-sid", "no mental disorder but suicide", "suicide or self-harm tendency", False),
    ],
)
def test_the_published_rule_is_substrings_in_order(dataset, text, label, default):
    assert published_rule(DATASETS[dataset], text) == (label, default)
