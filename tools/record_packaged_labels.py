"""Write tests/fixtures/packaged_labels.json: the labels that the packaged classifiers give to forty rows of ours.

Run it after the classifiers were trained anew, and read the difference: a changed label is a changed product.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "labelers"))


def main() -> None:
    import torch
    from test_packaged import RECORDED, forty_rows  # type: ignore[import-not-found]

    from imhi.benchmark import DATASETS
    from imhi.data import write_text_atomically
    from imhi.labelers.folders import open_labelers

    rows = forty_rows()
    labelers = open_labelers(None, list(DATASETS.values()), device="cpu", dtype=torch.float32)
    labels: dict[str, str | None] = {}
    for name, dataset in DATASETS.items():
        mine = [row for row in rows if row[1].name == name]
        given = labelers[name].label(dataset, [row[3] for row in mine]).labels
        labels |= {row[0]: label for row, label in zip(mine, given, strict=True)}
    write_text_atomically(RECORDED, json.dumps(labels, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
