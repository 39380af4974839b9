"""Micro-batches that do not fit are cut smaller, and the run is one that was cut that way from the start."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Lab, rows, same_result
from tiny import load_tiny, tiny_examples, tiny_lora, trained

from dpo_lab.data.types import Example
from dpo_lab.inference.reference_pass import _side_by_side
from dpo_lab.models.lora import new_adapter
from dpo_lab.models.memory import NO_ROOM
from dpo_lab.preference.forward import Forward, causal_lm
from dpo_lab.runtime.errors import LabError
from dpo_lab.runtime.files import read_jsonl
from dpo_lab.training import align
from dpo_lab.training.checkpoint import last_checkpoint
from dpo_lab.training.probe import Meter, largest_that_fits

SHORT = ("optim.batch_size=6", "optim.max_steps=4", "trainer.eval_every=0", "trainer.checkpoint_every=1")
SHORT += ("trainer.forward=padded", "trainer.kl_pairs=0", "prompts=none", "data.eval_fraction=0.1")
ROOM = 320  # tokens of a forward pass that fit: two of the shorter pairs


@contextmanager
def little_memory(policy: Any, room: int) -> Iterator[list[int]]:
    """The decoder refuses more tokens than `room`, as a GPU would; gives the sizes that it was asked for."""
    asked = []

    def refuse(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        asked.append(kwargs["input_ids"].numel())
        if asked[-1] > room:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {asked[-1]} tokens.")

    hook = causal_lm(policy).get_decoder().register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield asked
    finally:
        hook.remove()


def poor(monkeypatch: pytest.MonkeyPatch, name: str, room: int, parts: int) -> list[int]:
    """A function of `align` has little memory; `parts` is the place of the run's parts among its arguments."""
    original, seen = getattr(align, name), []

    def with_little_memory(*args: Any, **kwargs: Any) -> None:
        with little_memory(args[parts].policy, room) as asked:
            try:
                original(*args, **kwargs)
            finally:
                seen.extend(asked)

    monkeypatch.setattr(align, name, with_little_memory)
    return seen


@pytest.mark.parametrize("loss", ["dpo", "aot"])
def test_a_step_that_does_not_fit_is_repeated_as_one_of_smaller_micro_batches(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, loss: str
) -> None:
    """Dropout included, and though its first micro-batches did fit."""
    options = (*SHORT, f"loss={loss}", "lora.dropout=0.2")
    other = Lab(lab.root, lab.model, lab.data, output=lab.root / "small")  # with the same cache of the reference
    small = other.train(*options, "trainer.microbatch_tokens=200")
    seen = poor(monkeypatch, "fit", ROOM, parts=1)
    with caplog.at_level(logging.WARNING):
        large = lab.train(*options, "trainer.microbatch_tokens=400")
    assert len([size for size in seen if size > ROOM]) == 1
    assert seen[0] <= ROOM
    same_result(large, small)
    assert "repeated with micro-batches of 200 tokens in place of 400" in caplog.text
    found = last_checkpoint(large.checkpoints)
    assert found is not None
    assert found[1]["microbatch_tokens"] == 200


def test_a_single_pair_that_does_not_fit_ends_the_run(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    poor(monkeypatch, "fit", 60, parts=1)
    with pytest.raises(LabError, match="with a single pair in a micro-batch"):
        lab.train(*SHORT)
    assert not rows(lab.folder(*SHORT), "train/")


def test_the_reference_pass_goes_on_with_smaller_micro_batches(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    straight = Lab(lab.root / "straight", lab.model, lab.data).train(*SHORT)
    seen = poor(monkeypatch, "fill_reference", 500, parts=1)
    with caplog.at_level(logging.WARNING):
        folder = lab.train(*SHORT)
    assert "out of memory in the reference pass" in caplog.text
    fit = [size for size in seen if size <= 500]
    assert len(fit) < len(seen)
    assert fit
    for ours, theirs in zip(rows(folder), rows(straight), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def test_a_reference_of_which_a_single_pair_does_not_fit_ends_the_run(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    poor(monkeypatch, "fill_reference", 60, parts=1)
    with pytest.raises(LabError, match="with a single pair in a micro-batch"):
        lab.train(*SHORT)


def test_ranks_repeat_a_step_together(lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only the second one runs out of memory."""
    options = (*SHORT, "trainer.precision=64", "trainer.accelerator=cpu")
    one = Lab(lab.root, lab.model, lab.data, output=lab.root / "one").train(*options)
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'dpo_lab.training.workers' in ' '.join(sys.orig_argv):\n"
        f"    sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]\n"
        "    import dpo_lab.training.fit as module\n"
        "    original = module.fit\n"
        "    def fit(config, parts, *args, **kwargs):\n"
        "        from test_out_of_memory import little_memory\n"
        "        with little_memory(parts.policy, 300):\n"
        "            original(config, parts, *args, **kwargs)\n"
        "    module.fit = fit\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    more = ("trainer.devices=2", "trainer.microbatch_tokens=1000")
    two = Lab(lab.root, lab.model, lab.data, output=lab.root / "two")
    child = two.call(*options, *more)
    assert child.code == 0, child.text
    assert "repeated with micro-batches of 250 tokens" in " ".join(child.text.split()), child.text
    for ours, theirs in zip(rows(two.folder(*options, *more)), rows(one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-9)


def test_an_evaluation_goes_on_in_halves(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The last one; those that are left have all pairs, and the exact KL."""
    options = (*SHORT, "data.eval_fraction=0.4", "trainer.kl_pairs=5")
    straight = Lab(lab.root, lab.model, lab.data, output=lab.root / "straight").train(*options)
    evaluate = align.Run.evaluate

    def poor_evaluation(self: Any, scorer: Any, parts: Any, step: int) -> None:
        with little_memory(parts.policy, ROOM):
            evaluate(self, scorer, parts, step)

    monkeypatch.setattr(align.Run, "evaluate", poor_evaluation)
    with caplog.at_level(logging.WARNING):
        folder = lab.train(*options)
    assert "out of memory in an evaluation" in caplog.text
    for ours, theirs in zip(rows(folder, "val/"), rows(straight, "val/"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    assert [row["index"] for row in read_jsonl(folder.eval_pairs)] == [
        row["index"] for row in read_jsonl(straight.eval_pairs)
    ]


def test_pairs_of_one_prompt_come_to_the_reference_side_by_side() -> None:
    a, b, c, d = tiny_examples()[:4]
    ranked = [
        a,
        b,
        Example(a.prompt_ids, c.chosen_ids, d.chosen_ids, a.pair),
        c,
        Example(b.prompt_ids, [5], [6], b.pair),
    ]
    places = [(ranked, row) for row in range(5)]
    assert [row for _, row in _side_by_side(places)] == [0, 2, 1, 4, 3]


# -- the probe ----------------------------------------------------------------------------------------------------


class Device(Meter):
    """A device whose passes take 7000 bytes, and 100 a token."""

    def __init__(self, policy: Any, memory: int) -> None:
        self.policy, self.memory = policy, memory
        self.tried: list[int] = []

    def peak(self, work: Callable[[], None]) -> int:
        with little_memory(self.policy, 10**9) as asked:
            work()
        self.tried.append(max(asked))
        if 7000 + 100 * max(asked) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 7000 + 100 * max(asked)

    def free(self) -> int:
        return self.memory


@pytest.fixture
def policy(tiny_model: Path) -> Any:
    return new_adapter(load_tiny(tiny_model), tiny_lora(r=1, target_modules=["q_proj"], dropout=0.3), seed=0).eval()


def by_length() -> list[Any]:
    return sorted(tiny_examples(), key=lambda e: -sum(e.lengths))


def state(policy: Any) -> int:
    return sum(12 * p.numel() for p in trained(policy).values())


def test_the_probe_finds_what_the_memory_holds_and_leaves_no_trace(policy: Any) -> None:
    device = Device(policy, 150_000)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    tokens = largest_that_fits(policy, Forward(), by_length(), device, torch.device("cpu"))
    room = 150_000 * 0.9 - state(policy) - 7000
    assert tokens == int(room / 100)
    assert device.tried[-1] <= tokens
    assert torch.equal(torch.get_rng_state(), before)
    assert not policy.training
    assert all(p.grad is None for p in policy.parameters())


def test_what_does_not_fit_after_all_is_lowered(policy: Any) -> None:
    class Worse(Device):
        def free(self) -> int:
            return 2 * self.memory

    device = Worse(policy, 80_000)
    tokens = largest_that_fits(policy, Forward(), by_length(), device, torch.device("cpu"))
    assert any(7000 + 100 * size > 80_000 for size in device.tried)
    assert 7000 + 100 * device.tried[-1] <= 80_000
    assert device.tried[-1] <= tokens < 1600


def test_a_device_on_which_no_pair_fits_is_refused(policy: Any) -> None:
    with pytest.raises(LabError) as caught:
        largest_that_fits(policy, Forward(), by_length(), Device(policy, 8000), torch.device("cpu"))
    assert str(caught.value) == NO_ROOM


@pytest.mark.parametrize("shared", [False, True])
def test_tokens_are_counted_as_micro_batches_are_cut(shared: bool) -> None:
    from dpo_lab.data.collate import count, microbatches

    for layout in microbatches(tiny_examples(), range(8), tokens=500, shared=shared):
        assert count(layout, shared=shared) == (layout.ids.numel() if shared else layout.padded()[0].numel())
