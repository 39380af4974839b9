"""Each optimizer of conf/optim: what it changes, what it keeps, and that a checkpoint holds all of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from runs import Lab, at, send, status, weights
from test_step import fit, module_of
from tiny import FP32, FP64, load_tiny, tiny_examples, tiny_lora, trained
from torch import Tensor, nn

from dpo_lab.config.paths import CONF_DIR
from dpo_lab.config.schema import Optim
from dpo_lab.data.collate import collate
from dpo_lab.models.lora import new_adapter
from dpo_lab.preference.forward import Forward
from dpo_lab.runtime.errors import ConfigError
from dpo_lab.training.checkpoint import last_checkpoint, save_checkpoint
from dpo_lab.training.optimizer import build_optimizer, parameter_groups

ALL = collate(tiny_examples(), list(range(8)))
# What the state of a matrix holds after a step, by option of conf/optim.
STATE = {
    "adamw": {"step", "exp_avg", "exp_avg_sq"},
    "loraplus": {"step", "exp_avg", "exp_avg_sq"},
    "adamw8bit": {"step", "state1", "qmap1", "absmax1", "state2", "qmap2", "absmax2"},
    "lion": {"step", "state1"},
    "rmsprop": {"step", "square_avg"},
    "sgd": {"momentum_buffer"},
    "adafactor": {"step", "row_var", "col_var"},
    "muon": {"momentum_buffer"},
    "galore": {"step", "exp_avg", "exp_avg_sq", "projector"},
}
GPU_ONLY = {"paged_adamw8bit"}
SMALL = {"adamw8bit": {"min_8bit_size": 16}, "galore": {"rank": 2, "update_proj_gap": 2}}  # for a tiny model


def optim_of(name: str, **changes: Any) -> Optim:
    """An option as it is composed: conf/train.yaml, conf/optim/NAME.yaml, then the command line."""
    common = yaml.safe_load((CONF_DIR / "train.yaml").read_text(encoding="utf-8"))["optim"]
    own = yaml.safe_load((CONF_DIR / "optim" / f"{name}.yaml").read_text(encoding="utf-8"))
    return Optim.model_validate(common | own | SMALL.get(name, {}) | changes)


def policy_of(folder: Path, name: str = "adamw", **lora: Any) -> Any:
    """A fresh adapter; for GaLore all weights."""
    if name == "galore":
        return load_tiny(folder, FP32).requires_grad_(True)
    return new_adapter(load_tiny(folder, FP32), tiny_lora(**lora), seed=0)


def step(policy: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """One update that makes all answers likelier, clipped as a run's; the loss before it."""

    def closure() -> None:
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)

    optimizer.zero_grad()
    loss = -Forward().logps(policy, ALL).mean()
    loss.backward()
    optimizer.step(closure)  # type: ignore[arg-type]
    return loss.item()


def values(policy: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trained(policy).items()}


def test_every_option_is_tested() -> None:
    options = {path.stem for path in (CONF_DIR / "optim").glob("*.yaml")}
    assert options == STATE.keys() | GPU_ONLY


@pytest.mark.parametrize("name", STATE)
def test_an_optimizer_lowers_the_loss_moves_all_parameters_and_keeps_its_own_state(name: str, tiny_model: Path) -> None:
    policy = policy_of(tiny_model, name)
    before = values(policy)
    optimizer = build_optimizer(policy, optim_of(name), scaled=False)
    for group in optimizer.param_groups:
        group["lr"] *= 20  # a tiny model, and few steps
    losses = [step(policy, optimizer) for _ in range(6)]
    assert losses[-1] < losses[0]
    assert all(not torch.equal(value, before[n]) for n, value in values(policy).items())
    matrix = next(p for n, p in trained(policy).items() if "q_proj" in n)
    assert set(optimizer.state[matrix]) == STATE[name]


@pytest.mark.parametrize("name", STATE)
def test_a_checkpoint_holds_the_whole_state(name: str, tiny_model: Path, tmp_path: Path) -> None:
    """Three steps, a checkpoint, two steps: the last two are the same from the checkpoint, bit by bit."""
    optim = optim_of(name, lr=1e-3)
    policy = policy_of(tiny_model, name, dora=True)
    optimizer = build_optimizer(policy, optim, scaled=False)
    for _ in range(3):
        step(policy, optimizer)
    save_checkpoint(tmp_path, {"trained": values(policy), "optimizer": optimizer.state_dict()}, step=3)
    expected = [step(policy, optimizer) for _ in range(2)]

    found = last_checkpoint(tmp_path)
    assert found is not None
    again = policy_of(tiny_model, name, dora=True)
    for n, p in trained(again).items():
        p.data.copy_(found[1]["trained"][n])
    restored = build_optimizer(again, optim, scaled=False)
    restored.load_state_dict(found[1]["optimizer"])
    assert [step(again, restored) for _ in range(2)] == expected
    assert all(torch.equal(value, values(policy)[n]) for n, value in values(again).items())
    forgetful = build_optimizer(again, optim, scaled=False)
    step(policy, optimizer), step(again, forgetful)
    assert any(not torch.equal(value, values(policy)[n]) for n, value in values(again).items()), "the state matters"


# -- what each does -----------------------------------------------------------------------------------------------


def change(policy: nn.Module, name: str, **changes: Any) -> dict[str, Tensor]:
    """What the first step of an optimizer does to each parameter."""
    before = values(policy)
    step(policy, build_optimizer(policy, optim_of(name, **changes), scaled=False))
    return {n: value - before[n] for n, value in values(policy).items()}


def test_lion_moves_every_number_by_the_rate(tiny_model: Path) -> None:
    for name, moved in change(policy_of(tiny_model), "lion", lr=1e-3).items():
        if "lora_B" in name:  # A has no gradient yet
            assert torch.allclose(moved[moved != 0].abs(), torch.tensor(1e-3), rtol=1e-3), name


def test_8_bit_moments_are_held_in_8_bits_and_step_as_adamw(tiny_model: Path) -> None:
    policy = policy_of(tiny_model, "adamw8bit")
    optimizer = build_optimizer(policy, optim_of("adamw8bit"), scaled=False)
    step(policy, optimizer)
    states = [optimizer.state[p] for n, p in trained(policy).items() if "lora_B" in n]
    assert {s[key].dtype for s in states for key in ("state1", "state2")} == {torch.uint8}
    ours, theirs = (change(policy_of(tiny_model), name, lr=1e-3) for name in ("adamw8bit", "adamw"))
    for name, moved in theirs.items():
        if "lora_B" in name:
            assert torch.nn.functional.cosine_similarity(ours[name].flatten(), moved.flatten(), dim=0) > 0.9, name


def test_muon_moves_matrices_by_orthogonal_steps_and_adamw_the_rest(tiny_model: Path) -> None:
    policy = load_tiny(tiny_model, FP32).requires_grad_(True)
    optimizer = build_optimizer(policy, optim_of("muon", lr=1e-3), scaled=False)
    before = values(policy)
    step(policy, optimizer)
    for name, p in trained(policy).items():
        keys = set(optimizer.state[p])
        if "_proj" in name:
            assert keys == {"momentum_buffer"}, name
            scale = 0.2 * max(p.shape) ** 0.5 * 1e-3  # match_rms_adamw
            lengths = torch.linalg.svdvals(before[name] - p.detach()) / scale
            assert 0.6 < lengths.median() <= lengths.max() < 1.3, name
        else:  # embedding and norms
            assert keys == {"step", "exp_avg", "exp_avg_sq"}, name
            assert torch.allclose((before[name] - p.detach()).abs().max(), torch.tensor(1e-3), rtol=1e-3), name
    assert len(optimizer.param_groups) == 2


def test_galore_moves_matrices_within_a_subspace(tiny_model: Path) -> None:
    moved = change(policy_of(tiny_model, "galore"), "galore", lr=1e-3)
    ranks = {n: int(torch.linalg.matrix_rank(m, tol=1e-6)) for n, m in moved.items() if m.dim() == 2}
    assert {rank for n, rank in ranks.items() if "_proj" in n} == {2}
    assert ranks["model.embed_tokens.weight"] > 2, "an embedding is not projected"


def test_rmsprop_and_sgd_take_their_own_keys(tiny_model: Path) -> None:
    plain = change(policy_of(tiny_model), "sgd", lr=1.0)
    slow = change(policy_of(tiny_model), "sgd", lr=0.5)
    assert all(torch.allclose(0.5 * m, slow[n], atol=1e-6) for n, m in plain.items())
    first = change(policy_of(tiny_model), "rmsprop", lr=1e-3, alpha=0.99)
    largest = max(m.abs().max().item() for m in first.values())
    assert largest == pytest.approx(1e-3 / (1 - 0.99) ** 0.5, rel=1e-3), "no bias correction"


# -- parameter groups ---------------------------------------------------------------------------------------------


def grouped(policy: nn.Module, optim: Optim, *, split: bool = False) -> list[tuple[float, float, set[str]]]:
    """(lr, weight decay, names) of each group."""
    names = {p: n for n, p in policy.named_parameters()}
    groups = parameter_groups(policy, optim, split_matrices=split)
    return [(g["lr"], g["weight_decay"], {names[p] for p in g["params"]}) for g in groups]


def test_lora_plus_gives_b_its_own_rate(tiny_model: Path) -> None:
    policy = policy_of(tiny_model, dora=True, modules_to_save=["embed_tokens"])
    optim = optim_of("loraplus")
    (low, _, slow), (high, _, quick) = grouped(policy, optim)
    assert (low, high) == (optim.lr, 16 * optim.lr)
    assert quick == {n for n in trained(policy) if "lora_B" in n}
    assert slow == trained(policy).keys() - quick
    assert len(grouped(policy, optim_of("adamw"))) == 1


def test_norms_and_magnitudes_do_not_decay(tiny_model: Path) -> None:
    policy = policy_of(tiny_model, dora=True)
    groups = grouped(policy, optim_of("adamw", weight_decay=0.1))
    assert {n for _, decay, names in groups if decay == 0.0 for n in names} == {
        n for n in trained(policy) if "magn" in n
    }
    full = load_tiny(tiny_model, FP32).requires_grad_(True)
    groups = grouped(full, optim_of("adamw", weight_decay=0.1))
    assert {n for _, decay, names in groups if decay == 0.0 for n in names} == {n for n in trained(full) if "norm" in n}


def test_matrices_are_the_linear_layers_but_not_embedding_and_head(tmp_path: Path) -> None:
    from tiny import write_tiny_model

    folder = write_tiny_model(tmp_path / "untied", tie_word_embeddings=False)
    policy = load_tiny(folder, FP32).requires_grad_(True)
    groups = parameter_groups(policy, optim_of("muon"), split_matrices=True)
    names = {p: n for n, p in policy.named_parameters()}
    matrices = {names[p] for g in groups if g["matrix"] for p in g["params"]}
    assert matrices == {n for n in names.values() if "_proj" in n}
    adapter = new_adapter(load_tiny(folder, FP32), tiny_lora(modules_to_save=["lm_head"]), seed=0)
    own = {p: n for n, p in adapter.named_parameters()}
    groups = parameter_groups(adapter, optim_of("muon"), split_matrices=True)
    rest = {own[p] for g in groups if not g["matrix"] for p in g["params"]}
    assert rest == {n for n in trained(adapter) if "lm_head" in n}


def test_the_schedule_holds_for_every_group(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    policy = policy_of(tiny_model)
    extra = {"_target_": "torch.optim.AdamW", "loraplus_ratio": 4.0, "lr": 1e-2, "schedule": "linear"}
    module = module_of(policy, steps=4, **extra)
    seen: list[list[float]] = []
    original = module.on_before_optimizer_step
    monkeypatch.setattr(
        module, "on_before_optimizer_step", lambda o: (seen.append([g["lr"] for g in o.param_groups]), original(o))
    )
    fit(module, [[ALL]] * 4)
    assert seen == [pytest.approx([1e-2 * f, 4e-2 * f]) for f in (1.0, 0.75, 0.5, 0.25)]
    assert module.last["lr"] == pytest.approx(2.5e-3), "what is logged is optim.lr's"


# -- refused ------------------------------------------------------------------------------------------------------


def test_a_paged_optimizer_is_refused_on_a_cpu(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="needs a GPU.*optim=adamw8bit"):
        build_optimizer(policy_of(tiny_model), optim_of("paged_adamw8bit"), scaled=False)


def test_what_an_optimizer_refuses_is_said_with_its_name(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"torch.optim.AdamW: Invalid beta"):
        build_optimizer(policy_of(tiny_model), optim_of("adamw", betas=[2.0, 0.9]), scaled=False)
    with pytest.raises(ConfigError, match=r"fused=true cannot be used with fp16"):
        build_optimizer(policy_of(tiny_model), optim_of("adamw", fused=True), scaled=True)


def test_fused_is_taken_where_it_is_asked_for(tiny_model: Path) -> None:
    for name in ("adamw", "muon"):
        policy = policy_of(tiny_model, modules_to_save=["norm"])
        optimizer = build_optimizer(policy, optim_of(name, fused=True), scaled=False)
        assert any(g.get("fused") for g in optimizer.param_groups)
        assert not any(g.get("fused") for g in build_optimizer(policy, optim_of(name), scaled=False).param_groups)


def test_in_fp64_an_adapter_learns_in_fp64(tiny_model: Path) -> None:
    policy = new_adapter(load_tiny(tiny_model, FP64), tiny_lora(), seed=0)
    optimizer = build_optimizer(policy, optim_of("muon"), scaled=False)
    step(policy, optimizer)
    assert {s["momentum_buffer"].dtype for s in optimizer.state.values()} == {torch.float64}


# -- whole runs ---------------------------------------------------------------------------------------------------

RUNS = {
    "muon": ("optim=muon", "lora.modules_to_save=[norm]"),
    "8 bit": ("optim=adamw8bit", "+optim.min_8bit_size=16"),
    "galore": ("optim=galore", "lora=none", "optim.lr=1e-3", "optim.rank=2", "optim.update_proj_gap=2"),
    "pissa with lora+": ("lora=pissa", "optim=loraplus", "optim.lr=1e-3"),
    "dora": ("lora=dora", "lora.rslora=true", "lora.dropout=0.1"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_ends_bit_identical(name: str, lab: Lab, tmp_path: Path) -> None:
    import signal

    straight = Lab(tmp_path / "straight", lab.model, lab.data)
    killed = lab.train_in_child(
        *RUNS[name], first=at("dpo_lab.training.checkpoint:write_json", send(signal.SIGKILL), call=3)
    )
    assert killed.code == 137, killed.text
    again = lab.train_in_child(*RUNS[name])
    assert again.code == 0, again.text
    assert "going on from step 4 of 6" in again.text
    folder, other = lab.folder(*RUNS[name]), straight.train(*RUNS[name])
    assert status(folder)["metrics"] == status(other)["metrics"]
    if name == "galore":
        assert (folder.final / "model.safetensors").read_bytes() == (other.final / "model.safetensors").read_bytes()
    else:
        assert weights(folder) == weights(other)
