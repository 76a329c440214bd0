"""The strict rule on answers of every style, and the published rule to the last digit."""

from __future__ import annotations

import pytest

from imhi.benchmark import DATASETS, SUITES, question
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
    ("DR", "**Yes**\n\n**Reasoning:** they say no to everything", "yes"),
    ("DR", "Sure! Yes, the poster suffers from depression.", "yes"),
    ("DR", "Based on the post, yes.", "yes"),
    ("DR", "Yes, the poster is unable to get out of bed. Reasoning: x", "yes"),
    ("DR", "Yes, the poster can't sleep and suffers from depression. Reasoning: x", "yes"),
    ("DR", "Yes, whether or not they say so. Reasoning: x", "yes"),
    ("DR", "Yes, I think so.", "yes"),
    ("DR", "No.\n\nThe poster is sad about their week.", "no"),
    ("DR", "The label is: no", "no"),
    ("DR", "Does the poster suffer from depression? No. Reasoning: x", "no"),
    ("DR", '"Does the poster suffer from depression?" No.', "no"),
    ("DR", "The poster is not depressed. Reasoning: x", "no"),
    ("DR", "The poster suffers from depression.", "yes"),
    ("DR", "The author clearly suffers from depression. They have no hope.", "yes"),
    ("DR", "There is no evidence of depression. REASONING: x", "no"),
    ("DR", "There is no indication that the poster suffers from depression. Reasoning: x", "no"),
    ("dreaddit", "The poster doesn't suffer from stress. Reasoning: x", "no"),
    ("MultiWD", "The spiritual wellness dimension does not exist in the post. The post is a story", "no"),
    ("MultiWD", "The physical wellness dimension exists in the post, but it is not named.", "yes"),
    ("SAD", "The appropriate label for this post is Work. The boss is also family.", "work"),
    ("SAD", "Answer: Work\nReasoning: x", "work"),
    ("SAD", "Work **Reasoning**: the school is fine", "work"),
    ("SAD", "not work but health issues", "health issues"),
    ("SAD", "related to work, not school. Reasoning: x", "work"),
    ("SAD", "financial problem rather than family issues. Reasoning: x", "financial problem"),
    ("SAD", "The poster talks about their work. The stress cause of this post is family issues.", "family issues"),
    ("SAD", 'The stress cause is "social relationships".', "social relationships"),
    ("SAD", "It falls under the category of financial problem.", "financial problem"),
    ("CAMS", "The poster lost their job last year. The cause of depression is alienation.", "alienation"),
    ("CAMS", "This post does not show any causes of depression. Reasoning: x", "none"),
    ("t-sid", "Their friend died by suicide. This post shows PTSD.", "ptsd"),
    ("t-sid", "The post does not show any signs of mental disorders. Reasoning: x", "no mental disorders"),
    ("t-sid", "The poster suffers from depression. Reasoning: x", "depression"),
    ("t-sid", "Depression: no. PTSD: yes.", "ptsd"),
    ("t-sid", "The poster lost a friend due to suicide. This post shows depression.", "depression"),
    ("t-sid", "Her mother suffers from depression. The post shows PTSD.", "ptsd"),
    ("SAD", "The poster says that all they do is work. The stress cause is school.", "school"),
    ("CAMS", "The poster's depression is under medication. The cause of depression is alienation.", "alienation"),
    ("swmh", "This post shows symptoms of anxiety, as they say.", "anxiety"),
    ("swmh", "severe depression. Reasoning: x", "depression"),
    ("swmh", "This post shows symptoms of generalized anxiety disorder.", "anxiety"),
    ("t-sid", "This post shows the mental disorder of depression. Reasoning: x", "depression"),
    ("t-sid", "This post shows no specific mental disorder. Reasoning: x", "no mental disorders"),
    ("t-sid", "The poster has PTSD. Reasoning: x", "ptsd"),
    ("CAMS", "The cause of depression in this post is relationship issues.", "relationship"),
    ("DR", "Based on the post, the poster suffers from depression.", "yes"),
    ("DR", "There is no doubt that the poster suffers from depression.", "yes"),
    ("DR", "The poster does suffer from severe depression.", "yes"),
    ("DR", "There is clear evidence of depression. Reasoning: x", "yes"),
]
# The benchmark's own stem, echoed with its answer, in every yes/no set.
for _dataset in (dataset for dataset in DATASETS.values() if dataset.is_yes_no):
    for _answer in ("yes", "no"):
        _stem = question(_dataset, "completion", _dataset.aspects[0])
        STATED += [
            (_dataset.name, f"{_stem}{_answer}. Reasoning: x", _answer),
            (_dataset.name, f"{_stem}{_answer}.", _answer),
            (_dataset.name, f"{question(_dataset, 'instruction', _dataset.aspects[0])} {_answer.title()}.", _answer),
        ]

# Read as a label, each of these would be a wrong one, or a guess.
UNSTATED = [
    ("DR", ""),
    ("DR", "   \n"),
    ("DR", "I do not know."),
    ("DR", "Yesterday I felt fine."),
    ("DR", "Reasoning: Yes, the poster suffers from depression."),
    ("DR", "Yes or no? Hard to say."),
    ("DR", "yes/no. Reasoning: x"),
    ("DR", "Yes and no. Reasoning: x"),
    ("DR", "Yes, the poster does not suffer from depression. Reasoning: x"),
    ("DR", "No, wait, yes. Reasoning: x"),
    ("DR", "No friends, no energy, nothing. Reasoning: x"),
    ("DR", "No doubt about that. Reasoning: x"),
    ("DR", "It is unclear whether the poster suffers from depression."),
    ("DR", "I cannot say that the poster suffers from depression. Reasoning: x"),
    ("DR", "I do not know if the poster suffers from depression."),
    ("DR", "It is unlikely that the poster suffers from depression."),
    ("DR", "Nothing in the post indicates that the poster suffers from depression."),
    ("DR", "There is little evidence of depression."),
    ("DR", "The poster hardly shows any signs of depression."),
    ("DR", "The poster used to suffer from depression."),
    ("DR", "The poster denies suffering from depression."),
    ("DR", "The poster might suffer from depression."),
    ("DR", "If the poster suffers from depression, they hide it."),
    ("DR", "It is possible that the poster suffers from depression."),
    ("DR", "This doesn't mean that the poster suffers from depression."),
    ("DR", "No one can deny that the poster suffers from depression."),
    ("DR", "The poster's friend suffers from depression."),
    ("DR", "The poster is worried that his wife suffers from depression."),
    ("DR", "People suffering from depression often feel tired."),
    ("DR", "Common symptoms of depression include tiredness."),
    ("DR", "The poster is not happy and is depressed by the weather. Reasoning: x"),
    ("DR", "Yes. The poster is not depressed."),
    ("DR", "No. However, the poster suffers from depression."),
    ("DR", "No, because the poster is depressed."),
    ("DR", "No, the poster is severely depressed."),
    ("DR", "No, there is clear evidence of depression."),
    ("DR", "Yes, she does not suffer from depression."),
    ("DR", "The poster does not suffer from depression alone, but also from anxiety."),
    ("DR", "The poster suffers from depression is false."),
    ("DR", "The poster suffers from depression only if diagnosed."),
    ("dreaddit", "The poster is stressed by no one."),
    ("MultiWD", "The dimension exists in neither."),
    ("MultiWD", "This dimension does not exist only in the title; it is everywhere."),
    ("Irf", "The post shows a low risk of thwarted belongingness. Reasoning: x"),
    ("Irf", "The post shows no friends and a risk of thwarted belongingness. Reasoning: x"),
    ("MultiWD", "The post shows physical wellness but no social wellness. Reasoning: x"),
    ("SAD", "A) School\nB) Work\n\nReasoning: the post mentions school."),
    ("SAD", "A. Family issues\nB. Work\nC. School"),
    ("SAD", "not work"),
    ("SAD", "not only work but also school. Reasoning: x"),
    ("SAD", "work, school and family issues"),
    ("SAD", "workshop schooling unhealthy"),
    ("SAD", "anything other than work"),
    ("SAD", "On the other hand, things are calm. Reasoning: x"),
    ("SAD", "They miss their significant other. Reasoning: x"),
    ("SAD", "They try to make their relationship work. Reasoning: x"),
    ("SAD", "There is no stress, work is fine. Reasoning: x"),
    ("SAD", "Work is not the stress cause. Reasoning: x"),
    ("SAD", "It may be work. Reasoning: x"),
    ("t-sid", "The post does not show depression. Reasoning: x"),
    ("t-sid", "This post may show depression. Reasoning: x"),
    ("t-sid", "depression and ptsd. Reasoning: x"),
    ("t-sid", "There is no mental disorder other than depression. Reasoning: x"),
    ("swmh", "This post shows no mental disorder symptoms other than anxiety. Reasoning: x"),
    ("swmh", "This post shows no mental disorder symptoms related to suicide. Reasoning: x"),
    ("swmh", "This post shows no mental disorder symptoms of depression. Reasoning: x"),
    ("t-sid", "This post shows no mental disorder symptoms related to PTSD."),
    ("t-sid", "This post shows anything but depression. Reasoning: x"),
    ("t-sid", "The post is depression-free. Reasoning: x"),
    ("t-sid", "Her mother suffers from depression. Reasoning: x"),
    ("t-sid", "The poster lost a friend due to suicide. Reasoning: x"),
    ("t-sid", "The post shows support for those suffering from depression. Reasoning: x"),
    ("t-sid", "The poster used to suffer from depression. Reasoning: x"),
    ("t-sid", "This post shows no mental disorders; it shows depression."),
    ("SAD", "The plan does work. Reasoning: x"),
    ("SAD", "The pills do work, so the poster is relieved. Reasoning: x"),
    ("SAD", "They are family. Reasoning: x"),
    ("SAD", "As family, they care. Reasoning: x"),
    ("SAD", "Nothing seems to work: family, friends. Reasoning: x"),
    ("SAD", "The poster's parents are others. Reasoning: x"),
    ("CAMS", "The poster's depression is under medication. Reasoning: x"),
    ("CAMS", "The poster stopped because of medication. Reasoning: x"),
    ("swmh", "The poster speaks of his brother's bipolar disorder. Reasoning: x"),
    ("CAMS", "This post shows causes of depression. Reasoning: x"),
    ("CAMS", "There is no specific cause of depression other than alienation. Reasoning: x"),
    ("CAMS", "This post shows no causes of depression related to medication. Reasoning: x"),
    ("CAMS", "There is no reason to live. Reasoning: x"),
    ("CAMS", "The poster is sad for no reason. Reasoning: x"),
    ("CAMS", "Their therapist does a good job. Reasoning: x"),
    ("CAMS", "The post speaks of drug abuse. Reasoning: x"),
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
