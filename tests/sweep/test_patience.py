"""How long a sweep waits for a launcher that takes no more trials."""

import logging
from types import SimpleNamespace

import pytest

from dpo_lab.sweep import patience
from dpo_lab.sweep.patience import AGAIN, LIMIT, Patience
from dpo_lab.sweep.pool import Refused

FULL = Refused("The queue is full.")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Its `now` is what the clock shows, in seconds."""
    made = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


def test_a_launcher_that_refused_is_left_alone_for_a_while_or_until_a_trial_ends(clock: SimpleNamespace) -> None:
    """Fails where a refused sbatch is repeated at every look of the sweep, or only after the pause."""
    ours = Patience()
    assert ours.asks()
    ours.taken()
    ours.refused(FULL, idle=False)
    clock.now += AGAIN - 1
    assert not ours.asks()
    clock.now += 1
    assert ours.asks()
    ours.refused(FULL, idle=False)
    assert not ours.asks()
    ours.freed()
    assert ours.asks()


def test_what_is_refused_from_the_first_is_given_up_and_what_worked_before_is_waited_for(
    clock: SimpleNamespace,
) -> None:
    """Fails where a sweep waits for a partition that does not exist, or ends when SLURM is restarted in the night."""
    assert Patience().refused(FULL, idle=True)
    assert not Patience().refused(FULL, idle=False)
    ours = Patience()
    ours.taken()
    assert not ours.refused(FULL, idle=True)
    clock.now += LIMIT - 1
    assert not ours.refused(FULL, idle=True)
    clock.now += 1
    assert ours.refused(FULL, idle=True)


def test_only_refusals_in_a_row_while_nothing_runs_count(clock: SimpleNamespace) -> None:
    """Fails where hours with a full queue count against the first refusal after its last job has ended."""
    ours = Patience()
    ours.taken()
    ours.refused(FULL, idle=False)
    clock.now += LIMIT
    assert not ours.refused(FULL, idle=True)
    ours.taken()
    clock.now += LIMIT
    assert not ours.refused(FULL, idle=True)


def test_it_is_said_once(clock: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    """Fails where each of the refusals of a night is a line, or none."""
    ours = Patience()
    ours.taken()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            ours.refused(FULL, idle=False)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("The queue is full. It is tried again every 30 s")
