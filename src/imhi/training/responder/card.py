"""The model card of a responder: what it is, what it saw, how it was made, and what it is not for."""

from __future__ import annotations

import shlex
from typing import Any

from imhi.checkpoints import EMBEDDED
from imhi.training.card import markdown_table
from imhi.training.responder.rows import REASONS

__all__ = ["responder_card"]


def responder_card(record: dict[str, Any]) -> str:
    """The text of ``README.md`` beside a trained responder, from what ``responder.json`` holds."""
    recipe, rows, tokens = record["recipe"], record["rows"], record["tokens"]
    embedded = EMBEDDED.get(recipe["base"])
    licence = embedded.licence.lower() if embedded else "other"
    kind = (
        f"LoRA adapter (rank {recipe['rank']}, alpha {recipe['alpha']}, every linear layer) of `{record['base_hub']}`"
        if recipe["rank"]
        else f"Model with all weights trained from `{record['base_hub']}`"
    )
    asked = "in the tokenizer's chat template" if recipe["chat_template"] else "raw, as the benchmark words it"
    use = "--lora --lora_path THIS_FOLDER" if recipe["rank"] else "--model_path THIS_FOLDER"
    use += " --chat_template" if recipe["chat_template"] else ""
    suite = "IMHI-completion" if recipe["form"] == "completion" else "IMHI"
    counts = markdown_table(
        ["dataset", "training rows", "validation rows", "drawn an epoch"],
        [
            [
                name + (" (made-up rows)" if name in rows["made_up"] else ""),
                str(count),
                str(rows["validation"].get(name, 0)),
                str(rows["drawn_per_epoch"][name]),
            ]
            for name, count in rows["training"].items()
        ],
    )
    mixed = f"Datasets are mixed with temperature {recipe['temperature']:g} (share ~ rows^(1/T)). {_made_up(rows['made_up'])}"
    seen = f"{tokens['prompt']:,} prompt and {tokens['answer']:,} answer tokens"
    kept = f"Kept: the weights of step {record['best_step']}, best by `{recipe['best_by']}` on validation rows."
    return f"""---
license: {licence}
library_name: {"peft" if recipe["rank"] else "transformers"}
base_model: {record["base_hub"]}
---
# IMHI responder

{kind}. It answers the questions of the IMHI benchmark about a post, {recipe["form"]} form, with a label and an explanation;
prompts are given {asked}.

For research on language models. **Not for clinical use**: no diagnosis, no triage, no decision about a person. It learned
from answers that another language model wrote (the benchmark's gold answers), and repeats their errors beside its own.
The licence is that of the base; the posts have licences of their own.
{_samples(record)}
```bash
python IMHI.py {use} --test_dataset {suite} --model_output_path RUN
```

## What it learned from

{counts}

{_left_out(rows["left_out"])}{mixed}
SHA-256 of every file read is in `responder.json`.

## How it was made

{record["steps"]} steps of {recipe["batch_size"]} rows ({seen}), learning rate {recipe["learning_rate"]:g},
{record["dtype"]} on {record["device"]}; the loss stands on the answer, a token of the label's sentence weighing
{recipe["head_weight"]:g} times one of the explanation. {kept}

```bash
{shlex.join(_command(record))}
```

{_looks(record)}

F1 (weighted, mean over datasets, by the strict rule), unparsed share and ROUGE-L are of at most {recipe["asked_rows"]}
answered validation rows a dataset: they steer the training and are no result. For results: `imhi run`, then `imhi report`.

Made by `imhi train responder`, imhi {record["environment"]["imhi"]}; recipe, versions, data hashes and the whole history
are in `responder.json`.
"""


def _samples(record: dict[str, Any]) -> str:
    warning = "**Trained on the toolkit's made-up sample rows: good for a test of the code, for nothing else.**"
    return f"\n{warning}\n" if record["sample_rows"] else ""


def _command(record: dict[str, Any]) -> list[str]:
    command = [str(part) for part in record["environment"]["command"]]
    return ["imhi", *command[1:]]


def _left_out(left_out: dict[str, dict[str, int]]) -> str:
    said = [
        f"- {REASONS[reason]}: " + ", ".join(f"{name} {count}" for name, count in by_dataset.items())
        for reason, by_dataset in left_out.items()
    ]
    return "Left out:\n\n" + "\n".join(said) + "\n\n" if said else ""


def _made_up(names: list[str]) -> str:
    if not names:
        return ""
    return (
        f"For {', '.join(names)} the data root has no training files: the rows are made-up ones, written by the toolkit's "
        "authors without a look at the test posts; they teach the wording of the labels."
    )


def _looks(record: dict[str, Any]) -> str:
    looks = {entry["step"]: entry for entry in record["history"] if "eval_loss" in entry}
    cells = [
        [
            str(step),
            *(f"{look[f'eval_{name}']:.3f}" for name in ("loss", "head_loss", "explanation_loss")),
            *(
                f"{100 * look[f'eval_{name}']:.1f}" if f"eval_{name}" in look else "–"
                for name in ("weighted_f1", "unparsed", "rougeL")
            ),
        ]
        for step, look in sorted(looks.items())
    ]
    return markdown_table(["step", "loss", "label", "explanation", "F1, %", "unparsed, %", "ROUGE-L, %"], cells)
