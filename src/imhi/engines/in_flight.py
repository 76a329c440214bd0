"""In-flight batching for causal models: a row that has ended leaves at once, and a waiting one takes its place.

Rows come longest first.  Each forward pass computes the next token of every row at work and reads the prompts of the
rows that enter (Yu et al., "Orca: A Distributed Serving System for Transformer-Based Generative Models", OSDI 2022).
What neighbouring prompts share is read once and copied.  How a prompt is cut into the shared part and the rest depends
on the plan alone, never on which rows are done already.
"""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from imhi.batching import is_out_of_memory, release_memory
from imhi.checkpoints import Generator
from imhi.engines import Decoding, OnStep
from imhi.engines.flat_attention import NAME, Segment, SlotCache, Step, register, rounded
from imhi.errors import UserError

if TYPE_CHECKING:
    import torch

__all__ = [
    "Answer",
    "InFlight",
    "Limits",
    "Request",
    "common_beginning",
    "read_only",
    "shared_prefixes",
    "why_not_in_flight",
]

# A shared beginning is worth a segment of its own from this many tokens and this share of the longer prompt.
SHARED_TOKENS, SHARED_PART = 32, 0.5
# What all prompts begin with is read apart from this many tokens on.
BEGINNING_TOKENS = 4
# A group enters when there are slots for all of it: more rows would wait for each other.
GROUP_ROWS = 16
# Half of the prompt tokens a step after memory ran out; full again after this many steps that went well.
RECOVERY_STEPS = 50


@dataclass(frozen=True)
class Request:
    """A prompt to answer.

    Attributes
    ----------
    at : the caller's number of the row.
    ids : the prompt's tokens.
    room : new tokens that it may get, at least 1.
    key : the row's id, which seeds its random draws.
    prefix : tokens that it shares with the other rows of its group, below ``len(ids)``; 0 in a group of one.
    """

    at: int
    ids: Sequence[int]
    room: int
    key: str = ""
    prefix: int = 0


@dataclass(frozen=True)
class Answer:
    """New token ids of a row, its end token included; `error` says what went wrong, if something did."""

    at: int
    ids: list[int]
    error: Exception | None = None


@dataclass(frozen=True)
class Limits:
    """What fits on the device.

    Attributes
    ----------
    slots : rows at work at once, at most.
    cache_tokens : tokens whose keys and values fit; slots of the longest row that waits are cut from them.
    prompt_tokens : prompt tokens that are read in one step, at most; a longer prompt is read alone.
    free_slots : slots that are free before rows enter: 1 where a step of mixed work costs no more than two.
    call_tokens : how many of a row's keys cost as much to read as one more call of attention.
    """

    slots: int
    cache_tokens: int
    prompt_tokens: int
    free_slots: int = 1
    call_tokens: int = 128


@dataclass
class Figures:
    """What a run has computed so far.  `seconds` of steps that read prompts, and of those that only answered."""

    prompt_steps: int = 0
    prompt_tokens: int = 0
    prompt_step_rows: int = 0
    prompt_seconds: float = 0.0
    answer_steps: int = 0
    answer_rows: int = 0
    answer_seconds: float = 0.0
    answer_cache_bytes: int = 0
    most_slots: int = 0
    splits: list[int] = field(default_factory=list)


@dataclass
class _Row:
    request: Request
    new: list[int] = field(default_factory=list)
    draws: Any = None

    @property
    def position(self) -> int:
        """Of the token that is computed next: the newest one."""
        return len(self.request.ids) + len(self.new) - 1

    @property
    def need(self) -> int:
        """Positions that the row may fill; the last new token is never read."""
        return len(self.request.ids) + self.request.room - 1


def shared_prefixes(prompts: Sequence[Sequence[int]]) -> list[tuple[list[int], int]]:
    """Groups of indices into `prompts` with the length of the beginning that each shares, longest prompt first.

    Neighbours in sorted order share a group where their common beginning is at least `SHARED_TOKENS` tokens and
    `SHARED_PART` of the longer one; at least one token of each prompt is left over.  Ties keep the given order.
    """
    order = sorted(range(len(prompts)), key=lambda at: (list(prompts[at]), at))
    groups: list[tuple[list[int], int]] = []
    for at in order:
        if groups:
            members, shared = groups[-1]
            full = len(members) == GROUP_ROWS
            first = prompts[members[0]]
            common = min(_common(first, prompts[at]), shared or len(first), len(prompts[at]) - 1, len(first) - 1)
            longest = max(len(prompts[at]), *(len(prompts[member]) for member in members))
            if not full and common >= max(SHARED_TOKENS, SHARED_PART * longest):
                groups[-1] = ([*members, at], common)
                continue
        groups.append(([at], 0))
    for members, _ in groups:
        members.sort(key=lambda at: (-len(prompts[at]), at))
    return sorted(groups, key=lambda group: (-len(prompts[group[0][0]]), group[0][0]))


def common_beginning(prompts: Sequence[Sequence[int]]) -> list[int]:
    """What all prompts begin with, at least one token of each left over; [] where it is too short to matter."""
    if len(prompts) < 2:
        return []
    ordered = sorted(map(list, prompts))
    length = min(_common(ordered[0], ordered[-1]), min(map(len, prompts)) - 1)
    return ordered[0][:length] if length >= BEGINNING_TOKENS else []


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens with which both begin."""
    for at, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return at
    return min(len(one), len(other))


class InFlight:
    """Answers prompts with a causal model, rows entering and leaving as they end.

    Parameters
    ----------
    generator : the model; `why_not_in_flight` has found nothing against it.
    decoding : greedy, or sampling with draws that depend on the seed and the row's id alone.
    limits : what fits.
    ends : ids of end tokens.
    on_split : told the rows of a step that did not fit into memory.
    """

    def __init__(
        self,
        generator: Generator,
        decoding: Decoding,
        limits: Limits,
        *,
        ends: frozenset[int],
        on_split: Callable[[int], None] | None = None,
    ):
        self.generator = generator
        self.decoding = decoding
        self.limits = limits
        self.ends = ends
        self.on_split = on_split
        self.figures = Figures()
        self._prompt_tokens = limits.prompt_tokens
        self._rows_a_pass = limits.slots
        self._cache = SlotCache(0, 0)
        self._steps_since_split = 0
        self._warp = _warpers(decoding)
        self._beginning: SlotCache | None = None
        self._known = 0

    def complete(
        self, groups: Sequence[Sequence[Request]], *, beginning: Sequence[int] = (), on_step: OnStep | None = None
    ) -> Iterator[list[Answer]]:
        """Answers to all requests, in the order in which they end.

        `groups` stand in the order in which they shall enter; `beginning` are tokens with which every prompt begins,
        fewer than any prompt has: they are read once in the whole run.
        """
        waiting = deque(list(group) for group in groups if group)
        if not waiting:
            return
        try:
            with _attention(self.generator.model):
                self._make_room(waiting, beginning)
                yield from self._complete(waiting, on_step)
        finally:
            self._cache, self._beginning = SlotCache(0, 0), None

    def _read(self, ids: Sequence[int]) -> SlotCache:
        """Keys and values of a text, in a slot of its own."""
        import torch

        cache = SlotCache(1, len(ids))
        none = torch.zeros(0, dtype=torch.long, device=self.generator.device)
        step = Step(cache, (0, 0), [], none, [Segment(0, len(ids), [0])])
        with torch.inference_mode():
            _flat_logits(self.generator.model, list(ids), list(range(len(ids))), [len(ids) - 1], step)
        return cache

    def _make_room(self, waiting: deque[list[Request]], beginning: Sequence[int]) -> None:
        """Read the beginning, and make as many slots as memory has; UserError where there is not even room for one."""
        slots, tokens = self._shape(waiting, [])
        while True:
            try:
                # Without a beginning any token will do: it shows what the layers' keys and values look like.
                layout = self._read(beginning or waiting[0][0].ids[:1])
                self._beginning, self._known = (layout, len(beginning)) if beginning else (None, 0)
                self._cache = SlotCache(slots, tokens)
                with _inference():
                    self._cache.allocate(layout)
                self.figures.most_slots = slots
                return
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if slots == 1:
                    raise UserError(
                        f"{self.generator.device}: keys and values of the longest row ({tokens} tokens) do not fit into "
                        "memory beside the model; a smaller --max_new_tokens, --dtype bfloat16 or a smaller model "
                        "needs less"
                    ) from None
            release_memory()
            self._tell(slots)
            slots = (slots + 1) // 2

    def _complete(self, waiting: deque[list[Request]], on_step: OnStep | None) -> Iterator[list[Answer]]:
        rows: list[_Row] = []
        while waiting or rows:
            if waiting and self._cache.slots - len(rows) >= min(self.limits.free_slots, self._cache.slots):
                self._fit(waiting, rows)
            entering = self._entering(waiting, self._cache.slots - len(rows))
            ended = self._advance(rows, entering)
            if on_step is not None and rows:
                on_step(len(rows), sum(len(row.new) for row in rows))
            ended += self._leave(rows)
            if ended:
                yield ended

    def _shape(self, waiting: Sequence[Sequence[Request]], rows: Sequence[_Row]) -> tuple[int, int]:
        """Slots, and tokens of a slot, that suit what waits and what is at work."""
        tokens = rounded(
            max([_Row(request).need for group in waiting for request in group] + [row.need for row in rows])
        )
        pending = len(rows) + sum(map(len, waiting))
        return max(1, len(rows), min(self.limits.slots, self.limits.cache_tokens // tokens, pending)), tokens

    def _fit(self, waiting: Sequence[Sequence[Request]], rows: Sequence[_Row]) -> None:
        """More and shorter slots, once the longest rows are done."""
        enough = 0.75 * self._cache.tokens
        if self._cache.slots >= self.limits.slots or _Row(waiting[0][0]).need > enough:
            # Most steps end here: looking through all that waits would take longer than some steps.
            return
        slots, tokens = self._shape(waiting, rows)
        if tokens <= enough and slots > self._cache.slots:
            try:
                with _inference():
                    self._cache.resize(slots, tokens, len(rows))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                # As many slots as before, then.
                release_memory()
            self.figures.most_slots = max(self.figures.most_slots, self._cache.slots)

    def _entering(self, waiting: deque[list[Request]], free: int) -> list[list[_Row]]:
        """Groups that begin now; a group begins together, so that what it shares is read once."""
        entering: list[list[_Row]] = []
        if free < min(self.limits.free_slots, self._cache.slots):
            return entering
        tokens = 0
        while waiting:
            group = waiting[0]
            if len(group) > self._cache.slots:
                # Too many for all slots: in parts, each of which reads the shared beginning for itself.
                waiting.popleft()
                waiting.extendleft([group[self._cache.slots :], group[: self._cache.slots]])
                continue
            rests = sum(len(request.ids) - request.prefix for request in group)
            if len(group) > 1 and rests > self.limits.prompt_tokens:
                waiting.popleft()
                middle = (len(group) + 1) // 2
                waiting.extendleft([group[middle:], group[:middle]])
                continue
            size = group[0].prefix + rests
            if len(group) > free or (entering and tokens + size > self._prompt_tokens):
                break
            waiting.popleft()
            entering.append([_Row(request, draws=self._draws(request)) for request in group])
            free -= len(group)
            tokens += size
        return entering

    def _draws(self, request: Request) -> Any:
        """Uniform numbers in [0, 1), one a new token, of this row alone."""
        if not self.decoding.do_sample:
            return None
        import torch

        source = torch.Generator().manual_seed(zlib.crc32(f"{self.decoding.seed}:{request.key}".encode()))
        return torch.rand(request.room, generator=source, dtype=torch.float64)

    def _advance(self, rows: list[_Row], entering: list[list[_Row]]) -> list[Answer]:
        """One new token for `rows` and for those who enter, which join `rows`; answers of rows that failed.

        Where memory runs out, or a row fails, the step is halved until what fails stands alone.
        """
        failed: list[Answer] = []
        at_work = len(rows)
        bound = min(self._rows_a_pass, max(at_work, 1))
        # The last one is taken first; those who enter go with the last rows.
        work: list[tuple[int, int, list[list[_Row]]]] = [
            (first, min(first + bound, at_work), []) for first in range(0, at_work, bound)
        ] or [(0, 0, [])]
        work[-1] = (*work[-1][:2], entering)
        chosen: dict[int, int] = {}
        while work:
            first, last, groups = work.pop()
            # Where those who enter find their slots: behind the rows at work and who entered before them.
            slots = [len(rows) + number for number in range(sum(map(len, groups)))]
            size = last - first + len(slots)
            if not size:
                continue
            error: Exception | None = None
            try:
                tokens = self._forward(rows[first:last], first, groups, slots)
            except (RuntimeError, ValueError, LookupError, MemoryError) as caught:
                # Without its traceback, which would keep the failed step's tensors alive.
                error = caught.with_traceback(None)
            if error is None:
                chosen.update(zip([*range(first, last), *slots], tokens, strict=True))
                rows += [row for group in groups for row in group]
                continue
            if is_out_of_memory(error):
                release_memory()
                self._note_split(last - first, len(slots))
            if size == 1:
                row, slot = (rows[first], first) if last > first else (groups[0][0], slots[0])
                with _inference():
                    self._cache.clear(slot)
                failed.append(Answer(row.request.at, row.new, error))
                continue
            work += _halves(first, last, groups)
        self._steps_since_split += 1
        if self._steps_since_split >= RECOVERY_STEPS:
            self._prompt_tokens = min(2 * self._prompt_tokens, self.limits.prompt_tokens)
            self._rows_a_pass *= 2
            self._steps_since_split = 0
        for slot, token in chosen.items():
            rows[slot].new.append(token)
        gone = {answer.at for answer in failed}
        self._drop(rows, [slot for slot in range(at_work) if rows[slot].request.at in gone])
        return failed

    def _note_split(self, rows: int, entering: int) -> None:
        """Fewer rows, or fewer prompts, in the next steps: what did not fit is not tried again at once."""
        if entering:
            self._prompt_tokens = max(1, self._prompt_tokens // 2)
        else:
            self._rows_a_pass = max(1, rows // 2)
        self._steps_since_split = 0
        self._tell(rows + entering)

    def _tell(self, size: int) -> None:
        self.figures.splits.append(size)
        if self.on_split is not None:
            self.on_split(size)

    def _leave(self, rows: list[_Row]) -> list[Answer]:
        """Take out the rows that have ended."""
        over = [slot for slot, row in enumerate(rows) if row.new[-1] in self.ends or len(row.new) >= row.request.room]
        answers = [Answer(rows[slot].request.at, rows[slot].new) for slot in over]
        self._drop(rows, over)
        return answers

    def _drop(self, rows: list[_Row], slots: Sequence[int]) -> None:
        """Take rows out of `slots`; the last rows move into the gaps, so that slots in use stand together."""
        with _inference():
            for slot in sorted(slots, reverse=True):
                last = rows.pop()
                if slot < len(rows):
                    # The newest token is not in the cache yet.
                    self._cache.move(len(rows), slot, last.position)
                    rows[slot] = last

    def _forward(
        self, rows: Sequence[_Row], first: int, groups: Sequence[Sequence[_Row]], slots: Sequence[int]
    ) -> list[int]:
        """The next token of `rows`, which hold the slots from `first`, and then of the groups' rows."""
        import torch

        began = time.perf_counter()
        device = self.generator.device
        line = [row.new[-1] for row in rows]
        positions = [row.position for row in rows]
        wanted = list(range(len(rows)))
        segments: list[Segment] = []
        free = iter(slots)
        for group in groups:
            taken = [next(free) for _ in group]
            read = self._known
            # What a group shares may be no more than what all prompts share.
            prefix = group[0].request.prefix if group[0].request.prefix > read else 0
            if prefix:
                segments.append(Segment(len(line), len(line) + prefix - read, taken, read, inherits=True))
                line += group[0].request.ids[read:prefix]
                positions += range(read, prefix)
                read = prefix
            for row, slot in zip(group, taken, strict=True):
                rest = row.request.ids[read:]
                segments.append(Segment(len(line), len(line) + len(rest), [slot], read, inherits=not prefix))
                line += rest
                positions += range(read, read + len(rest))
                wanted.append(len(line) - 1)
        if len(line) == 1:
            # A matrix product of one row may be another routine, with another order of summation.
            line, positions = line * 2, positions * 2
            segments.append(Segment(1, 2, [first if rows else slots[0]], positions[0]))
        with _inference():
            packed = torch.tensor([line, positions], device=device)
            step = Step(
                self._cache,
                (first, first + len(rows)),
                positions[: len(rows)],
                packed[1, : len(rows)],
                segments,
                self.limits.call_tokens,
                self._beginning,
            )
            logits = self.generator.model(
                input_ids=packed[:1],
                position_ids=packed[1:],
                use_cache=False,
                logits_to_keep=torch.tensor(wanted, device=device),
                flat=step,
            ).logits[0]
            tokens = self._choose(logits, [*rows, *(row for group in groups for row in group)])
        self._count(step, len(line) - len(rows) if groups else 0, time.perf_counter() - began)
        return tokens

    def _choose(self, logits: torch.Tensor, rows: Sequence[_Row]) -> list[int]:
        """The next token of each row, from logits of shape (rows, vocabulary)."""
        import torch

        # In float32 as in `generate`; torch is several times slower at bfloat16's largest.
        logits = logits.float()
        highest, at = logits.max(dim=-1)
        if not bool(highest.isfinite().all()):
            raise ValueError("the model's logits are not finite; --dtype float32 may help")
        if not self.decoding.do_sample:
            return at.tolist()
        if logits.device.type == "mps":
            # No float64 there.
            logits = logits.cpu()
        probabilities = self._warp(logits).softmax(dim=-1).double().cumsum(dim=-1)
        drawn = torch.stack([row.draws[len(row.new)] for row in rows]).to(logits.device)
        # The first token whose cumulated probability exceeds the draw, so that none of probability 0 is taken.
        points = (drawn * probabilities[:, -1])[:, None]
        return torch.searchsorted(probabilities, points, right=True)[:, 0].clamp(max=logits.shape[1] - 1).tolist()

    def _count(self, step: Step, prompt_tokens: int, seconds: float) -> None:
        figures = self.figures
        if prompt_tokens:
            figures.prompt_steps += 1
            figures.prompt_tokens += prompt_tokens
            figures.prompt_step_rows += step.rows
            figures.prompt_seconds += seconds
        else:
            figures.answer_steps += 1
            figures.answer_rows += step.rows
            figures.answer_seconds += seconds
            figures.answer_cache_bytes += step.tokens_read * self._cache.bytes_per_token


def _halves(first: int, last: int, groups: list[list[_Row]]) -> list[tuple[int, int, list[list[_Row]]]]:
    """Two steps in place of one; the one to take first stands last."""
    if first < last and groups:
        return [(first, first, groups), (first, last, [])]
    if groups:
        if len(groups) == 1:
            (group,) = groups
            middle = (len(group) + 1) // 2
            return [(first, first, [group[middle:]]), (first, first, [group[:middle]])]
        middle = (len(groups) + 1) // 2
        return [(first, first, groups[middle:]), (first, first, groups[:middle])]
    middle = (first + last + 1) // 2
    return [(middle, last, []), (first, middle, [])]


class _attention:
    """While it lasts, the model's attention is `flat_attention`."""

    def __init__(self, model: Any):
        self.model = model

    def __enter__(self) -> None:
        register()
        self.before = self.model.config._attn_implementation
        try:
            self.model.set_attn_implementation(NAME)
        except BaseException:
            self.model.set_attn_implementation(self.before)
            raise

    def __exit__(self, *_: object) -> None:
        self.model.set_attn_implementation(self.before)


def _inference() -> Any:
    import torch

    return torch.inference_mode()


def _warpers(decoding: Decoding) -> Callable[[torch.Tensor], torch.Tensor]:
    """Temperature, top-k and top-p, in the order and by the code of transformers' ``generate``."""

    def warp(logits: torch.Tensor) -> torch.Tensor:
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        ids: Any = None
        if decoding.temperature != 1.0:
            logits = TemperatureLogitsWarper(decoding.temperature)(ids, logits)
        if decoding.top_k:
            logits = TopKLogitsWarper(decoding.top_k)(ids, logits)
        if decoding.top_p < 1.0:
            logits = TopPLogitsWarper(decoding.top_p)(ids, logits)
        return logits

    return warp


def why_not_in_flight(generator: Generator) -> str | None:
    """Why a model cannot be answered in flight, None where it can.

    Two made-up prompts with a shared beginning are answered for three tokens in both ways, and the logits compared:
    an architecture that keeps its positions or its state elsewhere is found out before it can answer wrongly.
    """
    import inspect

    model = generator.model
    if generator.kind != "causal":
        return "it is an encoder-decoder"
    if not getattr(model, "_supports_attention_backend", False):
        return f"{type(model).__name__} does not let its attention be exchanged"
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return f"{type(model).__name__} computes the logits of every token"
    config = model.config.get_text_config()
    if getattr(config, "attention_chunk_size", None):
        return "it looks back in chunks"
    if "longrope" in str(getattr(config, "rope_parameters", None)):
        return "its positions turn by the longest row of a batch"
    try:
        apart, windows = _distance(generator)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, NotImplementedError) as error:
        if is_out_of_memory(error):
            raise
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
    slides = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    if (slides or "sliding_attention" in (getattr(config, "layer_types", None) or ())) and windows == {None}:
        return "its window of attention is nowhere to be seen"
    import torch

    allowed = {torch.float32: 1e-3, torch.float16: 0.05}.get(model.dtype, 0.25)
    # Written so that a distance that is no number is refused as well.
    return None if apart <= allowed else f"its logits come out differently (by {apart:.2g} standard deviations)"


def read_only(generator: Generator, prompts: Sequence[Sequence[int]]) -> int:
    """Read prompts as a step of a run does, and forget them: a trial of the memory that it takes.

    Returns the bytes of keys and values that one token of a row takes.
    """
    import torch

    ends = list(accumulate(map(len, prompts)))
    segments = [Segment(end - len(ids), end, [slot]) for slot, (ids, end) in enumerate(zip(prompts, ends, strict=True))]
    none = torch.zeros(0, dtype=torch.long, device=generator.device)
    with torch.inference_mode(), _attention(generator.model):
        cache = SlotCache(len(prompts), max(map(len, prompts)))
        step = Step(cache, (0, 0), [], none, segments)
        line = [token for ids in prompts for token in ids]
        positions = [position for ids in prompts for position in range(len(ids))]
        _flat_logits(generator.model, line, positions, [end - 1 for end in ends], step)
    return cache.bytes_per_token


def _distance(generator: Generator) -> tuple[float, set[int | None]]:
    """The distance between the logits of the two ways, root mean square, in standard deviations of the logits.

    And the windows of attention that the layers named.
    """
    import torch

    model, device = generator.model, generator.device
    vocabulary = model.get_input_embeddings().weight.shape[0]
    source = torch.Generator().manual_seed(0)
    prompts = [torch.randint(vocabulary, (length,), generator=source).tolist() for length in (9, 14)]
    prompts[1][:5] = prompts[0][:5]
    new = torch.randint(vocabulary, (2, 2), generator=source).tolist()
    with torch.inference_mode():
        plain = []
        for prompt, added in zip(prompts, new, strict=True):
            logits = model(input_ids=torch.tensor([prompt + added], device=device), use_cache=False).logits[0]
            plain.append(logits[len(prompt) - 1 :].float())
        with _attention(model):
            cache = SlotCache(2, 64)
            line = prompts[0] + prompts[1][5:]
            positions = [*range(9), *range(5, 14)]
            segments = [Segment(0, 5, [0, 1]), Segment(5, 9, [0], 5), Segment(9, 18, [1], 5)]
            none = torch.zeros(0, dtype=torch.long, device=device)
            first = Step(cache, (0, 0), [], none, segments)
            found = [_flat_logits(model, line, positions, [8, 17], first)]
            for number in range(2):
                positions = [9 + number, 14 + number]
                at = torch.tensor(positions, device=device)
                step = Step(cache, (0, 2), positions, at, [])
                found.append(_flat_logits(model, [added[number] for added in new], positions, [0, 1], step))
    flat = torch.stack(found, dim=1)
    expected = torch.stack(plain)
    return float((flat - expected).square().mean().sqrt() / expected.std()), first.windows


def _flat_logits(model: Any, line: list[int], positions: list[int], wanted: list[int], step: Step) -> torch.Tensor:
    import torch

    device = step.positions.device
    return (
        model(
            input_ids=torch.tensor([line], device=device),
            position_ids=torch.tensor([positions], device=device),
            use_cache=False,
            logits_to_keep=torch.tensor(wanted, device=device),
            flat=step,
        )
        .logits[0]
        .float()
    )
