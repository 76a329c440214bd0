"""Write the figures of the packaged label classifiers into docs/label-classifiers.md.

    python tools/make_labeler_tables.py          # after `imhi train labelers` and copying its folders into the package
    python tools/make_labeler_tables.py --check  # exit 1 where a document says something else

The figures are those of each classifier's ``labeler.json``; nothing is computed here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from imhi.benchmark import DATASETS
from imhi.data import write_text_atomically
from imhi.errors import UserError, run_main
from imhi.labelers.challenge import UNCLEAR, read_challenge
from imhi.labelers.folders import PACKAGED
from imhi.talk import say
from imhi.training.card import markdown_table

ROOT = Path(__file__).parents[1]
SHORT = {
    "gold, instruction head": "head (instruction)",
    "gold, completion head": "head (completion)",
    "gold, no head": "no head",
    "challenge": "challenge",
}


def settings() -> dict[str, dict[str, Any]]:
    return {
        name: json.loads((PACKAGED / name / "labeler.json").read_text(encoding="utf-8"))
        for name in DATASETS
        if (PACKAGED / name).is_dir()
    }


def interval(figure: dict[str, float]) -> str:
    return f"{100 * figure['value']:.1f} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def accuracies(found: dict[str, dict[str, Any]]) -> str:
    """Accuracy of every set of answers, a line a dataset."""
    rows = []
    for name, one in found.items():
        sets = one["figures"]["sets"]
        gold = sets.get("gold, no head", {}).get("answers", 0)
        cells = [interval(sets[kind]["accuracy"]) if kind in sets else "–" for kind in SHORT]
        rows.append([name, str(gold), *cells, str(sets["challenge"]["answers"])])
    challenge = [one["figures"]["sets"]["challenge"] for one in found.values()]
    answers = sum(figures["answers"] for figures in challenge)
    right = answers - sum(len(figures["misses"]) for figures in challenge)
    rows.append(["all ten", "", "", "", "", f"{100 * right / answers:.1f}", str(answers)])
    return markdown_table(["dataset", "gold rows", *SHORT.values(), "answers"], rows)


def details(found: dict[str, dict[str, Any]]) -> str:
    """F1, calibration and unclear shares, a line a dataset and set of answers."""
    rows = []
    for name, one in found.items():
        for kind, short in SHORT.items():
            if kind not in one["figures"]["sets"]:
                continue
            figures = one["figures"]["sets"][kind]
            shares = [f"{100 * figures[key]:.1f}" for key in ("ece", "ece_before_temperature", "called_unclear")]
            rows.append([name, short, *(interval(figures[key]) for key in ("weighted_f1", "macro_f1")), *shares])
    return markdown_table(["dataset", "answers", "weighted F1", "macro F1", "ECE", "ECE, T = 1", "unclear"], rows)


def summary(found: dict[str, dict[str, Any]]) -> str:
    """F1 and calibration without the head and on the challenge set, a line a dataset."""
    rows = []
    for name, one in found.items():
        sets = one["figures"]["sets"]
        cells = []
        for kind in ("gold, no head", "challenge"):
            figures = sets.get(kind)
            if figures is None:
                cells += ["–"] * 3
                continue
            cells += [interval(figures[key]) for key in ("weighted_f1", "macro_f1")] + [f"{100 * figures['ece']:.1f}"]
        caught = sets["challenge"]
        cells.append(f"{100 * sets['gold, no head']['called_unclear']:.1f}" if "gold, no head" in sets else "–")
        cells.append(f"{caught['says_no_label_called_unclear']} of {caught['says_no_label']}")
        rows.append([name, *cells])
    headers = [
        f"{kind}: {figure}" for kind in ("no head", "challenge") for figure in ("weighted F1", "macro F1", "ECE")
    ]
    return markdown_table(["dataset", *headers, "no head: unclear", "no label: unclear"], rows)


def unclear(found: dict[str, dict[str, Any]]) -> str:
    """What the threshold catches on the challenge set, a line a dataset."""
    rows = []
    for name, one in found.items():
        figures = one["figures"]["sets"]["challenge"]
        caught = f"{figures['says_no_label_called_unclear']} of {figures['says_no_label']}"
        rows.append(
            [
                name,
                f"{one['temperature']:.2f}",
                f"{one['unclear_below']:.2f}",
                caught,
                f"{100 * figures['called_unclear']:.1f}",
            ]
        )
    return markdown_table(
        ["dataset", "temperature", "threshold", "no label: called unclear", "label: called unclear, %"], rows
    )


def training(found: dict[str, dict[str, Any]]) -> str:
    """What each classifier learned from."""
    rows = []
    for name, one in found.items():
        facts = one["training"]
        source = facts["learned_from"]
        if facts["borrowed_from"]:
            source = f"rows of {', '.join(facts['borrowed_from'])}"
        rows.append([name, source, str(facts["rows"]), str(facts["validation_rows"]), str(facts["dropped_rows"])])
    return markdown_table(["dataset", "learned from", "gold rows", "validation rows", "dropped: test posts"], rows)


def misses(found: dict[str, dict[str, Any]]) -> str:
    """Challenge answers missed, a line a style of answer."""
    style = {answer.id: answer.style for answer in read_challenge()}
    total = Counter(answer.style for answer in read_challenge() if answer.label != UNCLEAR)
    missed = Counter(style[one] for each in found.values() for one in each["figures"]["sets"]["challenge"]["misses"])
    rows = [
        [name, str(missed[name]), str(count)]
        for name, count in sorted(total.items(), key=lambda item: -missed[item[0]])
    ]
    return markdown_table(["style", "missed", "answers"], rows)


BLOCKS = {
    "misses": misses,
    "accuracies": accuracies,
    "summary": summary,
    "details": details,
    "unclear": unclear,
    "training": training,
}
DOCUMENTS = {
    "docs/label-classifiers.md": ("accuracies", "summary", "misses", "details", "unclear", "training"),
}


def written(text: str, name: str, content: str) -> str:
    begin, end = f"<!-- {name}: tools/make_labeler_tables.py -->", f"<!-- end of {name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise UserError(f"no block {begin} ... {end}; put these two lines where the table belongs")
    return f"{before}{begin}\n{content}\n{end}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a document differs")
    check = parser.parse_args().check
    found, different = settings(), []
    for document, blocks in DOCUMENTS.items():
        path = ROOT / document
        before = text = path.read_text(encoding="utf-8")
        for block in blocks:
            text = written(text, block, BLOCKS[block](found))
        if text != before:
            different.append(document)
            if not check:
                write_text_atomically(path, text)
    for document in different:
        say(f"{document}: {'differs from the packaged classifiers' if check else 'written'}")
    return 1 if check and different else 0


if __name__ == "__main__":
    sys.exit(run_main(main))
