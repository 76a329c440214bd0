"""The ten IMHI datasets as one table.

Everything that depends on a dataset is a field here: its question, its labels, how each label is
spelled in gold text and in model answers, the class order of the published classifiers, the published
substring rule and the published sizes.  Rule labels, gold labels, classifier labels, sample rows and
reports are read from this table; no other module branches on a dataset's name.

Sources: Yang et al., "MentaLLaMA", WWW 2024 (tasks, sizes, prompts) and the released test files
(spellings).  The released ``loneliness`` file has 528 rows where the paper counts 531; ``CLP`` was
never released.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

__all__ = [
    "DATASETS",
    "FORMS",
    "SUITES",
    "Dataset",
    "Label",
    "Mention",
    "Suite",
    "aspect_of",
    "dataset_named",
    "find_mentions",
    "gold_answer",
    "head_of",
    "match_gold",
    "query",
    "question",
    "split_reasoning",
]


@dataclass(frozen=True)
class Label:
    """One class of a dataset.

    Attributes
    ----------
    name : canonical name, used in tables and files of ours.
    classifier : the name the published classifiers give the class (column ``labels``).
    instruction, completion : the head of a gold answer in each form, before ``Reasoning:``.
    mentions : regular expressions, matched as whole words in lower-cased text, that name the class.  They
        cover every spelling in released gold text that is not one of the two heads, and free answers.
    """

    name: str
    classifier: str
    instruction: str
    completion: str
    mentions: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """One test set of the benchmark.

    Attributes
    ----------
    instruction_question, completion_stem : the question in each form; ``{aspect}`` is filled from `aspects`.
    labels : the classes, in the order of the published classifiers' logits.
    claims : for yes/no tasks, what the subject of a sentence is said to do where the answer is yes, as pairs of
        regular expressions: as stated ("suffers from stress") and behind "does not" or "is not".
    subjects : who or what that is, as regular expressions; () for the poster or the post.
    published_rule : (substring, label name) in the order the published script tests them.
    published_default : class a prediction gets *with credit* when no substring matches.
    family : sets of one family ask the same question; "" for a set of its own.
    borrows : (dataset, its label names → ours) whose gold explanations a classifier may learn from where this set has
        too few of its own.
    published_test_rows, released_test_rows : rows in the paper, rows in the released file (None: unreleased).
    """

    name: str
    task: str
    instruction_question: str
    completion_stem: str
    labels: tuple[Label, ...]
    published_rule: tuple[tuple[str, str], ...]
    published_default: str
    published_test_rows: int
    released_test_rows: int | None
    aspects: tuple[str, ...] = ("",)
    claims: tuple[tuple[str, str], ...] = ()
    subjects: tuple[str, ...] = ()
    family: str = ""
    borrows: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)

    @property
    def is_yes_no(self) -> bool:
        return bool(self.claims)

    def label_named(self, name: str) -> Label:
        """The label with this canonical or classifier name; raises KeyError."""
        for label in self.labels:
            if name in (label.name, label.classifier):
                return label
        raise KeyError(name)


FORMS = {
    # form -> how a query is written (raw IMHI prompts; the completion form ends in a space on purpose).
    "instruction": 'Consider this post: "{post}" Question: {question}',
    "completion": "Post: {post}  Question: {question}",
}


@dataclass(frozen=True)
class Suite:
    """One choice of ``--test_dataset``: a folder of test files and the form of its prompts."""

    folder: str
    form: str


SUITES = {
    "IMHI": Suite("test_data/test_instruction", "instruction"),
    "IMHI-completion": Suite("test_data/test_complete", "completion"),
    "expert": Suite("human_evaluation/test_instruction_expert", "instruction"),
}


def _yes_no(yes: str, no: str) -> tuple[Label, ...]:
    return (Label("no", "no", no, "no.", (r"no",)), Label("yes", "yes", yes, "yes.", (r"yes",)))


_DEGREE = r"(?:(?:severely|severe|very|deeply|clearly|extremely|major|mild|clinical|clinically|chronic) )*"
_YES_NO_RULE = (("yes", "yes"), ("no", "no"))


def _condition(
    name: str,
    condition: str,
    adjective: str,
    task: str,
    published: int,
    released: int | None,
    *,
    borrows: tuple[str, ...] = (),
) -> Dataset:
    """A yes/no set that asks whether the poster suffers from one condition."""
    return Dataset(
        family=condition,
        borrows=tuple((other, (("yes", "yes"), ("no", "no"))) for other in borrows),
        name=name,
        task=task,
        instruction_question=f"Does the poster suffer from {condition}?",
        completion_stem=f'The answer to the question "Does the poster suffers from {condition}?" is ',
        labels=_yes_no(
            f"Yes, the poster suffers from {condition}.",
            f"No, the poster does not suffer from {condition}.",
        ),
        claims=(
            (rf"(?:does )?suffers? from {_DEGREE}{condition}", rf"suffer from {_DEGREE}{condition}"),
            (rf"is suffering from {_DEGREE}{condition}", rf"suffering from {_DEGREE}{condition}"),
            (rf"experiences {condition}", rf"experience {condition}"),
            (rf"is experiencing {condition}", rf"experiencing {condition}"),
            (rf"(?:is|feels) {_DEGREE}{adjective}", rf"(?:feel )?{_DEGREE}{adjective}"),
            (
                rf"(?:seems|appears) to (?:suffer from|be suffering from|experience|be experiencing) {condition}",
                rf"(?:be suffering from|be experiencing) {condition}",
            ),
            (
                rf"(?:shows?|exhibits?|displays?) (?:clear |several |some |strong |many )?(?:signs|symptoms) of {condition}",
                r"(?:(?:show|exhibit|display|have) )?(?:any )?(?:clear )?"
                rf"(?:signs?|symptoms?|evidence|indications?) of {condition}",
            ),
        ),
        published_rule=_YES_NO_RULE,
        published_default="no",
        published_test_rows=published,
        released_test_rows=released,
    )


# "No cause other than alienation" and "no causes related to work" are not "no cause".
_NOTHING_MORE = r"(?! (?:symptoms? )?(?:of|for|other|but|except|besides|related|relating))"
_DISORDER = (
    r"(?:any )?(?:specific )?mental (?:health )?"
    r"(?:disorders?|illness(?:es)?|conditions?|issues?|problems?)(?: symptoms?)?"
)
_NO_DISORDER = (
    rf"not (?:show|indicate|suggest|have) (?:any )?(?:(?:signs?|symptoms?|evidence) of )?{_DISORDER}{_NOTHING_MORE}",
    rf"no (?:(?:signs?|symptoms?|evidence) of )?{_DISORDER}{_NOTHING_MORE}",
)


_TABLE = (
    _condition("DR", "depression", "depressed", "depression detection", 405, 405),
    _condition("CLP", "depression", "depressed", "depression detection", 299, None, borrows=("DR",)),
    _condition("dreaddit", "stress", "stressed", "stress detection", 414, 414),
    Dataset(
        name="swmh",
        task="mental disorder detection",
        borrows=(
            (
                "t-sid",
                (
                    ("depression", "depression"),
                    ("suicide or self-harm tendency", "suicide"),
                    ("no mental disorders", "no mental disorders"),
                ),
            ),
        ),
        instruction_question="What mental disorder symptoms does this post show?",
        completion_stem="This post shows the mental disorder symptoms of ",
        labels=(
            Label(
                "depression",
                "depression",
                "This post shows mental disorder symptoms related to depression.",
                "depression.",
                (r"depression", r"(?:major )?depressive (?:disorder|symptoms?)"),
            ),
            Label(
                "suicide",
                "suicide",
                "This post shows mental disorder symptoms related to suicide.",
                "suicide.",
                (
                    r"suicide(?: or self-harm(?: tendency| tendencies)?)?",
                    r"suicidal (?:ideation|thoughts?|tendency|tendencies)",
                ),
            ),
            Label(
                "anxiety",
                "anxiety",
                "This post shows mental disorder symptoms related to anxiety.",
                "anxiety.",
                (r"(?:generali[sz]ed )?anxiety(?: disorder)?",),
            ),
            Label(
                "bipolar disorder",
                "bipolar",
                "This post shows mental disorder symptoms related to bipolar disorder.",
                "bipolar disorder.",
                (r"bipolar(?: i| ii)?(?: disorder)?",),
            ),
            Label(
                "no mental disorders",
                "no mental",
                "This post shows no mental disorder symptoms.",
                "no mental disorders.",
                _NO_DISORDER,
            ),
        ),
        published_rule=(
            ("no mental", "no mental disorders"),
            ("suicide", "suicide"),
            ("depression", "depression"),
            ("anxiety", "anxiety"),
            ("bipolar", "bipolar disorder"),
        ),
        published_default="no mental disorders",
        published_test_rows=10882,
        released_test_rows=10882,
    ),
    Dataset(
        name="t-sid",
        task="mental disorder detection",
        instruction_question="What mental disorder does this post show?",
        completion_stem="This post shows the mental disorder symptoms of ",
        labels=(
            Label(
                "depression",
                "depression",
                "This post shows depression.",
                "depression.",
                (r"depression", r"(?:major )?depressive (?:disorder|symptoms?)"),
            ),
            Label(
                "suicide or self-harm tendency",
                "suicide",
                "This post shows suicide or self-harm tendency.",
                "suicide or self-harm tendency.",
                (
                    r"suicide(?: (?:or|and) self-harm(?: tendency| tendencies)?)?",
                    r"suicidal (?:ideation|thoughts?|tendency|tendencies)",
                    r"self-harm(?: tendency| tendencies)?",
                ),
            ),
            Label(
                "ptsd",
                "ptsd",
                "This post shows PTSD.",
                "ptsd.",
                (r"ptsd", r"post[- ]?traumatic stress disorder"),
            ),
            Label(
                "no mental disorders",
                "control",
                "This post shows no mental disorders.",
                "no mental disorders.",
                _NO_DISORDER,
            ),
        ),
        published_rule=(
            ("depression", "depression"),
            ("suicide", "suicide or self-harm tendency"),
            ("ptsd", "ptsd"),
            ("no mental", "no mental disorders"),
        ),
        published_default="no mental disorders",
        published_test_rows=959,
        released_test_rows=959,
    ),
    Dataset(
        name="SAD",
        task="stress cause detection",
        instruction_question="What is the stress cause of this post?",
        completion_stem="This post shows the stress cause of ",
        labels=(
            Label(
                "school",
                "school",
                "This post shows the stress cause related to school.",
                "school.",
                (r"school(?:-related(?: stress)?)?",),
            ),
            Label(
                "financial problem",
                "financial",
                "This post shows the stress cause related to financial problem.",
                "financial problem.",
                (r"financial (?:problems?|issues?|stress)", r"finances", r"financial"),
            ),
            Label(
                "family issues",
                "family",
                "This post shows the stress cause related to family issues.",
                "family issues.",
                (r"family(?: issues?| problems?)?",),
            ),
            Label(
                "social relationships",
                "social",
                "This post shows the stress cause related to social relationships.",
                "social relationships.",
                (r"social relationships?", r"social"),
            ),
            Label(
                "work",
                "work",
                "This post shows the stress cause related to work.",
                "work.",
                (r"work(?:-related(?: stress)?)?",),
            ),
            Label(
                "health issues",
                "health",
                "This post shows the stress cause related to health issues.",
                "health issues.",
                (r"health(?: issues?| problems?)?",),
            ),
            Label(
                "emotional turmoil",
                "emotional",
                "This post shows the stress cause related to emotion turmoil.",
                "emotional turmoil.",
                (r"emotion(?:al)? turmoil", r"emotional"),
            ),
            Label(
                "everyday decision making",
                "everyday",
                "This post shows the stress cause related to everyday decision making.",
                "everyday decision making.",
                (r"(?:everyday )?decision[- ]making", r"everyday decisions?"),
            ),
            Label(
                "other causes",
                "other",
                "This post shows other stress causes.",
                "other causes.",
                (r"others?(?: stress)?(?: causes?)?(?! than)",),
            ),
        ),
        published_rule=(
            ("school", "school"),
            ("financial", "financial problem"),
            ("family", "family issues"),
            ("social", "social relationships"),
            ("work", "work"),
            ("health", "health issues"),
            ("emotional", "emotional turmoil"),
            ("decision", "everyday decision making"),
            ("other", "other causes"),
        ),
        published_default="other causes",
        published_test_rows=684,
        released_test_rows=684,
    ),
    Dataset(
        name="CAMS",
        task="depression cause detection",
        instruction_question="What cause of depression does this post show?",
        completion_stem="This post shows the mental disorder cause of ",
        labels=(
            Label(
                "none",
                "none",
                "This post shows no causes of depression.",
                "none.",
                (
                    r"no (?:specific |clear |apparent )?causes?(?: (?:of|for) depression)?" + _NOTHING_MORE,
                    r"not show (?:any )?(?:specific |clear )?causes?(?: of depression)?" + _NOTHING_MORE,
                    r"none(?! of)",
                ),
            ),
            Label(
                "bias or abuse",
                "bias",
                "This post shows causes of depression related to bias or abuse.",
                "bias or abuse.",
                (r"bias(?:es)?(?: (?:or|and) abuse)?", r"abuse"),
            ),
            Label(
                "jobs and career",
                "job",
                "This post shows causes of depression related to jobs and career.",
                "jobs and career.",
                (r"jobs?(?: (?:and|or) careers?)?", r"careers?"),
            ),
            Label(
                "medication",
                "medication",
                "This post shows causes of depression related to medication.",
                "medication.",
                (r"medications?",),
            ),
            Label(
                "relationship",
                "relation",
                "This post shows causes of depression related to relationship.",
                "relationship.",
                (r"relationships?(?: issues?| problems?)?",),
            ),
            Label(
                "alienation",
                "alienation",
                "This post shows causes of depression related to alienation.",
                "alienation.",
                (r"alienation",),
            ),
        ),
        published_rule=(
            ("none", "none"),
            ("bias", "bias or abuse"),
            ("jobs", "jobs and career"),
            ("medication", "medication"),
            ("relationship", "relationship"),
            ("alienation", "alienation"),
        ),
        published_default="none",
        published_test_rows=625,
        released_test_rows=625,
    ),
    _condition("loneliness", "loneliness", "lonely", "loneliness detection", 531, 528),
    Dataset(
        name="MultiWD",
        task="wellness dimension detection",
        instruction_question="Does the {aspect} wellness dimension exist in the post?",
        completion_stem='The answer to the question "Does the {aspect} wellness dimension exists in the post?" is ',
        aspects=("spiritual", "physical", "intellectual", "social", "vocational", "emotional"),
        labels=_yes_no(
            "Yes, this wellness dimension exists in the post.",
            "No, this wellness dimension does not exist in the post.",
        ),
        claims=((r"(?:does )?exists?", r"exist"), (r"is present", r"present")),
        subjects=(r"(?:the|this) (?:\w+ )?(?:wellness )?(?:dimension|aspect)(?: of (?:\w+ )?wellness)?",),
        published_rule=_YES_NO_RULE,
        published_default="no",
        published_test_rows=2441,
        released_test_rows=2441,
    ),
    Dataset(
        name="Irf",
        task="interpersonal risk factor detection",
        instruction_question="Does the post show risk of {aspect}?",
        completion_stem='The answer to the question: "Does the post shows risk of {aspect}?" is ',
        aspects=("thwarted belongingness", "perceived burdensomeness"),
        labels=_yes_no(
            "Yes, the post shows this risk.",
            "No, the post does not show this risk.",
        ),
        claims=((r"(?:does )?shows? (?:(?:this|a|the) )?risk", r"(?:show )?(?:(?:this|any|a|the) )?risk"),),
        published_rule=_YES_NO_RULE,
        published_default="no",
        published_test_rows=2113,
        released_test_rows=2113,
    ),
)

DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in _TABLE}


def dataset_named(name: str) -> Dataset | None:
    """The dataset a name stands for, in any letter case; None if there is none."""
    folded = name.casefold()
    return next((dataset for dataset in _TABLE if dataset.name.casefold() == folded), None)


def question(dataset: Dataset, form: str, aspect: str = "") -> str:
    """The question of `dataset` in `form` ("instruction" or "completion"), for one of its aspects."""
    template = dataset.instruction_question if form == "instruction" else dataset.completion_stem
    return template.format(aspect=aspect)


def aspect_of(dataset: Dataset, form: str, text: str) -> str | None:
    """The aspect whose question a prompt ends in ("" for a set's only one); None where it ends in none of the set's."""
    asked = text.rstrip()
    return next((name for name in dataset.aspects if asked.endswith(question(dataset, form, name).strip())), None)


def query(dataset: Dataset, form: str, post: str, aspect: str = "") -> str:
    """The prompt of the benchmark for a post, character for character as in the released test files."""
    return FORMS[form].format(post=post, question=question(dataset, form, aspect))


def gold_answer(label: Label, form: str, explanation: str) -> str:
    """A gold response: the label's head in `form`, then ``Reasoning:`` and the explanation."""
    head = label.instruction if form == "instruction" else label.completion
    return f"{head} Reasoning: {explanation}"


@dataclass(frozen=True)
class Mention:
    """Where a label is named in a text: characters ``start`` to ``end`` of the lower-cased text."""

    label: Label
    start: int
    end: int


@cache
def _mention_patterns(name: str) -> tuple[tuple[Label, re.Pattern[str]], ...]:
    return tuple(
        (label, re.compile(r"(?<![\w-])(?:" + "|".join(label.mentions) + r")(?![\w])"))
        for label in DATASETS[name].labels
    )


def find_mentions(dataset: Dataset, text: str) -> list[Mention]:
    """Every whole-word naming of a label in `text`, in text order; of overlapping ones the longest stays."""
    folded = text.lower()
    found = [
        Mention(label, match.start(), match.end())
        for label, pattern in _mention_patterns(dataset.name)
        for match in pattern.finditer(folded)
    ]
    kept: list[Mention] = []
    for mention in sorted(found, key=lambda mention: mention.start - mention.end):
        if all(mention.end <= other.start or mention.start >= other.end for other in kept):
            kept.append(mention)
    return sorted(kept, key=lambda mention: mention.start)


def head_of(text: str) -> str:
    """The text before the first ``Reasoning:``, to the letter: where gold texts have their label."""
    return text.partition("Reasoning:")[0]


_REASONING = re.compile(r"[*_]*\breasoning\b[*_]*\s*:[*_]*", re.IGNORECASE)


def split_reasoning(text: str) -> tuple[str, str, bool]:
    """(head, explanation, whether marked) of an answer; the marker in any case and in Markdown (``**Reasoning:**``).

    Without a marker the head is the whole text and the explanation is empty.
    """
    found = _REASONING.search(text)
    if found is None:
        return text, "", False
    return text[: found.start()], text[found.end() :].strip(), True


def _folded_head(text: str) -> str:
    return " ".join(head_of(text).lower().split()).rstrip(" .")


def match_gold(dataset: Dataset, text: str) -> Label | None:
    """The label of a gold answer, in either form; None where the head names no label or several.

    A head equal to one of the table's two spellings decides; untidy heads (``yes, the post does show ...``)
    are resolved by the one label that they name.
    """
    head = _folded_head(text)
    for label in dataset.labels:
        if head in (_folded_head(label.instruction), _folded_head(label.completion)):
            return label
    named = {mention.label.name for mention in find_mentions(dataset, head)}
    return dataset.label_named(named.pop()) if len(named) == 1 else None
