"""Compiled layers train what eager ones do, under the same names, and only where it was asked for or pays."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_step import cut, fit, module_of
from tiny import load_tiny, move, tiny_lora, tiny_policy, trained, write_tiny_model

from dpo_lab.models.lora import new_adapter
from dpo_lab.preference.forward import Forward, causal_lm
from dpo_lab.preference.sharing import share
from dpo_lab.training.compile import PAYS, Choice, choose, compiled
from dpo_lab.training.module import PreferenceModule


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def steps() -> list[Any]:
    """Packs of seven lengths, with one to three pairs."""
    return [cut([0, 1], [2]), cut([3, 4, 5]), cut([6], [7, 0]), cut([1, 2, 3])]


def trained_by(folder: Path, choice: Choice, *, shared: bool) -> tuple[PreferenceModule, dict[str, torch.Tensor]]:
    """A run beside a reference that is the policy with its adapter off."""
    policy = new_adapter(load_tiny(folder), tiny_lora(target_modules=["q_proj"]), seed=0).eval()
    move(policy, 0.3)
    if shared:
        assert share(policy, max_length=512) is None
    module = module_of(policy, steps=4)
    with compiled(policy, choice):
        fit(module, steps())
    return module, trained(policy)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_compiled_layers_train_the_same_run(shared: bool, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "one_layer", num_hidden_layers=1)
    eager, expected = trained_by(folder, Choice(False, ""), shared=shared)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    module, found = trained_by(folder, Choice(True, ""), shared=shared)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert found.keys() == expected.keys()
    for name, parameter in found.items():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(module.rows, eager.rows, strict=True):
        assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-4, abs=1e-5)


def test_no_length_of_a_pack_compiles_anew(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted without the compiler proper, which takes its time."""
    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda layer, **kwargs: original(layer, backend="eager", **kwargs))
    policy, forward, graphs = tiny_policy(tiny_model, moved=0.3), Forward(), []
    assert share(policy, max_length=512) is None
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with compiled(policy, Choice(True, "")), torch.no_grad():
        for layout in (layout for step in steps() for layout in step):
            forward.logps(policy, layout)
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert set(graphs) == {graphs[0]}


def test_names_stay_and_the_layers_are_eager_again_afterwards(tiny_model: Path) -> None:
    policy = tiny_policy(tiny_model)
    names = list(policy.state_dict())
    layers: list[Any] = list(causal_lm(policy).get_decoder().layers)
    with compiled(policy, Choice(True, "")):
        assert all(layer._compiled_call_impl is not None for layer in layers)
        assert list(policy.state_dict()) == names
    assert all(layer._compiled_call_impl is None for layer in layers)
    with compiled(policy, Choice(False, "")):
        assert all(layer._compiled_call_impl is None for layer in layers)


@pytest.mark.parametrize("device", PAYS)
def test_auto_compiles_long_runs_of_plain_layers(device: str) -> None:
    least = PAYS[device]
    assert choose("auto", steps=least, device=device, lean=False).on
    assert not choose("auto", steps=least - 1, device=device, lean=False).on
    assert not choose("auto", steps=least, device=device, lean=True).on
    assert str(least) in choose("auto", steps=least - 1, device=device, lean=False).why


def test_what_is_asked_for_is_done() -> None:
    assert choose(True, steps=1, device="cpu", lean=True).on
    assert not choose(False, steps=10**6, device="cuda", lean=False).on
    assert not choose("auto", steps=10**6, device="mps", lean=False).on
