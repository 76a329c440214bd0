"""Rows left out by name: leaked posts, and posts that are asked about twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from imhi.benchmark import DATASETS, gold_answer, query
from imhi.cli import main
from imhi.data import GOLD_COLUMN, QUERY_COLUMN, DataRoot, load_suite, write_table
from imhi.errors import UserError
from imhi.exclusions import REASONS, find_exclusions, leave_out
from imhi.results import RunResults, read_results


def table(root: Path, path: str, dataset: str, *posts: str) -> None:
    described = DATASETS[dataset]
    gold = gold_answer(described.labels[0], "instruction", "made up.")
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    write_table(target, (QUERY_COLUMN, GOLD_COLUMN), [(query(described, "instruction", post), gold) for post in posts])


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    folder = tmp_path / "root"
    table(folder, "test_data/test_instruction/DR.csv", "DR", "first", "in both sets", "learned from", "first")
    table(folder, "test_data/test_instruction/loneliness.csv", "loneliness", "in both sets", "only here")
    table(folder, "train_data/instruction_data/DR/train.csv", "DR", "Learned from!")
    return DataRoot(folder, "test")


def answered(root: DataRoot, folder: Path) -> RunResults:
    suite = load_suite(root, "IMHI")
    folder.mkdir()
    for name in suite.files:
        pairs = [(row.gold, row.gold) for row in suite.rows if row.dataset == name]
        write_table(folder / f"{name}.csv", ("goldens", "generated_text"), pairs)
    return read_results(folder, data_root=root)


def test_nothing_is_left_out_unasked(root: DataRoot, tmp_path: Path) -> None:
    results = answered(root, tmp_path / "run")
    assert results.suite == "IMHI"
    exclusions = find_exclusions(results)
    assert exclusions.rows == {} and exclusions.applied(results).rows == results.rows == 6


def test_each_row_is_left_out_for_its_first_reason(root: DataRoot, tmp_path: Path) -> None:
    results = answered(root, tmp_path / "run")
    leaked = find_exclusions(results, drop_leaked=True)
    assert leaked.of(results) == {"leaked": {"DR": 1}}
    assert leaked.applied(results).datasets["DR"].index == [0, 1, 3]
    both = find_exclusions(results, drop_leaked=True, dedup_posts=True)
    assert both.of(results) == {"leaked": {"DR": 1}, "shared": {"loneliness": 1}, "repeated": {"DR": 1}}
    kept = both.applied(results)
    assert {name: one.index for name, one in kept.datasets.items()} == {"DR": [0, 1], "loneliness": [1]}
    assert kept.datasets["DR"].correctness().n == 2


def test_two_runs_are_compared_without_the_same_rows(
    root: DataRoot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(answered(root, tmp_path / name).folder) for name in ("a", "b")]
    command = ["compare", *folders, "--data_root", str(root.path), "--resamples", "50"]
    assert main([*command, "--drop_leaked", "--dedup_posts"]) == 0
    told = capsys.readouterr()
    assert told.err.count("1 rows left out, the post stands in a training file (DR 1)") == 2
    lines = [line.split() for line in told.out.splitlines() if line.startswith("DR ")]
    assert {words[1] for words in lines} == {"2"} and len(lines) >= 3


def test_unknown_posts_are_an_error_and_no_empty_exclusion(root: DataRoot, tmp_path: Path) -> None:
    known = answered(root, tmp_path / "run")
    with pytest.raises(UserError, match=r"--dedup_posts: the posts of DR, loneliness .* --data_root"):
        find_exclusions(read_results(known.folder), dedup_posts=True)


def test_a_dataset_without_a_row_left_is_left_out(
    root: DataRoot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table(root.path, "train_data/instruction_data/DR/train.csv", "DR", "in both sets", "only here")
    rest, counts = leave_out(answered(root, tmp_path / "run"), drop_leaked=True)
    assert list(rest.datasets) == ["DR"] and counts == {REASONS["leaked"]: {"DR": 1, "loneliness": 2}}
    assert "no row is left of loneliness" in capsys.readouterr().err
    table(
        root.path,
        "train_data/instruction_data/DR/train.csv",
        "DR",
        "in both sets",
        "only here",
        "first",
        "learned from",
    )
    with pytest.raises(UserError, match="no row is left"):
        leave_out(answered(root, tmp_path / "again"), drop_leaked=True)


def test_no_training_file_is_no_proof_of_no_leak(root: DataRoot, tmp_path: Path) -> None:
    results = answered(root, tmp_path / "run")
    (root.path / "train_data/instruction_data/DR/train.csv").unlink()
    with pytest.raises(UserError, match=r"--drop_leaked: .* has no training files"):
        find_exclusions(results, drop_leaked=True)
    assert find_exclusions(results, dedup_posts=True).of(results)["repeated"] == {"DR": 1}


def test_real_rows_that_are_left_out(real_data: Path, tmp_path: Path) -> None:
    results = answered(DataRoot(real_data, "test"), tmp_path / "run")
    counts = find_exclusions(results, drop_leaked=True, dedup_posts=True).of(results)
    # Irf/val alone stands in 330 MultiWD, 80 loneliness and 62 CAMS rows (../shared/README.md), MultiWD/val in more.
    assert {name: counts["leaked"][name] for name in ("SAD", "dreaddit", "MultiWD", "loneliness", "CAMS")} == {
        "SAD": 2,
        "dreaddit": 2,
        "MultiWD": 330,
        "loneliness": 104,
        "CAMS": 86,
    }
    assert "MultiWD" in counts["shared"] and "DR" not in counts["shared"]
