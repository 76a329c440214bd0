import csv

import pytest

from imhi.benchmark import DATASETS, gold_answer, query
from imhi.data import DataRoot
from imhi.errors import UserError
from imhi.training.corpus import (
    FOLDS,
    evaluation_rows,
    fold_of,
    is_validation,
    read_corpus,
    stem_of,
)


def write(root, path, name, rows):
    """Rows are (post, label, aspect)."""
    dataset = DATASETS[name]
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["query", "gpt-3.5-turbo"])
        for post, label, aspect in rows:
            gold = gold_answer(dataset.label_named(label), "instruction", f"It says {post}.")
            writer.writerow([query(dataset, "instruction", post, aspect), gold])


@pytest.fixture
def root(tmp_path):
    test, train = "test_data/test_instruction", "train_data/instruction_data"
    write(tmp_path, f"{test}/DR.csv", "DR", [("a grey week", "yes", "")])
    write(tmp_path, f"{test}/CAMS.csv", "CAMS", [(f"post {n}", "medication", "") for n in range(40)])
    write(
        tmp_path,
        f"{train}/DR/train.csv",
        "DR",
        [("A grey, WEEK!", "yes", ""), ("post 3", "no", ""), ("mine", "yes", "")],
    )
    write(tmp_path, f"{train}/DR/val.csv", "DR", [("mine", "yes", ""), ("another", "no", "")])
    write(
        tmp_path,
        "human_evaluation/test_instruction_expert/SAD.csv",
        "SAD",
        [("post 7", "work", ""), ("x", "school", "")],
    )
    return DataRoot(tmp_path, "test")


def test_no_test_post_is_learned_from_whatever_its_set_and_writing(root):
    corpus = read_corpus(root)
    assert sorted(row.post for row in corpus.training["DR"]) == ["another", "mine"]
    assert corpus.dropped["DR"] == 2


def test_near_copies_and_explanations_of_test_rows_are_held_out(tmp_path):
    long = "a post about a lathe that was sold " * 4
    write(tmp_path, "test_data/test_instruction/DR.csv", "DR", [(long + "and more", "yes", ""), ("short", "no", "")])
    write(tmp_path, "test_data/test_complete/DR.csv", "DR", [("cut off elsewhere", "yes", ""), ("short", "no", "")])
    rows = [
        (long.replace(" l", "l") + "but another end", "yes", ""),
        ("cut off elsewhere", "yes", ""),
        ("kept", "no", ""),
    ]
    write(tmp_path, "train_data/instruction_data/DR/train.csv", "DR", rows)
    path = tmp_path / "train_data/instruction_data/DR/train.csv"
    told = 'Consider this post: ""new"" Question: Does the poster suffer from depression?'
    path.write_text(
        path.read_text(encoding="utf-8")
        + f'"{told}","Yes, the poster suffers from depression. Reasoning: It says short."\n',
        encoding="utf-8",
    )
    corpus = read_corpus(DataRoot(tmp_path, "test"))
    assert [row.post for row in corpus.training["DR"]] == ["kept"]
    assert corpus.dropped["DR"] == 3


def test_sets_without_training_files_learn_from_their_test_rows_but_for_expert_posts(root):
    corpus = read_corpus(root)
    assert corpus.is_cross_validated("CAMS") and not corpus.is_cross_validated("DR")
    learned = {row.post for row in corpus.learnable("CAMS")}
    assert learned == {f"post {n}" for n in range(40)} - {"post 7"}
    for fold in range(FOLDS):
        others = {row.post for row in corpus.learnable("CAMS", without_fold=fold)}
        assert others == {post for post in learned if fold_of(post) != fold}
    assert len({fold_of(post) for post in learned}) == FOLDS


def test_a_set_without_rows_borrows_its_neighbours(root):
    corpus = read_corpus(root)
    assert [(row.dataset, row.post, row.label) for row in corpus.learnable("CLP")] == [
        ("CLP", row.post, row.label) for row in corpus.learnable("DR")
    ]
    words, rows = evaluation_rows(corpus, "CLP")
    assert "DR" in words and [row.post for row in rows] == ["a grey week"]
    assert evaluation_rows(corpus, "SAD")[0] == "the 2 expert rows"
    assert evaluation_rows(corpus, "loneliness") == ("", [])


def test_borrowed_labels_are_in_the_table():
    borrowing = {name for name, dataset in DATASETS.items() if dataset.borrows}
    assert borrowing == {"CLP", "swmh"}
    for name in borrowing:
        for source, renamed in DATASETS[name].borrows:
            assert set(dict(renamed)) <= set(DATASETS[source].label_names)
            assert set(dict(renamed).values()) <= set(DATASETS[name].label_names)


def test_an_explanation_that_contradicts_its_head_is_known(tmp_path):
    target = tmp_path / "test_data/test_instruction/Irf.csv"
    target.parent.mkdir(parents=True)
    target.write_text(
        'query,gpt-3.5-turbo\n"Consider this post: ""p"" Question: q","No, the post does not show this risk. '
        'Reasoning: Yes, the post shows this risk. It is plain."\n',
        encoding="utf-8",
    )
    (row,) = read_corpus(DataRoot(tmp_path, "test")).test["Irf"]
    assert (row.label, row.says) == ("no", "yes")


def test_a_root_without_answers_is_refused(tmp_path):
    (tmp_path / "test_data").mkdir()
    with pytest.raises(UserError, match="neither training nor test files"):
        read_corpus(DataRoot(tmp_path, "test"))


def test_the_released_files_are_sorted_without_leaks(real_data):
    corpus = read_corpus(DataRoot(real_data, "test"))
    measured = [row for rows in [*corpus.test.values(), *corpus.expert.values()] for row in rows]
    for rows in corpus.training.values():
        assert not {stem_of(row.post) for row in measured} & {stem_of(row.post) for row in rows}
        assert not {row.explanation for row in measured} & {row.explanation for row in rows}
    assert {name: len(rows) for name, rows in corpus.training.items()} == {
        "DR": 1433,
        "dreaddit": 3100,
        "SAD": 6160,
        "MultiWD": 792,
        "Irf": 647,
    }
    assert [name for name in DATASETS if corpus.is_cross_validated(name)] == ["t-sid", "CAMS", "loneliness"]
    share = sum(is_validation(row.post) for row in corpus.training["SAD"]) / 6160
    assert 0.08 < share < 0.12
