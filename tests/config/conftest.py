"""The door called in this process, and a folder of a user's own options."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_lab.config import cli

Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def _own_sys_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Call the door with words that it must refuse; returns what it wrote."""

    def call(*words: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            cli.prepare(words)
        assert stopped.value.code == 2, "must be refused"
        return capsys.readouterr().err

    return call


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A --config-dir with a loss of the user's."""
    folder = tmp_path / "my options"
    (folder / "loss").mkdir(parents=True)
    (folder / "experiment").mkdir()
    (folder / "my_own_losses.py").write_text(
        "def margin_loss(chosen_logratios, rejected_logratios, *, gamma):\n"
        "    return gamma - chosen_logratios + rejected_logratios\n"
    )
    (folder / "loss" / "margin.yaml").write_text("_target_: my_own_losses.margin_loss\ngamma: 2.0\naverage: sum\n")
    return folder
