"""Whether batches change answers: token ids of the toolkit against one row at a time, in float32 and in bfloat16.

The judge is transformers' own ``generate`` on the plain model, a row at a time, in float32.  Against it stand the toolkit
in float32, whose token ids must be the same, and in bfloat16 (where the hardware has it) the toolkit, the toolkit with
``--deterministic``, and the published loop (batches of eight in file order, padded), whose answers rounding moves.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from generation import pick_rows
from measuring import RESULTS, machine, publish

from imhi.checkpoints import load_generator, locate_generator
from imhi.commands import positive
from imhi.data import load_suite, resolve_data_root
from imhi.devices import pick_device, pick_dtype
from imhi.engines import Decoding, Prompt
from imhi.engines.transformers_engine import load_engine
from imhi.errors import run_main
from imhi.provenance import environment, now
from imhi.talk import progress_bar, say, table

Ids = dict[str, list[int]]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Token ids of the toolkit against generate, a row at a time.")
    parser.add_argument("--model", default="embedded:smollm2", help="checkpoint (default the embedded one)")
    parser.add_argument("--rows", type=positive, default=200, help="rows, in the datasets' proportions (default 200)")
    parser.add_argument("--max_new_tokens", type=positive, default=128, help="limit of an answer (default 128)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default cpu)")
    parser.add_argument("--data_root", help="folder with test_data/ (default $IMHI_DATA, else the sample rows)")
    parser.add_argument("--out", type=Path, help="JSON file (default benchmarks/results/exactness-DEVICE.json)")
    return parser.parse_args(argv)


def plain(prompts: Sequence[Prompt], arguments: argparse.Namespace, device: str, dtype: str, batch: int) -> Ids:
    """New token ids by ``generate`` on the model as transformers loads it."""
    import torch

    spec = locate_generator(arguments.model)
    generator = load_generator(spec, device=device, dtype=pick_dtype(dtype, device))
    ends = set(generator.model.generation_config.eos_token_id or [])
    found = {}
    with progress_bar(len(prompts), f"generate, {dtype}, batch {batch}") as bar:
        for start in range(0, len(prompts), batch):
            part = prompts[start : start + batch]
            inputs = generator.tokenizer([prompt.text for prompt in part], return_tensors="pt", padding=batch > 1)
            inputs.pop("token_type_ids", None)
            with torch.inference_mode():
                output = generator.model.generate(**inputs.to(device), max_new_tokens=arguments.max_new_tokens)
            width = inputs["input_ids"].shape[1] if generator.kind == "causal" else 1
            for prompt, row in zip(part, output[:, width:].tolist(), strict=True):
                end = next((at for at, token in enumerate(row) if token in ends), len(row))
                found[prompt.id] = row[:end]
            bar.update(len(part))
    return found


def toolkit(prompts: Sequence[Prompt], arguments: argparse.Namespace, device: str, dtype: str, **options: Any) -> Ids:
    """New token ids by the engine."""
    decoding = Decoding(max_new_tokens=arguments.max_new_tokens)
    engine = load_engine(locate_generator(arguments.model), decoding, device=device, dtype=dtype, **options)
    kept: list[list[int]] = []
    decode = engine.generator.tokenizer.decode

    def spy(ids: list[int], **settings: Any) -> Any:
        kept.append(list(ids))
        return decode(ids, **settings)

    engine.generator.tokenizer.decode = spy
    found: Ids = {}
    with progress_bar(len(prompts), f"toolkit, {dtype}") as bar:
        for group in engine.complete(prompts):
            found.update(zip((completion.id for completion in group), kept[-len(group) :], strict=True))
            bar.update(len(group))
    return found


def agreement(found: Ids, judge: Ids) -> dict[str, float | int]:
    """Rows with the same token ids; the mean share of the longer answer that both begin with."""
    shares = []
    for id, expected in judge.items():
        same = next((at for at, pair in enumerate(zip(found[id], expected, strict=False)) if pair[0] != pair[1]), None)
        common = min(len(found[id]), len(expected)) if same is None else same
        shares.append(common / max(len(found[id]), len(expected), 1) if found[id] or expected else 1.0)
    identical = sum(found[id] == expected for id, expected in judge.items())
    return {
        "rows": len(judge),
        "identical": identical,
        "identical_share": round(identical / len(judge), 4),
        "mean_common_prefix": round(sum(shares) / len(shares), 4),
    }


def run(arguments: argparse.Namespace) -> int:
    device = pick_device(device=arguments.device)
    root = resolve_data_root(arguments.data_root)
    say(root.describe())
    kind = locate_generator(arguments.model).kind
    rows = pick_rows(load_suite(root, "IMHI" if kind == "causal" else "IMHI-completion"), arguments.rows)
    prompts = [Prompt(row.id, row.query) for row in rows]
    ways: dict[str, Any] = {"toolkit, float32": lambda: toolkit(prompts, arguments, device, "float32")}
    if str(pick_dtype("auto", device)) == "torch.bfloat16":
        ways |= {
            "toolkit, bfloat16": lambda: toolkit(prompts, arguments, device, "bfloat16"),
            "toolkit, bfloat16, two rows at once": lambda: toolkit(
                prompts, arguments, device, "bfloat16", batch_size=2
            ),
            "toolkit, bfloat16, deterministic": lambda: toolkit(
                prompts, arguments, device, "bfloat16", deterministic=True
            ),
            "published loop, bfloat16": lambda: plain(prompts, arguments, device, "bfloat16", 8),
        }
    judge = plain(prompts, arguments, device, "float32", 1)
    found, results = {}, {}
    for name, way in ways.items():
        began = time.perf_counter()
        found[name] = way()
        results[name] = {**agreement(found[name], judge), "seconds": round(time.perf_counter() - began, 1)}
    batched = "toolkit, bfloat16, two rows at once"
    result = {
        "made": now(),
        "device": device,
        "model": arguments.model,
        "rows": len(prompts),
        "new_tokens": sum(map(len, judge.values())),
        "max_new_tokens": arguments.max_new_tokens,
        "judge": "transformers' generate, a row at a time, float32",
        "results": results,
        "the same answers at two rows at once": agreement(found[batched], found["toolkit, bfloat16"])
        if batched in found
        else None,
        "machine": machine(device),
        "environment": environment(),
    }
    out = arguments.out or RESULTS / f"exactness-{device.partition(':')[0]}.json"
    lines = [
        [name, f"{one['identical']} of {one['rows']}", f"{one['mean_common_prefix']:.3f}", f"{one['seconds']:.0f}"]
        for name, one in results.items()
    ]
    headers = ["against one row at a time in float32", "the same ids", "mean common prefix", "seconds"]
    publish(result, table(headers, lines), out)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(lambda: run(parse())))
