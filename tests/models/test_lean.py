"""Lean layers in the place of PEFT's and transformers' own give the same numbers, and leave alone what they can't."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    FAMILIES,
    FP32,
    FP64,
    byte_tokenizer,
    difference,
    load_tiny,
    tiny_examples,
    tiny_lora,
    trained,
    worst_gradient,
    write_tiny_model,
)
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaMLP

from dpo_lab.data.collate import collate
from dpo_lab.models.lean import make_lean
from dpo_lab.models.lora import continued_adapter, new_adapter
from dpo_lab.models.precision import Precision
from dpo_lab.models.save import save_final
from dpo_lab.preference.forward import Forward
from dpo_lab.preference.reference import COPY, adapter_copy, adapter_off

LAYOUT = collate(tiny_examples()[:4], range(4))
FORWARD = Forward(shared=False)
BF16 = Precision("bf16", torch.bfloat16, torch.bfloat16)


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root, made = tmp_path_factory.mktemp("models"), set[str]()

    def folder(family: str) -> Path:
        if family not in made:
            made.add(family)
            write_tiny_model(root / family, family)
        return root / family

    return folder


def policy_of(folder: Path, precision: Precision = FP32, *, bits: Any = None, **lora: Any) -> Any:
    """A policy all of whose trained parameters have moved."""
    policy = new_adapter(load_tiny(folder, precision, bits=bits), tiny_lora(**lora), seed=0).eval()
    generator = torch.Generator().manual_seed(3)
    for parameter in trained(policy).values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return policy


def evaluated(policy: nn.Module, *, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of whole rows, and the gradients of a weighted sum."""
    torch.manual_seed(seed)
    policy.zero_grad()
    logits = policy(input_ids=LAYOUT.padded()[0], use_cache=False).logits.log_softmax(-1)
    (logits * torch.linspace(-1, 2, logits.numel()).view_as(logits)).mean().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in trained(policy).items() if p.grad is not None}


def agree(policy: nn.Module, act: Callable[[], Any], *, values: float = 1e-5, gradients: float = 1e-4) -> Any:
    """Numbers before and after something is done to a policy."""
    before, expected = evaluated(policy)
    done = act()
    after, gradient = evaluated(policy)
    assert difference(after, before) < values
    assert worst_gradient(gradient, expected) < gradients
    return done


def own_passes(policy: nn.Module) -> dict[str, list[str]]:
    """Names of the modules that have a forward pass of the lab's, by class."""
    found: dict[str, list[str]] = {}
    for name, module in policy.named_modules():
        if getattr(module.__dict__.get("forward"), "__module__", "").startswith("dpo_lab"):
            found.setdefault(type(module).__name__, []).append(name)
    return found


@contextmanager
def calls(kind: type[nn.Module]) -> Iterator[list[str]]:
    """How often a class's own forward pass runs."""
    seen: list[str] = []
    original = kind.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(type(self).__name__)
        return original(self, *args, **kwargs)

    kind.forward = forward  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        kind.forward = original  # type: ignore[method-assign]


# -- every family, adapter and base ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lean_model_of_a_family_gives_its_own_numbers(family: str, families: Callable[[str], Path]) -> None:
    policy = policy_of(families(family))
    done = agree(policy, lambda: make_lean(policy))
    norms = 9 if family == "qwen3" else 5
    assert done == {"linear": 14, "mlp": 2, "norm": norms}
    assert sum(map(len, own_passes(policy).values())) == 16 + norms


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "pissa": {"init": "pissa"},
    "attention alone": {"target_modules": "attention"},
    "gate and down": {"target_modules": ["gate_proj", "down_proj"]},
    "a norm saved": {"modules_to_save": ["norm"]},
    "a linear layer saved": {"modules_to_save": ["up_proj"], "target_modules": ["gate_proj", "down_proj", "q_proj"]},
    "tied embedding saved": {"modules_to_save": ["embed_tokens"]},
    "dropout": {"dropout": 0.3},
}


# PiSSA needs the base's weights, PEFT has no DoRA in 8 bit, and a quantised layer cannot be trained.
IMPOSSIBLE = {("pissa", 4), ("pissa", 8), ("dora", 8), ("a linear layer saved", 4), ("a linear layer saved", 8)}
COMBINATIONS = [(name, bits) for name in VARIANTS for bits in (None, 4, 8) if (name, bits) not in IMPOSSIBLE]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize(("name", "bits"), COMBINATIONS)
def test_a_lean_adapter_gives_pefts_numbers(name: str, bits: Any, training: bool, tiny_wide: Path) -> None:
    policy, plain = (policy_of(tiny_wide, bits=bits, **VARIANTS[name]) for _ in range(2))
    done = make_lean(policy)
    assert done["norm"] == 5
    if name != "dora":
        assert done["linear"] > 0
    if name == "pissa":
        assert done["mlp"] == 0, "its layers have hooks, which a pass over all three would not call"
    ours, theirs = evaluated(policy.train(training)), evaluated(plain.train(training))
    assert difference(ours[0], theirs[0]) < 1e-5
    assert worst_gradient(ours[1], theirs[1]) < 1e-4
    if name == "dropout":
        other = evaluated(policy, seed=1)[0]
        assert torch.equal(other, ours[0]) == (not training), "the same seed, the same mask"
    if name == "a norm saved":
        assert "base_model.model.model.norm.original_module" in own_passes(policy)["LlamaRMSNorm"]
        assert "base_model.model.model.norm.modules_to_save.default" not in own_passes(policy)["LlamaRMSNorm"]


@pytest.mark.parametrize("name", ["plain", "rslora", "gate and down", "attention alone"])
def test_in_float64_projections_agree_to_rounding(name: str, tiny_wide: Path) -> None:
    policy = policy_of(tiny_wide, FP64, **VARIANTS[name])
    for module in policy.modules():
        if hasattr(module, "variance_epsilon"):
            module.weight.requires_grad_(True)  # left alone: transformers' norm rounds to fp32
    assert "norm" not in agree(policy, lambda: make_lean(policy), values=1e-12, gradients=1e-9)


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", ""])
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_in_bf16_a_lean_policy_is_as_close_to_fp32_as_pefts(
    weights: torch.dtype, autocast: bool, tiny_wide: Path
) -> None:
    exact, gradient = evaluated(policy_of(tiny_wide))
    policy = policy_of(tiny_wide, Precision("bf16" if autocast else "32", weights, torch.bfloat16))

    def gap() -> tuple[float, float]:
        with torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext():
            logits, grads = evaluated(policy)
        assert all(grads[n].dtype == p.dtype for n, p in trained(policy).items())
        both = (torch.cat([g[n].double().flatten() for n in gradient]) for g in (grads, gradient))
        return (logits - exact).abs().mean().item(), 1 - torch.cosine_similarity(*both, dim=0).item()

    (values, angle), _ = gap(), make_lean(policy)
    lean_values, lean_angle = gap()
    assert lean_values <= 1.5 * values + 1e-5
    assert lean_angle <= 2 * angle + 1e-5
    assert values < 0.1


def test_gradient_checkpointing_changes_nothing(tiny_model: Path) -> None:
    base = load_tiny(tiny_model)
    base.enable_input_require_grads()
    policy = new_adapter(base, tiny_lora(), seed=0)
    for parameter in trained(policy).values():
        parameter.data += 0.1
    make_lean(policy)
    before, expected = evaluated(policy.train())
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    after, gradient = evaluated(policy.train())
    assert difference(after, before) < 1e-6
    assert worst_gradient(gradient, expected) < 1e-5


# -- the lean passes are those that run -----------------------------------------------------------------------------


def test_none_of_pefts_and_transformers_own_passes_run_in_a_plain_policy(tiny_model: Path) -> None:
    from peft.tuners.lora import Linear
    from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

    policy = policy_of(tiny_model)
    for _ in range(2):
        with calls(Linear) as linears, calls(LlamaMLP) as mlps, calls(LlamaRMSNorm) as norms:
            FORWARD.logps(policy, LAYOUT).sum().backward()
        seen = (len(linears), len(mlps), len(norms))
        assert seen == ((0, 0, 0) if own_passes(policy) else (14, 2, 5))
        make_lean(policy)


def more(policy: Any, *, switch: list[str] | None = None) -> None:
    """A second adapter beside the first."""
    policy.add_adapter("second", policy.peft_config["default"])
    generator = torch.Generator().manual_seed(7)
    for name, parameter in policy.named_parameters():
        if ".second." in name:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    policy.base_model.set_adapter(switch or ["default", "second"])


def falls_back(policy: Any) -> None:
    """PEFT's own passes run, though the module is lean."""
    from peft.tuners.lora import Linear

    assert own_passes(policy)["Linear"]
    with calls(Linear) as linears, torch.no_grad():
        FORWARD.logps(policy, LAYOUT)
    assert len(linears) == 14


def test_two_active_adapters_are_pefts_affair(tiny_model: Path) -> None:
    plain, lean = policy_of(tiny_model), policy_of(tiny_model)
    make_lean(lean)
    for policy in (plain, lean):
        more(policy)
    ours, theirs = evaluated(lean), evaluated(plain)
    assert difference(ours[0], theirs[0]) < 1e-5
    assert worst_gradient(ours[1], theirs[1]) < 1e-4
    assert difference(ours[0], evaluated(policy_of(tiny_model))[0]) > 1e-3
    falls_back(lean)


def test_dora_is_pefts_affair(tiny_model: Path) -> None:
    from peft.tuners.lora import Linear

    policy = policy_of(tiny_model, dora=True)
    make_lean(policy)
    with calls(Linear) as linears, torch.no_grad():
        FORWARD.logps(policy, LAYOUT)
    assert len(linears) == 14


def test_a_merged_adapter_is_pefts_affair_also_when_it_is_switched_off(tiny_model: Path) -> None:
    policy = policy_of(tiny_model)
    make_lean(policy)
    before = evaluated(policy)[0]
    with adapter_off(policy)() as off, torch.no_grad():
        base = off(input_ids=LAYOUT.padded()[0]).logits.log_softmax(-1)
    policy.merge_adapter()
    with torch.no_grad():
        merged = policy(input_ids=LAYOUT.padded()[0]).logits.log_softmax(-1)
    assert difference(merged, before) < 1e-4
    falls_back(policy)
    with policy.disable_adapter(), torch.no_grad():
        assert difference(policy(input_ids=LAYOUT.padded()[0]).logits.log_softmax(-1), base) < 1e-4
    policy.unmerge_adapter()
    assert difference(evaluated(policy)[0], before) < 1e-4


# -- switched adapters ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [None, 4, 8], ids=["", "4-bit", "8-bit"])
def test_with_the_adapter_off_it_is_the_base(bits: Any, tiny_wide: Path) -> None:
    policy = policy_of(tiny_wide, bits=bits)
    make_lean(policy)
    with torch.no_grad():
        base = FORWARD.logps(load_tiny(tiny_wide, bits=bits), LAYOUT)
        on = FORWARD.logps(policy, LAYOUT)
        with adapter_off(policy)() as off:
            assert difference(FORWARD.logps(off, LAYOUT), base) < 1e-5
        assert torch.equal(FORWARD.logps(policy, LAYOUT), on)
    assert difference(on, base) > 1e-2


def test_another_adapter_of_the_same_layers_is_the_one_that_counts(tiny_model: Path, tmp_path: Path) -> None:
    save_final(policy_of(tiny_model), byte_tokenizer(), tmp_path / "final", base=str(tiny_model), card="")
    plain, lean = (
        continued_adapter(load_tiny(tiny_model), tmp_path / "final", tiny_lora(), copy=True).eval() for _ in range(2)
    )
    make_lean(lean)
    with torch.no_grad():
        before = FORWARD.logps(plain, LAYOUT)
        for policy in (plain, lean):
            for name, parameter in policy.named_parameters():
                if ".default." in name:
                    parameter += 0.1
            assert any(f".{COPY}." in name for name, _ in policy.named_parameters())
        moved = FORWARD.logps(plain, LAYOUT)
        assert difference(moved, before) > 1e-2
        assert difference(FORWARD.logps(lean, LAYOUT), moved) < 1e-5
        with adapter_copy(lean)() as copy:
            assert difference(FORWARD.logps(copy, LAYOUT), before) < 1e-5
        assert difference(FORWARD.logps(lean, LAYOUT), moved) < 1e-5


# -- what stays -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [None, 4], ids=["", "4-bit"])
def test_names_types_and_values_of_everything_stay(bits: Any, tiny_wide: Path) -> None:
    policy = policy_of(tiny_wide, bits=bits)

    def seen() -> tuple[Any, ...]:
        return (
            {name: type(module) for name, module in policy.named_modules()},
            {name: (p.data_ptr(), p.dtype, p.requires_grad, type(p)) for name, p in policy.named_parameters()},
            list(policy.state_dict()),
        )

    before = seen()
    assert make_lean(policy)
    assert seen() == before


def test_making_lean_draws_no_random_numbers_and_keeps_the_mode(tiny_model: Path) -> None:
    policy = policy_of(tiny_model, dropout=0.2)
    state = torch.get_rng_state()
    make_lean(policy)
    assert not policy.training
    assert all(p.grad is None for p in policy.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_an_adapter_is_saved_and_loaded_again(tiny_model: Path, tmp_path: Path) -> None:
    policy = policy_of(tiny_model)
    save_final(policy, byte_tokenizer(), tmp_path / "plain", base=str(tiny_model), card="")
    make_lean(policy)
    save_final(policy, byte_tokenizer(), tmp_path / "lean", base=str(tiny_model), card="")
    file = "adapter_model.safetensors"
    assert (tmp_path / "lean" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()
    again = continued_adapter(load_tiny(tiny_model), tmp_path / "lean", tiny_lora(), copy=False).eval()
    assert difference(evaluated(again)[0], evaluated(policy)[0]) < 1e-5


# -- what is left alone ---------------------------------------------------------------------------------------------


def lean_of(kind: str, *, make: bool = True, **settings: Any) -> tuple[Any, dict[str, int]]:
    """A policy of a family that the lab has no tiny folder of, made lean if asked; its numbers have not changed."""
    import peft
    import transformers
    from tiny import SHAPE

    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = getattr(transformers, f"{kind}Config")(**(SHAPE | {"bos_token_id": 0, "eos_token_id": 2} | settings))
        model = transformers.AutoModelForCausalLM.from_config(made).requires_grad_(False).eval()
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                nn.init.normal_(parameter, mean=0.8, std=0.3)
        config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        policy: Any = peft.get_peft_model(model, config).eval()  # type: ignore[arg-type]
    return policy, agree(policy, lambda: make_lean(policy)) if make else {}


def test_gemmas_mlp_and_norm_are_left_alone() -> None:
    policy, done = lean_of("Gemma", head_dim=8)
    assert done == {"linear": 14}
    assert set(own_passes(policy)) == {"Linear"}


def test_a_llama_with_another_activation_keeps_its_mlp() -> None:
    assert lean_of("Llama", hidden_act="relu")[1] == {"linear": 14, "norm": 5}
    assert lean_of("Llama", hidden_act="gelu_pytorch_tanh")[1] == {"linear": 14, "norm": 5}
    assert lean_of("Llama", hidden_act="silu")[1] == {"linear": 14, "mlp": 2, "norm": 5}


def test_layers_with_biases_are_lean_too() -> None:
    assert lean_of("Llama", mlp_bias=True, attention_bias=True)[1] == {"linear": 14, "mlp": 2, "norm": 5}


def test_a_fused_gate_and_the_norms_of_granite_and_experts() -> None:
    assert lean_of("Phi3")[1]["mlp"] == 0
    assert lean_of("Granite", residual_multiplier=0.5)[1]["norm"] == 5
    experts: dict[str, Any] = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    }
    assert lean_of("Qwen2Moe", **experts)[1]["norm"] == 5


def test_a_norm_that_looks_like_the_usual_one_and_is_another_is_found_out(tiny_model: Path) -> None:
    class OddRMSNorm(nn.Module):
        """Adds 1 to its weight, as Gemma's does, under the usual attribute's name."""

        def __init__(self, like: Any) -> None:
            super().__init__()
            self.weight, self.variance_epsilon = like.weight, like.variance_epsilon

        def forward(self, x: Tensor) -> Tensor:
            return x / (x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).sqrt() * (1 + self.weight)

    policy = policy_of(tiny_model)
    policy.get_base_model().model.norm = OddRMSNorm(policy.get_base_model().model.norm)
    assert agree(policy, lambda: make_lean(policy))["norm"] == 4


def test_norms_that_are_trained_are_left_alone_and_their_gradients_stay(tiny_model: Path) -> None:
    base = load_tiny(tiny_model).requires_grad_(True)
    assert "norm" not in agree(base, lambda: make_lean(base))
    policy = policy_of(tiny_model)
    policy.get_base_model().model.norm.weight.requires_grad_(True)
    assert agree(policy, lambda: make_lean(policy))["norm"] == 4
    assert "base_model.model.model.norm.weight" in evaluated(policy)[1]


@pytest.mark.parametrize("trained_part", ["weight", "bias"])
@pytest.mark.parametrize("layer", ["self_attn.q_proj", "mlp.gate_proj"])
def test_a_base_layer_that_is_trained_beside_its_adapter_gets_its_gradient(layer: str, trained_part: str) -> None:
    (plain, _), (lean, done) = (
        lean_of("Llama", make=make, mlp_bias=True, attention_bias=True) for make in (False, True)
    )
    assert done["linear"] == 14
    for policy in (plain, lean):
        base = policy.get_base_model().model.layers[0].get_submodule(layer).base_layer
        getattr(base, trained_part).requires_grad_(True)
    assert worst_gradient(evaluated(lean)[1], evaluated(plain)[1]) < 1e-4


def test_an_adapter_that_trains_biases_goes_on_training_them(families: Callable[[str], Path], tmp_path: Path) -> None:
    """As PEFT makes one with bias="lora_only"."""
    import peft

    folder = families("qwen2")
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", bias="lora_only", init_lora_weights=False, task_type="CAUSAL_LM"
    )
    made: Any = peft.get_peft_model(load_tiny(folder), config)
    made.save_pretrained(tmp_path)
    plain, lean = (continued_adapter(load_tiny(folder), tmp_path, tiny_lora(), copy=False).eval() for _ in range(2))
    assert sum(name.endswith("proj.base_layer.bias") for name in trained(plain)) == 6
    make_lean(lean)
    ours, theirs = evaluated(lean), evaluated(plain)
    assert difference(ours[0], theirs[0]) < 1e-5
    assert worst_gradient(ours[1], theirs[1]) < 1e-4


def test_what_is_said_to_be_lean_is(tiny_model: Path) -> None:
    """In full fine-tuning nothing is, and under DoRA the norms are alone."""
    base = load_tiny(tiny_model).requires_grad_(True)
    assert make_lean(base) == {}
    assert make_lean(policy_of(tiny_model, dora=True)) == {"norm": 5}


def test_a_base_without_an_adapter_is_lean_in_its_norms_and_mlps(tiny_model: Path) -> None:
    base = load_tiny(tiny_model)
    rows = LAYOUT.padded()[0]
    with torch.no_grad():
        before = base(input_ids=rows).logits
        assert make_lean(base) == {"mlp": 2, "norm": 5}
        assert difference(base(input_ids=rows).logits, before) < 1e-5


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_with_hooks_keeps_them_in_16_bits(init: str, tiny_wide: Path) -> None:
    policy = new_adapter(load_tiny(tiny_wide, BF16), tiny_lora(init=init), seed=0).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = policy(input_ids=LAYOUT.padded()[0]).logits
        assert make_lean(policy, torch.bfloat16)["mlp"] == 0
        assert difference(policy(input_ids=LAYOUT.padded()[0]).logits.float(), before.float()) < 2e-2


class Scaled(LlamaMLP):
    """With a multiplier, as FalconH1's has."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x) * self.multiplier) * self.up_proj(x))


class Dropping(LlamaMLP):
    """With a dropout that only training shows, as SeedOss's has."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


@pytest.mark.parametrize("kind", [Scaled, Dropping])
@pytest.mark.parametrize("precision", [FP32, BF16], ids=str)
def test_an_mlp_that_does_something_more_is_left_alone(
    kind: type[nn.Module], precision: Precision, tiny_model: Path
) -> None:
    policy = policy_of(tiny_model, precision)
    mlp = policy.get_base_model().model.layers[0].mlp
    mlp.__class__, mlp.multiplier = kind, 1.01
    assert make_lean(policy, precision.autocast)["mlp"] == 1
    assert "forward" not in vars(mlp)


def test_making_lean_twice_is_making_lean_once(tiny_model: Path) -> None:
    policy = policy_of(tiny_model)
    assert make_lean(policy)
    assert not make_lean(policy)


def test_a_trial_pass_is_under_nobody_elses_autocast(tiny_model: Path) -> None:
    around: AbstractContextManager[Any] = torch.autocast("cpu", dtype=torch.bfloat16)
    with around:
        assert make_lean(policy_of(tiny_model)) == {"linear": 14, "mlp": 2, "norm": 5}
