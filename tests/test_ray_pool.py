"""The pool of Ray workers: what is sent again when workers are lost, with passes that stand in for Ray's."""

from __future__ import annotations

import math
import os
import threading
import time
from types import SimpleNamespace

import pytest
from fake_pool import FakePool
from hypothesis import given, strategies

from imhi.commands import run_script
from imhi.engines import ray_pool
from imhi.engines.ray_flags import absolute, gpus_each
from imhi.engines.ray_pool import (
    RayPool,
    _await_ray_data,
    open_pool,
    pack,
    remove_left_folders,
    require_ray,
    threads_that_fit,
    unpack,
)
from imhi.errors import UserError
from imhi.locks import only_process


def doubling():
    return double


def double(chunk):
    for number in chunk:
        yield 2 * number


def whole(chunk, begun):
    return [chunk]


@given(strategies.lists(strategies.integers(0, 64), max_size=6), strategies.integers(1, 40))
def test_workers_get_the_most_threads_that_fit_on_whole_nodes(cores, workers):
    threads = threads_that_fit(cores, workers)

    def fits(each):
        return sum(math.floor(held / each) for held in cores) >= workers

    assert threads == 0 or fits(threads)
    assert not any(fits(more) for more in range(threads + 1, 66))


def test_two_workers_share_two_cores_and_a_worker_is_on_one_node():
    assert threads_that_fit([2], 2) == 1
    assert threads_that_fit([1, 1], 1) == 1
    assert threads_that_fit([8, 8], 3) == 4
    assert threads_that_fit([2], 3) == 0
    assert threads_that_fit([], 1) == 0


@given(strategies.binary())
def test_what_is_packed_comes_back_with_the_zeros_at_its_end(value):
    assert unpack(pack(value + b"\0")) == value + b"\0"


def test_parts_of_all_chunks_come_once():
    assert sorted(FakePool().stream(doubling, [[1, 2], [3], []], whole)) == [2, 4, 6]


def test_nothing_to_do_starts_no_pass():
    pool = FakePool()
    assert list(pool.stream(doubling, [], whole)) == []
    assert pool.passes == 0


def test_a_chunk_that_is_lost_is_sent_again_and_the_others_are_not():
    pool = FakePool(fate=lambda number, chunk: 1 if number == 1 and 3 in chunk else None)
    asked = []

    def again(chunk, begun):
        asked.append((chunk, begun))
        return [chunk[1:]]

    assert sorted(pool.stream(doubling, [[1, 2], [3, 4], [5]], again)) == [2, 4, 6, 8, 10]
    assert asked == [([3, 4], True)]
    assert pool.sent[1:] == [[[4]]]
    assert (pool.passes, pool.lost) == (2, 1)


def test_a_chunk_that_no_worker_had_is_told_apart_and_sent_when_ray_itself_failed():
    pool = FakePool(unsent={1})
    asked = []

    def again(chunk, begun):
        asked.append((chunk, begun))
        return [chunk]

    assert sorted(pool.stream(doubling, [[1], [2]], again)) == [2, 4]
    assert asked == [([2], False)]
    assert pool.lost == 0


def test_workers_that_never_answer_end_the_run():
    pool = FakePool(fate=lambda number, chunk: 0)
    with pytest.raises(UserError, match="workers died 2 times over") as caught:
        list(pool.stream(doubling, [[1], [2]], whole))
    assert caught.value.code == 1
    assert pool.passes == 2


def test_a_result_in_between_keeps_the_run_going():
    # Two fruitless passes in a row end it; a fruitful one between them does not.
    pool = FakePool(fate=lambda number, chunk: None if number in (2, 4) and chunk == [number] else 0)
    assert sorted(pool.stream(doubling, [[2], [4]], whole)) == [4, 8]
    assert pool.passes == 4


def test_a_chunk_that_is_given_up_ends_without_an_error():
    pool = FakePool(fate=lambda number, chunk: 0)
    assert list(pool.stream(doubling, [[1]], lambda chunk, begun: [] if pool.passes == 2 else [chunk])) == []


def test_the_users_mistake_in_a_worker_ends_all(monkeypatch):
    pool = FakePool()
    told = [("begin", 0, None), ("fault", 0, "no such model")]
    monkeypatch.setattr(pool, "_pass", lambda make, chunks: (part for part in told))
    with pytest.raises(UserError, match=r"^no such model$"):
        list(pool.stream(doubling, [[1]], whole))


def test_without_ray_one_line_tells_how_to_install_it(monkeypatch):
    monkeypatch.setattr(ray_pool, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"Ray is not installed; pip install 'imhi\[ray\]'"):
        require_ray()
    with pytest.raises(UserError, match="needs --workers N"):
        open_pool({})


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "10.0.0.1", ":6379", "head:port"])
def test_an_address_that_is_none_is_refused(address, monkeypatch):
    monkeypatch.setattr(ray_pool, "require_ray", lambda: "2.60.0")
    with pytest.raises(UserError, match=r"start the command on a machine of the cluster|no cluster that can be used"):
        RayPool(2, address=address)


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("score", ["--engine", "ray", "--workers", "2", "--score_method", "bleu"], "where no model runs here"),
        ("score", ["--workers", "2"], "--workers is a flag of --engine ray"),
        (
            "score",
            ["--engine", "ray", "--score_method", "gpt_score", "--gpt_api_base", "u"],
            "where no model runs here",
        ),
        ("label", ["--engine", "ray", "--rules", "."], "no effect where no classifier runs"),
        ("label", ["--ray_address", "auto"], "--ray_address is a flag of --engine ray"),
    ],
)
def test_flags_of_a_pool_without_one_are_refused(command, flags, message, capsys):
    named = ["--gen_dir_name", "."] if command == "score" else []
    assert run_script(command, [*named, *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_worker_has_its_own_gpu_and_finds_files_from_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert (gpus_each("cpu"), gpus_each("cuda:0"), gpus_each("cuda")) == (0, 1, 1)
    for device in ("cuda:1", "mps"):
        with pytest.raises(UserError, match="Ray gives each worker its own GPU"):
            gpus_each(device)
    assert absolute("model") == str(tmp_path / "model")
    assert (absolute("embedded:smollm2"), absolute("OWNER/NAME"), absolute(None)) == (
        "embedded:smollm2",
        "OWNER/NAME",
        None,
    )


def test_what_a_killed_driver_left_is_removed_and_nothing_else(tmp_path):
    for name in ("imhi-ray-left", "imhi-ray-used", "imhi-ray-new", "other"):
        (tmp_path / name / "r").mkdir(parents=True)
    with only_process(tmp_path / "imhi-ray-used", "using this cluster"):
        (tmp_path / "imhi-ray-link").symlink_to(tmp_path / "other")
        for name in ("imhi-ray-left", "imhi-ray-used", "imhi-ray-link", "other"):
            os.utime(tmp_path / name, (1, 1), follow_symlinks=False)
        remove_left_folders(tmp_path)
    left = ["imhi-ray-link", "imhi-ray-new", "imhi-ray-used", "other"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["r"]


def test_what_is_still_at_work_is_stopped_before_the_cluster_is(monkeypatch):
    happened = []
    pool = FakePool()

    def endless(make, chunks):
        try:
            while True:
                yield "part", 0, 7
        finally:
            happened.append("stopped")

    monkeypatch.setattr(pool, "_pass", endless)
    monkeypatch.setattr(pool, "_ray", SimpleNamespace(shutdown=lambda: happened.append("shut down")), raising=False)
    monkeypatch.setattr(pool, "_remove_folder", lambda: None)
    assert next(pool.stream(doubling, [[1]], whole)) == 7
    RayPool.close(pool)
    assert happened == ["stopped", "shut down"]


@pytest.mark.parametrize(("failures", "started"), [(2, True), (3, False)])
def test_a_cluster_that_does_not_start_is_tried_again(failures, started, tmp_path, monkeypatch, capsys):
    tries = []

    def init(**options):
        tries.append(options)
        if len(tries) <= failures:
            raise Exception("timed out")

    def nodes():
        return [{"Alive": True, "Resources": {"CPU": 2.0}}]

    stand_in = SimpleNamespace(init=init, nodes=nodes, shutdown=lambda: None)
    monkeypatch.setattr(ray_pool, "require_ray", lambda: "2.60.0")
    monkeypatch.setattr(ray_pool, "import_module", lambda name: stand_in)
    monkeypatch.setattr(ray_pool.tempfile, "mkdtemp", lambda **given: str(tmp_path))
    monkeypatch.setattr(ray_pool.os, "environ", {**os.environ})
    if started:
        assert RayPool(2).threads == 1
        assert ray_pool.os.environ["RAY_ENABLE_AUTO_CONNECT"] == "0"
        assert tries[-1]["address"] == "local"
    else:
        with pytest.raises(UserError, match=r"Ray did not start \(timed out\)"):
            RayPool(2)
        assert not tmp_path.exists()
    assert len(tries) == 3
    assert capsys.readouterr().err.count("trying again") == 2


def test_ray_data_s_threads_are_waited_for():
    """One that is still at work when the cluster ends would end the process too."""
    ended = []
    thread = threading.Thread(target=lambda: (time.sleep(0.3), ended.append(True)), name="StreamingExecutor-dataset_1")
    thread.start()
    _await_ray_data()
    assert ended
