"""Scores of a folder by a server that dies, refuses texts or answers them wrongly: nothing lost, nothing paid twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from completions_stub import CompletionsStub, behind_its_test, echoes, failing, metric_of

from imhi.data import write_table
from imhi.errors import UserError
from imhi.metrics.gptscore import GptScore
from imhi.metrics.value_journal import Unscored
from imhi.scoring import read_row_values, read_scores, score_folder

ROWS = 40
GENERATED = [f"Yes. Reasoning: They did not sleep for {n} nights." for n in range(ROWS)]
SPOILT = 17
GENERATED[SPOILT] = "No. Reasoning: A recipe for soup"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads of a tiny model only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def golds_of(name: str) -> list[str]:
    return [f"Yes. Reasoning: The poster cannot sleep, {name} {n}." for n in range(ROWS)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("DR", "SAD"):
        write_table(
            folder / f"{name}.csv", ["goldens", "generated_text"], list(zip(golds_of(name), GENERATED, strict=True))
        )
    return folder


def journals(run: Path) -> list[Path]:
    return sorted((run / "scores").glob("*.jsonl"))


def assert_scored_as_here(run: Path, folder: Path) -> None:
    local = GptScore(str(folder))
    for name in ("DR", "SAD"):
        expected = local.row_values(local.statistics(GENERATED, golds_of(name)))["gpt_score"]
        assert read_row_values(run, name)["gpt_score"] == pytest.approx(expected, abs=1e-4)


def test_a_server_that_dies_costs_no_value_and_none_is_paid_twice(tiny_llama, run, capsys):
    stub = CompletionsStub(tiny_llama)
    with stub.running() as url:
        metric = behind_its_test(metric_of(url))
        # In the middle of the second dataset.
        stub.dies_after = len(stub.requests) + ROWS + 20
        answered = stub.dies_after
        with pytest.raises(UserError, match=r"gives no values any more \(.*\); those it gave are kept in") as raised:
            score_folder(run, [metric])
        assert raised.value.code == 1 and "\n" not in str(raised.value)
        assert list(read_scores(run)["response"]) == ["DR"]
        (journal,) = journals(run)
        assert journal.name.startswith("gpt_score.SAD.") and str(journal) in str(raised.value)
        lines = journal.read_text().splitlines()
        assert len(lines) == 20
        assert all(list(json.loads(line)) == ["asked", "nats", "tokens", "cut"] for line in lines)
        assert "Reasoning" not in journal.read_text()
        paid = Counter(body["prompt"] for body in stub.requests[:answered])
        before = len(stub.requests)
        stub.dies_after = None
        # As a new process would.
        results = score_folder(run, [behind_its_test(metric_of(url))])
        paid += Counter(body["prompt"] for body in stub.requests[before:])
    asked = [read + gold for name in ("DR", "SAD") for read, gold in zip(GENERATED, golds_of(name), strict=True)]
    assert {text: paid[text] for text in asked} == dict.fromkeys(asked, 1)
    assert results["SAD"]["gpt_score"]["run"]["from_journal"] == 20
    assert not journals(run)
    assert "20 of 40 texts have their value from before" in capsys.readouterr().err
    assert_scored_as_here(run, tiny_llama)


@pytest.mark.parametrize("how", ["answers wrongly", "refuses", "fails each time"])
def test_a_text_without_a_value_costs_that_row_alone_and_is_named(tiny_llama, run, monkeypatch, how):
    stub = CompletionsStub(tiny_llama)
    answer = stub.answer
    if how == "answers wrongly":
        stub.spoils = "soup"
    else:
        status = 400 if how == "refuses" else 500
        monkeypatch.setattr(
            stub, "answer", lambda body: (status, {"error": "no"}) if "soup" in body["prompt"] else answer(body)
        )
    reason = {"answers wrongly": "its tokens do not add up", "refuses": "HTTP 400", "fails each time": "HTTP 500"}[how]
    with stub.running() as url:
        with pytest.raises(
            UserError, match=f"DR: gpt_score: .*: row {SPOILT + 1};.* SAD: gpt_score: .*: row "
        ) as raised:
            score_folder(run, [metric_of(url)])
        assert raised.value.code == 1 and "\n" not in str(raised.value)
        assert f"no value for 1 of {ROWS} rows ({reason}" in str(raised.value) and "soup" not in str(raised.value)
        assert not (run / "scores.json").exists()
        assert [len(path.read_text().splitlines()) for path in journals(run)] == [ROWS - 1] * 2
        stub.spoils = None
        monkeypatch.setattr(stub, "answer", answer)
        before = len(echoes(stub))
        score_folder(run, [metric_of(url)])
        assert len(echoes(stub)) == before + 2
    assert not journals(run)
    assert_scored_as_here(run, tiny_llama)


def test_other_datasets_are_scored_past_a_row_without_a_value(tiny_llama, run):
    stub = CompletionsStub(tiny_llama)
    stub.spoils = "DR 5."
    with stub.running() as url, pytest.raises(UserError, match=r"^DR: gpt_score: .*: row 6; [^|]*$"):
        score_folder(run, [metric_of(url)])
    assert list(read_scores(run)["response"]) == ["SAD"]


def test_rows_that_repeat_a_text_without_a_value_are_all_named(tiny_llama):
    stub = CompletionsStub(tiny_llama)
    stub.spoils = "soup"
    with stub.running() as url, pytest.raises(Unscored, match=r"for 2 of 3 rows .*: rows 1, 3; score with --gpt_model"):
        metric_of(url, direction="both").statistics(["soup", "They sleep.", "soup"], ["Yes."] * 3)


def test_a_refused_key_ends_the_scoring_at_once(tiny_llama, run):
    stub = CompletionsStub(tiny_llama)
    with stub.running() as url:
        metric = behind_its_test(metric_of(url))
        stub.troubles = [failing(401)] * 1000
        before = len(stub.requests)
        with pytest.raises(UserError, match=r"gives no values any more \(HTTP 401 .*--gpt_api_key_env"):
            score_folder(run, [metric])
        assert len(stub.requests) < before + ROWS


def test_scoring_anew_asks_for_all_again_but_for_what_it_got_before_it_was_interrupted(tiny_llama, run):
    stub = CompletionsStub(tiny_llama)
    with stub.running() as url:
        score_folder(run, [metric_of(url)], datasets=["DR"])
        metric = behind_its_test(metric_of(url))
        stub.dies_after = len(stub.requests) + 10
        with pytest.raises(UserError, match="gives no values any more"):
            score_folder(run, [metric], datasets=["DR"], overwrite=True)
        (journal,) = journals(run)
        assert len(journal.read_text().splitlines()) == 10
        stub.dies_after = None
        before = len(echoes(stub))
        score_folder(run, [metric], datasets=["DR"], overwrite=True)
        assert len(echoes(stub)) == before + ROWS - 10
        score_folder(run, [metric], datasets=["DR"], overwrite=True)
        assert len(echoes(stub)) == before + ROWS - 10 + ROWS


def test_an_interrupt_ends_the_requests_and_keeps_what_was_under_way(tiny_llama, tmp_path, capsys):
    stub = CompletionsStub(tiny_llama)
    with stub.running() as url:
        metric = metric_of(url)
        metric.journal = tmp_path / "journal.jsonl"

        def interrupted(rows: int) -> None:
            if rows:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            metric.statistics([str(n) for n in range(200)], ["They cannot sleep at all."] * 200, interrupted)
        # What is left was never asked; the metric can be used again.
        asked = len(echoes(stub))
        assert asked < 100
        assert len(metric.journal.read_text().splitlines()) == asked
        assert metric.statistics(["a"], ["They sleep."])
