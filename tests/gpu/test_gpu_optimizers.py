"""Each optimizer of conf/optim and each kind of adapter on a CUDA device. Run with `pytest -m gpu`."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import FP32, load_tiny, tiny_examples, tiny_lora, trained, write_tiny_model

from dpo_lab.config.paths import CONF_DIR
from dpo_lab.config.schema import Optim
from dpo_lab.data.collate import collate
from dpo_lab.models.lora import new_adapter
from dpo_lab.models.precision import Precision
from dpo_lab.preference.forward import Forward
from dpo_lab.preference.reference import adapter_off
from dpo_lab.training.checkpoint import last_checkpoint, save_checkpoint
from dpo_lab.training.optimizer import build_optimizer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

ALL = collate(tiny_examples(), list(range(8))).to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
BF16 = Precision("bf16", torch.bfloat16, torch.bfloat16)
SMALL = {
    "adamw8bit": {"min_8bit_size": 16},
    "paged_adamw8bit": {"min_8bit_size": 16},
    "galore": {"rank": 2, "update_proj_gap": 2},
}
NAMES = sorted(path.stem for path in (CONF_DIR / "optim").glob("*.yaml"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 128, "intermediate_size": 256, "initializer_range": 0.1}
    return write_tiny_model(tmp_path_factory.mktemp("models") / "gpu", **sizes)


def optim_of(name: str, **changes: Any) -> Optim:
    common = yaml.safe_load((CONF_DIR / "train.yaml").read_text(encoding="utf-8"))["optim"]
    own = yaml.safe_load((CONF_DIR / "optim" / f"{name}.yaml").read_text(encoding="utf-8"))
    return Optim.model_validate(common | own | SMALL.get(name, {}) | changes)


def policy_of(folder: Path, name: str) -> Any:
    if name == "galore":
        return load_tiny(folder, FP32, device="cuda").requires_grad_(True)
    return new_adapter(load_tiny(folder, FP32, device="cuda"), tiny_lora(dora=True), seed=0)


def step(policy: Any, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = -Forward().logps(policy, ALL).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_lowers_the_loss_and_goes_on_from_a_checkpoint(name: str, folder: Path, tmp_path: Path) -> None:
    if name == "galore" and importlib.util.find_spec("galore_torch") is None:
        pytest.skip("needs the extra galore")
    policy = policy_of(folder, name)
    optim = optim_of(name)
    optim = optim.model_copy(update={"lr": 20 * optim.lr})
    optimizer = build_optimizer(policy, optim, scaled=False)
    losses = [step(policy, optimizer) for _ in range(4)]
    state = {"trained": {n: p.detach().cpu() for n, p in trained(policy).items()}, "optimizer": optimizer.state_dict()}
    save_checkpoint(tmp_path, state, step=4)
    losses += [step(policy, optimizer) for _ in range(2)]
    assert losses[-1] < losses[0]
    found = last_checkpoint(tmp_path)
    assert found is not None
    again = policy_of(folder, name)
    for n, p in trained(again).items():
        p.data.copy_(found[1]["trained"][n])
    restored = build_optimizer(again, optim, scaled=False)
    restored.load_state_dict(found[1]["optimizer"])
    assert [step(again, restored) for _ in range(2)] == pytest.approx(losses[-2:], rel=1e-4)


@pytest.mark.parametrize(("name", "there"), [("adamw", True), ("sgd", True), ("muon", True), ("adafactor", False)])
def test_fused_where_there_is_such_a_kernel_and_gradients_are_not_scaled(name: str, there: bool, folder: Path) -> None:
    policy = new_adapter(load_tiny(folder, FP32, device="cuda"), tiny_lora(modules_to_save=["norm"]), seed=0)
    groups = build_optimizer(policy, optim_of(name), scaled=False).param_groups
    assert any(group.get("fused") for group in groups) is there
    assert not any(group.get("fused") for group in build_optimizer(policy, optim_of(name), scaled=True).param_groups)


@pytest.mark.parametrize(
    "lora", [{"init": "pissa"}, {"init": "olora"}, {"dora": True}, {"modules_to_save": ["lm_head"]}], ids=str
)
@pytest.mark.parametrize("bits", [None, 4])
def test_an_adapter_in_bf16_starts_as_the_base_and_learns(lora: dict[str, Any], bits: Any, folder: Path) -> None:
    if bits and "init" in lora:
        pytest.skip("refused: the decomposition would be of rounded weights")
    policy = new_adapter(load_tiny(folder, BF16, bits=bits, device="cuda"), tiny_lora(**lora), seed=0).eval()
    forward = Forward(torch.bfloat16)
    with torch.no_grad(), adapter_off(policy)() as off:
        reference = forward.logps(off, ALL)
    assert (forward.logps(policy, ALL) - reference).abs().mean().item() < BF16.tolerance
    optimizer = build_optimizer(policy, optim_of("adamw", lr=1e-2), scaled=False)
    before = forward.logps(policy, ALL).mean().item()
    for _ in range(5):
        optimizer.zero_grad()
        (-forward.logps(policy, ALL).mean()).backward()
        optimizer.step()
    assert forward.logps(policy, ALL).mean().item() > before + 0.05
    assert {p.dtype for p in trained(policy).values()} == {torch.float32}
