"""Whether vLLM says what the transformers engine says: greedy token ids of the two on real rows, in the same format.

The transformers engine answers in this process, the vLLM engine in one of another Python (``--vllm_python``, with vLLM
installed; the toolkit is taken from this checkout).  Where answers part, the transformers engine's model is given the
prompt and what both had said up to there: the gap between its logits of the two tokens tells whether rounding decided.
The result holds ids of rows and tokens, no text.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "vllm-agreement-cpu.json"

Ids = dict[str, list[int]]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Greedy token ids of the vLLM engine against the transformers engine.")
    parser.add_argument("--vllm_python", required=True, help="a Python that has vLLM")
    parser.add_argument("--model", default="embedded:smollm2", help="causal checkpoint (default the embedded one)")
    parser.add_argument("--lora_path", help="adapter folder")
    parser.add_argument("--rows", type=int, default=100, help="rows, spread over all datasets (default 100)")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="limit of an answer (default 128)")
    parser.add_argument("--dtype", default="float32", help="number format of both (default float32)")
    parser.add_argument("--data_root", required=True, help="folder with test_data/, the released rows")
    parser.add_argument("--out", type=Path, default=RESULT, help=f"JSON file (default {RESULT.relative_to(ROOT)})")
    return parser.parse_args(argv)


def answered(engine: Any, tokenizer: Any, prompts: Sequence[Any]) -> dict[str, Any]:
    """Token ids that the engine decodes for each row, up to the end token; seconds; failed rows."""
    decoded: list[list[int]] = []
    decode = tokenizer.decode

    def kept(ids: Sequence[int], **options: Any) -> str:
        decoded.append(list(ids))
        return decode(ids, **options)

    tokenizer.decode = kept
    found: Ids = {}
    failed: dict[str, str] = {}
    started = time.perf_counter()
    for group in engine.complete(prompts):
        for completion in group:
            if completion.error:
                failed[completion.id] = completion.error
        spoken = [completion.id for completion in group if not completion.error]
        found.update(zip(spoken, decoded, strict=True))
        decoded.clear()
    seconds = time.perf_counter() - started
    tokenizer.decode = decode
    return {"ids": found, "failed": failed, "seconds": round(seconds, 1), "engine": engine.describe()}


def request_of(work: dict[str, Any]) -> Any:
    from imhi.engines import Decoding, EngineRequest

    return EngineRequest(
        model=work["model"],
        lora_path=work["lora_path"],
        dtype=work["dtype"],
        decoding=Decoding(max_new_tokens=work["max_new_tokens"]),
    )


def prompts_of(work: dict[str, Any]) -> list[Any]:
    from imhi.engines import Prompt

    return [Prompt(id, text) for id, text in work["prompts"]]


def vllm_side(path: Path) -> None:
    """In the Python that has vLLM: answer the rows of the work file, leave the answers beside it."""
    from imhi.engines.vllm_engine import prepare

    work = json.loads(path.read_text(encoding="utf-8"))
    engine = prepare(request_of(work)).load()
    try:
        result = answered(engine, engine.tokenizer, prompts_of(work))
    finally:
        engine.close()
    path.with_suffix(".answers.json").write_text(json.dumps(result), encoding="utf-8")


def ask_vllm(python: str, work: dict[str, Any]) -> dict[str, Any]:
    # The posts are removed with the folder.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "work.json"
        path.write_text(json.dumps(work), encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
        subprocess.run([python, __file__, "--side", str(path)], env=environment, check=True)
        answers: dict[str, Any] = json.loads(path.with_suffix(".answers.json").read_text(encoding="utf-8"))
        return answers


def parting(
    model: Any, prompt: Sequence[int], ours: Sequence[int], theirs: Sequence[int], ends: Sequence[int]
) -> dict[str, Any]:
    """Where two answers part, and the model's logits there: of either token, and the gap between them."""
    import torch

    at = next(
        (at for at, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other),
        min(len(ours), len(theirs)),
    )
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*prompt, *ours[:at]]])).logits[0, -1].float()
    # Who stopped first said an end token, the likeliest of them.
    end = max(ends, key=lambda token: float(logits[token]))
    tokens = [side[at] if at < len(side) else end for side in (ours, theirs)]
    scores = [float(logits[token]) for token in tokens]
    likeliest = torch.topk(logits, 2).values.tolist()
    return {
        "new_token": at,
        "transformers": tokens[0],
        "vllm": tokens[1],
        "logit_gap": round(scores[0] - scores[1], 6),
        "gap_of_two_likeliest": round(likeliest[0] - likeliest[1], 6),
    }


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    from imhi.checkpoints import load_generator, locate_generator
    from imhi.data import load_suite, resolve_data_root
    from imhi.devices import pick_dtype
    from imhi.engines.transformers_engine import prepare
    from imhi.provenance import environment, now

    spec = locate_generator(arguments.model, lora_path=arguments.lora_path)
    rows = load_suite(resolve_data_root(arguments.data_root), "IMHI").rows
    chosen = [rows[number * len(rows) // arguments.rows] for number in range(arguments.rows)]
    work = {
        # A converted GGUF file is a folder to both.
        "model": str(spec.folder),
        "lora_path": str(spec.adapter) if spec.adapter else None,
        "dtype": arguments.dtype,
        "max_new_tokens": arguments.max_new_tokens,
        "prompts": [(row.id, row.query) for row in chosen],
    }
    theirs = ask_vllm(arguments.vllm_python, work)
    engine = prepare(request_of(work)).load()
    ours = answered(engine, engine.generator.tokenizer, prompts_of(work))
    # Not the engine's own model, whose layers are packed: transformers' plain forward.
    plain = load_generator(spec, device="cpu", dtype=pick_dtype(arguments.dtype, "cpu"))
    ends = list(plain.model.generation_config.eos_token_id or [])
    both = [prompt for prompt in prompts_of(work) if prompt.id in ours["ids"] and prompt.id in theirs["ids"]]
    differing = {
        prompt.id: parting(
            plain.model, engine.prompt_token_ids(prompt), ours["ids"][prompt.id], theirs["ids"][prompt.id], ends
        )
        for prompt in both
        if ours["ids"][prompt.id] != theirs["ids"][prompt.id]
    }
    gaps = [abs(found["logit_gap"]) for found in differing.values()]
    return {
        "made": now(),
        "environment": environment(),
        "vllm": theirs["engine"],
        "transformers": ours["engine"],
        "model": arguments.model,
        "lora_path": arguments.lora_path,
        "dtype": arguments.dtype,
        "rows": len(chosen),
        "rows_by_dataset": {
            name: sum(row.dataset == name for row in chosen) for name in {row.dataset: 0 for row in chosen}
        },
        "max_new_tokens": arguments.max_new_tokens,
        "failed": {"transformers": ours["failed"], "vllm": theirs["failed"]},
        "rows_equal": len(both) - len(differing),
        "new_tokens": sum(len(ours["ids"][prompt.id]) for prompt in both),
        "new_tokens_equal_before_parting": sum(
            differing[prompt.id]["new_token"] if prompt.id in differing else len(ours["ids"][prompt.id])
            for prompt in both
        ),
        "largest_logit_gap": max(gaps, default=None),
        "median_logit_gap": statistics.median(gaps) if gaps else None,
        "differing": differing,
        "seconds": {"transformers": ours["seconds"], "vllm": theirs["seconds"]},
    }


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["--side"]:
        vllm_side(Path(given[1]))
        return 0
    arguments = parse(given)
    from imhi.data import write_text_atomically
    from imhi.talk import show

    result = compare(arguments)
    write_text_atomically(arguments.out, json.dumps(result, indent=1) + "\n")
    show(
        f"{result['rows_equal']} of {result['rows']} rows have equal token ids in {result['dtype']}; largest logit gap "
        f"where they part: {result['largest_logit_gap']}; {arguments.out}"
    )
    return 0


if __name__ == "__main__":
    from imhi.errors import run_main

    raise SystemExit(run_main(main))
