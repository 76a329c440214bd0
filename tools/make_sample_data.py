"""Render the made-up sample rows into the published layout, both forms.

`tools/samples/*.jsonl` hold one row each: dataset, aspect, label, post, explanation, all written by the authors
of this toolkit.  Run from the repository's root after editing them:

    python tools/make_sample_data.py            # writes train_data/, test_data/, human_evaluation/test_instruction_expert/
    python tools/make_sample_data.py --check    # exits 1 if the committed files differ
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from imhi.benchmark import DATASETS, gold_answer, query, question  # noqa: E402

# The published names of the completion form's training files, where they are not train.csv and val.csv.
ODD_NAMES = {
    ("DR", "train"): "reddit_train.csv",
    ("DR", "val"): "reddit_valid.csv",
    ("dreaddit", "train"): "dreaddit-train.csv",
}


def read_samples(split: str) -> dict[str, list[dict[str, str]]]:
    rows: dict[str, list[dict[str, str]]] = defaultdict(list)
    for line in (ROOT / "tools" / "samples" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows[row["dataset"]].append(row)
    return rows


def as_csv(columns: list[str], records: list[list[str]]) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(records)
    return buffer.getvalue()


def query_file(rows: list[dict[str, str]], form: str) -> str:
    records = []
    for row in rows:
        dataset = DATASETS[row["dataset"]]
        gold = gold_answer(dataset.label_named(row["label"]), form, row["explanation"])
        records.append([query(dataset, form, row["post"], row["aspect"]), gold])
    return as_csv(["query", "gpt-3.5-turbo"], records)


def completion_training_file(rows: list[dict[str, str]]) -> str:
    """``post,question,response``, with one space before ``Question:`` where the test files have two."""
    records = []
    for row in rows:
        dataset = DATASETS[row["dataset"]]
        gold = gold_answer(dataset.label_named(row["label"]), "completion", row["explanation"])
        stem = question(dataset, "completion", row["aspect"])
        records.append([f"Post: {row['post']}", f" Question: {stem}", gold])
    return as_csv(["post", "question", "response"], records)


def render() -> dict[Path, str]:
    """Path below the repository's root → content, for every sample file."""
    files: dict[Path, str] = {}
    for name, rows in read_samples("test").items():
        files[Path("test_data/test_instruction") / f"{name}.csv"] = query_file(rows, "instruction")
        files[Path("test_data/test_complete") / f"{name}.csv"] = query_file(rows, "completion")
    for name, rows in read_samples("expert").items():
        files[Path("human_evaluation/test_instruction_expert") / f"{name}.csv"] = query_file(rows, "instruction")
    for split in ("train", "val"):
        for name, rows in read_samples(split).items():
            files[Path("train_data/instruction_data") / name / f"{split}.csv"] = query_file(rows, "instruction")
            completion = ODD_NAMES.get((name, split), f"{split}.csv")
            files[Path("train_data/complete_data") / name / completion] = completion_training_file(rows)
    return files


def main() -> int:
    parser = argparse.ArgumentParser(description="Render tools/samples/*.jsonl into the published layout.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a committed file differs")
    arguments = parser.parse_args()
    differing = []
    for path, content in render().items():
        target = ROOT / path
        if target.exists() and target.read_bytes() == content.encode("utf-8"):
            continue
        differing.append(str(path))
        if not arguments.check:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.encode("utf-8"))
    verb = "differ" if arguments.check else "written"
    sys.stdout.write(f"{len(differing)} files {verb}\n" + "".join(f"  {name}\n" for name in differing))
    return 1 if arguments.check and differing else 0


if __name__ == "__main__":
    raise SystemExit(main())
