"""Write the figures of ``imhi humans`` into docs/human-agreement.md and docs/human-agreement.svg.

    imhi humans --data_root imhi_data --out OUT          # the figures; needs the released annotations
    python tools/make_human_tables.py OUT/humans.json    # keeps them as docs/human-agreement.json and writes the tables
    python tools/make_human_tables.py --check            # exit 1 where a document says something else

Nothing is computed here.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from imhi.data import write_text_atomically
from imhi.errors import UserError, run_main
from imhi.humans.figures import POOLED
from imhi.humans.heatmap import heat_map
from imhi.humans.report import MAIN, aspect_table, column_table, findings, markdown_table, rater_table, rival_table
from imhi.talk import say

DOCS = Path(__file__).parents[1] / "docs"
FIGURES, PAGE, PICTURE = DOCS / "human-agreement.json", DOCS / "human-agreement.md", DOCS / "human-agreement.svg"


def parts(document: dict[str, Any]) -> dict[str, str]:
    """Name of a marked part → its text."""
    found = {"findings": "\n".join(f"- {line}" for line in findings(document))}
    (raters,) = document["raters"].values()
    found["raters"] = markdown_table(*rater_table(raters))
    for reference, of in document["references"].items():
        scoped = of["figures"][POOLED]
        found[f"{MAIN} {reference}"] = markdown_table(*column_table(scoped, MAIN))
        found[f"tests {reference}"] = markdown_table(*rival_table(scoped, MAIN))
        for kind in ("pearson", "spearman"):
            found[f"{kind} {reference}"] = markdown_table(*aspect_table(scoped, kind))
    found["signatures"] = "\n".join(f"- `{signature}`" for signature in document["signatures"].values())
    return found


def pooled_only(document: dict[str, Any]) -> dict[str, Any]:
    """The document without the figures by file, which are those of the page where there is one file."""
    references = {
        name: {**of, "figures": {POOLED: of["figures"][POOLED]}} for name, of in document["references"].items()
    }
    return {**document, "references": references}


def filled(page: str, texts: dict[str, str]) -> str:
    """The page with every marked part replaced."""
    for name, text in texts.items():
        start, end = f"<!-- {name}: tools/make_human_tables.py -->\n", f"<!-- end of {name} -->"
        before, opened, rest = page.partition(start)
        _, closed, after = rest.partition(end)
        if not opened or not closed:
            raise UserError(f"{PAGE}: no part between {start.strip()!r} and {end!r}")
        page = f"{before}{start}{text}\n{end}{after}"
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("figures", nargs="?", type=Path, help="humans.json of a run (default: the one kept in docs/)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where something would change")
    arguments = parser.parse_args()
    document = pooled_only(json.loads((arguments.figures or FIGURES).read_text(encoding="utf-8")))
    text = json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n"
    wanted = {FIGURES: text, PICTURE: heat_map(document), PAGE: filled(PAGE.read_text("utf-8"), parts(document))}
    stale = [path for path, new in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != new]
    if arguments.check:
        for path in stale:
            say(f"{path}: not what the figures say; run tools/make_human_tables.py")
        return 1 if stale else 0
    for path in stale:
        write_text_atomically(path, wanted[path])
        say(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
