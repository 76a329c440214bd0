"""The audit: each finding on a small tree of made-up rows, and the measured facts on the published data."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from imhi import audit as auditing
from imhi.audit import Audit, FileAudit, audit_data, leaked_rows, overlaps, post_key, post_of, repair_data, repaired
from imhi.audit import shared_rows as shared
from imhi.benchmark import DATASETS, gold_answer, query
from imhi.commands import run_script
from imhi.data import GOLD_COLUMN, QUERY_COLUMN, DataRoot, read_query_rows, read_table, samples_root
from imhi.errors import UserError
from imhi.fetch import PublishedFile

GARBLED = "I don‚Äôt sleep, caf√© closed"
CLEAN = "I don’t sleep, café closed"

DR_TEST = "test_data/test_instruction/DR.csv"
LONELY_TEST = "test_data/test_instruction/loneliness.csv"
DR_TRAIN = "train_data/instruction_data/DR/train.csv"


def encode(columns: list[str], records: list[list[str]], *, end: str = "\n", mark: str = "") -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator=end)
    writer.writerow(columns)
    writer.writerows(records)
    return (mark + buffer.getvalue()).encode("utf-8")


def rows(dataset: str, *posts: str, form: str = "instruction") -> bytes:
    described = DATASETS[dataset]
    gold = gold_answer(described.labels[0], form, "made up.")
    return encode([QUERY_COLUMN, GOLD_COLUMN], [[query(described, form, post), gold] for post in posts])


Tree = Callable[[dict[str, bytes]], DataRoot]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    def build(files: dict[str, bytes]) -> DataRoot:
        for path, content in files.items():
            (tmp_path / "root" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "root" / path).write_bytes(content)
        return DataRoot(tmp_path / "root", "given")

    return build


def only_file(audit: Audit) -> FileAudit:
    (file,) = audit.files
    return file


# --- texts ----------------------------------------------------------------------------------------------------------


def test_repaired() -> None:
    assert repaired(GARBLED) == CLEAN
    for text in ("plain", "", CLEAN, "naïve 😭 ツ", "√ x", "don‚Äôt 😭"):
        assert repaired(text) == text


@pytest.mark.parametrize("form", ["instruction", "completion"])
@pytest.mark.parametrize(
    "post", ["a post", 'he said "no"', "Question: why me? Question: why", "two\n\nlines ", "it's \\n"]
)
def test_post_of_undoes_query(post: str, form: str) -> None:
    for dataset in DATASETS.values():
        assert post_of(query(dataset, form, post, dataset.aspects[0])) == post.strip()


def test_post_of_training_form_has_one_space() -> None:
    assert post_of("Post: a post Question: This post shows the stress cause of ") == "a post"


def test_post_key_ignores_form_case_spacing_punctuation_and_mojibake() -> None:
    dr, irf = DATASETS["DR"], DATASETS["Irf"]
    key = post_key(query(dr, "instruction", "I don’t\n sleep, CAFÉ closed."))
    assert key == post_key(query(irf, "completion", GARBLED, irf.aspects[0]))
    assert key != post_key(query(dr, "instruction", "I don’t sleep, café open"))
    assert post_key(query(dr, "instruction", ":-( :-(")) != post_key(query(dr, "instruction", "..."))


def test_the_sample_rows_pass_and_are_named_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    audit = audit_data(DataRoot(samples_root(), "default"))
    assert audit.errors == [] and audit.is_samples
    assert {file.status for file in audit.files} <= {"sample"} and not any(file.warnings for file in audit.files)
    assert run_script("data", ["check"]) == 0  # the default: conftest.py takes $IMHI_DATA away
    assert "made-up sample rows, not the benchmark" in capsys.readouterr().out


# --- findings in one file -------------------------------------------------------------------------------------------


def test_sizes_labels_and_duplicates(tree: Tree) -> None:
    root = tree({LONELY_TEST: rows("loneliness", "one", "two", "two", "Two!")})
    file = only_file(audit_data(root))
    assert (file.rows, file.released_rows, file.published_rows, file.manifest_rows) == (4, 528, 531, 528)
    assert (file.posts, file.duplicate_rows, file.duplicate_queries) == (2, 1, 1)
    assert file.label_counts == {"no": 4, "yes": 0}
    assert file.warnings == ["4 rows, released with 528"] and file.errors == []
    assert file.status == "differs" and (file.kind, file.form, file.name) == ("test", "instruction", "loneliness")


def test_same_query_with_another_gold_is_no_duplicate_row(tree: Tree) -> None:
    labels = DATASETS["DR"].labels
    golds = [gold_answer(label, "instruction", "x") for label in labels]
    root = tree({DR_TEST: encode([QUERY_COLUMN, GOLD_COLUMN], [["q", golds[0]], ["q", golds[1]]])})
    file = only_file(audit_data(root))
    assert (file.duplicate_rows, file.duplicate_queries) == (0, 1)


def test_unmatched_gold_names_file_row_and_head(tree: Tree) -> None:
    gold = "Perhaps it is so, who could tell from such a text as this one is? Reasoning: none"
    root = tree({DR_TEST: rows("DR", "one") + encode(["x"], [])[2:] + encode(["q", gold], [])})
    audit = audit_data(root)
    assert [(found.row, found.head) for found in only_file(audit).unmatched] == [(2, gold[:60])]
    (error,) = audit.errors
    assert error.startswith(f"{root.path / DR_TEST}, row 2: the gold text names no label of DR: {gold[:60]!r}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"query,answer\na,b\n", "columns query, answer; expected query,gpt-3.5-turbo"),
        (b"query,gpt-3.5-turbo\nok,yes\ncaf\xe9,yes\n", "line 3: not UTF-8 (byte 0xe9)"),
        (b'query,gpt-3.5-turbo\nok,yes\n"open,yes\n', "row 2: not valid CSV"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_error_and_stops_nothing(tree: Tree, content: bytes, message: str) -> None:
    audit = audit_data(tree({DR_TEST: content, LONELY_TEST: rows("loneliness", "one")}))
    (error,) = audit.errors
    assert message in error and DR_TEST in error and "\n" not in error
    assert audit.files[1].rows == 1


def test_quirks_are_accepted_and_named(tree: Tree) -> None:
    path = "train_data/complete_data/DR/odd name.csv"
    records = [["0", "7", "Post: a post", " Question: is ", "no. Reasoning: x"]]
    columns = ["", "Unnamed: 0", "post", "question", "response"]
    root = tree({path: encode(columns, records, end="\r\n", mark="\ufeff")})
    audit = audit_data(root)
    file = only_file(audit)
    assert file.quirks == ["byte order mark", "CRLF line ends", "stray column ''", "stray column 'Unnamed: 0'"]
    assert (file.kind, file.form, file.dataset, file.name) == ("train", "completion", "DR", "DR/odd name.csv")
    assert file.label_counts == {"no": 1, "yes": 0} and file.status == "not published" and not audit.errors


def test_verified_and_absent(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    content = rows("DR", "one")
    example = "examples/label_data_examples/DR.csv"
    sha1 = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    files = {path: PublishedFile(path, sha1, None, 1) for path in (DR_TEST, LONELY_TEST, example)}
    monkeypatch.setattr(auditing, "published_files", lambda: files)
    audit = audit_data(tree({DR_TEST: content, example: content}))
    assert [(file.name, file.kind, file.status) for file in audit.files] == [
        ("DR", "test", "verified"),
        ("label_data_examples/DR.csv", "example", "verified"),
    ]
    assert audit.absent == [LONELY_TEST] and audit.unreleased == ["CLP"]


def test_stray_files_and_two_files_of_one_set(tree: Tree) -> None:
    root = tree(
        {
            DR_TEST: rows("DR", "one"),
            "test_data/test_instruction/notes.txt": b"x",
            "train_data/instruction_data/XYZ/train.csv": b"x",
            "train_data/.DS_Store": b"x",
            "README.md": b"x",
        }
    )
    audit = audit_data(root)
    assert audit.stray == [
        "test_data/test_instruction/notes.txt",
        "train_data/.DS_Store",
        "train_data/instruction_data/XYZ/train.csv",
    ]
    assert not audit.errors
    (root.path / "test_data/test_instruction/dr.csv").write_bytes(b"x")
    if len(list((root.path / "test_data/test_instruction").iterdir())) == 3:  # letter case matters to this disk
        assert "both claim DR" in audit_data(root).errors[0]


ANNOTATION = "human_evaluation/DR_annotation/some_data.csv"
ANNOTATED = ["text", "label", "some-model", "fluency", "completeness", "reliability", "overall"]


def annotated(*records: list[str], columns: list[str] = ANNOTATED) -> bytes:
    return encode(columns, list(records), end="\r\n", mark="\ufeff")


def test_annotations(tree: Tree) -> None:
    good = ["a post", "1", "Yes.", "[3, 2, 0]", "[3,3,3]", "[0, 0, 0]", "[1, 1, 1]"]
    file = only_file(audit_data(tree({ANNOTATION: annotated(good, [GARBLED, "0", *good[2:]])})))
    assert file.label_counts == {"no": 1, "yes": 1} and file.errors == []
    assert (file.rows, file.posts, file.mojibake_rows) == (2, 2, 1)
    assert file.quirks == ["byte order mark", "CRLF line ends"]


@pytest.mark.parametrize("rating", ["[3, 2]", "[3, 2, 4]", "3", "[3, 2, 1.5]", "[1, 2, 3, 3]", ""])
def test_annotation_ratings_that_are_not_three_integers(tree: Tree, rating: str) -> None:
    record = ["a post", "2", "Yes.", "[3, 2, 0]", rating, "[0, 0, 0]", "[1, 1, 1]"]
    errors = audit_data(tree({ANNOTATION: annotated(record)})).errors
    assert len(errors) == 2
    assert f"row 1: completeness is {rating!r}" in errors[0] and "row 1: label is '2'" in errors[1]


def test_annotation_columns(tree: Tree) -> None:
    columns = [name for name in ANNOTATED if name != "overall"]
    (error,) = audit_data(tree({ANNOTATION: annotated(["a"] * 6, columns=columns)})).errors
    assert "expected text,label,MODEL,fluency,completeness,reliability,overall" in error


# --- posts in two files ---------------------------------------------------------------------------------------------


def test_overlaps_between_sets_and_with_training_files(tree: Tree) -> None:
    root = tree(
        {
            DR_TEST: rows("DR", "own", "first", "first", "leaked"),
            LONELY_TEST: rows("loneliness", "FIRST.", "other", "leaked"),
            DR_TRAIN: rows("DR", "trained on", "leaked"),
            "human_evaluation/test_instruction_expert/DR.csv": rows("DR", "own", "trained on"),
        }
    )
    found = {(o.relation, o.left_name, o.right_name): (o.posts, o.left_rows, o.right_rows) for o in overlaps(root)}
    assert found == {
        ("train-test", "DR/train.csv", "DR"): (1, (1,), (3,)),
        ("train-test", "DR/train.csv", "loneliness"): (1, (1,), (2,)),
        ("train-test", "DR/train.csv", "expert/DR"): (1, (0,), (1,)),
        ("test-test", "DR", "loneliness"): (2, (1, 2, 3), (0, 2)),
        ("expert-test", "expert/DR", "DR"): (1, (0,), (0,)),
    }
    assert leaked_rows(overlaps(root), "IMHI") == {
        "DR": {3: ("DR/train.csv",)},
        "loneliness": {2: ("DR/train.csv",)},
    }
    assert leaked_rows(overlaps(root), "expert") == {"DR": {1: ("DR/train.csv",)}}
    assert shared(overlaps(root), "IMHI") == {
        "DR": {1: ("loneliness",), 2: ("loneliness",), 3: ("loneliness",)},
        "loneliness": {0: ("DR",), 2: ("DR",)},
    }
    assert shared(overlaps(root), "IMHI-completion") == {}


def test_training_files_of_the_other_form_stand_in_where_there_are_none(tree: Tree) -> None:
    record = ["Post: leaked", " Question: x is ", "no. Reasoning: x"]
    completion = encode(["post", "question", "response"], [record])
    root = tree({DR_TEST: rows("DR", "leaked"), "train_data/complete_data/DR/train.csv": completion})
    assert leaked_rows(overlaps(root), "IMHI") == {"DR": {0: ("DR/train.csv",)}}
    tree({DR_TRAIN: rows("DR", "nothing shared")})
    assert overlaps(root) == []


# --- repair ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("end", "mark"), [("\n", ""), ("\r\n", "\ufeff")])
def test_repair_changes_only_the_cells_that_need_it(tree: Tree, end: str, mark: str) -> None:
    kept = ['café, "quoted"', "no. Reasoning: ✓\r\nand more"]
    records = [kept, [GARBLED, f'no. Reasoning: "{GARBLED}"'], ["don‚Äôt 😭", "no."], [f"{GARBLED}\n", "no. é"], kept]
    raw = encode([QUERY_COLUMN, GOLD_COLUMN], records, end=end, mark=mark)
    root = tree({DR_TEST: raw})
    before = only_file(audit_data(root))
    assert (before.mojibake_rows, before.mojibake_golds) == (2, 1)
    assert repair_data(root) == {DR_TEST: 2}
    records[1] = [CLEAN, f'no. Reasoning: "{CLEAN}"']
    records[3] = [f"{CLEAN}\n", "no. é"]
    assert (root.path / DR_TEST).read_bytes() == encode([QUERY_COLUMN, GOLD_COLUMN], records, end=end, mark=mark)
    assert (root.path / ".originals" / DR_TEST).read_bytes() == raw
    after = audit_data(root)
    assert only_file(after).mojibake_rows == 0 and after.stray == []
    assert repair_data(root) == {}


def test_repair_never_loses_another_original(tree: Tree) -> None:
    root = tree({DR_TEST: rows("DR", GARBLED), f".originals/{DR_TEST}": b"something else"})
    with pytest.raises(UserError, match="already keeps another original"):
        repair_data(root)
    assert (root.path / DR_TEST).read_bytes() == rows("DR", GARBLED)
    assert (root.path / ".originals" / DR_TEST).read_bytes() == b"something else"


def test_status_repaired_is_earned(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = rows("DR", GARBLED, "two")
    sha1 = hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()
    monkeypatch.setattr(auditing, "published_files", lambda: {DR_TEST: PublishedFile(DR_TEST, sha1, len(raw), 2)})
    root = tree({DR_TEST: raw})
    repair_data(root)
    assert only_file(audit_data(root)).status == "repaired"
    with (root.path / DR_TEST).open("ab") as handle:
        handle.write(b"one more,no.\n")
    assert only_file(audit_data(root)).status == "differs"


def test_repair_refuses_the_sample_rows() -> None:
    with pytest.raises(UserError, match="not repaired"):
        repair_data(DataRoot(samples_root(), "default"))


# --- the command ----------------------------------------------------------------------------------------------------


def test_command_passes_with_warnings_and_writes_json(
    tree: Tree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tree({DR_TEST: rows("DR", "one", GARBLED), DR_TRAIN: rows("DR", "one")})
    assert run_script("data", ["check", str(root.path), "--json", str(tmp_path / "audit.json")]) == 0
    out = capsys.readouterr().out
    assert "DR/train.csv – DR" in out and "no errors" in out and "CLP was never released" in out
    assert "2 rows, released with 405" in out and "1 rows hold mojibake" in out
    told = json.loads((tmp_path / "audit.json").read_text(encoding="utf-8"))
    assert told["files"][0]["rows"] == 2 and told["overlaps"][0]["right_rows"] == [0]


def test_command_fails_on_errors_and_repairs(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree({DR_TEST: b"query,answer\na,b\n", LONELY_TEST: rows("loneliness", GARBLED)})
    assert run_script("data", ["check", str(root.path), "--repair"]) == 1
    told = capsys.readouterr()
    assert "1 errors:" in told.out and "expected query,gpt-3.5-turbo" in told.out and "mojibake (" not in told.out
    assert f"repaired 1 rows of {LONELY_TEST}" in told.err


def test_command_refuses_what_is_no_data_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script("data", ["check", str(tmp_path / "absent")]) == 2
    assert "imhi data fetch --to" in capsys.readouterr().err
    assert run_script("data", ["check", str(tmp_path)]) == 2
    assert "has none of test_data/" in capsys.readouterr().err


# --- the published data ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_root(real_data: Path) -> DataRoot:
    if not (real_data / "train_data/complete_data/Irf/val.csv").is_file():
        pytest.skip(f"{real_data} has no training files")
    return DataRoot(real_data, "tests")


@pytest.fixture(scope="module")
def real(real_root: DataRoot) -> Audit:
    return audit_data(real_root)


def test_real_files_are_verified_and_without_errors(real: Audit) -> None:
    assert {file.status for file in real.files} == {"verified"}
    assert real.errors == [] and not any(file.warnings for file in real.files)
    assert all(file.duplicate_rows == 0 for file in real.files)
    assert len(real.files) + len(real.absent) == 57


@pytest.mark.parametrize("form", ["instruction", "completion"])
def test_real_test_sets(real: Audit, form: str) -> None:
    files = {file.name: file for file in real.files if (file.kind, file.form) == ("test", form) and file.name != "swmh"}
    assert {name: file.rows for name, file in files.items()} == {
        "DR": 405,
        "dreaddit": 414,
        "t-sid": 959,
        "SAD": 684,
        "CAMS": 625,
        "loneliness": 528,
        "MultiWD": 2441,
        "Irf": 2113,
    }
    mojibake = {name: file.mojibake_rows for name, file in files.items() if file.mojibake_rows}
    assert mojibake == {"loneliness": 147, "MultiWD": 714, "Irf": 512}
    assert {name: file.mojibake_golds for name, file in files.items() if file.mojibake_golds} == {
        "loneliness": 2,
        "Irf": 1,
    }
    assert {name: file.duplicate_queries for name, file in files.items() if file.duplicate_queries} == {"t-sid": 29}
    assert (files["Irf"].posts, files["MultiWD"].posts, files["t-sid"].posts) == (1057, 407, 929)
    assert files["loneliness"].published_rows == 531


def test_real_training_files_in_test_sets(real: Audit) -> None:
    found = {
        (o.left_name, o.right_name): (o.posts, len(o.left_rows), len(o.right_rows))
        for o in real.overlaps
        if (o.relation, o.form) == ("train-test", "instruction")
    }
    expected = {
        ("Irf/val.csv", "CAMS"): (62, 124, 62),
        ("Irf/val.csv", "loneliness"): (80, 162, 80),
        ("Irf/val.csv", "MultiWD"): (55, 110, 330),
        ("MultiWD/val.csv", "CAMS"): (26, 156, 26),
        ("MultiWD/val.csv", "loneliness"): (29, 174, 29),
        ("MultiWD/val.csv", "Irf"): (72, 432, 144),
        ("MultiWD/val.csv", "expert/MultiWD"): (13, 78, 23),
        ("SAD/train.csv", "SAD"): (1, 1, 1),
        ("SAD/val.csv", "SAD"): (1, 1, 1),
        ("dreaddit/train.csv", "dreaddit"): (2, 2, 2),
        ("dreaddit/val.csv", "expert/dreaddit"): (35, 35, 35),
    }
    assert {pair: found.get(pair) for pair in expected} == expected
    leaked = leaked_rows(real.overlaps, "IMHI")
    assert {name: len(leaked[name]) for name in ("SAD", "dreaddit")} == {"SAD": 2, "dreaddit": 2}


@pytest.mark.parametrize("form", ["instruction", "completion"])
def test_real_test_sets_share_posts(real: Audit, form: str) -> None:
    found = {
        (o.left_name, o.right_name): (o.posts, len(o.left_rows), len(o.right_rows))
        for o in real.overlaps
        if (o.relation, o.form) == ("test-test", form) and "/" not in o.left_name
    }
    assert {pair: counts for pair, counts in found.items() if "swmh" not in pair} == {
        ("t-sid", "CAMS"): (1, 2, 1),
        ("t-sid", "loneliness"): (1, 2, 1),
        ("t-sid", "Irf"): (1, 2, 2),
        ("CAMS", "loneliness"): (65, 65, 65),
        ("CAMS", "MultiWD"): (50, 50, 300),
        ("CAMS", "Irf"): (130, 130, 259),
        ("loneliness", "MultiWD"): (66, 66, 396),
        ("loneliness", "Irf"): (157, 157, 314),
        ("MultiWD", "Irf"): (108, 648, 216),
    }


def test_cams_and_irf_share_109_posts_if_mojibake_is_left_in(real_root: DataRoot) -> None:
    """The count of ../shared/README.md; the 21 others are the same posts with their apostrophes garbled in Irf."""
    posts = []
    for name in ("CAMS", "Irf"):
        pairs = read_query_rows(real_root.path / f"test_data/test_instruction/{name}.csv")
        posts.append({" ".join(post_of(text).casefold().split()) for text, _ in pairs})
    assert len(posts[0] & posts[1]) == 109


def test_repair_of_a_real_file(real_root: DataRoot, tree: Tree) -> None:
    path = "test_data/test_instruction/Irf.csv"
    root = tree({path: (real_root.path / path).read_bytes()})
    assert repair_data(root) == {path: 512}
    before, after = read_table(real_root.path / path), read_table(root.path / path)
    assert after.columns == before.columns
    assert after.records == [[repaired(cell) for cell in record] for record in before.records]
    assert only_file(audit_data(root)).status == "repaired"
