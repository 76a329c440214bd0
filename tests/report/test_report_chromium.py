"""The page in a real headless Chromium: it renders, filters, keeps answers text, asks nobody, follows the theme."""

from __future__ import annotations

import time

import pytest
from report_runs import HOSTILE, random_rows, save_run

from imhi.audit import audit_data
from imhi.benchmark import DATASETS
from imhi.commands import run_script
from imhi.data import DataRoot
from imhi.kept import keep_run
from imhi.report import make_report, write_report
from imhi.results import read_results

HIT = "Yes. Reasoning: They mention Zürich, a wombat and nothing else."


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    rows = {name: random_rows(name, count) for name, count in (("DR", 70), ("SAD", 60), ("Irf", 60))}
    rows["DR"][0].answer = "Yes. Reasoning: " + HOSTILE
    rows["DR"][1].answer = HIT
    rows["DR"][2].gold = "No. Reasoning: " + HOSTILE
    save_run(folder / "run-a", rows, root=folder / "root")
    others = {name: random_rows(name, count, seed=1) for name, count in (("DR", 70), ("SAD", 60))}
    others["DR"][2].gold = rows["DR"][2].gold
    save_run(folder / "run-b", others)
    return [read_results(folder / name, data_root=DataRoot(folder / "root", "given")) for name in ("run-a", "run-b")]


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    report = make_report(runs[:1], audit=audit_data(runs[0].data_root), include_posts=True, resamples=50)
    return write_report(report, runs[:1], out)[0]


@pytest.fixture
def opened(chromium, page):
    chromium.open(page)
    yield chromium
    # Whatever the test did, nothing went wrong and nothing was asked for.
    assert chromium.complaints == []
    assert chromium.requests == []


def found(opened):
    """How many answers fit the filters."""
    text = opened.found
    return 0 if text.startswith("No answer") else int(text.split(" of ")[1].split()[0].replace(",", ""))


def shown(opened, part):
    return opened.run(
        "return [...document.querySelectorAll(arguments[0])].map(each => each.textContent)", f"#list {part}"
    )


def test_the_page_renders(opened, runs):
    headings = opened.run("return [...document.querySelectorAll('h2')].map(each => each.textContent)")
    assert headings[:3] == ["Summary", "Published results", "Datasets"]
    assert opened.run("return document.querySelectorAll('svg.chart').length") == 6
    assert opened.run(
        "return [...document.querySelectorAll('svg[role=img]')].every(each => each.getAttribute('aria-label'))"
    )
    # Every chart and table has a place and a size; nothing pushes the page wider than the window.
    assert opened.run(
        "const open = [...document.querySelectorAll('svg.chart, table')].filter(each => !each.closest('details:not([open])'));"
        "return open.every(each => each.getBoundingClientRect().height > 20)"
    )
    assert opened.run("return document.documentElement.scrollWidth <= window.innerWidth")
    assert found(opened) == runs[0].rows == 190
    assert len(shown(opened, ".answer")) == 50


def test_the_policy_stops_a_script_that_slipped_in(opened):
    opened.run(
        "const evil = document.createElement('script'); evil.textContent = 'window.evil = 1'; document.body.append(evil)"
    )
    assert opened.run("return window.evil") is None
    assert any("Content Security Policy" in complaint for complaint in opened.complaints)


def test_a_script_in_an_answer_stays_text(opened):
    opened.choose("dataset", "DR")
    texts = shown(opened, ".text")
    assert "Yes. Reasoning: " + HOSTILE in texts
    assert "No. Reasoning: " + HOSTILE in texts
    opened.choose("text", "hacked")
    assert found(opened) == 2
    assert opened.run("return window.hacked") is None
    assert opened.run("return document.querySelectorAll('#list script, #list img, #list b').length") == 0
    assert opened.run("return [...document.scripts].length") == 2


@pytest.mark.parametrize("source", ["rule", "classifier"])
@pytest.mark.parametrize("dataset", ["", "SAD"])
def test_filters_agree_with_the_rows(opened, runs, source, dataset):
    opened.choose("source", source)
    opened.choose("dataset", dataset)
    chosen = [results for name, results in runs[0].datasets.items() if dataset in ("", name)]
    rows = [
        (gold, said, answer, end)
        for each in chosen
        for gold, said, answer, end in zip(
            each.gold, each.labels[source].predicted, each.answers, each.finish, strict=True
        )
    ]
    expected = {
        "all": len(rows),
        "right": sum(gold == said for gold, said, _, _ in rows),
        "wrong": sum(said is not None and gold != said for gold, said, _, _ in rows),
        "unparsed": sum(said is None for _, said, _, _ in rows),
        "truncated": sum(end == "length" for *_, end in rows),
        "failed": sum(end == "error" for *_, end in rows),
        "empty": sum(not answer and end != "error" for _, _, answer, end in rows),
    }
    if source == "classifier":
        expected["unclear"] = sum(each.labels[source].clear.count(False) for each in chosen)
    for outcome, count in expected.items():
        opened.choose("outcome", outcome)
        assert found(opened) == count, outcome
    assert expected["truncated"] and expected["failed"] and expected["empty"]


def test_the_lowest_scores_come_first(opened, runs):
    opened.choose("order", "score rouge1")
    scores = [float(text) for text in shown(opened, ".chosen dd")]
    every = sorted(value for results in runs[0].datasets.values() for value in results.scores["rouge1"].rows)
    assert scores == pytest.approx(every[:50], abs=6e-4)


def test_pages_turn(opened):
    opened.choose("order", "longest")
    first = shown(opened, ".id")
    opened.run("document.querySelector('.pager .next').click()")
    assert opened.found.startswith("51–100 of 190")
    assert not set(first) & set(shown(opened, ".id"))
    opened.run("for (let turn = 0; turn < 9; turn += 1) document.querySelector('.pager .next').click()")
    assert opened.found.startswith("151–190 of 190")
    assert opened.run("return document.querySelector('.pager .next').disabled")
    opened.choose("outcome", "right")
    assert opened.found.startswith("1–50 of ")


def test_a_search_marks_what_it_found_in_any_case(opened):
    opened.choose("text", "WOMBAT and")
    assert (found(opened), shown(opened, "mark")) == (1, ["wombat and"])
    assert HIT in shown(opened, ".text")
    opened.choose("text", "no such words anywhere")
    assert opened.found.startswith("No answer fits")
    opened.run("document.getElementById('f-clear').click()")
    assert found(opened) == 190


def test_a_cell_of_a_confusion_matrix_shows_its_answers(opened):
    cell = "#run-0-SAD .cell button[data-source=rule][data-said='-1']"
    count = opened.run("return Number(document.querySelector(arguments[0]).textContent)", cell)
    opened.choose("text", "left over from before")
    opened.run("document.querySelector(arguments[0]).click()", cell)
    assert found(opened) == count > 0
    assert set(shown(opened, ".outcome")) == {"unparsed"}


def test_the_keyboard_reaches_the_filters(opened):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    box = opened.driver.find_element(By.ID, "f-text")
    box.send_keys("wombat")
    assert found(opened) == 1
    box.send_keys(Keys.TAB)
    assert opened.run("return document.activeElement.id") == "f-clear"
    opened.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert found(opened) == 190


def test_dark_and_light_follow_the_system_until_the_button_is_pressed(opened):
    def background(scheme):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        opened.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        colour = opened.run("return getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))

    assert background("light") > 600
    assert background("dark") < 200
    press = "document.getElementById('theme').click(); return document.getElementById('theme').textContent"
    assert opened.run(press) == "Theme: light"
    assert background("dark") > 600
    assert opened.run(press) == "Theme: dark"
    assert background("light") < 200
    assert opened.run(press) == "Theme: system"
    assert background("light") > 600


def test_a_narrow_window_scrolls_tables_and_not_the_page(opened):
    metrics = {"width": 380, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    opened.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert opened.run("return document.documentElement.scrollWidth") <= 380
    finally:
        opened.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_posts_are_shown_where_they_were_asked_for(opened, runs):
    opened.choose("dataset", "SAD")
    assert shown(opened, ".post .text")[0] == runs[0].datasets["SAD"].queries[0]


def test_several_runs_are_chosen_by_name(chromium, runs, tmp_path):
    chromium.open(write_report(make_report(runs, resamples=20), runs, tmp_path)[0])
    assert chromium.run("return [...document.getElementById('f-run').options].map(each => each.text)") == [
        "run-a",
        "run-b",
    ]
    assert shown(chromium, ".post") == []
    chromium.choose("run", "1")
    assert found(chromium) == runs[1].rows == 130
    chromium.choose("order", "score bleu")
    lowest = min(results.scores["bleu"].rows[at] for results in runs[1].datasets.values() for at in range(len(results)))
    assert float(shown(chromium, ".chosen dd")[0]) == pytest.approx(lowest, abs=6e-4)
    assert (chromium.complaints, chromium.requests) == ([], [])


def test_a_run_of_the_whole_benchmark_is_written_fast_and_stays_usable(chromium, tmp_path):
    sizes = {name: dataset.released_test_rows or dataset.published_test_rows for name, dataset in DATASETS.items()}
    rows = {name: random_rows(name, count, words=75) for name, count in sizes.items()}
    save_run(tmp_path / "run", rows, root=tmp_path / "root")
    assert sum(sizes.values()) > 19_000
    started = time.monotonic()
    assert run_script("report", [str(tmp_path / "run")]) == 0
    assert time.monotonic() - started < 30
    page = tmp_path / "run" / "report.html"
    assert page.stat().st_size < 15_000_000
    chromium.open(page)
    assert found(chromium) == sum(sizes.values())
    # The first search waits for nothing: texts are folded while the page is idle.
    chromium.wait("return window.performance.now() > 3000")
    took_by_filter = {}
    for name, value in (
        ("outcome", "wrong"),
        ("source", "rule"),
        ("outcome", "unparsed"),
        ("outcome", "all"),
        ("order", "score rougeL"),
        ("text", "sleep night"),
        ("text", "feels alone tired"),
        ("dataset", "swmh"),
        ("text", ""),
        ("dataset", ""),
        ("order", "longest"),
    ):
        took = chromium.run(
            "const control = document.getElementById('f-' + arguments[0]); control.value = arguments[1];"
            "const started = performance.now(); control.dispatchEvent(new Event(arguments[2]));"
            "document.getElementById('list').getBoundingClientRect(); return performance.now() - started",
            name,
            value,
            "input" if name == "text" else "change",
        )
        took_by_filter[f"{name} {value}"] = took
    assert max(took_by_filter.values()) < 200, took_by_filter
    assert (chromium.complaints, chromium.requests) == ([], [])


def test_a_run_kept_without_its_answers_has_none_to_browse(chromium, runs, tmp_path):
    kept = read_results(keep_run(runs[0], tmp_path / "kept"))
    both = [kept, runs[1]]
    chromium.open(write_report(make_report(both, resamples=20), both, tmp_path / "both")[0])
    shown_runs = "return [...document.querySelectorAll('#f-run option')].map(each => each.textContent)"
    assert chromium.run(shown_runs) == ["run-b"]
    chromium.run("document.querySelector('.matrix button[data-run=\"1\"]').click()")
    assert found(chromium) > 0
    assert chromium.run("return document.querySelector('.matrix button[data-run=\"0\"]')") is None
    page = write_report(make_report([kept], resamples=20), [kept], tmp_path / "alone")[0]
    chromium.driver.get(page.resolve().as_uri())
    assert "not kept" in chromium.run("return document.getElementById('answers').textContent")
    chromium.run("document.getElementById('theme').click()")
    assert chromium.run("return document.getElementById('theme').textContent") == "Theme: light"
    assert chromium.complaints == []
    assert chromium.requests == []
    chromium.run("document.getElementById('theme').click(); document.getElementById('theme').click()")
