"""A function of chunks spread over Ray workers: Ray Data streams chunks to a pool of actors and parts of results back.

Ray Data gives a chunk to a worker that is free, and restarts a worker that died.  It does not
give a lost chunk to another worker: a task waits for its own worker, and where that worker's node is gone it waits for
ever (Ray issues 44968, 62746).  Here lost tasks therefore fail at once, and what they held is sent again in a further
pass, with as many workers as the cluster has room for then.

Where texts lie meanwhile: compressed, but not encrypted, in the object stores of the machines that work (shared memory,
``/dev/shm``; what does not fit there in the session's folder on disk).  A cluster of this pool's own listens on the
loopback interface alone, with a token made for it, and its folder, logs included, is only for the user and is removed
with it, or where the driver was killed by a run a minute later or more.  Ray's usage reports are off.
"""

from __future__ import annotations

import os
import pickle
import secrets
import shutil
import socket
import stat
import sys
import tempfile
import threading
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from imhi.checkpoints import first_line
from imhi.errors import UserError
from imhi.locks import only_process
from imhi.talk import say

__all__ = ["RayPool", "open_pool", "remove_left_folders", "require_ray", "threads_that_fit"]

INSTALL = "pip install 'imhi[ray]'"
# How the folder of a cluster of the pool's own begins.
FOLDER = "imhi-ray-"
# Attempts at starting one: on a busy machine Ray waits 15 s for its own processes, and then gives up.
STARTS = 3
# Chunks that may be lost in a pass before it is given up, for each worker.
LOST_IN_A_PASS = 4
# Passes in a row that bring nothing.
FRUITLESS = 2
# How the names of Ray Data's threads in the driver begin, and the seconds that they may take to end.
DATA_THREADS = ("StreamingExecutor", "ray-data-", "iter_threaded", "Prefetcher", "map_tp_")
LAST_SECONDS = 30

# What `RayPool.stream` runs in a worker: a chunk in, parts of its result out, each sent at once.
Work = Callable[[Any], Iterator[Any]]


def open_pool(options: Mapping[str, Any], *, gpus: int = 0) -> RayPool:
    """The pool that the given flags of `imhi.engines.ray_flags` ask for; UserError without --workers."""
    if "workers" not in options:
        raise UserError("--engine ray needs --workers N, the processes that each load the model")
    return RayPool(options["workers"], address=options.get("ray_address"), gpus=gpus)


def require_ray() -> str:
    """Ray's version; UserError where it is not installed."""
    if find_spec("ray") is None or find_spec("pyarrow") is None:
        raise UserError(f"--engine ray: Ray is not installed; {INSTALL}")
    return metadata.version("ray")


def threads_that_fit(cores: Sequence[int], workers: int) -> int:
    """The most threads that each of `workers` can have on nodes with so many cores; a worker stays on one node.

    0 where not even one thread each is there.
    """
    shares = (threads for threads in range(max(cores, default=0), 0, -1))
    return next((threads for threads in shares if sum(held // threads for held in cores) >= workers), 0)


class RayPool:
    """A cluster, and the workers that are wanted on it.

    Parameters
    ----------
    workers : actors at once.
    address : of a running cluster; None: one of the pool's own on this machine, which `close` ends.
    gpus : GPUs for each worker; 0: they compute on the CPU, each with an equal share of the cores as threads.

    Raises
    ------
    UserError
        No Ray, no cluster at the address, fewer GPUs or cores than the workers need.
    """

    def __init__(self, workers: int, *, address: str | None = None, gpus: int = 0):
        self.version = require_ray()
        self.workers, self.address, self.gpus = workers, address, gpus
        self.passes = self.lost = 0
        self._folder: Path | None = None
        self._in_use = ExitStack()
        self._running: list[Generator[Any, None, None]] = []
        self._ray = self._connect()
        self.threads = 1 if gpus else threads_that_fit([cores for cores, _ in self._nodes()], workers)
        if self._room() < workers:
            room, what = self._room(), f"{gpus} GPUs each" if gpus > 1 else "a GPU each" if gpus else "a core each"
            self.close()
            raise UserError(f"--workers {workers}: the cluster has room for {room} ({what}); give fewer")

    def facts(self) -> dict[str, Any]:
        """For the manifest: version, nodes, workers and threads, passes, chunks that were lost and sent again."""
        return {
            "ray": self.version,
            "address": self.address or "this machine",
            "nodes": len(self._nodes()),
            "workers": self.workers,
            "threads_per_worker": self.threads,
            "gpus_per_worker": self.gpus,
            "passes": self.passes,
            "chunks_lost": self.lost,
        }

    def stream(
        self, make: Callable[[], Work], chunks: Sequence[Any], again: Callable[[Any, bool], Sequence[Any]]
    ) -> Iterator[Any]:
        """Parts of the results of all chunks, in any order, as they come.

        Parameters
        ----------
        make : called once in a worker before its first chunk; picklable, as chunks and parts are.  A UserError of
            exit status 2 from it or from its work ends all; any other error ends that worker alone.
        again : given a chunk that did not come to its end in a pass, and whether a worker had begun it, says what is
            sent in its place in the next one.

        Raises
        ------
        UserError
            From a worker; or workers that die again and again without a result.
        """
        running = self._passes(make, chunks, again)
        self._running.append(running)
        return running

    def _passes(
        self, make: Callable[[], Work], chunks: Sequence[Any], again: Callable[[Any, bool], Sequence[Any]]
    ) -> Generator[Any, None, None]:
        fruitless = 0
        while chunks:
            if fruitless == FRUITLESS:
                raise UserError(
                    f"--engine ray: workers died {FRUITLESS} times over before they answered anything; what they said "
                    "stands above, memory that ran out says nothing: fewer --workers or --dtype bfloat16 need less",
                    code=1,
                )
            begun: set[int] = set()
            ended: set[int] = set()
            brought = False
            self.passes += 1
            try:
                with closing(self._pass(make, chunks)) as parts:
                    for kind, at, part in parts:
                        if kind == "begin":
                            begun.add(at)
                        elif kind == "end":
                            ended.add(at)
                            brought = True
                        elif kind == "fault":
                            raise UserError(part)
                        else:
                            brought = True
                            yield part
            except self._losses() as error:
                say(f"Ray: {first_line(error)}")
            fruitless = 0 if brought else fruitless + 1
            self.lost += len(begun - ended)
            chunks = [
                piece for at, chunk in enumerate(chunks) if at not in ended for piece in again(chunk, at in begun)
            ]
            if chunks:
                say(f"Ray: workers were lost, {len(begun - ended)} chunks with them; sending what is left again")

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the cluster go, whatever is still at work; one of the pool's own ends, and its folder is removed."""
        for running in self._running:
            running.close()
        _await_ray_data()
        self._ray.shutdown()
        self._remove_folder()

    def _remove_folder(self) -> None:
        self._in_use.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _connect(self) -> Any:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        # Else any call of Ray's own behind `close` starts a cluster, one that listens to everybody.
        os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
        os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
        options: dict[str, Any] = {"address": self.address}
        if self.address is None:
            # As on a machine that may not be part of a cluster: everything listens on the loopback interface.
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
            # Ray would run workers behind everything else on the machine (nice 15).
            os.environ.setdefault("RAY_worker_niceness", "0")
            # Ray opens its own folder to everybody, so it lies in one that is not; sockets allow no long path.
            home = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())
            remove_left_folders(home)
            self._folder = Path(tempfile.mkdtemp(prefix=FOLDER, dir=home))
            self._in_use.enter_context(only_process(self._folder, "using this cluster"))
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            options = {"address": "local", "num_cpus": cores, "_temp_dir": str(self._folder / "r")}
        else:
            _require_answer(self.address)
        ray = import_module("ray")
        where = f"--ray_address {self.address}: no cluster that can be used" if self.address else "Ray did not start"
        for left in reversed(range(STARTS)):
            try:
                ray.init(**options, include_dashboard=False if self.address is None else None, logging_level="WARNING")
                break
            except Exception as error:  # a bare one, where Ray's own processes were too slow
                if self.address is None and left:
                    say(f"{where} ({first_line(error)}); trying again")
                    continue
                self._remove_folder()
                raise UserError(f"{where} ({first_line(error)})", code=1) from error
        if self.address is not None:
            # `auto` may be any cluster that Ray finds here.
            found = ray.get_runtime_context().gcs_address
            say(f"Ray: texts are sent to the machines of the cluster at {found} (--ray_address {self.address})")
        return ray

    def _nodes(self) -> list[tuple[int, int]]:
        """Cores and GPUs of the nodes that are alive."""
        alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in alive]

    def _room(self) -> int:
        """How many workers the cluster could hold now, were it idle."""
        threads = max(1, self.threads)
        if self.gpus:
            return sum(min(cores, cards // self.gpus) for cores, cards in self._nodes())
        return sum(cores // threads for cores, _ in self._nodes())

    def _losses(self) -> tuple[type[Exception], ...]:
        """What Ray raises where workers, nodes or their results are lost, or nothing moves for half an hour."""
        return (self._ray.exceptions.RayError, import_module("ray.data.exceptions").ExecutionTimeoutError)

    def _pass(self, make: Callable[[], Work], chunks: Sequence[Any]) -> Generator[tuple[str, int, Any], None, None]:
        """(kind, chunk, part) from workers: "begin", "part" and "end" of a chunk, or a "fault" that ends all."""
        workers = min(self.workers, len(chunks), self._room())
        if not workers:
            raise UserError(
                "--engine ray: no node of the cluster is left; the same command goes on with the run", code=1
            )
        data = import_module("ray.data")
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        # A part is a block of its own, and so is sent as soon as it is there.
        context.target_max_block_size = 1
        context.max_errored_blocks = LOST_IN_A_PASS * self.workers
        # Not from_arrow, which runs a task for every table, in processes of their own.
        sent = data.from_blocks([_row("work", pack((at, chunk))) for at, chunk in enumerate(chunks)])
        with warnings.catch_warnings():
            # From Ray 2.64 on, the number of retries has no flag any more: hence the bound in pyproject.toml.
            warnings.simplefilter("ignore")
            received = sent.map_batches(
                _Worker,
                fn_constructor_args=(pickle.dumps(make), self.threads),
                batch_size=1,
                batch_format="pyarrow",
                # One at a time: chunks are few and long, and the worker that starts first would take two.
                compute=data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
                num_cpus=self.threads,
                num_gpus=self.gpus or None,
                max_restarts=-1,
                max_task_retries=0,
            )
        # Closed in the middle, it stops the workers; left to the garbage collection, it may outlive the cluster.
        with closing(
            iter(received.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"))
        ) as batches:
            for batch in batches:
                for packed in batch["part"].to_pylist():
                    yield unpack(packed)


def _await_ray_data() -> None:
    """Wait for Ray Data's threads: one that looks for the cluster behind its end takes the whole process with it.

    Ray itself waits two seconds for them, which a busy machine may need for a single turn of theirs.
    """
    deadline = time.monotonic() + LAST_SECONDS
    for thread in threading.enumerate():
        if thread.name.startswith(DATA_THREADS):
            thread.join(max(0.0, deadline - time.monotonic()))


def remove_left_folders(home: Path) -> None:
    """Remove the folders of clusters of this user's whose driver was killed: texts may lie in them."""
    if os.name != "posix":
        return
    for folder in home.glob(f"{FOLDER}*"):
        # Held by its driver, or removed by another one meanwhile.
        with suppress(UserError, FileNotFoundError):
            # Not of what a link leads to: somebody else may have made it.
            facts = folder.lstat()
            # A new one may not be locked yet.
            old = time.time() - facts.st_mtime > 60
            if old and stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid():
                with only_process(folder, "using this cluster"):
                    shutil.rmtree(folder, ignore_errors=True)


def _require_answer(address: str) -> None:
    """UserError where nothing listens at an address, which Ray itself would go on calling for many minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(
            f"--ray_address {address}: start the command on a machine of the cluster, with auto or HOST:PORT (6379)"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=20).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--ray_address {address}: no cluster that can be used ({first_line(error)})", code=1) from None


class _Worker:
    """The actor: it makes its work before its first chunk, so that what stops that is told as any other fault."""

    def __init__(self, make: bytes, threads: int):
        self._make, self._threads = make, threads
        self._work: Work | None = None

    def __call__(self, batch: Any) -> Iterator[Any]:
        for packed in batch["work"].to_pylist():
            at, chunk = unpack(packed)
            try:
                work = self._ready()
                # Not before: a model that does not load is no fault of the chunk's.
                yield _row("part", pack(("begin", at, None)))
                for part in work(chunk):
                    yield _row("part", pack(("part", at, part)))
            except Exception as error:
                if isinstance(error, UserError) and error.code == 2:
                    yield _row("part", pack(("fault", at, str(error))))
                    return
                # A device that failed once fails again in the same process; Ray starts a new one.
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            yield _row("part", pack(("end", at, None)))

    def _ready(self) -> Work:
        if self._work is None:
            share_cores(self._threads)
            self._work = pickle.loads(self._make)()
        return self._work


def share_cores(threads: int) -> None:
    """Hold this process to so many threads, and what it starts too."""
    for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = str(threads)
    # vLLM would bind its threads to cores, those of all workers to the same ones.
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    import torch

    torch.set_num_threads(threads)


def _row(column: str, value: bytes) -> Any:
    """A table of one row: numpy, Ray's own choice, would drop zero bytes at the end of `value`."""
    arrow = import_module("pyarrow")
    return arrow.table({column: arrow.array([value], arrow.binary())})


def pack(value: Any) -> bytes:
    return zlib.compress(pickle.dumps(value), 1)


def unpack(packed: bytes) -> Any:
    return pickle.loads(zlib.decompress(packed))
