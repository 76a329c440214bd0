"""How many rows fit on a device at once.

On a GPU the longest prompts of the run are read once for a trial; what they leave free is given to keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from imhi.batching import is_out_of_memory, release_memory
from imhi.checkpoints import Generator
from imhi.engines.in_flight import Limits, read_only
from imhi.errors import UserError
from imhi.talk import say

__all__ = ["cache_bytes_per_token", "plan_limits"]

# From this many rows on, a step on a CPU takes as long as its rows one after the other.
CPU_ROWS, CPU_CACHE_TOKENS, CPU_PROMPT_TOKENS = 64, 32_768, 512
# Weights are read once a step, whatever the rows: the more rows the better, until attention takes most of the time.
GPU_ROWS, GPU_PROMPT_TOKENS = 256, 8192
# Rows enter a GPU several at a time, so that most steps only answer.
GPU_FREE_PART = 16
# Keys of a row that are read in the time of starting one more kernel.
GPU_CALL_TOKENS = 4096
# Of the memory that the trial leaves free; the rest is for what the allocator cannot use.
GPU_MEMORY_PART, TRIAL_MARGIN = 0.9, 1.25
CPU_MEMORY_PART = 0.25


def cache_bytes_per_token(config: Any, itemsize: int) -> int:
    """Bytes of keys and values that a token of one row takes in all layers, from a model's config."""
    layers = _first(config, "num_hidden_layers", "num_layers")
    heads = _first(config, "num_attention_heads", "num_heads")
    shared = _first(config, "num_key_value_heads") or heads
    width = _first(config, "head_dim", "d_kv") or _first(config, "hidden_size", "d_model") // max(heads, 1)
    # An encoder-decoder keeps those of the prompt beside those of the answer.
    kinds = 2 if getattr(config, "is_encoder_decoder", False) else 1
    return int(2 * kinds * layers * shared * width * itemsize)


def _first(config: Any, *names: str) -> int:
    """The first of these settings that a config has and that is not null, else 0."""
    return next((int(value) for name in names if (value := getattr(config, name, None))), 0)


def plan_limits(
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int | None = None,
    in_flight: bool = True,
    free_memory: Callable[[], int] | None = None,
    peak_memory: Callable[[Callable[[], int]], tuple[int, int]] | None = None,
) -> Limits:
    """Rows, cache tokens and prompt tokens that fit.

    Parameters
    ----------
    prompts : token ids of all prompts of the run.
    batch_size : the user's limit of rows; None: no other than memory's and the device's.
    in_flight : whether rows enter and leave; else whole batches are planned within the same limits.
    free_memory, peak_memory : bytes that are free, and what a trial returns with the bytes that it takes at most; by
        default those of the model's device.
    """
    itemsize = generator.model.dtype.itemsize
    per_token = max(1, cache_bytes_per_token(generator.model.config.get_text_config(), itemsize))
    if not generator.device.startswith("cuda"):
        free = (free_memory or _host_memory)()
        tokens = min(CPU_CACHE_TOKENS, int(CPU_MEMORY_PART * free) // per_token) if free else CPU_CACHE_TOKENS
        return Limits(batch_size or CPU_ROWS, max(1, tokens), CPU_PROMPT_TOKENS)
    prompt_tokens, trial = GPU_PROMPT_TOKENS, 0
    if in_flight:
        prompt_tokens, per_token, trial = _trial(generator, prompts, peak_memory or _peak_on(generator.device))
    free = (free_memory or (_free_on if in_flight else _left_by(generator.model))(generator.device))()
    tokens = max(1, int(GPU_MEMORY_PART * (free - TRIAL_MARGIN * trial)) // per_token)
    slots = batch_size or GPU_ROWS
    limits = Limits(slots, tokens, prompt_tokens, max(1, min(slots, GPU_ROWS) // GPU_FREE_PART), GPU_CALL_TOKENS)
    say(
        f"{generator.device}: up to {limits.slots} rows at once, {tokens:,} tokens of keys and values "
        f"({tokens * per_token / 2**30:.1f} GiB), {prompt_tokens:,} prompt tokens a step"
    )
    return limits


def _trial(
    generator: Generator, prompts: Sequence[Sequence[int]], peak_memory: Callable[[Callable[[], int]], tuple[int, int]]
) -> tuple[int, int, int]:
    """Prompt tokens of a step that fit; bytes of keys and values a token; bytes that reading takes at most.

    A prompt that does not even fit alone is left to fail by itself.
    """
    order = sorted(prompts, key=len, reverse=True)
    budget = GPU_PROMPT_TOKENS
    while order:
        chosen: list[Sequence[int]] = []
        for prompt in order:
            if chosen and sum(map(len, chosen)) + len(prompt) > budget:
                break
            chosen.append(prompt)
        try:
            per_token, peak = peak_memory(lambda: read_only(generator, chosen))  # noqa: B023
            return budget, max(1, per_token), peak
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        release_memory()
        if len(chosen) == 1:
            order = order[1:]
        else:
            budget = max(len(order[0]), budget // 2)
    raise UserError(
        f"{generator.device}: not one prompt fits into memory beside the model; --dtype bfloat16 or a smaller model "
        "needs less"
    )


def _peak_on(device: str) -> Callable[[Callable[[], int]], tuple[int, int]]:
    def peak(work: Callable[[], int]) -> tuple[int, int]:
        import torch

        torch.cuda.reset_peak_memory_stats(torch.device(device))
        before = torch.cuda.memory_allocated(torch.device(device))
        found = work()
        return found, int(torch.cuda.max_memory_allocated(torch.device(device)) - before)

    return peak


def _left_by(model: Any) -> Callable[[str], Callable[[], int]]:
    """What a model leaves of its device, whatever else is on it now: whole batches must not move with that."""

    def on(device: str) -> Callable[[], int]:
        def left() -> int:
            import torch

            weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
            # Half of it: no trial has told what activations take.
            return (int(torch.cuda.get_device_properties(torch.device(device)).total_memory) - weights) // 2

        return left

    return on


def _free_on(device: str) -> Callable[[], int]:
    def free() -> int:
        import torch

        release_memory()
        return int(torch.cuda.mem_get_info(torch.device(device))[0])

    return free


def _host_memory() -> int:
    """Bytes of the host's memory, 0 where it does not say; all of them, so that a plan does not move with the hour."""
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text(encoding="ascii").splitlines() if meminfo.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:")), 0)
