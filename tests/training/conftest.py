"""What the tests of whole runs share. Nothing here is automatic: the other tests of this folder need none of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import Lab, preload, write_pairs


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, as the forked children have, so that results are bit-identical; no curves, which take longer than the run."""
    import torch

    import dpo_lab.training.align

    preload()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(dpo_lab.training.align, "write_curves", lambda *_: None)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def lab(tmp_path: Path, tiny_model: Path, pairs: Path, quick: None) -> Lab:
    """A place of its own for runs, without a cache."""
    return Lab(tmp_path, tiny_model, pairs)
