"""Training a responder, from a data root to a folder that ``IMHI.py`` takes: what ``imhi train responder`` runs.

transformers' Trainer does the steps (on one device, or on many under ``accelerate launch``), PEFT the adapter.  The
batches of all epochs are planned beforehand, so that the same command takes up an interrupted training at its last
checkpoint and, on a CPU, ends with the same weights, bit for bit.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from imhi.batching import is_out_of_memory
from imhi.checkpoints import (
    EMBEDDED,
    TRAINING_RECORD,
    Generator,
    GeneratorSpec,
    fingerprint,
    load_generator,
    locate_generator,
)
from imhi.cpu import keep_freed_memory
from imhi.data import DataRoot, write_text_atomically
from imhi.engines import Decoding
from imhi.engines.transformers_engine import TransformersEngine
from imhi.errors import UserError
from imhi.locks import only_process
from imhi.provenance import environment, git_state, now
from imhi.talk import say, some
from imhi.training.responder.card import responder_card
from imhi.training.responder.encoding import encode
from imhi.training.responder.mixture import plan_batches, rows_per_epoch
from imhi.training.responder.recipe import BEST_BY, ResponderRecipe
from imhi.training.responder.rows import REASONS, TrainingRows, read_training_rows
from imhi.training.responder.trainer import BEST, BestKeeper, last_checkpoint, make_trainer
from imhi.training.responder.validation import ask_rows, judge, validation_sample

__all__ = ["RECORD", "train_responder"]

RECORD = TRAINING_RECORD
CHECKPOINTS = "checkpoints"
IDENTITY = "identity.json"


@dataclass(frozen=True)
class Hardware:
    """Where and how a training computes; not part of what it computes, but for the last bits.

    Attributes
    ----------
    device : "cpu" or "cuda"; which GPU is accelerate's to say.
    dtype : "float32" or "bfloat16"; in bfloat16 the frozen base of an adapter is stored in it, trained weights never are.
    accumulation : parts of a step that are computed one after another.
    gradient_checkpointing : compute activations again instead of keeping them.
    base_4bit : store the frozen base in NF4 (Dettmers et al., "QLoRA", NeurIPS 2023); needs bitsandbytes.
    save_minutes : between two checkpoints.
    """

    device: str = "cpu"
    dtype: str = "float32"
    accumulation: int = 1
    gradient_checkpointing: bool = False
    base_4bit: bool = False
    save_minutes: float = 10.0


def train_responder(
    root: DataRoot,
    out: Path,
    recipe: ResponderRecipe,
    *,
    datasets: Sequence[str] = (),
    made_up: DataRoot | None = None,
    hardware: Hardware | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train a responder into `out`, or go on with an interrupted training of it; returns what ``responder.json`` holds.

    Parameters
    ----------
    datasets : learn from these only; none: from all that have training files.
    made_up : the toolkit's own rows, for sets without training files (`read_training_rows`).
    overwrite : throw away what `out` holds of another training.

    Raises
    ------
    UserError
        Where `out` holds another training, the data root or the base is not usable, or memory does not suffice.
    """
    hardware = hardware or Hardware()
    spec = locate_generator(recipe.base)
    if Path(recipe.base).expanduser().exists():
        # The adapter may be used from another directory.
        recipe = replace(recipe, base=str(Path(recipe.base).expanduser().resolve()))
    if spec.kind == "seq2seq" and recipe.chat_template:
        raise UserError("--chat_template: encoder-decoders are not asked in turns; leave the flag out")
    _check_parts(recipe, hardware)
    rows = read_training_rows(root, recipe.form, datasets=datasets, made_up=made_up)
    if _is_first():
        _say_rows(rows)
    out.mkdir(parents=True, exist_ok=True)
    _meet(hardware)
    with only_process(out, "training into it") if _is_first() else nullcontext():
        identity = {
            "recipe": json.loads(json.dumps(asdict(recipe))),
            "dtype": hardware.dtype,
            "device": hardware.device,
            "base_4bit": hardware.base_4bit,
            "base_files": fingerprint(spec.folder),
            "data": rows.files,
            "datasets": sorted(rows.training),
        }
        if _is_first():
            _open(out, identity, overwrite=overwrite)
        _meet(hardware)
        if (out / RECORD).exists():
            say(f"{out}: this training was finished before; nothing to do")
            return dict(json.loads((out / RECORD).read_text(encoding="utf-8")))
        return _train(out, recipe, spec, rows, hardware, {**identity, "sample_rows": root.is_samples})


def _is_first() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _meet(hardware: Hardware) -> None:
    """Where several processes train, wait for all of them."""
    if _processes() > 1:
        from accelerate import PartialState

        PartialState(cpu=hardware.device == "cpu").wait_for_everyone()


def _open(out: Path, identity: dict[str, Any], *, overwrite: bool) -> None:
    """Make `out` this training's folder, or stop where it holds what this training would not make again."""
    at = out / CHECKPOINTS / IDENTITY
    record = out / RECORD
    earlier: dict[str, Any] | None = None
    for path in (record, at):
        if earlier is None and path.exists():
            earlier = json.loads(path.read_text(encoding="utf-8"))
    if earlier is None and (strangers := [path.name for path in out.iterdir() if path.name != ".lock"]):
        raise UserError(
            f"--out: {out} holds {some(strangers)}, and not from a training of this toolkit; give a folder of its own"
        )
    changed = [name for name in identity if earlier is not None and identity[name] != earlier.get(name)]
    if changed and not overwrite:
        raise UserError(f"{out} holds a training with another {', '.join(changed)}; give another --out, or --overwrite")
    if overwrite:
        for path in out.iterdir():
            if path.name != ".lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not record.exists():
        at.parent.mkdir(exist_ok=True)
        write_text_atomically(at, json.dumps(identity, indent=1, sort_keys=True))


def _say_rows(rows: TrainingRows) -> None:
    counts = ", ".join(f"{name} {len(found)}" for name, found in rows.training.items())
    held = ", ".join(f"{name} {len(found)}" for name, found in rows.validation.items())
    say(f"{rows.form} form, training rows: {counts}; validation rows: {held or 'none'}")
    for reason, by_dataset in rows.left_out.items():
        listed = ", ".join(f"{name} {count}" for name, count in by_dataset.items())
        say(f"left out, {REASONS[reason]}: {listed}")


# --- the training ---------------------------------------------------------------------------------------------------


def _train(
    out: Path,
    recipe: ResponderRecipe,
    spec: GeneratorSpec,
    rows: TrainingRows,
    hardware: Hardware,
    facts: dict[str, Any],
) -> dict[str, Any]:
    import torch

    torch.manual_seed(recipe.seed)
    if hardware.device == "cpu":
        keep_freed_memory()
    generator = _load(spec, recipe, hardware)
    asker = TransformersEngine(
        generator,
        Decoding(max_new_tokens=recipe.max_new_tokens, chat_template=recipe.chat_template),
        batching="buckets" if hardware.base_4bit or _processes() > 1 else None,
    )
    limit = min(recipe.max_tokens, generator.context or recipe.max_tokens)
    encoded = {name: [encode(row, asker, max_tokens=limit) for row in found] for name, found in rows.training.items()}
    held = [
        encode(row, asker, max_tokens=limit)
        for row in validation_sample(rows.validation, recipe.loss_rows, recipe.seed)
    ]
    asked = validation_sample(rows.validation, recipe.asked_rows, recipe.seed)
    if not held:
        raise UserError(
            f"no validation rows: the data root has no val files, and no set of {', '.join(rows.training)} has enough"
        )
    batches = plan_batches(
        {name: [len(row) for row in found] for name, found in encoded.items()},
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        temperature=recipe.temperature,
        seed=recipe.seed,
        rows=recipe.rows_per_epoch or None,
    )
    if recipe.max_steps:
        batches = batches[: recipe.max_steps]
    planned = [encoded[name][row] for batch in batches for name, row in batch]
    if generator.kind == "causal" and sum(row.cut > 0 for row in planned):
        cut = len({id(row) for row in planned if row.cut})
        say(f"{cut} rows are longer than {limit} tokens: the middle of their post is left out")
    model = _with_adapter(generator, recipe, hardware)
    keeper = BestKeeper(recipe.best_by, higher=BEST_BY[recipe.best_by], patience=recipe.patience or None)
    checkpoints = out / CHECKPOINTS

    def ask(model: Any) -> dict[str, Any]:
        bare = getattr(model, "module", model)
        # PEFT has put the matrices into the base's own layers: asked by itself, it answers with them.
        bare = bare.get_base_model() if hasattr(bare, "peft_config") else bare
        asker.generator = replace(generator, model=bare, device=str(next(bare.parameters()).device))
        return judge(asked, ask_rows(asker, asked))

    trainer = make_trainer(
        model,
        _arguments(checkpoints, recipe, hardware, steps=len(batches)),
        planned,
        held,
        pad=int(generator.tokenizer.pad_token_id),
        kind=generator.kind,
        head_weight=recipe.head_weight,
        keeper=keeper,
        save_best=lambda trainer: _save_best(trainer, checkpoints / BEST),
        ask=ask if asked else None,
        save_minutes=hardware.save_minutes,
    )
    earlier = last_checkpoint(checkpoints)
    if earlier is not None and _is_first():
        say(f"{out}: going on from step {earlier.name.rpartition('-')[2]} of {len(batches)}")
    try:
        trainer.train(resume_from_checkpoint=str(earlier) if earlier else None)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"--batch_size {recipe.batch_size}: a step does not fit into memory on {hardware.device}; add --accumulation, "
            "which takes the same step in smaller parts, or --gradient_checkpointing, and the training goes on"
        ) from None
    if not any(
        "eval_loss" in entry and entry["step"] == trainer.state.global_step for entry in trainer.state.log_history
    ):
        trainer.evaluate()
    best = keeper.best(trainer.state.log_history)
    assert best is not None  # a look at the end is taken above
    record = {
        **facts,
        "format": 1,
        "finished": now(),
        "git": git_state(),
        "environment": environment(),
        "threads": torch.get_num_threads(),
        "processes": _processes(),
        "hardware": asdict(hardware),
        "rows": {
            "training": {name: len(found) for name, found in rows.training.items()},
            "validation": {name: len(found) for name, found in rows.validation.items()},
            "made_up": sorted(name for name, found in rows.training.items() if found[0].made_up),
            "left_out": rows.left_out,
            "drawn_per_epoch": rows_per_epoch(
                {name: len(found) for name, found in encoded.items()}, recipe.temperature, recipe.rows_per_epoch or None
            ),
        },
        "tokens": {
            "prompt": sum(len(row.prompt) for row in planned),
            "answer": sum(len(row.answer) for row in planned),
            "rows_cut": sum(row.cut > 0 for row in planned),
        },
        "steps": trainer.state.global_step,
        "planned_steps": len(batches),
        "best_step": best[0],
        "best": {recipe.best_by: best[1]},
        "seconds": max(entry.get("seconds", 0.0) for entry in trainer.state.log_history),
        "history": trainer.state.log_history,
        "base_hub": _origin(recipe.base),
    }
    if _is_first():
        _finish(out, generator, recipe, record)
    return record


def _load(spec: GeneratorSpec, recipe: ResponderRecipe, hardware: Hardware) -> Generator:
    """The base on the host, where the Trainer takes it from; a frozen base in the number format that is computed in."""
    import torch

    frozen = torch.bfloat16 if recipe.rank and hardware.dtype == "bfloat16" else torch.float32
    if not hardware.base_4bit:
        return load_generator(spec, device="cpu", dtype=frozen)
    from importlib.util import find_spec

    if find_spec("bitsandbytes") is None:
        raise UserError("--base_4bit needs bitsandbytes: pip install bitsandbytes")
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    here = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return load_generator(spec, device=here, dtype=torch.bfloat16, quantization=settings)


def _with_adapter(generator: Generator, recipe: ResponderRecipe, hardware: Hardware) -> Any:
    """The model with what is trained in it: LoRA matrices in float32 on a frozen base, or all of its weights."""
    model = generator.model
    if not recipe.rank:
        return model
    from peft import LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training

    if hardware.base_4bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=hardware.gradient_checkpointing)
    # What PEFT writes down as the base, instead of a path of this machine's cache.
    model.name_or_path = recipe.base
    adapted = get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.CAUSAL_LM if generator.kind == "causal" else TaskType.SEQ_2_SEQ_LM,
            base_model_name_or_path=recipe.base,
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=recipe.dropout,
            target_modules="all-linear",
        ),
    )
    if hardware.gradient_checkpointing:
        # A frozen embedding's output carries no gradient, without which checkpointed layers would have none either.
        adapted.enable_input_require_grads()
    return adapted


def _is_fsdp() -> bool:
    """Whether ``accelerate launch`` shards the model."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def _check_parts(recipe: ResponderRecipe, hardware: Hardware) -> None:
    """Stop before the long work on what only comes to light when several processes are at it."""
    parts = hardware.accumulation * _processes()
    if recipe.batch_size % parts:
        raise UserError(
            f"--batch_size {recipe.batch_size} cannot be shared evenly by {parts} parts "
            f"(--accumulation {hardware.accumulation}, {_processes()} processes); give a multiple of {parts}"
        )
    if _is_fsdp() and recipe.best_by not in ("loss", "head_loss"):
        raise UserError(
            f"--best_by {recipe.best_by}: under FSDP no process has the whole model to answer with; take --best_by loss"
        )
    kept = os.environ.get("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT")
    if _is_fsdp() and kept != "FULL_STATE_DICT":
        raise UserError(
            f"fsdp_state_dict_type {kept} writes no weights that IMHI.py can read; set FULL_STATE_DICT in the config file"
        )


def _arguments(checkpoints: Path, recipe: ResponderRecipe, hardware: Hardware, *, steps: int) -> Any:
    from transformers import TrainingArguments

    parts = hardware.accumulation * _processes()
    checkpointing: dict[str, Any] = {}
    if hardware.gradient_checkpointing:
        checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    return TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=recipe.batch_size // parts,
        per_device_eval_batch_size=max(recipe.batch_size // parts, 1),
        gradient_accumulation_steps=hardware.accumulation,
        # FSDP 2 would keep the whole gradient on each device between the parts of a step.
        accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": True}} if _is_fsdp() else None,
        num_train_epochs=1,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(recipe.warmup * steps)),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.clip,
        bf16=hardware.dtype == "bfloat16",
        **checkpointing,
        disable_tqdm=True,  # the toolkit shows its own bar
        logging_steps=10,
        eval_strategy="steps",
        eval_steps=recipe.look_every,
        save_strategy="no",  # by the clock instead
        save_total_limit=2,
        seed=recipe.seed,
        use_cpu=hardware.device == "cpu",
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        dataloader_pin_memory=hardware.device != "cpu",
        report_to="none",
        label_names=["labels"],
    )


def _save_best(trainer: Any, folder: Path) -> None:
    """Keep the weights of this moment, in one step: a crash leaves the earlier best or this one."""
    part = folder.with_name(folder.name + ".part")
    if trainer.is_world_process_zero():
        shutil.rmtree(part, ignore_errors=True)
    trainer.save_model(str(part))
    if trainer.is_world_process_zero():
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)


def _finish(out: Path, generator: Generator, recipe: ResponderRecipe, record: dict[str, Any]) -> None:
    """Put the best weights, the card and the record into `out`; the record last: it says that all is there."""
    best = out / CHECKPOINTS / BEST
    for path in sorted(best.iterdir()):
        if path.name not in ("training_args.bin", "README.md"):
            shutil.copyfile(path, out / path.name)
    if recipe.rank:
        _halve(out / "adapter_model.safetensors")
        _settle(out / "adapter_config.json", recipe.base)
    else:
        generator.tokenizer.save_pretrained(str(out))
        settings = json.loads((out / "config.json").read_text(encoding="utf-8"))
        # The Trainer switches the cache off, and would leave it off: decoding would be quadratic.
        write_text_atomically(out / "config.json", json.dumps({**settings, "use_cache": True}, indent=2) + "\n")
    write_text_atomically(out / "README.md", responder_card(record))
    write_text_atomically(out / RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")
    shutil.rmtree(out / CHECKPOINTS)


def _halve(path: Path) -> None:
    """Store the LoRA matrices in bfloat16: half the size, and the number format of most bases."""
    import torch
    from safetensors.torch import load_file, save_file

    save_file(
        {key: tensor.to(torch.bfloat16) for key, tensor in load_file(str(path)).items()}, str(path), {"format": "pt"}
    )
    path.chmod(0o644)  # safetensors writes it for its owner alone


def _settle(path: Path, base: str) -> None:
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = base
    # PEFT writes a set of names, in another order each time.
    settings["target_modules"] = sorted(settings["target_modules"])
    write_text_atomically(path, json.dumps(settings, indent=1, sort_keys=True) + "\n")


def _origin(base: str) -> str:
    return EMBEDDED[base].hub if base in EMBEDDED else base
