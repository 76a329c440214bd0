"""Values are kept as they come and found again; what is no value is not taken for one."""

from __future__ import annotations

import pytest

from imhi.errors import UserError
from imhi.metrics.bleu import Bleu
from imhi.metrics.gptscore import GptScore
from imhi.metrics.value_journal import KeptValue, ValueJournal, values_kept

VALUE = KeptValue(12.345678901234567, 4, True)


def test_a_value_is_found_again_as_it_was_before_the_journal_is_closed(tmp_path):
    with ValueJournal(tmp_path / "j.jsonl") as journal:
        journal.add("one", VALUE)
        kept = (tmp_path / "j.jsonl").read_bytes()
        journal.add("two", KeptValue(0.5, 1, False))
    (tmp_path / "killed.jsonl").write_bytes(kept)
    with ValueJournal(tmp_path / "killed.jsonl") as killed, ValueJournal(tmp_path / "j.jsonl") as whole:
        assert killed.values == {"one": VALUE}
        assert whole.values == {"one": VALUE, "two": KeptValue(0.5, 1, False)}


def test_a_half_written_last_line_is_cut_off_and_the_next_value_stands_by_itself(tmp_path):
    path = tmp_path / "j.jsonl"
    with ValueJournal(path) as journal:
        journal.add("one", VALUE)
    with path.open("ab") as handle:
        handle.write(b'{"asked": "two", "nats": 1')
    with ValueJournal(path) as journal:
        assert list(journal.values) == ["one"]
        journal.add("three", VALUE)
    with ValueJournal(path) as journal:
        assert list(journal.values) == ["one", "three"]


@pytest.mark.parametrize("line", ["no JSON", "[]", '{"asked": "x"}', '{"asked": "x", "nats": "much", "tokens": 1}'])
def test_a_line_that_is_no_value_is_named(tmp_path, line):
    path = tmp_path / "j.jsonl"
    with ValueJournal(path) as journal:
        journal.add("one", VALUE)
    with path.open("a") as handle:
        handle.write(line + "\n")
    with pytest.raises(UserError, match=r"j\.jsonl, line 2: not a kept value; remove that line"), ValueJournal(path):
        pass


def test_two_processes_do_not_pay_for_the_same(tmp_path):
    first, second = ValueJournal(tmp_path / "j.jsonl"), ValueJournal(tmp_path / "j.jsonl")
    # Another open file is to the lock what another process is.
    with first, pytest.raises(UserError, match="another process is asking"), second:
        pass
    with ValueJournal(tmp_path / "j.jsonl"):
        pass


def test_without_a_path_nothing_is_kept():
    with ValueJournal(None) as journal:
        journal.add("one", VALUE)
        assert journal.values == {}


def test_the_journal_goes_when_the_scores_are_written_and_stays_after_an_error(tmp_path):
    metric = GptScore(api_base="http://127.0.0.1:9/v1", api_model="m")
    with pytest.raises(KeyboardInterrupt), values_kept(metric, tmp_path, "gpt_score.DR"):
        first = metric.journal
        first.write_text("kept")
        raise KeyboardInterrupt
    assert metric.journal is None and first.read_text() == "kept" and first.parent == tmp_path
    # Of another signature: it has its own.
    with values_kept(GptScore(api_base="http://127.0.0.1:9/v1", api_model="n"), tmp_path, "gpt_score.DR"):
        pass
    assert first.exists()
    with values_kept(metric, tmp_path, "gpt_score.DR"):
        assert metric.journal == first
    assert not first.exists()


def test_a_metric_that_computes_here_keeps_no_journal(tmp_path, tiny_llama):
    for metric in (Bleu(), GptScore(str(tiny_llama))):
        with values_kept(metric, tmp_path, "x.DR"):
            assert getattr(metric, "journal", None) is None
