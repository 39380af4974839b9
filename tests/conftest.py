"""Model folders that many tests share. This file also puts tests/ on the path, so that `from tiny import ...` works."""

import os
from pathlib import Path

import pytest

# Two workers share the machine: one thread each, also in the processes that tests start; torch reads it at import.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("models") / "qwen2", "qwen2")


@pytest.fixture(scope="session")
def tiny_wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose layers divide into the blocks of 64 that 4-bit quantisation needs."""
    from tiny import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("models") / "wide", hidden_size=64, intermediate_size=128)
