"""The page as a file: closed to the network, escaped, without posts unless asked; the audit; the command."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from report_runs import HOSTILE, Row, random_rows, save_run, save_test_file

from imhi.audit import audit_data
from imhi.commands import run_script
from imhi.data import DataRoot
from imhi.errors import UserError
from imhi.report import FILES, make_report, write_report
from imhi.report.browser import browser_data, packed
from imhi.report.data_facts import data_facts
from imhi.results import read_results


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    rows = {"DR": random_rows("DR", 40), "SAD": random_rows("SAD", 40)}
    rows["DR"][0].answer = "Yes. Reasoning: " + HOSTILE
    save_run(folder / "run", rows, root=folder / "root")
    save_run(folder / "other", {"DR": random_rows("DR", 40, seed=1)}, root=folder / "root")
    return folder


def read(folder, name="run"):
    return read_results(folder / name, data_root=DataRoot(folder / "root", "given"))


@pytest.fixture(scope="module")
def page(folder):
    run = read(folder)
    report = make_report([run], audit=audit_data(run.data_root), resamples=50)
    write_report(report, [run], folder / "out")
    return (folder / "out" / "report.html").read_text(encoding="utf-8")


def unpacked(page):
    (text,) = re.findall(r'id="answer-data">([^<]*)</script>', page)
    return json.loads(gzip.decompress(base64.b64decode(text)))


class Addresses(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []
        self.inline = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "poster", "data")]
        self.inline += [name for name, _ in attrs if name.startswith("on") or name == "style"]


def test_nothing_in_the_page_points_outside_it(page):
    parser = Addresses()
    parser.feed(page)
    assert len(parser.found) > 10
    assert all(address.startswith("#") or address == "data:," for address in parser.found)
    assert parser.inline == []
    assert not re.findall(r"https?://|@import|url\(", page)


def test_the_policy_allows_our_style_and_script_alone(page):
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src &#39;none&#39;;")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src &#39;sha256-{digest}&#39;" in policy


def test_a_hostile_answer_is_nowhere_in_the_markup(page):
    assert unpacked(page)["runs"][0]["parts"][0]["answers"][0].endswith(HOSTILE)
    assert "hacked" not in page
    # One ends the data, one our script, as written.
    assert page.count("</script>") == 2


def test_a_hostile_name_is_escaped(folder, tmp_path):
    name = "<img src=x onerror=alert(1)>"
    save_run(tmp_path / name, {"DR": random_rows("DR", 30)}, configuration={"dtype": "<i>x</i>"}, score=False)
    run = read_results(tmp_path / name)
    (html, *_) = write_report(make_report([run], resamples=10), [run], tmp_path / "out")
    page = html.read_text(encoding="utf-8")
    assert "<img" not in page
    assert "<i>" not in page
    assert "&lt;img src=x" in page


def test_posts_stay_out_unless_asked_for(folder, page):
    run = read(folder)
    post = "Post 3 of SAD"
    assert post in run.datasets["SAD"].queries[3]
    for name in FILES:
        assert post not in (folder / "out" / name).read_text(encoding="utf-8")
    assert post not in json.dumps(unpacked(page))
    (html, *_) = write_report(make_report([run], include_posts=True, resamples=10), [run], folder / "with-posts")
    assert unpacked(html.read_text(encoding="utf-8"))["sets"][1]["queries"] == run.datasets["SAD"].queries


def test_posts_that_are_not_at_hand_are_refused(folder):
    with pytest.raises(UserError, match="--data_root"):
        make_report([read_results(folder / "run")], include_posts=True)


def test_runs_of_the_same_rows_share_their_golds(folder):
    data = browser_data([read(folder), read(folder, "other")], ["a", "b"])
    assert [rows["dataset"] for rows in data["sets"]] == ["DR", "SAD"]
    assert [part["set"] for run in data["runs"] for part in run["parts"]] == [0, 1, 0]
    assert data["runs"][1]["parts"][0]["answers"] != data["runs"][0]["parts"][0]["answers"]


def test_packing_gives_back_what_was_packed_with_letters_that_no_markup_has():
    text = packed({"a": [HOSTILE, "é\x00\ud7ff"]})
    assert re.fullmatch(r"[A-Za-z0-9+/=]*", text)
    assert json.loads(gzip.decompress(base64.b64decode(text))) == {"a": [HOSTILE, "é\x00\ud7ff"]}


def test_the_page_is_the_same_for_the_same_run(folder, tmp_path):
    pages = []
    for name in ("one", "two"):
        run = read(folder)
        (html, *_) = write_report(make_report([run], resamples=20), [run], tmp_path / name)
        pages.append(html.read_text(encoding="utf-8"))
    assert pages[0] == pages[1]


def test_the_figures_file_holds_what_the_page_shows(folder, page):
    figures = json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))
    assert figures["format"] == "imhi-report-1"
    weighted = figures["runs"][0]["datasets"]["SAD"]["by_source"]["rule"]["weighted_f1"]
    assert f'{100 * weighted["value"]:.2f} <span class="bounds">[{100 * weighted["low"]:.1f}, ' in page
    assert figures["data"]["files"][0]["dataset"] == "DR"


# --- the audit --------------------------------------------------------------------------------------------------------


def test_leaked_shared_and_duplicate_rows_are_counted(tmp_path):
    rows = random_rows("DR", 12)
    save_test_file(tmp_path, "DR", [*rows, rows[0]])
    other = [Row(row.gold, "", post=rows[at].post) for at, row in enumerate(random_rows("dreaddit", 5))]
    save_test_file(tmp_path, "dreaddit", other)
    train = tmp_path / "train_data" / "instruction_data" / "DR"
    train.mkdir(parents=True)
    text = (
        (tmp_path / "test_data" / "test_instruction" / "DR.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    )
    (train / "train.csv").write_text("".join([text[0], text[3], text[4]]), encoding="utf-8")
    facts = data_facts(audit_data(DataRoot(tmp_path, "given")), datasets=["DR", "CLP"])
    (file,) = facts.files
    assert (file.rows, file.expected, file.posts, file.duplicates) == (13, 405, 12, 1)
    assert (file.leaked, file.shared) == (2, 6)
    assert (facts.missing, facts.unreleased) == (["CLP"], ["CLP"])
    assert [(pair.relation, pair.left, pair.right, pair.posts) for pair in facts.shared] == [
        ("train-test", "DR/train.csv", "DR", 2)
    ]
    both = data_facts(audit_data(DataRoot(tmp_path, "given")), datasets=["DR", "dreaddit"])
    assert ("test-test", "DR", "dreaddit", 5) in [(one.relation, one.left, one.right, one.posts) for one in both.shared]


def test_the_audit_of_the_released_files(real_data):
    facts = data_facts(audit_data(DataRoot(real_data, "given")))
    files = {file.dataset: file for file in facts.files}
    assert set(facts.missing) == {"swmh", "CLP"}
    assert files["SAD"].rows == files["SAD"].expected == 684
    assert files["loneliness"].shared >= 157
    assert files["MultiWD"].leaked >= 330
    assert all(file.status == "verified" for file in facts.files)


def test_dropped_rows_are_told_beside_the_audit(folder, tmp_path):
    run = read(folder).without({"DR": range(4)})
    dropped = [{"post in a training file": {"DR": 4, "SAD": 0}}]
    report = make_report([run], audit=audit_data(run.data_root), dropped=dropped, resamples=10)
    (html, *_) = write_report(report, [run], tmp_path)
    text = re.sub(r"\s+", " ", html.read_text(encoding="utf-8"))
    assert "Left out of all figures here, post in a training file: DR 4." in text
    assert report.runs[0].figures.datasets["DR"].counts.rows == 36


# --- the command ------------------------------------------------------------------------------------------------------


def test_one_run_gets_its_report_into_its_folder(folder):
    assert run_script("report", [str(folder / "other"), "--resamples", "20"]) == 0
    for name in FILES:
        assert (folder / "other" / name).stat().st_size > 1000
    # The recorded data root was found: posts are resampled and the data audited.
    figures = json.loads((folder / "other" / "report.json").read_text(encoding="utf-8"))
    assert figures["runs"][0]["datasets"]["DR"]["resampled"] == "posts"
    assert figures["data"]["root"] == str(folder / "root")


def test_several_runs_need_a_folder(folder, capsys):
    runs = [str(folder / "run"), str(folder / "other")]
    assert run_script("report", runs) == 2
    assert "--out is missing" in capsys.readouterr().err
    assert run_script("report", [*runs, "--out", str(folder / "both"), "--datasets", "dr", "--resamples", "20"]) == 0
    figures = json.loads((folder / "both" / "report.json").read_text(encoding="utf-8"))
    assert [list(run["datasets"]) for run in figures["runs"]] == [["DR"], ["DR"]]


def test_rows_left_out_by_flag_are_told(tmp_path):
    rows = random_rows("DR", 40)
    save_run(tmp_path / "run", {"DR": rows}, root=tmp_path / "root", score=False)
    train = tmp_path / "root" / "train_data" / "instruction_data" / "DR"
    train.mkdir(parents=True)
    tests = (tmp_path / "root" / "test_data" / "test_instruction" / "DR.csv").read_text(encoding="utf-8").splitlines()
    (train / "train.csv").write_text("\n".join([tests[0], tests[5]]) + "\n", encoding="utf-8")
    assert run_script("report", [str(tmp_path / "run"), "--drop_leaked", "--resamples", "20"]) == 0
    (figures,) = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))["runs"]
    assert figures["datasets"]["DR"]["counts"]["rows"] == 39
    assert list(figures["dropped"].values()) == [{"DR": 1}]
    assert "Rows left out" in [notice["title"] for notice in figures["notices"]]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--labels", "a", "b"], "--labels: 2 folders for 1 runs"),
        (["--labels", "nowhere"], "--labels: no such folder"),
        (["--datasets", "CAMS"], "no file for CAMS"),
        (["--data_root", "nowhere"], "--data_root: no folder nowhere"),
        (["--out", "FILE"], "is a file"),
    ],
)
def test_mistakes_are_one_line(folder, flags, complaint, capsys):
    flags = [
        str(folder / "root" / "test_data" / "test_instruction" / "DR.csv") if flag == "FILE" else flag for flag in flags
    ]
    assert run_script("report", [str(folder / "run"), *flags]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert complaint in line
