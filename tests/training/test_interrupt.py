"""Ctrl-C, SIGTERM and control.json end a run at a safe point; the same command goes on from there."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from runs import Lab, at, rows, same_result, send, status, steps_done

from dpo_lab.runtime.errors import Interrupted
from dpo_lab.training.interrupt import Interrupt

LOG = "dpo_lab.training.trackers:MetricsFile.log"


@pytest.fixture
def straight(tmp_path: Path, lab: Lab) -> Lab:
    return Lab(tmp_path / "straight", lab.model, lab.data)


def test_both_signals_save_a_checkpoint_and_the_run_goes_on_bit_identical(lab: Lab, straight: Lab) -> None:
    folder = lab.folder()
    for number, code, step in ((signal.SIGTERM, 143, 1), (signal.SIGINT, 130, 5)):
        # rows of metrics: the evaluation at step 0 and step 1; in the second call 2, 3, the evaluation at 3, 4, 5
        child = lab.call(first=at(LOG, send(number), call=2 if step == 1 else 5))
        assert child.code == code, child.text
        assert "Traceback" not in child.text
        assert status(folder) | {"status": "stopped", "reason": f"{number.name} received"} == status(folder)
        assert (folder.checkpoints / f"step_{step:08d}.json").exists()
        assert f"step {step} of 6 saved" in " ".join(child.text.split())
    assert lab.call().code == 0
    same_result(folder, straight.train())


def test_a_second_ctrl_c_ends_at_once(lab: Lab) -> None:
    child = lab.call(first=at(LOG, send(signal.SIGINT, signal.SIGINT), call=4))
    assert child.code == 130, child.text
    folder = lab.folder()
    assert status(folder)["status"] == "stopped"
    assert "twice" in status(folder)["reason"]
    assert steps_done(folder) == 2, "the row that the signals came with was not written"
    assert "Traceback" not in child.text
    assert lab.train().done


def test_ctrl_c_in_the_reference_pass_keeps_what_was_computed(lab: Lab, straight: Lab) -> None:
    options = ("trainer.microbatch_tokens=150",)
    write = "dpo_lab.preference.ref_cache:RefCache.write"
    child = lab.call(*options, first=at(write, send(signal.SIGINT), call=3))
    assert child.code == 130, child.text
    assert status(lab.folder(*options))["reason"] == "SIGINT received"
    again = lab.call(*options, first=at(write, send(signal.SIGKILL), call=1000))
    assert again.code == 0
    line = next(line for line in again.text.splitlines() if line.startswith("reference:"))
    done, total = (int(x) for x in line.split()[1].split("/"))
    assert done == total == 19
    fresh = straight.call(*options)
    assert "reference: 19/19" in fresh.text
    same_result(lab.folder(*options), straight.folder(*options))


def test_a_signal_before_the_first_step_ends_the_run(lab: Lab) -> None:
    child = lab.call(first=at("dpo_lab.inference.setup:load_policy", send(signal.SIGTERM)))
    assert child.code == 143, child.text
    assert status(lab.folder())["status"] == "stopped"
    assert not lab.folder().checkpoints.exists()


@pytest.mark.parametrize(("action", "result"), [("stop", "stopped"), ("prune", "pruned")])
def test_control_json_is_obeyed_at_the_next_step(lab: Lab, action: str, result: str) -> None:
    folder = lab.folder()

    def order(*_: Any) -> None:
        folder.control.write_text(json.dumps({"action": action, "reason": "not promising"}), encoding="utf-8")

    child = lab.call(first=at(LOG, order, call=4))  # with the row of step 3
    assert child.code == 0, child.text
    assert status(folder)["status"] == result
    assert "not promising" in status(folder)["reason"]
    assert steps_done(folder) == 3
    if action == "stop":
        assert lab.train().done, "the order was for the former call"
        assert [row["step"] for row in rows(folder, "train/")] == [1, 2, 3, 4, 5, 6]


def test_an_order_that_makes_no_sense_is_ignored(tmp_path: Path) -> None:
    interrupt = Interrupt(tmp_path / "control.json")
    for text in ("", "{", "{}", '{"action": "dance"}', "[]", "3"):
        interrupt.control.write_text(text, encoding="utf-8")
        interrupt.check()
    interrupt.control.write_text('{"action": "prune", "reason": "behind"}', encoding="utf-8")
    with pytest.raises(Interrupted, match="behind") as caught:
        interrupt.check()
    assert (caught.value.status, caught.value.exit_code) == ("pruned", 0)


def test_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    interrupt = Interrupt(tmp_path / "control.json")
    with interrupt.listening():
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.received == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
