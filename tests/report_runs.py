"""Small run folders with everything a report reads: manifest, journal, labels, scores, test files."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imhi.benchmark import DATASETS, gold_answer, query
from imhi.data import write_table
from imhi.engines import Completion, Decoding

PROSE = (
    "they describe poster feels alone tired nobody listens work school family sleep night worry often says because the "
    "post shows evidence of this and that shared with others while nothing helps at all lately since last spring"
)
WORDS = PROSE.split()
HOSTILE = (
    '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 2"><b>bold</b> & \u2028 {{ 7 * 7 }}'
)


@dataclass
class Row:
    """One row of a run; `said` is the label its classifier reads, None where no classifier ran."""

    gold: str
    answer: str
    said: str | None = None
    confidence: float = 0.9
    clear: bool = True
    finish: str = "stop"
    post: str = ""
    question: str = ""


def prose(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words)) + "."


def random_rows(
    name: str, count: int, *, seed: int = 0, rows_a_post: int = 1, words: int = 30, skill: float = 0.7
) -> list[Row]:
    """Rows whose golds and posts depend on the dataset alone and whose answers depend on the seed."""
    dataset = DATASETS[name]
    fixed, rng = random.Random(name), random.Random(f"{name} {seed}")
    rows = []
    post = ""
    for at in range(count):
        if at % rows_a_post == 0:
            post = f"Post {at} of {name}: {prose(fixed, words)}"
        label = fixed.choice(dataset.labels)
        explanation = prose(fixed, words)
        said = label if rng.random() < skill else rng.choice(dataset.labels)
        answer = gold_answer(said, "instruction", prose(rng, words // 2) + " " + explanation)
        finish = "stop"
        if at % 11 == 3:
            answer = "Hard to tell. " + prose(rng, 8)
        elif at % 13 == 5:
            answer, finish = gold_answer(said, "instruction", prose(rng, 2 * words)), "length"
        elif at % 17 == 7:
            answer = ""
        elif at % 19 == 9:
            answer, finish = "", "error"
        confidence = round(rng.uniform(1 / len(dataset.labels), 1), 6)
        rows.append(
            Row(
                gold_answer(label, "instruction", explanation),
                answer,
                said.name,
                confidence,
                confidence > 0.6,
                finish,
                post,
                fixed.choice(dataset.aspects),
            )
        )
    return rows


def save_run(
    folder: Path,
    rows: Mapping[str, Sequence[Row]],
    *,
    root: Path | None = None,
    configuration: Mapping[str, Any] | None = None,
    made_up: bool = False,
    score: bool = True,
) -> Path:
    """Write a run of these rows, and its test files below `root`; returns its folder."""
    folder.mkdir(parents=True)
    decoding = asdict(Decoding(max_new_tokens=2048, max_length=2048))
    settings = {"test_dataset": "IMHI", "dtype": "float32", "decoding": decoding, **(configuration or {})}
    manifest: dict[str, Any] = {
        "configuration": settings,
        "sessions": [{"imhi": "0", "model": "example/model", "device": "cpu", "libraries": {}}],
    }
    if root is not None:
        manifest["data_root"] = {"path": str(root), "made_up_samples": made_up}
    journal = []
    for name, found in rows.items():
        write_table(folder / f"{name}.csv", ["goldens", "generated_text"], [(row.gold, row.answer) for row in found])
        for at, row in enumerate(found):
            error = "out of memory" if row.finish == "error" else None
            completion = Completion(f"{name}/{at}", row.answer, 50, len(row.answer.split()), row.finish, error=error)
            journal.append(json.dumps(asdict(completion)))
        if all(row.said is not None for row in found):
            save_labels(folder / "labels", name, found)
        if root is not None:
            save_test_file(root, name, found)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (folder / "responses.jsonl").write_text("".join(line + "\n" for line in journal), encoding="utf-8")
    if score:
        from imhi.metrics.bleu import Bleu
        from imhi.metrics.rouge import Rouge
        from imhi.scoring import score_folder

        score_folder(folder, [Bleu(), Rouge()])
    return folder


def save_labels(folder: Path, name: str, rows: Sequence[Row]) -> None:
    folder.mkdir(exist_ok=True)
    records = []
    for row in rows:
        assert row.said is not None
        spoken = DATASETS[name].label_named(row.said).classifier
        records.append((row.gold, row.answer, spoken, row.confidence, spoken if row.clear else "unclear"))
    columns = ["goldens", "generated_text", "labels", "label_confidence", "clear_label"]
    write_table(folder / f"{name}.csv", columns, records)


def save_test_file(root: Path, name: str, rows: Sequence[Row]) -> None:
    folder = root / "test_data" / "test_instruction"
    folder.mkdir(parents=True, exist_ok=True)
    records = [(query(DATASETS[name], "instruction", row.post, row.question), row.gold) for row in rows]
    write_table(folder / f"{name}.csv", ["query", "gpt-3.5-turbo"], records)
