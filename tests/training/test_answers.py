import random

import pytest

from imhi.benchmark import DATASETS, match_gold
from imhi.labelers.challenge import UNCLEAR, read_challenge
from imhi.labelers.rules import label_by_rule
from imhi.training.answers import WRITING, AnswerWriter, read_writing, sentences_of
from imhi.training.lessons import UNDECIDED_SHARE, Lessons


def answers(name, label, count, part="training", explanation=None):
    writer = AnswerWriter(DATASETS[name], part)
    rng = random.Random(f"{name} {label}")
    return [writer.answer(rng, label, explanation) for _ in range(count)]


@pytest.mark.parametrize("name", DATASETS)
def test_every_label_has_answers_without_leftover_placeholders(name):
    for label in DATASETS[name].label_names:
        for text in answers(name, label, 150):
            assert text.strip()
            for placeholder in ("{aspect}", "{label}", "{question}", "{options}", "{list}", "{a}", "{b}", "{c}", "{x}"):
                assert placeholder not in text, text
    rng = random.Random(name)
    writer = AnswerWriter(DATASETS[name])
    assert not [text for text in (writer.undecided(rng) for _ in range(300)) if "{" in text.replace("{\n", "")]


@pytest.mark.parametrize("name", DATASETS)
def test_where_the_strict_rule_reads_a_label_it_is_the_right_one(name):
    """The rule and the composition know nothing of each other; contrasts and quoted options confuse the rule a little."""
    read, wrong = 0, []
    for label in DATASETS[name].label_names:
        for text in answers(name, label, 200):
            found = label_by_rule(DATASETS[name], text)
            read += found is not None
            if found not in (None, label):
                wrong.append((label, found, text))
    assert read > 0.2 * 200 * len(DATASETS[name].labels)
    assert len(wrong) <= 0.06 * read, wrong[:5]


def test_answers_are_varied_and_depend_on_the_generator_alone():
    texts = answers("SAD", "work", 400)
    assert len(set(texts)) > 380
    assert texts == answers("SAD", "work", 400)
    assert sum(text.startswith("This post shows the stress cause") for text in texts) < 100
    lengths = sorted(len(text.split()) for text in texts)
    assert lengths[20] < 12 and lengths[-20] > 90


def test_a_gold_explanation_is_in_most_answers_around_it():
    explanation = "The lathe was sold. The poster misses it. A buyer never called back."
    texts = answers("SAD", "work", 300, explanation=explanation)
    assert 0.5 < sum("lathe" in text.lower() or "never called" in text.lower() for text in texts) / 300 < 0.95


def test_validation_answers_use_sentences_of_their_own():
    for name in DATASETS:
        training, validation = AnswerWriter(DATASETS[name]).bank, AnswerWriter(DATASETS[name], "validation").bank
        for label in DATASETS[name].label_names:
            ours, theirs = training["labels"][label], validation["labels"][label]
            for kind in ("statements", "conclusions", "contrasts", "evidence"):
                if isinstance(ours[kind], dict):
                    for aspect in ours[kind]:
                        assert not set(ours[kind][aspect]) & set(theirs[kind][aspect])
                    continue
                assert ours[kind] and theirs[kind]
                assert not set(ours[kind]) & set(theirs[kind])
        assert not set(training["undecided"]) & set(validation["undecided"])


def test_the_challenge_set_shares_no_answer_with_the_training_sentences():
    written = set()

    def collect(content):
        for inner in content.values() if isinstance(content, dict) else content:
            if isinstance(inner, str):
                written.update(sentences_of(inner.lower()))
            else:
                collect(inner)

    # Both quote the questions and the options, which are the benchmark's.
    for path in WRITING.glob("*.json"):
        collect(read_writing(path.stem).get("labels", {}))
    long = {sentence for sentence in written if len(sentence.split()) >= 8}
    shared = [
        (answer.id, sentence)
        for answer in read_challenge()
        for sentence in sentences_of(answer.text.lower())
        if sentence in long
    ]
    assert not shared


def test_the_challenge_set_has_sixty_answers_a_family_in_many_styles():
    everything = read_challenge()
    assert len({answer.id for answer in everything}) == len(everything)
    families = {dataset.family or name for name, dataset in DATASETS.items()}
    assert len(families) == 9
    for family in families:
        names = [name for name, dataset in DATASETS.items() if (dataset.family or name) == family]
        said = [answer for name in names for answer in read_challenge(name) if answer.label != UNCLEAR]
        assert len(said) >= 60, family
        assert len({answer.style for answer in said}) >= 14
        assert {answer.label for answer in said} == set(DATASETS[names[0]].label_names)


def test_lessons_depend_on_seed_and_name():
    lessons = Lessons({"SAD": [], "DR": []}, seed=3)
    first = lessons.draw("common 4", 400)
    assert first == Lessons({"SAD": [], "DR": []}, seed=3).draw("common 4", 400)
    assert first != lessons.draw("common 5", 400)
    assert first != Lessons({"SAD": [], "DR": []}, seed=4).draw("common 4", 400)
    undecided = sum(lesson.label is None for lesson in first) / 400
    assert abs(undecided - UNDECIDED_SHARE) < 0.06
    assert 200 < sum(lesson.dataset == "SAD" for lesson in first) < 280


def test_official_heads_are_the_tables():
    heads = [text for text in answers("SAD", "emotional turmoil", 600) if text.startswith("This post shows the stress")]
    assert heads
    assert {match_gold(DATASETS["SAD"], text).name for text in heads if "Reasoning:" in text} == {"emotional turmoil"}
