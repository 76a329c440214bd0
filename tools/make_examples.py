"""Make ``examples/``: the embedded model's answers to the sample rows, twice, with labels, scores and baselines.

``python tools/make_examples.py`` from the repository's root; some ten minutes on a CPU, no network.  Answers, labels
and scores are those of the commands in ``examples/README.md``.  Interrupted, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from imhi.benchmark import DATASETS
from imhi.data import resolve_data_root, samples_root
from imhi.demo import DECODING, ENCODER, MODEL
from imhi.generation import GenerationRequest, generate_responses
from imhi.labelers.folders import open_labelers
from imhi.labelling import label_folder, output_folder, read_folder
from imhi.metrics import METRICS
from imhi.regression import baseline_of, with_text_metrics, write_baseline
from imhi.results import read_results
from imhi.scoring import score_folder

# Folder under examples/ → whether the prompts are wrapped in the model's chat template.
RUNS = {"smollm2-chat": True, "smollm2-raw": False}


def make(name: str, *, chat_template: bool, work: Path, out: Path) -> None:
    """Answer, label and score the sample rows; the published files go to ``out/name``, the baseline beside them."""
    generated = generate_responses(
        GenerationRequest(
            output=work / name,
            model=MODEL,
            llama=True,
            data_root=str(samples_root()),
            # Row by row and in float32: another machine's rounding moves the fewest answers.
            deterministic=True,
            dtype="float32",
            decoding=replace(DECODING, chat_template=chat_template),
        )
    ).folder
    folder = out / name
    if folder.exists():
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    responses = read_folder(generated)
    labelers = open_labelers(None, [DATASETS[dataset] for dataset in responses], device="cpu", dtype=torch.float32)
    label_folder(responses, labelers, output_folder(folder, generated))
    score_folder(folder, [METRICS["bleu"](), METRICS["rouge"](), METRICS["bert_score"](model=ENCODER)])
    for lock in folder.rglob(".lock"):
        lock.unlink()
    run = with_text_metrics(read_results(folder, data_root=resolve_data_root(samples_root())))
    write_baseline(out / f"{name}.baseline.json", baseline_of(run))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("model_output/examples"), help="where the runs land")
    parser.add_argument("--out", type=Path, default=Path("examples"))
    arguments = parser.parse_args()
    for name, chat_template in RUNS.items():
        make(name, chat_template=chat_template, work=arguments.work, out=arguments.out)


if __name__ == "__main__":
    main()
