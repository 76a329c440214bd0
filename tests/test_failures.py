"""Failures of answers are counted as defined: made-up posts and answers, each count with a case for and against it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_runs import Row, save_run

from imhi.data import DataRoot
from imhi.errors import UserError
from imhi.failures import SYMPTOMS, count_failures, invented_quotations, unfounded_symptoms, verbatim_share
from imhi.kept import keep_run
from imhi.results import read_results

POST = (
    "My sister moved out in spring and since then the flat is quiet. I don't cook any more, I just stare at the old "
    "radio, and yesterday my boss asked me twice whether I am all right."
)
OTHER = "We lost the final by one goal and the whole team walked home in the rain without a word."


def run_of(tmp_path: Path, rows: dict[str, list[Row]], **found):
    save_run(tmp_path / "run", rows, root=tmp_path / "root", score=False)
    return read_results(tmp_path / "run", data_root=DataRoot(tmp_path / "root", "test"), **found)


def yes(explanation: str) -> str:
    return f"Yes, the poster suffers from depression. Reasoning: {explanation}"


def no(explanation: str) -> str:
    return f"No, the poster does not suffer from depression. Reasoning: {explanation}"


def dr(answer: str, *, gold: str = "", post: str = POST, finish: str = "stop") -> Row:
    return Row(gold or yes("The flat is quiet."), answer, post=post, finish=finish)


def counts_of(tmp_path: Path, rows: list[Row]) -> dict:
    return count_failures(run_of(tmp_path, {"DR": rows}))["datasets"]["DR"]


# --- quotations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("explanation", "quoted", "invented"),
    [
        ('They say "I just stare at the old radio".', 1, 0),
        ("They say “i DON’T  cook any more!” plainly.", 1, 0),
        ('They say "I cannot go on like this".', 1, 1),
        ('They say "I just stare" and "I want to vanish now" and "the flat is loud".', 3, 2),
        ('"the old" is too short to be looked up.', 0, 0),
        ('"I just ... the old radio" leaves words out.', 1, 0),
        ('"I just ... a very new radio" does not hide that way.', 1, 1),
        ('"[They] stare at the old radio" has a word put in.', 1, 0),
        ('"stare at the old rad" ends within a word.', 1, 1),
        ('The answer is "Yes, the poster suffers from depression" then.', 0, 0),
        ('They say "I never closed this quotation', 0, 0),
    ],
)
def test_a_quotation_is_invented_where_its_words_do_not_stand_in_the_post(explanation, quoted, invented):
    terms = ["Yes, the poster suffers from depression."]
    assert invented_quotations(explanation, POST, terms) == (quoted, invented)


def test_mojibake_on_either_side_makes_no_quotation_invented():
    broken = POST.replace("don't", "don’t".encode().decode("mac_roman"))
    assert broken != POST
    assert invented_quotations("They say “I don’t cook any more”.", broken) == (1, 0)
    garbled = "They say “I don’t cook any more”.".encode().decode("mac_roman")
    assert invented_quotations(garbled, POST) == (1, 0)


# --- symptoms ---------------------------------------------------------------------------------------------------------


def test_a_symptom_without_a_hint_in_the_post_is_unfounded_and_one_with_a_hint_is_not():
    explanation = "The poster has insomnia and suicidal thoughts."
    assert unfounded_symptoms(explanation, OTHER) == (
        frozenset({"sleep problems", "suicidal thoughts"}),
        frozenset({"sleep problems", "suicidal thoughts"}),
    )
    assert unfounded_symptoms(explanation, "Awake again at 4, and I want to die.")[1] == frozenset()
    assert unfounded_symptoms(explanation, "Awake again at 4.")[1] == frozenset({"suicidal thoughts"})


@pytest.mark.parametrize(
    "explanation",
    [
        "The poster is not suicidal.",
        "There is no clear evidence of insomnia, panic, self-harm or suicidal thoughts.",
        "The post doesn't mention hallucinations, nightmares, and self-harm.",
        "The poster writes without any sign of despair.",
        "The poster is proud of the numbering and the emptying of shelves.",
    ],
)
def test_a_denied_symptom_is_not_asserted(explanation):
    assert unfounded_symptoms(explanation, OTHER)[0] == frozenset()


@pytest.mark.parametrize(
    ("explanation", "group"),
    [
        ("The post does not mention work, but the poster is suicidal.", "suicidal thoughts"),
        ("The poster can't sleep.", "sleep problems"),
        ("The poster is not only sad: they have flashbacks.", "nightmares or flashbacks"),
        ("The poster does not eat, and panic follows.", "anxiety or panic"),
        ("There is no doubt that they self-harm.", "self-harm"),
        ("The team lost. The poster is suicidal.", "suicidal thoughts"),
    ],
)
def test_a_negation_of_something_else_denies_no_symptom(explanation, group):
    assert group in unfounded_symptoms(explanation, OTHER)[0]


def test_what_asserts_a_symptom_hints_at_it_and_every_group_can_be_found():
    assert len({symptom.name for symptom in SYMPTOMS}) == len(SYMPTOMS) >= 25
    said = {
        "sleep problems": "insomnia", "appetite or weight": "weight loss", "fatigue": "exhaustion",
        "suicidal thoughts": "suicidal ideation", "self-harm": "self-harm", "hopelessness": "hopelessness",
        "worthlessness": "low self-esteem", "guilt or shame": "guilt", "anxiety or panic": "panic attacks",
        "anger or irritability": "irritability", "crying": "crying", "concentration": "trouble concentrating",
        "loss of interest": "loss of interest", "isolation": "social withdrawal", "nightmares or flashbacks": "nightmares",
        "psychosis": "hearing voices", "substance use": "substance abuse", "physical pain": "somatic complaints",
        "numbness or emptiness": "emotional numbness", "mania": "racing thoughts", "trauma or abuse": "trauma",
        "being a burden": "being a burden", "agitation": "restlessness", "low mood": "sadness",
        "helplessness": "helplessness", "obsessions": "obsessions",
    }  # fmt: skip
    assert list(said) == [symptom.name for symptom in SYMPTOMS]
    for name, words in said.items():
        explanation = f"The poster tells of {words}."
        assert unfounded_symptoms(explanation, "Blip.") == ({name}, {name})
        assert unfounded_symptoms(explanation, explanation) == ({name}, frozenset())


# --- copying ----------------------------------------------------------------------------------------------------------


def test_copied_words_are_those_in_runs_of_eight_outside_quotation_marks():
    run = "I don't cook any more I just stare at the old radio"  # 12 words
    longest, share = verbatim_share(f"They say that {run.upper()}, which is sad.", POST)
    assert (longest, share) == (12, 12 / 18)
    assert verbatim_share(f'They say "{run}", which is sad.', POST) == (0, 0.0)
    eleven = run.removesuffix(" radio")
    assert verbatim_share(f"{eleven} lamp", POST) == (11, 11 / 12)
    seven = "I just stare at the old radio"
    assert verbatim_share(f"Alas, {seven} here", POST) == (0, 0.0)
    assert verbatim_share("", POST) == (0, 0.0)


def test_words_in_two_runs_of_the_post_count_once():
    post = "a b c d e f g h x. b c d e f g h i j."
    assert verbatim_share("a b c d e f g h i j", post) == (9, 1.0)


def test_a_quotation_breaks_a_run():
    assert verbatim_share('since then the flat is quiet "ha" I don\'t cook any more', POST) == (0, 0.0)


# --- counts of a run --------------------------------------------------------------------------------------------------


def test_label_bias_is_the_distance_between_the_distributions_of_labels(tmp_path):
    golds = [yes("a b c")] * 5 + [no("a b c")] * 15
    answers = [yes("x")] * 19 + ["Hard to tell."]
    found = counts_of(tmp_path, [dr(answer, gold=gold) for answer, gold in zip(answers, golds, strict=True)])["labels"]
    assert found["gold"] == {"no": 15, "yes": 5} and found["parsed"] == {"no": 0, "yes": 19}
    assert found["unparsed"] == 1
    assert found["distance"] == 0.75  # (|15/20 - 0| + |5/20 - 1|) / 2
    assert found["one_label_only"] == "yes"


def test_one_label_only_begins_at_95_per_cent_of_the_parsed_answers(tmp_path):
    for name, others, only in (("below", 2, None), ("at", 1, "no")):
        answers = [no("x")] * (20 - others) + [yes("x")] * others
        assert counts_of(tmp_path / name, [dr(answer) for answer in answers])["labels"]["one_label_only"] == only


def test_a_run_without_a_parsed_answer_has_no_distance(tmp_path):
    found = count_failures(run_of(tmp_path, {"DR": [dr("Hm.")]}))
    assert found["datasets"]["DR"]["labels"]["distance"] is None and found["all"]["labels"]["distance"] is None


def test_answers_and_golds_are_counted_alike(tmp_path):
    bad = 'They write "I have not slept for days" and are suicidal.'
    good = 'They write "I just stare at the old radio" and miss their sister.'
    found = counts_of(tmp_path, [dr(yes(bad), gold=yes(good)), dr(yes(bad), gold=yes(bad))])
    answers, golds = found["answers"], found["golds"]
    assert (answers["quotations"], answers["quotations_invented"]) == (2, 2)
    assert (golds["quotations"], golds["quotations_invented"]) == (2, 1)
    assert (answers["with_invented_quotation"], golds["with_invented_quotation"]) == (2, 1)
    assert (answers["with_unfounded_symptom"], golds["with_unfounded_symptom"]) == (2, 1)
    assert answers["symptoms_unfounded"]["suicidal thoughts"] == 2
    assert golds["symptoms"]["suicidal thoughts"] == 1


def test_words_of_the_question_and_of_the_labels_are_no_quotations(tmp_path):
    said = '"Does the poster suffer from depression?", "yes, the poster suffers from depression" and "the flat is loud"'
    found = counts_of(tmp_path, [dr(yes(said))])["answers"]
    assert (found["quotations"], found["quotations_invented"]) == (1, 1)


def test_copying_takes_a_run_of_twelve_words(tmp_path):
    twelve = "I don't cook any more, I just stare at the old radio"
    answers = [
        yes(f"{twelve}, they say."),
        yes(f"{twelve.removesuffix(' radio')} lamp."),
        yes(f'"{twelve}"'),
        "",
        yes(""),
    ]
    found = counts_of(tmp_path, [dr(answer) for answer in answers])["answers"]
    assert (found["copying"], found["explanations"]) == (1, 3)
    assert found["copied_share"] == pytest.approx((12 / 14 + 11 / 12 + 0) / 3, abs=1e-6)


def test_a_repeated_explanation_stands_in_a_row_about_another_post(tmp_path):
    same, short = "The poster is lonely and sad, they say.", "Lonely and sad."
    rows = [
        dr(yes(same)), dr(no(same.upper()), post=OTHER),
        dr(yes(short)), dr(yes(short), post=OTHER),
        dr(yes("Own words for this one post.")), dr(yes("Own words for this one post.")),
    ]  # fmt: skip
    assert counts_of(tmp_path, rows)["answers"]["repeated"] == 2


def test_a_loop_repeats_a_sentence_of_three_words(tmp_path):
    answers = [
        yes("They are sad. They cook. They are sad!"),
        yes("Very sad. Very sad."),
        yes("They are sad. They cook."),
    ]
    assert counts_of(tmp_path, [dr(answer) for answer in answers])["answers"]["looping"] == 1


def test_a_contradiction_is_read_from_the_first_or_last_sentence(tmp_path):
    against = "The poster does not suffer from depression."
    answers = [
        yes(f"{against} All is well."),
        yes(f"All is well. {against}"),
        no(f"{against} All is well."),
        yes("All is well. The flat is quiet."),
        yes(f"All is well. {against} The flat is quiet."),
        "Yes. They cook again.",
    ]
    found = counts_of(tmp_path, [dr(answer) for answer in answers])["answers"]
    assert (found["explanation_labels"], found["contradictions"]) == (3, 2)


def test_contradictions_are_read_for_sets_with_several_labels_too(tmp_path):
    head = "This post shows a stress cause related to school."
    rows = [
        Row(f"{head} Reasoning: A test.", f"{head} Reasoning: The stress cause is {cause}.", post=f"{cause} {POST}")
        for cause in ("work", "school")
    ]
    found = count_failures(run_of(tmp_path, {"SAD": rows}))["datasets"]["SAD"]["answers"]
    assert (found["explanation_labels"], found["contradictions"]) == (2, 1)


def test_ends_of_answers_are_counted(tmp_path):
    rows = [dr(""), dr("Yes."), dr(yes("x y z"), finish="length"), dr("", finish="error"), dr(yes("x"))]
    found = counts_of(tmp_path, rows)
    assert (found["answers"]["empty"], found["answers"]["without_reasoning"]) == (2, 1)
    assert (found["cut_off"], found["failed"]) == (1, 1)
    (tmp_path / "run" / "responses.jsonl").unlink()
    bare = read_results(tmp_path / "run", data_root=DataRoot(tmp_path / "root", "test"))
    assert count_failures(bare)["datasets"]["DR"]["cut_off"] is None


def test_all_adds_the_datasets_up_and_can_be_written_as_json(tmp_path):
    rows = {
        "DR": [dr(yes("They are suicidal."))] * 2,
        "dreaddit": [Row("Yes, the poster suffers from stress. Reasoning: x", "")],
    }
    rows["dreaddit"][0].post = OTHER
    found = count_failures(run_of(tmp_path, rows))
    assert json.loads(json.dumps(found)) == found
    every = found["all"]["answers"]
    for key in ("rows", "explanations", "with_unfounded_symptom", "empty"):
        assert every[key] == sum(of["answers"][key] for of in found["datasets"].values())
    assert (every["rows"], every["with_unfounded_symptom"], every["empty"]) == (3, 2, 1)
    assert found["all"]["labels"] == {"distance": 0.0, "one_label_only": ["DR"]}


def test_no_text_of_a_row_is_in_the_counts(tmp_path):
    text = json.dumps(count_failures(run_of(tmp_path, {"DR": [dr(yes('"stare at the old radio" zebra'))]})))
    assert "radio" not in text and "zebra" not in text and "sister" not in text


def test_a_run_without_texts_or_posts_is_refused_in_one_line(tmp_path):
    run = run_of(tmp_path, {"DR": [dr(yes("x"))]})
    kept = keep_run(run, tmp_path / "kept")
    with pytest.raises(UserError, match="kept without its texts, which counting failures reads") as told:
        count_failures(read_results(kept))
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match=r"posts of DR are not known; .*--data_root"):
        count_failures(read_results(tmp_path / "run"))
