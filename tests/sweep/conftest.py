"""What the tests of whole sweeps share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import Lab, preload, write_pairs


@pytest.fixture
def lab(tmp_path: Path, tiny_model: Path) -> Iterator[Lab]:
    """A place of its own for sweeps, without a cache. Runs in this process have one thread, as the trials."""
    import torch

    preload()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    made = Lab(tmp_path, tiny_model, write_pairs(tmp_path / "pairs.jsonl"))
    yield made
    torch.set_num_threads(before)
    for child in made.children:
        if child.alive:
            child.kill(9)
            child.wait()
