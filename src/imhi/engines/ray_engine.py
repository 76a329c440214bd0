"""Many GPUs or machines: ``--engine ray``, another engine in each of a pool of Ray workers (`imhi.engines.ray_pool`).

Chunks of prompts go to the workers, completions come back as rows end, and the driver journals them: a worker that is
killed costs the rows that it had at work, and a driver that is killed goes on from its run folder.  Chunks are cut from
*all* prompts, whatever is done already.
"""

from __future__ import annotations

import json
import os
import time
from argparse import SUPPRESS
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from itertools import accumulate, pairwise
from typing import Any

from imhi import __version__
from imhi.checkpoints import load_tokenizer
from imhi.engines import ENGINES, Completion, EngineRequest, OnStep, Prompt, positive
from imhi.engines.prompt_ids import failure, prompt_token_ids, require_chat_template
from imhi.engines.ray_flags import absolute, add_pool_arguments, gpus_each
from imhi.engines.ray_pool import RayPool, Work, require_ray
from imhi.errors import UserError

__all__ = ["ALSO_TAKES", "RayEngine", "add_arguments", "prepare"]

INNER = ("transformers", "vllm")
# Engines whose own flags this one hands on.
ALSO_TAKES = ("vllm",)

# Rows that a worker answers at once, about.
CPU_ROWS, GPU_ROWS = 64, 256
# Chunks for each worker, so that none waits long for the last; the least and the most rows of one, in rows at once.
# A chunk's last rows are few and at work for as long as any, so that a smaller one leaves its worker idle in part.
CHUNKS_A_WORKER, LEAST_ROWS, MOST_ROWS = 4, 4, 16
# What an answer costs, in characters of a prompt, for chunks that are to take equally long.
ANSWER_COST = 500
# Rows that are lost again are sent in so many pieces, down to single rows; one that is lost alone then is the fault.
PIECES, LOSSES = 8, 2
# Seconds between two messages of a worker.
HOLD = 1.0


def add_arguments(parser: Any) -> None:
    add_pool_arguments(parser)
    parser.add_argument(
        "--inner_engine", choices=INNER, default=SUPPRESS, help="what runs the model in each (default transformers)"
    )
    parser.add_argument(
        "--rows_per_task",
        type=positive,
        metavar="N",
        default=SUPPRESS,
        help="rows that a worker is given at a time (default: what keeps it busy)",
    )


def prepare(request: EngineRequest) -> PreparedRay:
    """Find and check the model with the inner engine; raises UserError on anything the user can mend."""
    require_ray()
    options = dict(request.options)
    workers = options.pop("workers", None)
    if workers is None:
        raise UserError("--engine ray needs --workers N, the processes that each load the model")
    address = options.pop("ray_address", None)
    inner = options.pop("inner_engine", "transformers")
    rows = options.pop("rows_per_task", None)
    if options and inner != "vllm":
        raise UserError(f"--{next(iter(options))} has no effect with --inner_engine {inner}; leave it out")
    gpus_each(request.device or "cpu")
    request = replace(request, model=absolute(request.model), lora_path=absolute(request.lora_path), options=options)
    prepared = import_module(ENGINES[inner]).prepare(request)
    if request.decoding.do_sample and (prepared.spec.kind != "causal" or request.batching == "buckets"):
        raise UserError(
            "--do_sample: whole batches are drawn batch by batch, and Ray's workers make others; "
            "leave --engine ray out, and --batching buckets where the model does without"
        )
    return PreparedRay(request, inner, prepared, workers, address, rows)


@dataclass(frozen=True)
class PreparedRay:
    """An inner engine's located model, and the workers that will load it."""

    request: EngineRequest
    inner: str
    prepared: Any
    workers: int
    address: str | None
    rows: int | None

    @property
    def model(self) -> str:
        return self.prepared.model

    @property
    def adapter(self) -> str | None:
        return self.prepared.adapter

    @property
    def device(self) -> str:
        return self.prepared.device

    def configuration(self) -> dict[str, Any]:
        return {"inner_engine": self.inner, **self.prepared.configuration()}

    def session(self) -> dict[str, Any]:
        return {**self.prepared.session(), "workers": self.workers, "ray_address": self.address}

    def caution(self, form: str) -> str | None:
        return self.prepared.caution(form)

    def load(self) -> RayEngine:
        tokenizer = load_tokenizer(self.prepared.spec.folder)
        require_chat_template(tokenizer, self.request.decoding)
        gpus = self.request.options.get("tensor_parallel_size", 1) if self.device.startswith("cuda") else 0
        return RayEngine(self, tokenizer, RayPool(self.workers, address=self.address, gpus=gpus))


@dataclass(frozen=True)
class Chunk:
    """Prompts that a worker is given together, and the ids among them that are done already."""

    prompts: tuple[Prompt, ...]
    done: frozenset[str] = frozenset()


class RayEngine:
    """The inner engine, spread over a pool of workers."""

    name = "ray"

    def __init__(self, prepared: PreparedRay, tokenizer: Any, pool: RayPool):
        self.prepared, self.tokenizer, self.pool = prepared, tokenizer, pool
        self.rows = prepared.rows
        self._most_rows = 0
        self.doubled = 0
        self._worker: Mapping[str, Any] = {}
        self._answered: Counter[str] = Counter()
        self._waiting: dict[str, Prompt] = {}
        self._losses: dict[str, int] = {}
        self._given_up: list[Prompt] = []

    def describe(self) -> dict[str, Any]:
        return {
            **self.pool.facts(),
            "inner_engine": self.prepared.inner,
            "worker": dict(self._worker),
            "rows_by_worker": dict(self._answered),
            "rows_doubled": self.doubled,
            "batch_plan": {
                "order": "shared beginnings",
                "batching": self.prepared.request.batching,
                "deterministic": self.prepared.request.deterministic,
                "rows_per_task": self._most_rows,
            },
        }

    def prompt_token_ids(self, prompt: Prompt) -> list[int]:
        return prompt_token_ids(
            self.tokenizer,
            prompt,
            chat_template=self.prepared.request.decoding.chat_template,
            causal=self.prepared.prepared.spec.kind == "causal",
        )

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Prompts are checked by the inner engine, chunk by chunk; what it refuses ends the run."""

    def complete(
        self, prompts: Sequence[Prompt], *, done: Collection[str] = (), on_step: OnStep | None = None
    ) -> Iterator[list[Completion]]:
        self._waiting = {prompt.id: prompt for prompt in prompts if prompt.id not in done}
        chunks = [chunk for chunk in self._cut(prompts, frozenset(done)) if len(chunk.done) < len(chunk.prompts)]
        asked = len(self._waiting)
        expected = as_json(self.prepared.prepared.configuration())
        make = partial(open_engine, self.prepared.inner, self.prepared.request, expected)
        for worker, facts, answers in self.pool.stream(make, chunks, self._again):
            self._worker = facts
            fresh = [answer for answer in answers if self._waiting.pop(answer.id, None) is not None]
            self.doubled += len(answers) - len(fresh)
            self._answered[worker] += len(fresh)
            if fresh:
                yield fresh
        if self._given_up:
            yield [
                failure(
                    prompt,
                    len(self.prompt_token_ids(prompt)),
                    RuntimeError(
                        f"the worker that had this row died, {self._losses[prompt.id]} times, at last with it alone"
                    ),
                )
                for prompt in self._given_up
            ]
        if self._waiting:
            raise UserError(
                f"--engine ray: {len(self._waiting)} of {asked} rows did not come back, the first "
                f"{next(iter(self._waiting))}; the same command asks for them",
                code=1,
            )

    def close(self) -> None:
        self.pool.close()

    def _cut(self, prompts: Sequence[Prompt], done: frozenset[str]) -> list[Chunk]:
        """All prompts in chunks, those that begin alike together: what they share is read once."""
        ordered = sorted(prompts, key=lambda p: ([(shot.query, shot.answer) for shot in p.shots], p.text))
        if self.rows is not None:
            parts: list[Sequence[Prompt]] = [ordered[at : at + self.rows] for at in range(0, len(ordered), self.rows)]
        else:
            at_once = self.prepared.request.batch_size or (GPU_ROWS if self.prepared.device != "cpu" else CPU_ROWS)
            share = -(-len(prompts) // self.prepared.workers)
            wanted = max(1, min(CHUNKS_A_WORKER, share // (LEAST_ROWS * at_once)), -(-share // (MOST_ROWS * at_once)))
            parts = in_equal_parts(ordered, self.prepared.workers * wanted)
        self._most_rows = max(map(len, parts), default=0)
        return [Chunk(tuple(part), done.intersection(prompt.id for prompt in part)) for part in parts]

    def _again(self, chunk: Chunk, begun: bool) -> list[Chunk]:
        """What is sent in place of a chunk that did not come to its end."""
        if not begun:
            return [chunk]
        left = [prompt for prompt in chunk.prompts if prompt.id in self._waiting]
        for prompt in left:
            self._losses[prompt.id] = self._losses.get(prompt.id, 0) + 1
        often = max((self._losses[prompt.id] for prompt in left), default=0) >= LOSSES
        if often and len(chunk.prompts) == 1:
            self._given_up.append(self._waiting.pop(left[0].id))
            return []
        size = max(1, -(-len(left) // PIECES) if often else len(left))
        return [Chunk(tuple(left[at : at + size])) for at in range(0, len(left), size)]


def in_equal_parts(prompts: Sequence[Prompt], count: int) -> list[Sequence[Prompt]]:
    """Neighbours in at most `count` parts that cost about the same: by rows, long posts would stand against short ones."""
    texts = (
        (prompt.text, *(text for shot in prompt.shots for text in (shot.query, shot.answer))) for prompt in prompts
    )
    costs = list(accumulate(ANSWER_COST + sum(map(len, each)) for each in texts))
    ends = [bisect_left(costs, costs[-1] * part / count) + 1 for part in range(1, count)] if costs else []
    cuts = [0, *ends, len(prompts)]
    return [prompts[first:last] for first, last in pairwise(cuts) if first < last]


def as_json(configuration: Mapping[str, Any]) -> str:
    """Everything that must be the same in every worker: an inner engine's configuration, and the toolkit's version."""
    return json.dumps({"imhi": __version__, **configuration}, sort_keys=True)


def open_engine(inner: str, request: EngineRequest, expected: str) -> Work:
    """In a worker: the inner engine, loaded, as a function of chunks.

    UserError where this machine's toolkit or model is not the driver's (`expected`, made by `as_json`).
    """
    prepared = import_module(ENGINES[inner]).prepare(request)
    found = as_json(prepared.configuration())
    if found != expected:
        import platform

        there, here = json.loads(found), json.loads(expected)
        differing = "; ".join(
            f"{name}: {str(there.get(name))[:60]} there, {str(here.get(name))[:60]} here"
            for name in sorted({*there, *here})
            if there.get(name) != here.get(name)
        )
        raise UserError(
            f"--engine ray: {platform.node()} would answer otherwise than this machine ({differing}); every machine "
            "needs the same toolkit and the same model files"
        )
    engine = prepared.load()
    facts = engine.describe()
    if request.decoding.do_sample and facts["batch_plan"]["batching"] == "buckets":
        raise UserError(
            "--do_sample: this model is drawn batch by batch, and Ray's workers make others; leave --engine ray out"
        )
    node = import_module("ray").get_runtime_context().get_node_id()
    return partial(_answers, engine, f"{node[:8]}-{os.getpid()}")


def _answers(engine: Any, worker: str, chunk: Chunk) -> Iterator[tuple[str, dict[str, Any], list[Completion]]]:
    """The worker's name, its engine's facts and completions of a chunk, a second's worth at a time."""
    engine.check(chunk.prompts)
    held: list[Completion] = []
    told = time.monotonic()
    for group in engine.complete(chunk.prompts, done=chunk.done):
        held += group
        if time.monotonic() - told >= HOLD:
            yield worker, engine.describe(), held
            held, told = [], time.monotonic()
    if held:
        yield worker, engine.describe(), held
