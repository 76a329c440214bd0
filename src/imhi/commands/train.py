"""``imhi train``: label classifiers and responders, from a data root."""

from __future__ import annotations

import argparse
from pathlib import Path

from imhi.commands import add_datasets_argument, add_device_arguments, positive
from imhi.data import parse_dataset_names, resolve_data_root
from imhi.errors import UserError
from imhi.talk import say, show

DESCRIPTION = "Train label classifiers, or a responder: a model that answers IMHI's questions."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from imhi.training.fitting import Recipe

    default = Recipe()
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    labelers = what.add_parser(
        "labelers",
        help="the ten label classifiers: a LoRA adapter and a head each, or whole checkpoints",
        description="Train the ten label classifiers into OUT/DATASET; the same command resumes.",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    labelers.add_argument(
        "--data_root", help="folder in the published layout (default: $IMHI_DATA, else the sample rows)"
    )
    labelers.add_argument(
        "--out", required=True, help="folder for the classifiers; label_inference.py takes it as --model_path"
    )
    add_datasets_argument(labelers)
    labelers.add_argument(
        "--base",
        default=default.base,
        help=f"a BERT encoder: path, hub id or embedded: name (default {default.base});\n"
        "its classifiers are adapters of it, or, with --full, checkpoints of its size",
    )
    labelers.add_argument(
        "--layers",
        type=int,
        nargs="+",
        metavar="N",
        help="keep only these layers of it, counted from 0\n"
        f"(default: {' '.join(map(str, default.layers or ()))} of {default.base}, all of another)",
    )
    labelers.add_argument(
        "--full", action="store_true", help="train all weights into whole checkpoints, without an adapter"
    )
    labelers.add_argument("--rank", type=positive, help=f"rank of the adapters (default {default.rank})")
    labelers.add_argument(
        "--learning_rate", type=float, help=f"peak (default {default.learning_rate}, with --full 5e-05)"
    )
    labelers.add_argument(
        "--common_chunks",
        type=positive,
        default=default.common_chunks,
        help=f"longest fit on all datasets, in chunks of 4 batches (default {default.common_chunks})",
    )
    labelers.add_argument(
        "--chunks", type=positive, default=default.chunks, help=f"longest fit on one dataset (default {default.chunks})"
    )
    labelers.add_argument(
        "--batch_size", type=positive, default=default.batch, help=f"answers a step (default {default.batch})"
    )
    labelers.add_argument(
        "--seed", type=int, default=default.seed, help=f"of answers and weights (default {default.seed})"
    )
    labelers.add_argument(
        "--no_folds",
        action="store_true",
        help="leave out the cross-validation of sets that have only test rows: no gold figures for them",
    )
    labelers.add_argument(
        "--overwrite", action="store_true", help="replace what OUT holds of another recipe or other data"
    )
    add_device_arguments(labelers)
    _add_responder_arguments(
        what.add_parser(
            "responder",
            help="a model that answers IMHI's questions: a LoRA adapter, or all weights",
            description="Train a responder on the released answers into OUT; the same command resumes.",
            formatter_class=argparse.RawTextHelpFormatter,
        )
    )


def _add_responder_arguments(responder: argparse.ArgumentParser) -> None:
    from imhi.benchmark import FORMS
    from imhi.training.responder.recipe import BEST_BY, ResponderRecipe

    default = ResponderRecipe()
    responder.add_argument(
        "--data_root", help="folder in the published layout (default: $IMHI_DATA, else the sample rows)"
    )
    responder.add_argument("--out", required=True, help="folder for the model; IMHI.py takes it")
    responder.add_argument(
        "--form",
        choices=list(FORMS),
        default=default.form,
        help="which training files and prompts: instruction (causal models) or\ncompletion (BART, T5; causal ones too)",
    )
    add_datasets_argument(responder)
    responder.add_argument(
        "--made_up",
        action="store_true",
        help="also learn from the toolkit's made-up rows, for sets that the data root has no training files of",
    )
    what = responder.add_argument_group("the model")
    what.add_argument(
        "--base",
        default=default.base,
        help=f"a causal model or an encoder-decoder: path, hub id or embedded: name (default {default.base})",
    )
    what.add_argument("--full", action="store_true", help="train all weights, without an adapter")
    what.add_argument("--rank", type=positive, help=f"rank of the LoRA matrices (default {default.rank})")
    what.add_argument("--alpha", type=positive, help=f"LoRA's scale is alpha / rank (default {default.alpha})")
    what.add_argument(
        "--dropout", type=float, default=default.dropout, help="on the input of the LoRA matrices (default 0)"
    )
    what.add_argument(
        "--base_4bit", action="store_true", help="QLoRA: the frozen base in NF4 (needs bitsandbytes, a GPU)"
    )
    what.add_argument(
        "--chat_template", action="store_true", help="wrap prompts in the tokenizer's chat template (default: raw)"
    )
    steps = responder.add_argument_group("the steps")
    steps.add_argument(
        "--learning_rate", type=float, help=f"peak (default {default.learning_rate:g}, with --full 5e-05)"
    )
    steps.add_argument("--epochs", type=positive, default=default.epochs, help=f"default {default.epochs}")
    steps.add_argument("--max_steps", type=positive, help="end after so many steps")
    steps.add_argument(
        "--batch_size",
        type=positive,
        default=default.batch_size,
        help=f"rows of a step, on all devices together (default {default.batch_size})",
    )
    steps.add_argument(
        "--accumulation",
        type=positive,
        default=1,
        help="parts that a step is computed in (default 1)",
    )
    steps.add_argument(
        "--temperature",
        type=float,
        default=default.temperature,
        help=f"of the mixture: share of a dataset ~ rows^(1/T) (default {default.temperature:g}; 1: every row once)",
    )
    steps.add_argument(
        "--rows_per_epoch", type=positive, help="rows that an epoch draws (default: as many as there are)"
    )
    steps.add_argument(
        "--head_weight",
        type=float,
        default=default.head_weight,
        help=f"weight of a token of the label's sentence in the loss (default {default.head_weight:g}; explanation: 1)",
    )
    steps.add_argument(
        "--max_tokens",
        type=positive,
        default=default.max_tokens,
        help=f"of a prompt with its answer; longer prompts lose their middle (default {default.max_tokens})",
    )
    steps.add_argument("--gradient_checkpointing", action="store_true", help="compute activations twice: less memory")
    steps.add_argument("--seed", type=int, default=default.seed, help="of batches, matrices and dropout (default 0)")
    looks = responder.add_argument_group("validation and checkpoints")
    looks.add_argument(
        "--look_every",
        type=positive,
        default=default.look_every,
        help=f"steps between two looks at the validation rows (default {default.look_every})",
    )
    looks.add_argument(
        "--loss_rows",
        type=positive,
        default=default.loss_rows,
        help=f"validation rows a dataset for the loss (default {default.loss_rows})",
    )
    looks.add_argument(
        "--asked_rows",
        type=positive,
        default=default.asked_rows,
        help=f"validation rows a dataset that are answered, labelled and scored (default {default.asked_rows})",
    )
    looks.add_argument(
        "--max_new_tokens",
        type=positive,
        default=default.max_new_tokens,
        help=f"of those (default {default.max_new_tokens})",
    )
    looks.add_argument(
        "--best_by",
        choices=list(BEST_BY),
        default=default.best_by,
        help=f"what decides which weights are kept (default {default.best_by})",
    )
    looks.add_argument(
        "--patience", type=positive, help="looks without improvement that end the training (default: none do)"
    )
    looks.add_argument("--save_minutes", type=float, default=10.0, help="between two checkpoints (default 10)")
    responder.add_argument("--overwrite", action="store_true", help="replace what OUT holds of another training")
    add_device_arguments(responder)


def run(arguments: argparse.Namespace) -> int:
    return _run_responder(arguments) if arguments.what == "responder" else _run_labelers(arguments)


def _run_responder(arguments: argparse.Namespace) -> int:
    from imhi.training.responder.recipe import ResponderRecipe

    default = ResponderRecipe()
    if arguments.full and (arguments.rank or arguments.alpha or arguments.dropout or arguments.base_4bit):
        raise UserError("--rank, --alpha, --dropout and --base_4bit are of adapters; leave them or --full out")
    if arguments.dtype == "float16":
        raise UserError("--dtype float16 is not trained in; take bfloat16 or float32")
    if arguments.learning_rate is not None and not 0 < arguments.learning_rate < 1:
        raise UserError(f"--learning_rate {arguments.learning_rate}: expected a number above 0 and below 1")
    if arguments.temperature < 1:
        raise UserError(f"--temperature {arguments.temperature:g}: expected 1 or more")
    if arguments.head_weight <= 0:
        raise UserError(f"--head_weight {arguments.head_weight:g}: expected a number above 0")
    if not 0 <= arguments.dropout < 1:
        raise UserError(f"--dropout {arguments.dropout:g}: expected 0 or more, and below 1")
    if arguments.save_minutes <= 0:
        raise UserError(f"--save_minutes {arguments.save_minutes:g}: expected a number above 0")
    if arguments.max_tokens < 64:
        raise UserError(f"--max_tokens {arguments.max_tokens}: no prompt with its answer fits; expected 64 or more")
    if arguments.base_4bit and not (arguments.cuda or str(arguments.device).startswith("cuda")):
        raise UserError("--base_4bit computes on a GPU; add --cuda")
    rank = 0 if arguments.full else arguments.rank or default.rank
    recipe = ResponderRecipe(
        base=arguments.base,
        form=arguments.form,
        chat_template=arguments.chat_template,
        rank=rank,
        alpha=0 if arguments.full else arguments.alpha or 2 * rank,
        dropout=arguments.dropout,
        learning_rate=arguments.learning_rate or (5e-5 if arguments.full else default.learning_rate),
        epochs=arguments.epochs,
        max_steps=arguments.max_steps or 0,
        batch_size=arguments.batch_size,
        temperature=arguments.temperature,
        rows_per_epoch=arguments.rows_per_epoch or 0,
        head_weight=arguments.head_weight,
        max_tokens=arguments.max_tokens,
        look_every=arguments.look_every,
        loss_rows=arguments.loss_rows,
        asked_rows=arguments.asked_rows,
        max_new_tokens=arguments.max_new_tokens,
        best_by=arguments.best_by,
        patience=arguments.patience or 0,
        seed=arguments.seed,
    )
    names = parse_dataset_names(arguments.datasets)
    root = resolve_data_root(arguments.data_root)
    say(root.describe())
    from imhi.data import DataRoot, samples_root
    from imhi.devices import pick_device, pick_dtype
    from imhi.training.responder.training import Hardware, train_responder

    device = pick_device(cuda=arguments.cuda, device=arguments.device)
    if device not in ("cpu", "cuda", "cuda:0"):
        raise UserError(f"--device {device}: training takes cpu or cuda; CUDA_VISIBLE_DEVICES chooses a GPU")
    hardware = Hardware(
        device=device.partition(":")[0],
        dtype=str(pick_dtype(arguments.dtype, device)).removeprefix("torch."),
        accumulation=arguments.accumulation,
        gradient_checkpointing=arguments.gradient_checkpointing,
        base_4bit=arguments.base_4bit,
        save_minutes=arguments.save_minutes,
    )
    out = Path(arguments.out).expanduser()
    made_up = DataRoot(samples_root(), "--made_up") if arguments.made_up and not root.is_samples else None
    record = train_responder(
        root, out, recipe, datasets=names, made_up=made_up, hardware=hardware, overwrite=arguments.overwrite
    )
    figures = ", ".join(f"{name} {value:.3f}" for name, value in record["best"].items())
    say(f"step {record['best_step']} of {record['steps']} was best on validation rows ({figures})")
    how = f"--lora --lora_path {out}" if recipe.rank else f"--model_path {out}"
    how += " --chat_template" if recipe.chat_template else ""
    suite = "IMHI-completion" if recipe.form == "completion" else "IMHI"
    say(f"trained model in {out}; ask it: IMHI.py {how} --test_dataset {suite} --model_output_path RUN")
    return 0


def _run_labelers(arguments: argparse.Namespace) -> int:
    from imhi.training.fitting import Recipe

    default = Recipe()
    if arguments.full and arguments.rank is not None:
        raise UserError("--rank has no effect with --full, which trains all weights; leave one of them out")
    if arguments.dtype == "float16":
        raise UserError("--dtype float16 is not trained in; take bfloat16 or float32")
    if arguments.learning_rate is not None and not 0 < arguments.learning_rate < 1:
        raise UserError(f"--learning_rate {arguments.learning_rate}: expected a number above 0 and below 1")
    rate = arguments.learning_rate or (5e-5 if arguments.full else default.learning_rate)
    recipe = Recipe(
        base=arguments.base,
        layers=tuple(arguments.layers)
        if arguments.layers
        else default.layers
        if arguments.base == default.base
        else None,
        rank=0 if arguments.full else arguments.rank or default.rank,
        learning_rate=rate,
        own_rate=rate * default.own_rate / default.learning_rate,
        common_chunks=arguments.common_chunks,
        chunks=arguments.chunks,
        batch=arguments.batch_size,
        seed=arguments.seed,
    )
    names = parse_dataset_names(arguments.datasets)
    root = resolve_data_root(arguments.data_root)
    say(root.describe())
    from imhi.devices import pick_device, pick_dtype
    from imhi.training.labelers import figures_table, train_labelers

    device = pick_device(cuda=arguments.cuda, device=arguments.device)
    out = Path(arguments.out).expanduser()
    settings = train_labelers(
        root,
        out,
        recipe,
        datasets=names,
        device=device,
        dtype=pick_dtype(arguments.dtype, device),
        folds=not arguments.no_folds,
        overwrite=arguments.overwrite,
    )
    show(figures_table(settings))
    say(f"classifiers in {out}; labels with them: label_inference.py --model_path {out} ...")
    return 0
