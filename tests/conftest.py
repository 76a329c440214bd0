"""Fixtures: the real data where it is present, tiny models for shapes and edge cases, the real SmolLM2."""

from __future__ import annotations

import os
from pathlib import Path

# Before any library is imported: no test reaches a network, whatever the machine offers.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest

ROOT = Path(__file__).parents[1]


def pytest_configure() -> None:
    # Tests name their data root themselves; a user's setting must not leak in.
    found = os.environ.pop("IMHI_DATA", None)
    if found:
        os.environ["IMHI_TEST_DATA"] = found


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The released IMHI files: $IMHI_DATA, else ../shared/imhi beside the repository."""
    named = os.environ.get("IMHI_TEST_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "imhi"
    if not (folder / "test_data" / "test_instruction").is_dir():
        pytest.skip(f"the released IMHI files are not on this machine (no {folder}; set IMHI_DATA)")
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import save_llama

    return save_llama(tmp_path_factory.mktemp("tiny_llama"))


@pytest.fixture(scope="session")
def tiny_bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import save_bart

    return save_bart(tmp_path_factory.mktemp("tiny_bart"))


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import save_t5

    return save_t5(tmp_path_factory.mktemp("tiny_t5"))


@pytest.fixture(scope="session")
def smollm2():
    """The packaged SmolLM2-135M-Instruct in float32: a real LLaMA checkpoint."""
    import torch

    from imhi.checkpoints import load_generator, locate_generator

    return load_generator(locate_generator("embedded:smollm2", llama=True), device="cpu", dtype=torch.float32)
