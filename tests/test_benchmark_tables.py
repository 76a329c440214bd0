"""BENCHMARKS.md says what the result files say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from imhi.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("make_benchmark_tables", ROOT / "tools" / "make_benchmark_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_table_is_that_of_its_result_file(tool):
    text = (ROOT / "BENCHMARKS.md").read_text(encoding="utf-8")
    assert tool.filled(text) == text
    assert text.count("tools/make_benchmark_tables.py -->") == 1 + len(list(tool.RESULTS.glob("*.json")))


def test_another_figure_in_the_document_is_found(tool):
    text = (ROOT / "BENCHMARKS.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("| toolkit-float32"))
    assert tool.filled(text.replace(line, line.replace("float32", "float16"))) == text


def test_a_table_without_its_result_is_refused(tool):
    marks = "<!-- generation-tpu: tools/make_benchmark_tables.py -->\n<!-- end of generation-tpu -->"
    with pytest.raises(UserError, match="no result is called generation-tpu"):
        tool.filled(marks)
