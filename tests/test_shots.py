"""Examples before prompts: which rows are chosen, how they are worded, and what a run records of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from imhi.audit import TRAIN_FOLDERS, post_key
from imhi.benchmark import DATASETS, FORMS, SUITES, gold_answer, match_gold, query, question
from imhi.checkpoints import load_generator, locate_generator
from imhi.commands import run_script
from imhi.data import DataRoot, load_suite, resolve_data_root, samples_root, write_table
from imhi.engines import Decoding, Prompt, Shot
from imhi.engines.transformers_engine import TransformersEngine
from imhi.errors import UserError
from imhi.shots import MADE_UP, choose_shots, held_out_posts, shots_of_datasets

DR, MULTI, SAD = DATASETS["DR"], DATASETS["MultiWD"], DATASETS["SAD"]
TWO = (Shot("Is it late? ", "yes."), Shot("Is it early?", "no."))


def answer(dataset, label: str, form: str = "instruction") -> str:
    return gold_answer(dataset.label_named(label), form, "The poster says so.")


def post(number: int) -> str:
    return f"number {number}: night {number} again without sleep, I wrote it down as page {number}"


def save(path: Path, pairs: list[tuple[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, ("query", "gpt-3.5-turbo"), pairs)


def save_training(root: Path, posts: dict[str, list[str]], *, form: str = "instruction", dataset=DR) -> None:
    """Training rows of a set without aspects: label → posts."""
    pairs = [(query(dataset, form, text), answer(dataset, label, form)) for label, own in posts.items() for text in own]
    save(root / TRAIN_FOLDERS[form] / dataset.name / "train.csv", pairs)


def save_test(root: Path, texts: list[str], *, suite: str = "IMHI", dataset=DR) -> None:
    form = SUITES[suite].form
    save(
        root / SUITES[suite].folder / f"{dataset.name}.csv",
        [(query(dataset, form, text, dataset.aspects[0]), answer(dataset, "yes", form)) for text in texts],
    )


def root_at(path: Path) -> DataRoot:
    return DataRoot(path, "test")


def labels_of(dataset, shots: tuple[Shot, ...]) -> list[str]:
    return [match_gold(dataset, shot.answer).name for shot in shots]


# --- which rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", DATASETS)
def test_every_label_has_as_many_examples_and_no_post_stands_twice(name, form):
    dataset = DATASETS[name]
    for shots in choose_shots(root_at(samples_root()), dataset, form, 1, 0).by_aspect.values():
        assert Counter(labels_of(dataset, shots)) == dict.fromkeys(dataset.label_names, 1)
        assert len({post_key(shot.query) for shot in shots}) == len(shots)


def test_several_examples_of_a_label_are_several_posts(tmp_path):
    save_training(tmp_path, {"yes": [post(1)] * 9 + [post(2), post(3)], "no": [post(4), post(5), post(6)]})
    shots = choose_shots(root_at(tmp_path), DR, "instruction", 3, 0).by_aspect[""]
    assert Counter(labels_of(DR, shots)) == {"yes": 3, "no": 3}
    assert {post_key(shot.query) for shot in shots} == {post_key(post(number)) for number in range(1, 7)}


def test_a_label_does_not_take_the_only_post_of_another(tmp_path):
    save_training(tmp_path, {"yes": [post(number) for number in range(4)], "no": [post(2)]})
    for seed in range(30):
        assert sorted(labels_of(DR, choose_shots(root_at(tmp_path), DR, "instruction", 1, seed).by_aspect[""])) == [
            "no",
            "yes",
        ]


@pytest.mark.parametrize(("suite", "other"), [("IMHI", "DR"), ("IMHI-completion", "Irf"), ("expert", "dreaddit")])
def test_posts_of_test_and_expert_files_are_never_used(tmp_path, suite, other):
    leaked = [post(number) for number in range(20)]
    save_training(tmp_path, {"yes": [*leaked, post(20)], "no": [post(21)]})
    # Written otherwise, as the other form's files have some posts.
    save_test(tmp_path, [text.upper() + " !!" for text in leaked], suite=suite, dataset=DATASETS[other])
    for seed in range(20):
        shots = choose_shots(root_at(tmp_path), DR, "instruction", 1, seed).by_aspect[""]
        assert {post_key(shot.query) for shot in shots} == {post_key(post(20)), post_key(post(21))}
    save_training(tmp_path, {"yes": [*leaked, post(20)], "no": [post(21), post(22)]})
    with pytest.raises(UserError, match=r"DR has 1 usable examples of 'yes' in .*train\.csv \(21 rows, 20 of them"):
        choose_shots(root_at(tmp_path), DR, "instruction", 2, 0)


def test_a_post_that_a_test_file_cuts_off_is_not_used(tmp_path):
    long = "and then I told them everything that had gone wrong since the winter, one thing after the other, " * 3
    # The shortest of them all, so that it would be chosen first.
    longer = [post(number) + " and on" * 60 for number in (1, 2)]
    save_training(tmp_path, {"yes": [long, longer[0]], "no": [longer[1]]})
    save_test(tmp_path, [long[:200]])
    for seed in range(10):
        shots = choose_shots(root_at(tmp_path), DR, "instruction", 1, seed).by_aspect[""]
        assert not any("winter" in shot.query for shot in shots)


def test_one_seed_gives_one_choice_and_another_seed_another(tmp_path):
    posts = {"yes": [post(number) for number in range(30)], "no": [post(number) for number in range(30, 60)]}
    save_training(tmp_path, posts)
    chosen = [choose_shots(root_at(tmp_path), DR, "instruction", 2, seed) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1]
    assert chosen[0].facts() == chosen[1].facts()
    assert chosen[0].by_aspect != chosen[2].by_aspect
    assert chosen[0].facts()["sha256"] != chosen[2].facts()["sha256"]
    save_training(tmp_path, {label: own[::-1] for label, own in posts.items()})
    assert choose_shots(root_at(tmp_path), DR, "instruction", 2, 0) == chosen[0]


def test_a_row_more_in_the_training_file_moves_little(tmp_path):
    posts = {"yes": [post(number) for number in range(10, 40)], "no": [post(number) for number in range(40, 70)]}
    save_training(tmp_path, posts)
    before = [choose_shots(root_at(tmp_path), DR, "instruction", 1, seed).by_aspect[""] for seed in range(60)]
    # First in the file, and as long as the others.
    save_training(tmp_path, {**posts, "yes": [post(99), *posts["yes"]]})
    after = [choose_shots(root_at(tmp_path), DR, "instruction", 1, seed).by_aspect[""] for seed in range(60)]
    moved = sum(one != other for one, other in zip(before, after, strict=True))
    assert 0 < moved < 12, "about one in 31 choices of a label is the new row"


def test_no_label_closes_always_however_rare_it_is(tmp_path):
    save_training(tmp_path, {"yes": [post(number) for number in range(10, 70)], "no": [post(70)]})
    last = Counter(
        labels_of(DR, choose_shots(root_at(tmp_path), DR, "instruction", 1, seed).by_aspect[""])[-1]
        for seed in range(100)
    )
    assert min(last["yes"], last["no"]) > 25, last


def test_examples_are_no_longer_than_the_median_row_where_there_are_enough(tmp_path):
    short = {"yes": [post(number) for number in range(10, 16)], "no": [post(number) for number in range(20, 26)]}
    long = {label: [f"{text}. {'It went on. ' * 9}" for text in own] for label, own in short.items()}
    save_training(tmp_path, {label: long[label][:5] + short[label] for label in short})
    longest = max(len(query(DR, "instruction", text)) for own in short.values() for text in own)
    for seed in range(20):
        shots = choose_shots(root_at(tmp_path), DR, "instruction", 3, seed).by_aspect[""]
        assert max(len(shot.query) for shot in shots) <= longest
    # A label whose rows are all long has its shortest ones.
    save_training(tmp_path, {"yes": short["yes"], "no": [post(30) + " and on" * 30, post(31) + " and on" * 20]})
    for seed in range(10):
        shots = choose_shots(root_at(tmp_path), DR, "instruction", 1, seed).by_aspect[""]
        assert any("number 31:" in shot.query for shot in shots)


def test_a_row_sees_examples_of_its_own_aspect_where_there_are_some(tmp_path):
    rows = [
        (query(MULTI, "instruction", post(10 * at + kind), aspect), answer(MULTI, label))
        for at, aspect in enumerate(MULTI.aspects[:5], start=1)
        for kind, label in enumerate(("yes", "no", "yes", "no"))
    ]
    save(tmp_path / TRAIN_FOLDERS["instruction"] / "MultiWD" / "val.csv", rows)
    shots = choose_shots(root_at(tmp_path), MULTI, "instruction", 2, 0)
    for aspect in MULTI.aspects[:5]:
        before = shots.before(query(MULTI, "instruction", "a post", aspect))
        assert len(before) == 4
        assert all(shot.query.endswith(question(MULTI, "instruction", aspect)) for shot in before), aspect
    # The sixth has no rows of its own; a question that nobody knows gets any.
    for text in (query(MULTI, "instruction", "a post", MULTI.aspects[5]), "What now?"):
        assert Counter(labels_of(MULTI, shots.before(text))) == {"yes": 2, "no": 2}


def test_a_set_without_training_files_has_made_up_examples(tmp_path):
    save_training(tmp_path, {"yes": [post(1)], "no": [post(2)]})
    save_training(tmp_path, {"school": [post(3)]}, form="completion", dataset=SAD)
    chosen = shots_of_datasets(root_at(tmp_path), ["DR", "SAD", "CAMS"], "instruction", 1, 0)
    assert not chosen["DR"].are_made_up
    assert chosen["DR"].facts()["from"] == ["train_data/instruction_data/DR/train.csv"]
    # A training file of the other form is none of this form.
    assert chosen["SAD"].are_made_up
    assert chosen["CAMS"].facts()["from"] == [MADE_UP]
    assert (
        chosen["CAMS"].by_aspect
        == choose_shots(root_at(samples_root()), DATASETS["CAMS"], "instruction", 1, 0).by_aspect
    )


def test_a_label_without_enough_examples_and_a_strange_row_are_told(tmp_path):
    save_training(tmp_path, {"yes": [post(1), post(2)], "no": [post(3)]})
    expected = r"--shots 2: DR has 1 usable examples of 'no' in .*DR/train\.csv \(1 rows, 0 of them .*--datasets"
    with pytest.raises(UserError, match=expected):
        choose_shots(root_at(tmp_path), DR, "instruction", 2, 0)
    path = tmp_path / TRAIN_FOLDERS["instruction"] / "DR" / "train.csv"
    save(path, [(query(DR, "instruction", post(1)), answer(DR, "yes")), ("Who? Question: Why?", answer(DR, "no"))])
    with pytest.raises(UserError, match=r"train\.csv, row 2: the question is not DR's .*'Why\?'"):
        choose_shots(root_at(tmp_path), DR, "instruction", 1, 0)


@pytest.mark.parametrize("suite", ["IMHI", "IMHI-completion"])
def test_the_released_files_give_balanced_examples_that_no_test_row_has(real_data, suite):
    root = resolve_data_root(real_data)
    loaded = load_suite(root, suite)
    chosen = shots_of_datasets(root, loaded.files, loaded.form, 1, 0)
    keys = {post_key(row.query) for row in loaded.rows}
    for name, shots in chosen.items():
        assert shots.are_made_up == (name in ("CAMS", "loneliness", "t-sid"))
        for aspect in DATASETS[name].aspects:
            own = shots.by_aspect[aspect]
            assert sorted(labels_of(DATASETS[name], own)) == sorted(DATASETS[name].label_names)
            assert not keys & {post_key(shot.query) for shot in own}
            assert all(shot.query.endswith(question(DATASETS[name], loaded.form, aspect)) for shot in own)
    assert held_out_posts(root) >= {key.replace(" ", "")[:100] for key in keys}


# --- how they are worded ----------------------------------------------------------------------------------------------


def test_completion_examples_are_worded_as_the_test_has_it(tmp_path):
    """Two spaces before the question and one at the end, where training files have one before it."""
    path = tmp_path / TRAIN_FOLDERS["completion"] / "DR" / "reddit_train.csv"
    path.parent.mkdir(parents=True)
    asked = f"Question: {question(DR, 'completion')}"
    write_table(
        path,
        ("post", "question", "response"),
        [
            (f"Post: {post(1)} ", asked, "yes. Reasoning: It shows. "),
            (f"Post: {post(2)} ", asked, "no. Reasoning: It is not there."),
        ],
    )
    shots = choose_shots(root_at(tmp_path), DR, "completion", 1, 0)
    assert set(shots.before("anything")) == {
        Shot(
            f'Post: {post(1)}  Question: The answer to the question "Does the poster suffers from depression?" is ',
            "yes. Reasoning: It shows.",
        ),
        Shot(query(DR, "completion", post(2)), "no. Reasoning: It is not there."),
    }


def test_in_a_chat_every_example_is_two_turns(smollm2):
    engine = TransformersEngine(smollm2, Decoding(chat_template=True), batch_size=1)
    messages = [
        {"role": "user", "content": "Is it late? "},
        {"role": "assistant", "content": "yes."},
        {"role": "user", "content": "Is it early?"},
        {"role": "assistant", "content": "no."},
        {"role": "user", "content": "And now?"},
    ]
    expected = smollm2.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    assert engine.prompt_token_ids(Prompt("DR/0", "And now?", TWO)) == expected["input_ids"]
    alone = smollm2.tokenizer.apply_chat_template(messages[-1:], add_generation_prompt=True, return_dict=True)
    assert engine.prompt_token_ids(Prompt("DR/0", "And now?")) == alone["input_ids"]


def test_in_raw_text_an_example_is_a_paragraph_with_one_space_before_its_answer(smollm2):
    engine = TransformersEngine(smollm2, Decoding(), batch_size=1)
    ids = engine.prompt_token_ids(Prompt("DR/0", "And now? ", TWO))
    assert smollm2.tokenizer.decode(ids) == "Is it late? yes.\n\nIs it early? no.\n\nAnd now? "


def test_examples_that_fill_half_of_an_encoder_are_refused(tiny_bart, tiny_t5):
    import torch

    def engine(folder: Path) -> TransformersEngine:
        generator = load_generator(locate_generator(str(folder)), device="cpu", dtype=torch.float32)
        return TransformersEngine(generator, Decoding(max_new_tokens=4))

    bart = engine(tiny_bart)
    assert bart.generator.context == 256
    filler = "a long evening at home. "
    long = [Prompt("DR/0", "short", TWO), Prompt("SAD/0", "short", (Shot(filler * 40, "yes."),))]
    with pytest.raises(UserError, match=r"--shots: the 1 examples before SAD/0 take \d+ of this model's 256 positions"):
        bart.check(long)
    bart.check(long[:1])
    bart.check([Prompt("SAD/0", filler * 40)])
    # T5 counts positions from the token: it has no limit of its own.
    engine(tiny_t5).check(long)


# --- a run ------------------------------------------------------------------------------------------------------------

GENERATE = ["--data_root", str(samples_root()), "--max_new_tokens", "4", "--datasets", "DR", "CAMS", "Irf"]


def generate(output: Path, model: Path, *more: str) -> int:
    return run_script("generate", ["--model_path", str(model), "--model_output_path", f"{output}", *GENERATE, *more])


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with room for examples."""
    from tiny import save_llama

    return save_llama(tmp_path_factory.mktemp("roomy"), max_position_embeddings=4096)


def test_a_run_records_its_examples_without_their_text_and_goes_on_with_the_same_ones(roomy, tmp_path, capsys):
    import torch

    few, zero = tmp_path / "few", tmp_path / "zero"
    assert generate(few, roomy, "--shots", "1") == generate(zero, roomy) == 0
    manifests = [json.loads((folder / "manifest.json").read_text(encoding="utf-8")) for folder in (few, zero)]
    recorded = manifests[0]["configuration"].pop("shots")
    assert manifests[0]["configuration"] == manifests[1]["configuration"], "nothing is recorded of no examples"
    assert (recorded["per_label"], recorded["seed"], set(recorded["datasets"])) == (1, 0, {"DR", "CAMS", "Irf"})
    chosen = shots_of_datasets(root_at(samples_root()), ["DR", "CAMS", "Irf"], "instruction", 1, 0)
    assert recorded["datasets"] == {name: shots.facts() for name, shots in chosen.items()}
    written = (few / "manifest.json").read_text(encoding="utf-8")
    for shots in chosen.values():
        for shot in (shot for own in shots.by_aspect.values() for shot in own):
            assert not any(part[:30] in written for part in (shot.query, shot.answer))
    counts = [sum(count["prompt_tokens"] for count in manifest["counts"].values()) for manifest in manifests]
    assert counts[0] > 2 * counts[1]
    assert all(count["done"] == count["rows"] for count in manifests[0]["counts"].values())

    first = load_suite(root_at(samples_root()), "IMHI", datasets=["DR", "CAMS", "Irf"]).rows[0]
    generator = load_generator(locate_generator(str(roomy)), device="cpu", dtype=torch.float32)
    prompt = Prompt(first.id, first.query, chosen[first.dataset].before(first.query))
    assert manifests[0]["first_prompt"] == {
        "id": first.id,
        "token_ids": TransformersEngine(generator, Decoding()).prompt_token_ids(prompt),
    }

    capsys.readouterr()
    assert generate(few, roomy, "--shots", "1", "--shots_seed", "0") == 0
    assert "nothing to do" in capsys.readouterr().err
    for other in (["--shots", "1", "--shots_seed", "5"], [], ["--shots", "2", "--datasets", "DR", "Irf"]):
        assert generate(few, roomy, *other) == 2
        assert "shots" in capsys.readouterr().err


def test_a_run_says_where_its_examples_are_made_up(roomy, tmp_path, capsys):
    save_training(tmp_path, {"yes": [post(1)], "no": [post(2)]})
    save_test(tmp_path, [post(3)])
    save_test(tmp_path, [post(4)], dataset=DATASETS["loneliness"])
    arguments = ["--model_path", str(roomy), "--data_root", str(tmp_path), "--max_new_tokens", "4", "--shots", "1"]
    arguments += ["--shots_seed", "3"]
    assert run_script("generate", [*arguments, "--model_output_path", f"{tmp_path / 'run'}"]) == 0
    assert "no training files for loneliness in this data root" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    recorded = manifest["configuration"]["shots"]
    assert recorded["seed"] == 3
    chosen = shots_of_datasets(root_at(tmp_path), ["DR", "loneliness"], "instruction", 1, 3)
    assert recorded["datasets"] == {name: shots.facts() for name, shots in chosen.items()}
    sources = {name: facts["from"] for name, facts in recorded["datasets"].items()}
    assert sources == {"DR": ["train_data/instruction_data/DR/train.csv"], "loneliness": [MADE_UP]}


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--shots", "-1"], "--shots must be 0"),
        (["--shots_seed", "3"], "--shots_seed has no effect"),
        (["--shots", "1", "--shots_seed", "-2"], "--shots_seed must be 0"),
        (["--shots", "50"], "--shots 50: DR has"),
    ],
)
def test_flags_that_cannot_be_are_refused(flags, complaint, roomy, tmp_path, capsys):
    assert generate(tmp_path / "run", roomy, *flags) == 2
    assert complaint in capsys.readouterr().err


def test_imhi_run_passes_examples_on(roomy, tmp_path):
    folder = tmp_path / "run"
    arguments = ["--model_path", str(roomy), "--model_output_path", f"{folder}", *GENERATE, "--limit", "2"]
    assert run_script("run", [*arguments, "--shots", "1", "--to", "generate"]) == 0
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["configuration"]["shots"]["per_label"] == 1
