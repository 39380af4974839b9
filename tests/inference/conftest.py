"""Finished runs that the tests of evaluation, chat, export and serving share; nobody changes them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from doors import Results
from runs import write_pairs

RATES = ("1e-2", "3e-2")


@contextmanager
def quick() -> Iterator[None]:
    """One thread, no curves, which take longer than the run, and nothing is asked of a hub."""
    import torch

    import dpo_lab.training.align

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dpo_lab.training.align, "write_curves", lambda *_: None)
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            patch.setenv(name, os.environ.get(name, "1"))
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with quick():  # for a module, not for the session: tests elsewhere draw curves and ask hubs
        yield


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Results:
    root = tmp_path_factory.mktemp("results")
    results = Results(root, tiny_model, write_pairs(root / "pairs.jsonl"))
    with quick():
        for rate in RATES:
            results.runs.append(results.train(f"optim.lr={rate}").path)
    return results
