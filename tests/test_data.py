"""Readers: the published quirks are accepted, what is really wrong is one line; CSV round trips through pandas."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imhi import data
from imhi.benchmark import DATASETS, SUITES, gold_answer, match_gold
from imhi.data import (
    DataRoot,
    load_suite,
    parse_dataset_names,
    read_query_rows,
    read_responses,
    read_table,
    resolve_data_root,
    response_files,
    samples_root,
    sha256_of,
    write_table,
    write_text_atomically,
)
from imhi.errors import UserError

HEADER = b"query,gpt-3.5-turbo\n"
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def put(content: bytes, name: str = "DR.csv") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return put


# --- accepted as published ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        HEADER + b"a post,yes.\n",
        b"\xef\xbb\xbf" + HEADER + b"a post,yes.\n",
        HEADER.replace(b"\n", b"\r\n") + b"a post,yes.\r\n",
        b"\xef\xbb\xbf" + HEADER.replace(b"\n", b"\r\n") + b'"a post","yes."\r\n',
        HEADER + b"\na post,yes.\n\n",
        HEADER + b"a post,yes.",
        b",Unnamed: 0,query,gpt-3.5-turbo\n0,7,a post,yes.\n",
        b"gpt-3.5-turbo,extra,query\nyes.,?,a post\n",
        b"post,question,response\na ,post,yes.\n",
        b",Unnamed: 0,post,question,response\n0,7,a ,post,yes.\n",
    ],
)
def test_published_quirks_read_the_same(write: Write, content: bytes) -> None:
    assert read_query_rows(write(content)) == [("a post", "yes.")]


def test_texts_are_kept_as_written(write: Write) -> None:
    text = 'back\\slash \\n \\"\r\nnew line\rlone return, comma "quoted" \ttab =1+1 '
    content = HEADER + ('"' + text.replace('"', '""') + '",no.\n').encode()
    assert read_query_rows(write(content)) == [(text, "no.")]


def test_a_very_long_cell(write: Write) -> None:
    assert len(read_query_rows(write(HEADER + b"x" * 300_000 + b",no.\n"))[0][0]) == 300_000


# --- really wrong: one line with file and row -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ": the file is empty"),
        (b" \r\n\n", ": the file is empty"),
        (b"\xef\xbb\xbf", ": the file is empty"),
        (HEADER, ": a header but no rows"),
        (HEADER + b"a post,yes.\ncaf\xe9,no.\n", ", line 3: not UTF-8 (byte 0xe9)"),
        ("query,gpt-3.5-turbo\na,b\n".encode("utf-16"), ", line 1: not UTF-8 (byte 0xff)"),
        (HEADER + b'a post,yes.\n"open,no.\n', ", row 2: not valid CSV"),
        (HEADER + b'a post,yes.\n"x"y,no.\n', ", row 2: not valid CSV"),
        (HEADER + b"a post,yes.\none field\n", ", row 2: 1 fields where the header has 2"),
        (HEADER + b"a post,yes.\na,b,c\n", ", row 2: 3 fields where the header has 2"),
        (b"query,answer\na,b\n", ": columns query, answer; expected query,gpt-3.5-turbo"),
        (b"post,question\na,b\n", ": columns post, question; expected query,gpt-3.5-turbo"),
    ],
)
def test_what_is_wrong_is_one_line(write: Write, content: bytes, message: str) -> None:
    path = write(content)
    with pytest.raises(UserError) as caught:
        read_query_rows(path)
    assert str(caught.value).startswith(f"{path}{message}")
    assert "\n" not in str(caught.value)


def test_absent_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.csv: no such file"):
        read_table(tmp_path / "absent.csv")
    with pytest.raises(UserError, match="is a folder"):
        read_table(tmp_path)


# --- data roots and suites ------------------------------------------------------------------------------------------


def test_data_root_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("given", "environment"):
        (tmp_path / name / "test_data").mkdir(parents=True)
    monkeypatch.setenv("IMHI_DATA", str(tmp_path / "environment"))
    assert resolve_data_root(tmp_path / "given") == DataRoot(tmp_path / "given", "--data_root")
    assert resolve_data_root(None) == DataRoot(tmp_path / "environment", "$IMHI_DATA")
    monkeypatch.delenv("IMHI_DATA")
    samples = resolve_data_root(None)
    assert samples.is_samples and "made-up" in samples.describe() and samples.path == samples_root()


def test_data_root_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="imhi data fetch --to"):
        resolve_data_root(tmp_path / "absent")
    monkeypatch.setenv("IMHI_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"\$IMHI_DATA: .* has none of test_data/"):
        resolve_data_root(None)


@pytest.fixture
def root(write: Write, tmp_path: Path) -> DataRoot:
    folder = SUITES["IMHI"].folder
    for name in ("SAD", "dr", "CAMS"):
        dataset = DATASETS["DR" if name == "dr" else name]
        table = [(f"{name} {row}", gold_answer(dataset.labels[row % 2], "instruction", "x")) for row in range(3)]
        write_path = write(b"", f"{folder}/{name}.csv")
        write_table(write_path, ["query", "gpt-3.5-turbo"], table)
    write(b"x", f"{folder}/notes.md")
    return DataRoot(tmp_path, "given")


def test_load_suite(root: DataRoot) -> None:
    suite = load_suite(root, "IMHI")
    assert suite.counts() == {"DR": 3, "SAD": 3, "CAMS": 3} and suite.form == "instruction"
    assert list(suite.files) == ["DR", "SAD", "CAMS"] and suite.stray == ("notes.md",)
    assert "CLP" in suite.missing and "swmh" in suite.missing and "DR" not in suite.missing
    assert [row.id for row in suite.rows[:3]] == ["DR/0", "DR/1", "DR/2"]
    assert [row.gold_label for row in suite.rows[:3]] == ["no", "yes", "no"]
    assert load_suite(root, "IMHI", datasets=["SAD"], limit=2).counts() == {"SAD": 2}


def test_load_suite_mistakes(root: DataRoot, write: Write) -> None:
    with pytest.raises(UserError, match=r"no file for CLP, swmh \(CLP was never released\); present: DR, SAD, CAMS"):
        load_suite(root, "IMHI", datasets=["CLP", "swmh"])
    with pytest.raises(UserError, match="no such folder"):
        load_suite(root, "IMHI-completion")
    write(b"x", "test_data/test_complete/notes.md")
    with pytest.raises(UserError, match="no file named after a dataset"):
        load_suite(root, "IMHI-completion")
    path = write(HEADER + b"a,No. Reasoning: x\nb,Purple rain. Reasoning: yes\n", "test_data/test_instruction/dr.csv")
    with pytest.raises(UserError) as caught:
        load_suite(root, "IMHI")
    assert str(caught.value).startswith(
        f"{path}, row 2: the gold text names no label of DR (no, yes): 'Purple rain. Re"
    )
    assert load_suite(root, "IMHI", limit=1).counts()["DR"] == 1  # rows that are not asked for are not judged


def test_parse_dataset_names() -> None:
    assert parse_dataset_names(["irf,sad", "DR", "T-SID"]) == ["DR", "t-sid", "SAD", "Irf"]
    assert parse_dataset_names([]) == []
    with pytest.raises(UserError, match=r"no dataset 'lonelines'; did you mean loneliness\?"):
        parse_dataset_names(["lonelines"])
    with pytest.raises(UserError, match=r"no dataset 'xyz'.*The ten are DR, CLP"):
        parse_dataset_names(["xyz"])


# --- response files -------------------------------------------------------------------------------------------------


def test_response_files(write: Write, tmp_path: Path) -> None:
    write(b"x", "SAD.csv")
    write(b"x", "dr.CSV")
    write(b"x", "manifest.json")
    write(b"x", "inside/CAMS.csv")
    files, stray = response_files(tmp_path)
    assert list(files) == ["DR", "SAD"] and stray == ["inside", "manifest.json"]
    assert list(response_files(tmp_path, ["SAD"])[0]) == ["SAD"]
    with pytest.raises(UserError, match="no file for CAMS; present: DR, SAD"):
        response_files(tmp_path, ["CAMS"])
    with pytest.raises(UserError, match="is a file"):
        response_files(tmp_path / "SAD.csv")
    with pytest.raises(UserError, match="no such folder"):
        response_files(tmp_path / "absent")


def test_read_responses(write: Write) -> None:
    path = write(b"\xef\xbb\xbf,goldens,generated_text\r\n0,Yes. Reasoning: x,\r\n1,No. Reasoning: x,back\\slash\r\n")
    responses = read_responses(DATASETS["DR"], path)
    assert responses.generated == ["", "back\\slash"] and responses.labels is None
    assert responses.gold_labels() == ["yes", "no"]
    with pytest.raises(UserError, match="no column 'generated_text'"):
        read_responses(DATASETS["DR"], write(b"goldens,text\na,b\n"))
    with pytest.raises(UserError, match="row 2: the gold text is empty"):
        read_responses(DATASETS["DR"], write(b"goldens,generated_text\na,b\n ,b\n"))
    with pytest.raises(UserError, match="row 1: the gold text names no label of DR"):
        read_responses(DATASETS["DR"], write(b"goldens,generated_text\nmaybe,b\n")).gold_labels()


# --- writing --------------------------------------------------------------------------------------------------------

# A text of letters in each column keeps pandas from taking a column of digits for numbers.
ANCHOR = "letters"
SPECIAL = [
    "",
    "None",
    "NA",
    "nan",
    "null",
    "<NA>",
    "\\",
    '\\"',
    '"',
    '""',
    "\r",
    "\r\n",
    "\n",
    "=1+1",
    ",",
    " ",
    "#",
    "'",
]
TEXTS = st.one_of(st.sampled_from(SPECIAL), st.text(st.characters(codec="utf-8"), max_size=12)).map(str)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.tuples(TEXTS, TEXTS), max_size=5))
def test_write_table_comes_back_through_pandas_and_our_reader(tmp_path: Path, texts: list[tuple[str, str]]) -> None:
    path = tmp_path / "DR.csv"
    records = [(ANCHOR, ANCHOR), *texts]
    write_table(path, ["goldens", "generated_text"], records)
    frame = pd.read_csv(path)
    assert list(frame.columns) == ["goldens", "generated_text"] and len(frame) == len(records)
    for column, expected in zip(frame.columns, zip(*records, strict=True), strict=True):
        for got, text in zip(frame[column], expected, strict=True):
            if text == "":
                assert isinstance(got, float) and math.isnan(got)
            else:
                assert got == (f"{text} " if text in data.PANDAS_MISSING else text)
    table = read_table(path)
    assert table.records == [[f"{t} " if t in data.PANDAS_MISSING else t for t in record] for record in records]


def test_guarded_words_are_those_of_this_pandas() -> None:
    parsers = pytest.importorskip("pandas._libs.parsers")
    assert set(parsers.STR_NA_VALUES) - {""} == data.PANDAS_MISSING


def test_guarded_words_come_back_as_responses(tmp_path: Path) -> None:
    words = sorted(data.PANDAS_MISSING)
    write_table(tmp_path / "DR.csv", ["goldens", "generated_text", "labels"], [("yes.", w, w) for w in words])
    responses = read_responses(DATASETS["DR"], tmp_path / "DR.csv")
    assert responses.generated == words and responses.labels == words
    assert list(pd.read_csv(tmp_path / "DR.csv")["generated_text"].str.strip()) == words


def test_write_table_numbers_stay_numbers(tmp_path: Path) -> None:
    write_table(tmp_path / "x.csv", ["name", "value"], [("a", 0.1), ("b", 2)])
    assert (tmp_path / "x.csv").read_bytes() == b'name,value\n"a",0.1\n"b",2\n'


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.txt"
    write_text_atomically(path, "old")

    def crash(_: int) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="power cut"):
        write_text_atomically(path, "new")
    assert path.read_text(encoding="utf-8") == "old"


def test_sha256_of(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_of(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- the published data ---------------------------------------------------------------------------------------------

# Labels in the gold text of the released test files, as ../shared/README.md counts them.
GOLD_COUNTS = {
    "DR": {"yes": 307, "no": 98},
    "dreaddit": {"yes": 211, "no": 203},
    "loneliness": {"yes": 413, "no": 115},
    "Irf": {"yes": 1366, "no": 747},
    "MultiWD": {"yes": 887, "no": 1554},
    "SAD": {
        "work": 110,
        "health issues": 85,
        "financial problem": 81,
        "school": 76,
        "other causes": 76,
        "family issues": 73,
        "emotional turmoil": 66,
        "social relationships": 61,
        "everyday decision making": 56,
    },
    "CAMS": {
        "alienation": 184,
        "relationship": 174,
        "none": 107,
        "jobs and career": 68,
        "medication": 64,
        "bias or abuse": 28,
    },
    "t-sid": {"no mental disorders": 501, "suicide or self-harm tendency": 253, "depression": 154, "ptsd": 51},
}


@pytest.fixture(scope="module")
def real_root(real_data: Path) -> DataRoot:
    if not (real_data / "train_data/complete_data/Irf/val.csv").is_file():
        pytest.skip(f"{real_data} has no training files")
    return DataRoot(real_data, "tests")


@pytest.mark.parametrize("suite", ["IMHI", "IMHI-completion"])
def test_real_golds_all_resolve(real_root: DataRoot, suite: str) -> None:
    loaded = load_suite(real_root, suite)
    labels = {name: Counter(row.gold_label for row in loaded.rows if row.dataset == name) for name in GOLD_COUNTS}
    assert labels == GOLD_COUNTS
    assert "CLP" in loaded.missing
    if "swmh" in loaded.missing:
        assert len(loaded.rows) == 8169


def test_real_expert_and_training_golds_all_resolve(real_root: DataRoot) -> None:
    expert = load_suite(real_root, "expert")
    assert set(expert.counts().values()) == {35} and "swmh" in expert.counts()
    seen = 0
    for path in sorted((real_root.path / "train_data").glob("*/*/*.csv")):
        for index, (text, gold) in enumerate(read_query_rows(path)):
            assert match_gold(DATASETS[path.parent.name], gold) is not None, f"{path}, row {index + 1}"
            assert text.count("Question:") >= 1
            seen += 1
    assert seen >= 26_436
