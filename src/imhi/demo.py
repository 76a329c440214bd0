"""A first look: the embedded responder answers the made-up sample rows, and the answers are labelled and scored."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from imhi.benchmark import DATASETS
from imhi.data import samples_root
from imhi.devices import pick_device
from imhi.engines import Decoding
from imhi.generation import GenerationRequest, generate_responses
from imhi.labelers.folders import open_labelers
from imhi.labelling import label_folder, labelled_correctness, output_folder, read_folder
from imhi.metrics import METRICS
from imhi.metrics.correctness import Correctness
from imhi.rule_labelling import label_folder_by_rules
from imhi.scoring import score_folder
from imhi.talk import say, show, table

__all__ = ["run_demo"]

MODEL, ADAPTER, ENCODER = "embedded:smollm2", "embedded:imhi-smollm2", "embedded:minilm"
DECODING = Decoding(max_new_tokens=256)
# The general chat model answers the bare IMHI prompt with rambling; its chat template makes it answer.
BASE_DECODING = Decoding(max_new_tokens=128, chat_template=True)


def run_demo(
    output: Path, *, limit: int | None = None, base_only: bool = False, cuda: bool = False, overwrite: bool = False
) -> int:
    """Generate, label and score the sample rows with what the packages carry; prints one table.

    `base_only` asks the general chat model without the adapter that was trained on IMHI.  Needs no network.
    Interrupted, it goes on where it stopped; finished, it only prints the table again.
    """
    who = (
        "SmolLM2-135M-Instruct"
        if base_only
        else "SmolLM2-135M-Instruct and the IMHI adapter that comes with the toolkit"
    )
    say(f"a first look on made-up sample rows (not the benchmark), with {who}; no network is used")
    request = GenerationRequest(
        output=output,
        model=MODEL,
        lora_path=None if base_only else ADAPTER,
        llama=True,
        suite="IMHI",
        limit=limit,
        data_root=str(samples_root()),
        cuda=cuda,
        decoding=BASE_DECODING if base_only else DECODING,
        overwrite=overwrite,
    )
    folder = generate_responses(request).folder
    figures = label_folder_by_rules(folder, published_results=True)
    by_classifier = _label(folder, cuda=cuda, overwrite=overwrite)
    metrics = [METRICS["bleu"](), METRICS["rouge"](), METRICS["bert_score"](model=ENCODER)]
    scores = score_folder(folder, metrics)
    headers = ["dataset", "rows", "unparsed", "by rule", "by classifier", "BLEU", "ROUGE-1", "ROUGE-L", "BERTScore"]
    rows = []
    for figure in figures:
        values = {name: value for entry in scores[figure.dataset].values() for name, value in entry["values"].items()}
        rows.append(
            [
                figure.dataset,
                str(figure.strict.n),
                str(figure.strict.unparsed),
                f"{100 * figure.strict.accuracy:.1f}",
                f"{100 * by_classifier[figure.dataset].accuracy:.1f}",
                *(f"{values[name]:.3f}" for name in ("bleu", "rouge1", "rougeL", "bert_f1")),
            ]
        )
    show(table(headers, rows))
    show(
        "\nThese are made-up sample rows, a handful a dataset: the table shows that the pipeline works, not how good a\n"
        "model is. Accuracy in per cent: by rule, unparsed answers counted as wrong; and by the toolkit's classifiers."
    )
    show(f"\nEverything lies in {folder}")
    for name, what in (
        ("manifest.json", "what ran"),
        ("responses.jsonl", "every response with its token counts"),
        ("DATASET.csv", "goldens,generated_text"),
        ("correctness.json", "labels against gold, with confusion counts"),
        ("labels/", "the classifiers' labels, with their confidence"),
        ("scores.json, scores/", "scores with signatures; a value per row"),
    ):
        show(f"  {name:<22}{what}")
    imhi = _command()
    show(
        f"\nNext, the released test files, and then a model of yours on them:\n"
        f"  {imhi} data fetch --to imhi_data\n"
        f"  {imhi} generate --data_root imhi_data --model_path MODEL --model_output_path my-run --rule_calculate --cuda"
    )
    return 0


def _label(folder: Path, *, cuda: bool, overwrite: bool) -> dict[str, Correctness]:
    """Label the responses with the toolkit's own classifiers, into ``labels/``; returns their correctness."""
    import torch

    responses = read_folder(folder, [])
    device = pick_device(cuda=cuda)
    labelers = open_labelers(None, [DATASETS[name] for name in responses], device=device, dtype=torch.float32)
    out = output_folder(folder / "labels", folder)
    label_folder(responses, labelers, out, overwrite=overwrite)
    return labelled_correctness(read_folder(out, list(responses)))


def _command() -> str:
    """How to type ``imhi`` here: by name if the shell finds it, else by its path in the virtual environment."""
    beside = Path(sys.executable).with_name("imhi")
    if shutil.which("imhi") or not beside.exists():
        return "imhi"
    return str(beside.relative_to(Path.cwd())) if beside.is_relative_to(Path.cwd()) else str(beside)
