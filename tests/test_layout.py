"""The floors of the code: nothing imports upwards, and nothing heavy is imported at the top of a file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "imhi"

# From the ground up, as the README's layout section tells it; a module may import from its own floor and below.
FLOORS = (
    {
        "benchmark",
        "batching",
        "errors",
        "talk",
        "provenance",
        "locks",
        "devices",
        "cpu",
        "statistics",
        "pairing",
        "agreement",
        "remote",
    },
    {"data", "checkpoints", "fetch"},
    {"engines", "labelers", "metrics", "audit", "shots", "prompts"},
    {"runs", "labelling", "scoring", "generation", "rule_labelling", "asking", "demo", "training"},
    {"rows", "kept", "results", "humans", "exclusions", "measures", "failures", "lm_eval_export"},
    {"comparable", "comparison", "regression", "report", "pipeline"},
    {"commands", "cli"},
)
HEAVY = {
    "torch",
    "transformers",
    "peft",
    "numpy",
    "pandas",
    "sklearn",
    "bert_score",
    "nltk",
    "rouge_score",
    "safetensors",
    "scipy",
    "jinja2",
    "matplotlib",
    "aiohttp",
    "ray",
    "vllm",
    "accelerate",
}


def floor_of(module: str) -> int:
    return next(number for number, names in enumerate(FLOORS) if module in names)


def imports(tree: ast.AST) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return names


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_nothing_imports_upwards(path):
    own = path.relative_to(SOURCE).with_suffix("").parts[0]
    if own == "__init__":
        return
    for name in imports(ast.parse(path.read_text(encoding="utf-8"))):
        parts = name.split(".")
        if parts[0] == "imhi" and len(parts) > 1:
            assert floor_of(parts[1]) <= floor_of(own), f"{own} imports {name}"


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_heavy_libraries_are_imported_inside_functions(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            assert not {name.split(".")[0] for name in imports(node)} & HEAVY


def test_no_module_branches_on_a_datasets_name():
    from imhi.benchmark import DATASETS

    for path in sorted(SOURCE.rglob("*.py")):
        if path.name == "benchmark.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                named = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)} & set(DATASETS)
                assert not named, f"{path.name}, line {node.lineno}: {named}"
