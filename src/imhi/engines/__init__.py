"""Engines: prompts in, completions out; one file an engine, and this contract between them.

An engine's module has ``add_arguments(parser)`` for flags of its own (their default is ``argparse.SUPPRESS``: what is
not given is not there), and ``prepare(EngineRequest)``, which checks flags and finds the model without loading it and
returns a `PreparedEngine`.  Its name stands in `ENGINES`; no other file knows it.

An engine gets all prompts of a run and the ids that are done already, and yields completions in any order, in
groups that the caller journals at once.  It plans its work over *all* prompts, so that a resumed run computes what is
left as an uninterrupted one does.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from imhi.errors import UserError

__all__ = [
    "BATCHING",
    "ENGINES",
    "Completion",
    "Decoding",
    "Engine",
    "EngineRequest",
    "OnStep",
    "PreparedEngine",
    "Prompt",
    "Shot",
    "positive",
]


def positive(text: str) -> int:
    """An argparse type: a whole number from 1."""
    number = int(text)
    if number < 1:
        raise ArgumentTypeError(f"{text} is not 1 or more")
    return number


# --engine → the module that has it.
ENGINES = {
    "transformers": "imhi.engines.transformers_engine",
    "openai": "imhi.engines.openai_engine",
    "vllm": "imhi.engines.vllm_engine",
    "ray": "imhi.engines.ray_engine",
}

# How rows share the device: entering and leaving one by one, or in whole batches.
BATCHING = ("in-flight", "buckets")

# (rows at work, their new tokens so far, in sum)
OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Shot:
    """A worked example: a prompt as the benchmark words it, and its answer."""

    query: str
    answer: str


@dataclass(frozen=True)
class Prompt:
    """A prompt as the benchmark words it, before any chat template, with the row's id and the examples before it."""

    id: str
    text: str
    shots: tuple[Shot, ...] = ()


@dataclass(frozen=True)
class Completion:
    """An engine's answer to one prompt.

    Attributes
    ----------
    text : the new text alone, without special tokens, stripped of surrounding white space.
    prompt_tokens, new_tokens : counts; `new_tokens` leaves out the end-of-sequence token.
    finish_reason : "stop" (the model ended), "length" (a limit ended it), "no_room" (the prompt alone fills the
        model), "refused" (a server's content filter took the prompt or the answer away) or "error".
    prompt_truncated : whether the prompt was cut to the model's limit (encoder-decoders only).
    error : what went wrong, if something did; then `text` is empty.
    """

    id: str
    text: str
    prompt_tokens: int
    new_tokens: int
    finish_reason: str
    prompt_truncated: bool = False
    error: str | None = None


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded.  Greedy unless `do_sample`; `max_length` bounds prompt and answer together."""

    max_new_tokens: int = 512
    max_length: int | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    chat_template: bool = False


@dataclass(frozen=True)
class EngineRequest:
    """What is asked of an engine, as the user gave it; `options` are the given flags of the engine's own, by name."""

    model: str | None = None
    lora_path: str | None = None
    llama: bool = False
    cuda: bool = False
    device: str | None = None
    dtype: str = "auto"
    batch_size: int | None = None
    batching: str | None = None
    deterministic: bool = False
    decoding: Decoding = field(default_factory=Decoding)
    options: Mapping[str, Any] = field(default_factory=dict)

    def refuse(self, engine: str, *names: str) -> None:
        """UserError where one of these flags is given: it would have no effect with this engine."""
        for name in names:
            if getattr(self, name) != EngineRequest.__dataclass_fields__[name].default:
                raise UserError(f"--{name} has no effect with --engine {engine}; leave it out")


class PreparedEngine(Protocol):
    """An engine whose flags are checked and whose model is found, with nothing loaded and nothing sent yet."""

    @property
    def model(self) -> str:
        """The model's name, for manifest and messages."""

    @property
    def adapter(self) -> str | None:
        """The adapter's name, where there is one."""

    def configuration(self) -> dict[str, Any]:
        """Everything about model and engine that decides answers, beside `Decoding`: a run is resumed with the same."""

    def session(self) -> dict[str, Any]:
        """What may differ between the sessions of a run: device, batch size, versions.  No secret ever."""

    def caution(self, form: str) -> str | None:
        """Why answers to prompts of this form may be no use, if the model tells."""

    def load(self) -> Engine:
        """The engine, ready to answer."""


class Engine(Protocol):
    """What a run needs of an engine."""

    name: str

    def describe(self) -> dict[str, Any]:
        """Facts for the manifest: classes, versions, batch plan, guards that had to act."""

    def prompt_token_ids(self, prompt: Prompt) -> list[int] | None:
        """The token ids that the model is given for a prompt; None where a server makes them."""

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raises UserError on prompts that the model could not be given as they are meant."""

    def complete(
        self, prompts: Sequence[Prompt], *, done: Collection[str] = (), on_step: OnStep | None = None
    ) -> Iterator[list[Completion]]:
        """Completions of the prompts whose id is not in `done`, in groups, in any order.

        `on_step` may be told, between groups, how many rows are at work and at which new token: a sign of life.
        """

    def close(self) -> None:
        """Let go of what outlives a call: processes, connections."""
