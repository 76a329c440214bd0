"""The generation benchmark: rows as the benchmark has them, the same work on all sides, figures that follow from it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from imhi.data import LoadedSuite, Row, load_suite, resolve_data_root
from imhi.errors import UserError

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def generation():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("generation")


def made_suite(posts: dict[str, tuple[int, int]]) -> LoadedSuite:
    """Datasets with (posts, questions a post)."""
    rows = [
        Row(name, post * questions + question, f"Post {name} {post} Question: {question}?", "", "")
        for name, (count, questions) in posts.items()
        for post in range(count)
        for question in range(questions)
    ]
    return LoadedSuite("IMHI", "instruction", Path(), rows, {name: Path(name) for name in posts})


def test_rows_come_in_whole_posts_and_true_proportions(generation):
    suite = made_suite({"DR": (100, 1), "MultiWD": (50, 6), "Irf": (100, 2)})
    rows = generation.pick_rows(suite, 60)
    assert Counter(row.dataset for row in rows) == {"DR": 10, "MultiWD": 30, "Irf": 20}
    assert [row.index for row in rows if row.dataset == "MultiWD"][:12] == [*range(6), *range(60, 66)]
    assert Counter(Counter(row.query.rsplit("Question:", 1)[0] for row in rows).values()) == {1: 10, 6: 5, 2: 10}


def test_spread_rows_leave_posts_apart(generation):
    suite = made_suite({"DR": (100, 1), "MultiWD": (50, 6)})
    rows = generation.pick_rows(suite, 40, "spread")
    assert Counter(row.dataset for row in rows) == {"DR": 10, "MultiWD": 30}
    assert len({row.query.rsplit("Question:", 1)[0] for row in rows}) == 40


@pytest.mark.parametrize("count", [1, 5, 10**6])
def test_few_and_all_rows(generation, count):
    suite = made_suite({"DR": (7, 1), "MultiWD": (3, 6)})
    rows = generation.pick_rows(suite, count)
    assert {row.dataset for row in rows} == {"DR", "MultiWD"} and len({row.id for row in rows}) == len(rows)
    assert len(rows) == (25 if count > 25 else 7 if count == 1 else len(rows))


def test_rows_of_the_released_files_share_what_all_share(generation, real_data):
    from imhi.checkpoints import load_tokenizer, locate_generator

    suite = load_suite(resolve_data_root(real_data), "IMHI")
    tokenizer = load_tokenizer(locate_generator(None).folder)
    rows = generation.pick_rows(suite, 200)
    assert abs(len(rows) - 200) <= 10
    whole = Counter(row.dataset for row in suite.rows)
    for name, count in Counter(row.dataset for row in rows).items():
        assert abs(count / len(rows) - whole[name] / len(suite.rows)) < 0.03
    # 43.5 % of the whole benchmark's prompt tokens.
    assert 0.38 < generation.shared_part(tokenizer([row.query for row in rows])["input_ids"]) < 0.48
    apart = generation.pick_rows(suite, 200, "spread")
    assert generation.shared_part(tokenizer([row.query for row in apart])["input_ids"]) < 0.1


def test_shared_part_counts_beginnings(generation):
    assert generation.shared_part([[1, 2, 3, 4], [9, 9], [1, 2, 3, 5]]) == pytest.approx(0.3)
    assert generation.shared_part([[1, 2, 3]]) == 0


def test_agreement_is_with_the_published_answers(generation):
    found = generation.agreement(["yes. ", "abXX", ""], ["yes.", "abcd", ""])
    assert found == {"equal_answers": pytest.approx(2 / 3), "common_prefix": pytest.approx(6 / 8)}


def test_medians_ratios_and_utilisation(generation):
    phases = {
        "prompt_seconds": 2.0,
        "prompt_tokens": 900,
        "prompt_step_rows": 100,
        "answer_seconds": 4.0,
        "answer_steps": 10,
        "answer_rows": 80,
        "answer_cache_bytes": 4000,
    }
    common = {"rows": 10, "loading_seconds": 1.0, "peak_memory": 2**30, "prompt_tokens": 5, "new_tokens": 6}
    common |= {"versions": {"torch": "2"}}
    turns = [
        {"side": side, "seconds": seconds, "dtype": dtype, "phases": found, **common}
        for side, dtype, found, times in (
            ("published", "float32", {}, (30.0, 20.0, 1.0)),
            ("toolkit", "bfloat16", phases, (5.0, 4.0, 90.0)),
        )
        for seconds in times
    ]
    limits = {"flops": {"float32": 1e6, "bfloat16": 2e6}, "copy_bytes_per_second": 1e4}
    found = generation.summary(turns, {"layers": 1000, "head": 200}, limits)
    assert found["published"]["seconds"] == 20.0 and found["published"]["rows_per_second"] == 0.5
    assert found["toolkit"]["times_faster_than"] == {"published": 4.0}
    assert found["toolkit"]["prefill_flops"] == pytest.approx(2 * 1000 * 1000 / 2 / 2e6)
    assert found["toolkit"]["decode_bandwidth"] == pytest.approx((1200 * 2 * 10 + 4000) / 4 / 1e4)
    assert found["toolkit"]["decode_flops"] == pytest.approx(2 * 1200 * 80 / 4 / 2e6)
    assert "prefill_flops" not in found["published"] and found["toolkit"]["turns"] == 3


def test_sides_that_cannot_run_are_told(generation, monkeypatch, tmp_path):
    monkeypatch.setattr(generation, "find_spec", lambda name: None)
    parse, takers = generation.parse, generation.takers
    sides, _, left_out = takers(parse([]))
    assert sides == ["published", "toolkit-float32", "toolkit"] and set(left_out) == {"lm_eval", "vllm"}
    sides, pythons, left_out = takers(parse(["--vllm_python", sys.executable, "--lm_eval_python", sys.executable]))
    assert {"lm_eval", "vllm"} <= set(sides) and pythons["vllm"] == sys.executable and not left_out
    with pytest.raises(UserError, match="--vllm_python is not given"):
        takers(parse(["--sides", "vllm"]))
    with pytest.raises(UserError, match="no interpreter"):
        takers(parse(["--vllm_python", str(tmp_path / "python")]))
    with pytest.raises(UserError, match="a length of its own"):
        takers(parse(["--shape", "tiny", "--sides", "lm_eval", "--lm_eval_python", sys.executable]))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks of other processes are read from /proc")
def test_peak_memory_is_the_sides_own_and_counts_what_it_starts():
    held = bytearray(300 << 20)  # what ru_maxrss of a process started from here would begin with
    count = f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import generation_sides as sides; "
    below = "import sys; held = bytearray(200 << 20); print(len(held), flush=True); sys.stdin.read()"
    alone = f"{count} print(sides.peak_memory('cpu'))"
    family = (
        f"{count} import subprocess; pipe = subprocess.PIPE; "
        f"below = subprocess.Popen([sys.executable, '-c', {below!r}], stdin=pipe, stdout=pipe); "
        "below.stdout.readline(); print(sides.peak_memory('cpu')); below.communicate()"
    )
    peaks = [int(subprocess.check_output([sys.executable, "-c", code])) for code in (alone, family)]
    assert peaks[0] < 150 << 20 < 200 << 20 < peaks[1] < 300 << 20
    assert len(held) == 300 << 20


def test_both_sides_answer_the_same_rows(generation, tiny_llama, tmp_path, capsys):
    out = tmp_path / "made" / "out.json"
    flags = ["--model", tiny_llama, "--rows", "12", "--repeats", "1", "--threads", "1", "--max_new_tokens", "8"]
    flags += ["--sides", "published", "toolkit-float32", "--out", out]
    assert generation.run(generation.parse([str(flag) for flag in flags])) == 0
    result = json.loads(out.read_text())
    published, toolkit = result["sides"]["published"], result["sides"]["toolkit-float32"]
    assert result["rows"]["all"] >= 10 and result["data"].startswith("sample rows")
    assert published["prompt_tokens"] == toolkit["prompt_tokens"] == result["prompt_tokens"]
    assert published["new_tokens"] == toolkit["new_tokens"] <= 8 * result["rows"]["all"]
    assert published["equal_answers"] == toolkit["equal_answers"] == 1
    assert toolkit["peak_memory"] > 50 << 20 and toolkit["versions"]["torch"]
    assert {"prefill_flops", "decode_bandwidth", "decode_flops"} <= set(toolkit) - set(published)
    assert toolkit["times_faster_than"]["published"] > 0
    assert [turn["side"] for turn in result["turns"]] == ["published", "toolkit-float32", "limits"]
    # Answers to real posts stay out of the file.
    assert not any("answers" in turn or "text" in turn for turn in result["turns"])
    stdout = capsys.readouterr().out
    assert "x published" in stdout and "peak GiB" in stdout and "GFLOP/s in bfloat16" in stdout

    assert generation.run(generation.parse([str(flag) for flag in [*flags, "--add"]])) == 0
    result = json.loads(out.read_text())
    assert [turn["turn"] for turn in result["turns"]] == [1, 1, 1, 2, 2, 2] and result["sides"]["published"][
        "turns"
    ] == 2
    with pytest.raises(UserError, match="turns of another work"):
        generation.run(generation.parse([str(flag) for flag in [*flags, "--add", "--rows", "20"]]))


def test_answers_of_drawn_lengths(generation, tmp_path, capsys):
    out, checkpoint = tmp_path / "out.json", tmp_path / "weights"
    sides = ["published", "generate_batch", "toolkit-buckets", "toolkit"]
    flags = ["--shape", "tiny", "--rows", "12", "--repeats", "1", "--threads", "1", "--checkpoint", checkpoint]
    flags += ["--sides", *sides, "--out", out]
    assert generation.run(generation.parse([str(flag) for flag in flags])) == 0
    result = json.loads(out.read_text())
    assert list(result["sides"]) == sides and result["drawn"]
    # Every side gives every row exactly its length.
    assert len({side["new_tokens"] for side in result["sides"].values()}) == 1
    assert len({side["prompt_tokens"] for side in result["sides"].values()}) == 1
    assert result["max_new_tokens"] > 32
    assert "equal answers" not in capsys.readouterr().out

    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    with pytest.raises(UserError, match="another shape"):
        generation.run(generation.parse([str(flag) for flag in flags]))


def test_the_sides_need_nothing_of_the_toolkit_at_first():
    code = "import sys; import generation_sides; assert not any(name.startswith('imhi') for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=FOLDER, env={**os.environ, "PYTHONPATH": str(FOLDER)})
