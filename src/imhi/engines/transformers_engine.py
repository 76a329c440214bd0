"""The default engine: a transformers model in this process.

Causal models answer in flight (`imhi.engines.in_flight`), rows entering and leaving as they end; encoder-decoders, and
causal models that cannot, answer with transformers' ``generate`` in longest-first batches bounded by their tokens.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from imhi.batching import plan_token_batches, run_split
from imhi.checkpoints import Generator, GeneratorSpec, load_generator, locate_generator
from imhi.cpu import keep_freed_memory, pack_linears
from imhi.devices import pick_device, pick_dtype
from imhi.engines import Completion, Decoding, EngineRequest, OnStep, Prompt
from imhi.engines.in_flight import InFlight, Limits, Request, common_beginning, shared_prefixes, why_not_in_flight
from imhi.engines.limits import plan_limits
from imhi.engines.prompt_ids import (
    answer_room,
    cut_answer,
    failure,
    no_room,
    prompt_token_ids,
    require_chat_template,
)
from imhi.errors import UserError
from imhi.talk import say

if TYPE_CHECKING:
    from transformers import TextStreamer

__all__ = ["TransformersEngine", "add_arguments", "load_engine", "prepare"]


class TransformersEngine:
    """Generates with a transformers model; causal and encoder-decoder models.

    Parameters
    ----------
    generator : a loaded model (`imhi.checkpoints.load_generator`).
    decoding : limits and sampling.
    batch_size : rows at once, at most; None: as many as suit the device and its memory.  What runs out of memory is
        halved and the run goes on.
    batching : "in-flight" or "buckets" (whole batches through ``generate``); None: in flight where the model can.
    deterministic : every row by itself, so that no answer depends on the rows beside it, at the cost of the time that
        batches save.
    answer_lengths : for benchmarks: new tokens of each row by its id, in place of its end token.

    Raises
    ------
    UserError
        A chat template that the tokenizer lacks, or "in-flight" asked for with a model that cannot.
    """

    name = "transformers"

    def __init__(
        self,
        generator: Generator,
        decoding: Decoding,
        *,
        batch_size: int | None = None,
        batching: str | None = None,
        deterministic: bool = False,
        answer_lengths: Mapping[str, int] | None = None,
    ):
        self.generator = generator
        self._on_step: OnStep | None = None
        self.decoding = decoding
        self.batch_size = 1 if deterministic else batch_size
        self.deterministic = deterministic
        self.answer_lengths = answer_lengths
        self.memory_splits: list[int] = []
        self.limits: Limits | None = None
        self._flight: InFlight | None = None
        require_chat_template(generator.tokenizer, decoding)
        obstacle = None if batching == "buckets" else why_not_in_flight(generator)
        if obstacle and batching == "in-flight":
            raise UserError(f"--batching in-flight: this model cannot ({obstacle}); leave the flag out")
        if obstacle and generator.kind == "causal":
            say(f"batches wait for their longest answer: this model cannot be answered in flight ({obstacle})")
        self.batching = "buckets" if batching == "buckets" or obstacle else "in-flight"

    def describe(self) -> dict[str, Any]:
        return {
            **self.generator.facts,
            "batch_plan": {
                "order": "longest first",
                "batching": self.batching,
                "deterministic": self.deterministic,
                "batch_size": self.batch_size,
                "limits": asdict(self.limits) if self.limits else None,
                "split_on_memory": self.memory_splits,
            },
        }

    def figures(self) -> dict[str, Any]:
        """Steps, tokens and seconds of the last `complete`, where it ran in flight (`in_flight.Figures`)."""
        return asdict(self._flight.figures) if self._flight else {}

    def prompt_token_ids(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt: `imhi.engines.prompt_ids.prompt_token_ids`."""
        return prompt_token_ids(
            self.generator.tokenizer,
            prompt,
            chat_template=self.decoding.chat_template,
            causal=self.generator.kind == "causal",
        )

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raises UserError where examples take half or more of an encoder's positions: prompts are cut at the end."""
        limit = self.generator.context
        if self.generator.kind == "causal" or limit is None:
            return
        # One prompt of each set of examples is enough.
        for prompt in {prompt.shots: prompt for prompt in prompts if prompt.shots}.values():
            taken = len(self.prompt_token_ids(prompt)) - len(self.prompt_token_ids(replace(prompt, shots=())))
            if 2 * taken >= limit:
                raise UserError(
                    f"--shots: the {len(prompt.shots)} examples before {prompt.id} take {taken} of this model's {limit} "
                    "positions, and the prompt behind them would be cut; give fewer, or leave --shots out"
                )

    def complete(
        self, prompts: Sequence[Prompt], *, done: Collection[str] = (), on_step: OnStep | None = None
    ) -> Iterator[list[Completion]]:
        self._on_step = on_step
        encoded = [self._fit(self.prompt_token_ids(prompt)) for prompt in prompts]
        impossible = {at for at, (ids, _) in enumerate(encoded) if self._room(len(ids)) < 1}
        if refused := [
            self._no_room(prompts[at], len(encoded[at][0])) for at in sorted(impossible) if prompts[at].id not in done
        ]:
            yield refused
        possible = [at for at in range(len(encoded)) if at not in impossible]
        if all(prompts[at].id in done for at in possible):
            return
        self.limits = plan_limits(
            self.generator,
            [encoded[at][0] for at in possible],
            batch_size=self.batch_size,
            in_flight=self.batching == "in-flight",
        )
        answer = self._complete_in_flight if self.batching == "in-flight" else self._complete_in_buckets
        yield from answer(prompts, encoded, possible, done, self.limits)

    def _complete_in_flight(
        self,
        prompts: Sequence[Prompt],
        encoded: Sequence[tuple[list[int], bool]],
        possible: Sequence[int],
        done: Collection[str],
        limits: Limits,
    ) -> Iterator[list[Completion]]:
        ends = (
            frozenset() if self.answer_lengths else frozenset(self.generator.model.generation_config.eos_token_id or [])
        )
        self._flight = InFlight(self.generator, self.decoding, limits, ends=ends, on_split=self._note_split)
        beginning: list[int] = []
        if self.deterministic:
            plan = [([at], 0) for at in sorted(possible, key=lambda at: -len(encoded[at][0]))]
        else:
            beginning = common_beginning([encoded[at][0] for at in possible])
            shared = shared_prefixes([encoded[at][0] for at in possible])
            plan = [([possible[at] for at in members], prefix) for members, prefix in shared]
        groups = [
            [
                Request(at, encoded[at][0], self._limit(prompts[at], len(encoded[at][0])), prompts[at].id, prefix)
                for at in members
                if prompts[at].id not in done
            ]
            for members, prefix in plan
        ]
        for answers in self._flight.complete(groups, beginning=beginning, on_step=self._on_step):
            yield [
                failure(prompts[answer.at], len(encoded[answer.at][0]), answer.error)
                if answer.error
                else self._completion(prompts[answer.at], encoded[answer.at], answer.ids)
                for answer in answers
            ]

    def _complete_in_buckets(
        self,
        prompts: Sequence[Prompt],
        encoded: Sequence[tuple[list[int], bool]],
        possible: Sequence[int],
        done: Collection[str],
        limits: Limits,
    ) -> Iterator[list[Completion]]:
        for rows in self._plan(encoded, possible, limits):
            if all(prompts[at].id in done for at in rows):
                continue

            def work(part: Sequence[int]) -> list[Completion]:
                return self._generate([prompts[at] for at in part], [encoded[at] for at in part])

            def failed(at: int, error: Exception) -> list[Completion]:
                return [failure(prompts[at], len(encoded[at][0]), error)]

            for _, completions in run_split(rows, work, on_split=self._note_split, on_failure=failed):
                if fresh := [completion for completion in completions if completion.id not in done]:
                    yield fresh

    def stream(self, prompt: Prompt, streamer: TextStreamer) -> Completion:
        """Answer one prompt and hand the text to `streamer` as it comes."""
        ids, truncated = self._fit(self.prompt_token_ids(prompt))
        if self._room(len(ids)) < 1:
            return self._no_room(prompt, len(ids))
        return self._generate([prompt], [(ids, truncated)], streamer=streamer)[0]

    def close(self) -> None:
        """Nothing outlives a call."""

    def _plan(
        self, encoded: Sequence[tuple[list[int], bool]], possible: Sequence[int], limits: Limits
    ) -> list[list[int]]:
        """Batches of rows, longest first, each within the limits with all the room that its answers may take.

        With a table of positions, a row whose answer may reach its end is a batch of its own: beside rows with more
        room it would be carried past the table.  (Elsewhere what goes past the limit is cut off afterwards.)
        """
        bounded = self.generator.kind == "causal" and self.generator.learned_positions
        context = self.generator.context if bounded else None
        # What any row of a batch may be given: the shortest prompt has the most room.
        most = max((self._room(len(encoded[at][0])) for at in possible), default=0)
        unbounded = [at for at in possible if context is None or len(encoded[at][0]) + most <= context]
        alone = sorted(set(possible) - set(unbounded), key=lambda at: -len(encoded[at][0]))
        lengths = [len(encoded[at][0]) + most for at in unbounded]
        batches = plan_token_batches(lengths, limits.cache_tokens, limits.slots) if unbounded else []
        return [[at] for at in alone] + [[unbounded[at] for at in batch] for batch in batches]

    def _fit(self, ids: list[int]) -> tuple[list[int], bool]:
        """An encoder-decoder's prompt cut to its positions, its closing token kept; (ids, whether cut)."""
        limit = self.generator.context
        if self.generator.kind == "causal" or limit is None or len(ids) <= limit:
            return ids, False
        return [*ids[: limit - 1], ids[-1]], True

    def _room(self, prompt_tokens: int) -> int:
        """New tokens that a prompt of this length may get."""
        # An encoder-decoder's answer has the decoder's positions for itself, but for its start token.
        taken = prompt_tokens if self.generator.kind == "causal" else 1
        return answer_room(taken, self.decoding, self.generator.context)

    def _limit(self, prompt: Prompt, prompt_tokens: int) -> int:
        """New tokens after which a row is over, whatever it says."""
        room = self._room(prompt_tokens)
        return min(room, self.answer_lengths[prompt.id]) if self.answer_lengths else room

    def _completion(self, prompt: Prompt, encoded: tuple[list[int], bool], new: Sequence[int]) -> Completion:
        """The answer in `new`, which may go on behind its end token or its room."""
        ids, truncated = encoded
        ends = () if self.answer_lengths else self.generator.model.generation_config.eos_token_id or ()
        return cut_answer(
            self.generator.tokenizer,
            prompt,
            len(ids),
            new[: self._limit(prompt, len(ids))],
            ends=ends,
            prompt_truncated=truncated,
        )

    def _no_room(self, prompt: Prompt, prompt_tokens: int) -> Completion:
        return no_room(prompt, prompt_tokens, self.decoding, self.generator.context)

    def _note_split(self, size: int) -> None:
        self.memory_splits.append(size)
        say(f"out of memory with {size} rows at once: halved, and the run goes on")

    def _ticks(self, start: int) -> Any:
        """A stopping criterion that stops nothing and reports every step; None without anybody to report to."""
        if self._on_step is None:
            return None
        import torch
        from transformers import StoppingCriteria, StoppingCriteriaList

        report = self._on_step

        class Tick(StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **options: Any) -> Any:
                report(input_ids.shape[0], input_ids.shape[0] * (input_ids.shape[1] - start))
                return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

        return StoppingCriteriaList([Tick()])

    def _generate(
        self,
        prompts: Sequence[Prompt],
        encoded: Sequence[tuple[list[int], bool]],
        *,
        streamer: TextStreamer | None = None,
    ) -> list[Completion]:
        import torch

        model, tokenizer = self.generator.model, self.generator.tokenizer
        width = max(len(ids) for ids, _ in encoded)
        tokens = torch.full((len(encoded), width), int(tokenizer.pad_token_id), dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for at, (ids, _) in enumerate(encoded):
            span = slice(width - len(ids), width) if self.generator.kind == "causal" else slice(0, len(ids))
            tokens[at, span] = torch.tensor(ids, dtype=torch.long)
            mask[at, span] = 1
        limits = [self._limit(prompt, len(ids)) for prompt, (ids, _) in zip(prompts, encoded, strict=True)]
        sampling: dict[str, Any] = {}
        if self.decoding.do_sample:
            # Seeded by the rows of the batch, so that a resumed run draws what an uninterrupted one draws.
            torch.manual_seed(zlib.crc32(f"{self.decoding.seed}:{','.join(p.id for p in prompts)}".encode()))
            sampling = {
                "do_sample": True,
                "temperature": self.decoding.temperature,
                "top_p": self.decoding.top_p,
                "top_k": self.decoding.top_k,
            }
        with torch.inference_mode():
            output = model.generate(
                input_ids=tokens.to(self.generator.device),
                attention_mask=mask.to(self.generator.device),
                max_new_tokens=max(limits),
                **({"eos_token_id": None} if self.answer_lengths else {}),
                streamer=streamer,
                stopping_criteria=self._ticks(width if self.generator.kind == "causal" else 1),
                **sampling,
            )
        start = width if self.generator.kind == "causal" else 1
        return [
            self._completion(prompt, row, new)
            for prompt, row, new in zip(prompts, encoded, output[:, start:].tolist(), strict=True)
        ]


def load_engine(
    spec: GeneratorSpec,
    decoding: Decoding,
    *,
    device: str,
    dtype: str,
    batch_size: int | None = None,
    batching: str | None = None,
    deterministic: bool = False,
    answer_lengths: Mapping[str, int] | None = None,
) -> TransformersEngine:
    """Load a located generator into the engine, in the form that suits the device."""
    generator = load_generator(spec, device=device, dtype=pick_dtype(dtype, device))
    if device == "cpu":
        keep_freed_memory()
        generator.facts["packed_linear_layers"] = pack_linears(generator.model)
    return TransformersEngine(
        generator,
        decoding,
        batch_size=batch_size,
        batching=batching,
        deterministic=deterministic,
        answer_lengths=answer_lengths,
    )


# --- the engine by its name -----------------------------------------------------------------------------------------


def add_arguments(parser: Any) -> None:
    """No flags of its own: it is what the common ones speak of."""


def prepare(request: EngineRequest) -> PreparedTransformers:
    """Find and check the model; raises UserError on anything the user can mend."""
    device = pick_device(cuda=request.cuda, device=request.device)
    spec = locate_generator(request.model, lora_path=request.lora_path, llama=request.llama)
    return PreparedTransformers(request, spec, device)


@dataclass(frozen=True)
class PreparedTransformers:
    """A located checkpoint and where it will run."""

    request: EngineRequest
    spec: GeneratorSpec
    device: str

    @property
    def model(self) -> str:
        return self.spec.name

    @property
    def adapter(self) -> str | None:
        return self.spec.adapter_name

    def configuration(self) -> dict[str, Any]:
        dtype = str(pick_dtype(self.request.dtype, self.device)).removeprefix("torch.")
        return {
            **self.spec.identity(),
            "dtype": dtype,
            **({"deterministic": True} if self.request.deterministic else {}),
            # In whole batches, answers are drawn batch by batch.
            **({"batch_size": self.request.batch_size} if self.request.decoding.do_sample else {}),
        }

    def session(self) -> dict[str, Any]:
        return {"device": self.device, "batch_size": self.request.batch_size, "batching": self.request.batching}

    def caution(self, form: str) -> str | None:
        return self.spec.taught_otherwise(form=form, chat_template=self.request.decoding.chat_template)

    def load(self) -> TransformersEngine:
        return load_engine(
            self.spec,
            self.request.decoding,
            device=self.device,
            dtype=self.request.dtype,
            batch_size=self.request.batch_size,
            batching=self.request.batching,
            deterministic=self.request.deterministic,
        )
