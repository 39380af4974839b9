"""Each kind of adapter: what it trains, how it starts, that the reference is left as it was, and that final/ is the policy."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    FP32,
    FP64,
    byte_tokenizer,
    difference,
    load_tiny,
    move,
    tiny_examples,
    tiny_lora,
    trained,
    write_tiny_model,
)
from torch import Tensor, nn

from dpo_lab.data.collate import collate
from dpo_lab.models.lora import attach, attached_adapter, continued_adapter, new_adapter
from dpo_lab.models.precision import Precision
from dpo_lab.models.save import save_final
from dpo_lab.models.targets import target_modules
from dpo_lab.preference.forward import Forward
from dpo_lab.preference.reference import adapter_copy, adapter_off
from dpo_lab.runtime.errors import ConfigError, ModelError
from dpo_lab.runtime.files import read_json

ALL = collate(tiny_examples(), list(range(8)))
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "gaussian": {"init": "gaussian"},
    "dora": {"dora": True},
    "rslora": {"rslora": True},
    "pissa": {"init": "pissa"},
    "olora": {"init": "olora"},
    "dora and rslora": {"dora": True, "rslora": True},
    "pissa and rslora": {"init": "pissa", "rslora": True},
    "olora on attention": {"init": "olora", "target_modules": "attention"},
    "norm saved": {"modules_to_save": ["norm"]},
    "tied embedding saved": {"modules_to_save": ["embed_tokens"]},
    "pissa, tied head saved": {"init": "pissa", "modules_to_save": ["lm_head"]},
}


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "untied", tie_word_embeddings=False)


def policy_of(folder: Path, precision: Precision = FP32, *, seed: int = 0, **lora: Any) -> Any:
    return new_adapter(load_tiny(folder, precision), tiny_lora(**lora), seed=seed).eval()


def logps(model: Any) -> Tensor:
    with torch.no_grad():
        return Forward().logps(model, ALL)


def shake(policy: nn.Module, size: float = 0.1) -> None:
    """Move everything that is trained."""
    generator = torch.Generator().manual_seed(3)
    for parameter in trained(policy).values():
        parameter.data += size * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def layers(policy: Any) -> dict[str, Any]:
    """The layers that carry an adapter, by their path in the base."""
    from peft.tuners.lora import LoraLayer

    return {
        name.removeprefix("base_model.model."): module
        for name, module in policy.named_modules()
        if isinstance(module, LoraLayer)
    }


# -- every kind ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "tolerance"), [(FP32, 2e-5), (FP64, 1e-12)], ids=["fp32", "fp64"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_new_adapter_changes_nothing_and_off_it_is_the_base_whatever_was_trained(
    name: str, precision: Precision, tolerance: float, tiny_model: Path
) -> None:
    base = logps(load_tiny(tiny_model, precision))
    policy = policy_of(tiny_model, precision, **VARIANTS[name])
    assert difference(logps(policy), base) < tolerance
    shake(policy)
    assert difference(logps(policy), base) > 1e-2
    with adapter_off(policy)() as off:
        assert difference(logps(off), base) <= 1e-12, "the reference is the base as it was"
    assert difference(logps(policy), base) > 1e-2


@pytest.mark.parametrize("name", VARIANTS)
def test_every_trained_parameter_gets_a_gradient_with_dropout_and_checkpointing(name: str, tiny_model: Path) -> None:
    base = load_tiny(tiny_model)
    base.enable_input_require_grads()
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy = new_adapter(base, tiny_lora(dropout=0.2, **VARIANTS[name]), seed=0)
    shake(policy)
    policy.train()
    torch.manual_seed(0)
    Forward().logps(policy, ALL).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained(policy).values())
    assert not any(p.grad is not None for p in policy.parameters() if not p.requires_grad)


@pytest.mark.parametrize(("precision", "tolerance"), [(FP32, 5e-5), (FP64, 1e-9)], ids=["fp32", "fp64"])
@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_saved_is_the_policy_for_plain_peft_on_the_base_from_disk(
    name: str, precision: Precision, tolerance: float, tiny_model: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy = policy_of(tiny_model, precision, **VARIANTS[name])
    shake(policy)
    save_final(policy, byte_tokenizer(), tmp_path / "final", base=str(tiny_model), card="")
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=precision.weights)
    plain: Any = PeftModel.from_pretrained(base, tmp_path / "final").eval()
    assert not any("initial" in n for n, _ in plain.named_buffers())
    ids = ALL.padded()[0]
    with torch.no_grad():
        ours = policy(input_ids=ids).logits.log_softmax(-1)
        assert difference(plain(input_ids=ids).logits.log_softmax(-1), ours) < tolerance
    assert difference(logps(plain), logps(policy)) < tolerance


@pytest.mark.parametrize("name", VARIANTS)
def test_a_saved_adapter_is_gone_on_from_and_its_copy_is_the_reference(
    name: str, tiny_model: Path, tmp_path: Path
) -> None:
    lora = VARIANTS[name]
    policy = policy_of(tiny_model, **lora)
    shake(policy)
    save_final(policy, byte_tokenizer(), tmp_path / "final", base=str(tiny_model), card="")
    words: dict[str, Any] = {key: value for key, value in lora.items() if key != "init"}
    if lora.get("init") in ("pissa", "olora"):
        saved = read_json(tmp_path / "final" / "adapter_config.json")
        assert saved["r"] == 8, "twice the rank"
        words |= {"r": 8, "alpha": saved["lora_alpha"]}
    again = continued_adapter(load_tiny(tiny_model), tmp_path / "final", tiny_lora(**words), copy=True).eval()
    before = logps(policy)
    assert difference(logps(again), before) < 5e-5
    shake(again)
    assert difference(logps(again), before) > 1e-2
    names = trained(again).keys()
    with adapter_copy(again)() as copied:
        assert difference(logps(copied), before) < 5e-5
    assert trained(again).keys() == names, "what is trained is what was trained"
    assert difference(logps(again), before) > 1e-2, "and the trained one is back"


@pytest.mark.parametrize("name", VARIANTS)
def test_the_same_seed_starts_the_same_bit_by_bit_and_whatever_was_drawn_before(name: str, tiny_model: Path) -> None:
    one = policy_of(tiny_model, **VARIANTS[name])
    torch.manual_seed(99)
    two = policy_of(tiny_model, **VARIANTS[name])
    assert trained(one).keys() == trained(two).keys() != set()
    assert all(torch.equal(p, trained(two)[n]) for n, p in trained(one).items())
    assert all(torch.equal(b, dict(two.named_buffers())[n]) for n, b in one.named_buffers())
    base = dict(load_tiny(tiny_model).named_parameters())
    for path, layer in layers(one).items():
        assert torch.equal(layer.get_base_layer().weight, base[f"{path}.weight"]), "the base's weights are untouched"


# -- what each option does ----------------------------------------------------------------------------------------


def test_doras_magnitudes_start_at_the_lengths_of_the_rows_and_are_trained(tiny_model: Path) -> None:
    policy = policy_of(tiny_model, dora=True)
    magnitudes = {n: p for n, p in trained(policy).items() if "lora_magnitude_vector" in n}
    assert len(magnitudes) == 14
    for path, layer in layers(policy).items():
        lengths = layer.get_base_layer().weight.norm(dim=1)
        assert torch.allclose(layer.lora_magnitude_vector["default"].weight, lengths), path
    before = {n: p.detach().clone() for n, p in magnitudes.items()}
    Forward().logps(policy, ALL).sum().backward()
    torch.optim.SGD(trained(policy).values(), lr=1e-3).step()
    assert all(not torch.equal(p, before[n]) for n, p in magnitudes.items())


def test_dora_works_on_4_bit_weights(tiny_wide: Path) -> None:
    base = logps(load_tiny(tiny_wide, bits=4))
    policy = new_adapter(load_tiny(tiny_wide, bits=4), tiny_lora(dora=True), seed=0).eval()
    assert difference(logps(policy), base) < 2e-2
    Forward().logps(policy, ALL).sum().backward()
    gradients = [p.grad for n, p in trained(policy).items() if "magnitude" in n]
    assert len(gradients) == 14
    assert all(g is not None and g.abs().max() > 0 for g in gradients)
    with adapter_off(policy)() as off:
        assert difference(logps(off), base) <= 1e-12


def test_a_saved_norm_works_on_quantised_weights_and_a_quantised_layer_is_refused(tiny_wide: Path) -> None:
    policy = new_adapter(load_tiny(tiny_wide, bits=4), tiny_lora(modules_to_save=["norm"]), seed=0).eval()
    Forward().logps(policy, ALL).sum().backward()
    assert trained(policy)["base_model.model.model.norm.modules_to_save.default.weight"].grad is not None
    with pytest.raises(ConfigError, match=r"layers.0.mlp.up_proj is quantised"):
        new_adapter(
            load_tiny(tiny_wide, bits=4), tiny_lora(modules_to_save=["up_proj"], target_modules="attention"), seed=0
        )


@pytest.mark.parametrize(("rslora", "scale"), [(False, 2.0), (True, 8 / math.sqrt(4))])
def test_rslora_scales_by_the_root_of_the_rank(rslora: bool, scale: float, tiny_model: Path) -> None:
    policy = policy_of(tiny_model, rslora=rslora)
    assert {layer.scaling["default"] for layer in layers(policy).values()} == {scale}
    move(policy, 0.2)
    layer = layers(policy)["model.layers.0.self_attn.q_proj"]
    x = torch.randn(3, 32)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert torch.allclose(layer(x) - layer.get_base_layer()(x), scale * x @ a.T @ b.T, atol=1e-5)


def test_the_distributions_that_a_is_drawn_from(tiny_model: Path) -> None:
    def drawn(**lora: Any) -> Tensor:
        policy = policy_of(tiny_model, **lora)
        assert all(not p.any() for n, p in trained(policy).items() if "lora_B" in n)
        return torch.cat(
            [p.detach().flatten() for n, p in trained(policy).items() if "lora_A" in n and "mlp.d" not in n]
        )

    gaussian, uniform = drawn(r=16, init="gaussian"), drawn(r=16)
    assert gaussian.std().item() == pytest.approx(1 / 16, rel=0.05)
    assert (gaussian / gaussian.std()).pow(4).mean().item() == pytest.approx(3.0, abs=0.4), "a normal distribution's"
    assert uniform.abs().max().item() == pytest.approx(1 / math.sqrt(32), rel=0.01)
    assert (uniform / uniform.std()).pow(4).mean().item() == pytest.approx(1.8, abs=0.1), "a uniform distribution's"
    assert not torch.equal(
        drawn(r=16),
        torch.cat(
            [
                p.detach().flatten()
                for n, p in trained(policy_of(tiny_model, r=16, seed=1)).items()
                if "lora_A" in n and "mlp.d" not in n
            ]
        ),
    )


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_pissa_and_olora_are_pefts_without_its_change_of_the_base(init: str, rslora: bool, tiny_model: Path) -> None:
    from peft import LoraConfig, get_peft_model

    ours = policy_of(tiny_model, init=init, rslora=rslora)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=init, use_rslora=rslora, task_type="CAUSAL_LM"
    )  # type: ignore[arg-type]
    theirs: Any = get_peft_model(load_tiny(tiny_model), config).eval()
    assert trained(ours).keys() == trained(theirs).keys()
    for name, parameter in trained(ours).items():
        assert difference(parameter, trained(theirs)[name]) < 1e-5, name
    weight = theirs.get_base_model().model.layers[0].self_attn.q_proj.get_base_layer().weight
    assert not torch.equal(weight, load_tiny(tiny_model).model.layers[0].self_attn.q_proj.weight), "PEFT changes it"
    shake(ours)
    for name, parameter in trained(theirs).items():
        parameter.data.copy_(trained(ours)[name])
    assert difference(logps(ours), logps(theirs)) < 1e-4
    for policy in (ours, theirs):
        Forward().logps(policy, ALL).sum().backward()
    for name, parameter in trained(ours).items():
        assert difference(parameter.grad, trained(theirs)[name].grad) < 1e-3, name  # type: ignore[arg-type]


def test_pissa_takes_the_largest_singular_values(tiny_model: Path) -> None:
    policy = policy_of(tiny_model, FP64, init="pissa")
    for path, layer in layers(policy).items():
        taken = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        left = layer.get_base_layer().weight.double() - taken
        values = torch.linalg.svdvals(layer.get_base_layer().weight.double())
        assert torch.allclose(torch.linalg.svdvals(left)[: len(values) - 4], values[4:], atol=1e-9), path


def test_an_olora_or_pissa_policy_has_no_room_for_a_rank_above_the_layers(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="needs lora.r at most 16, the rank of model.layers.0.self_attn.k_proj"):
        policy_of(tiny_model, r=17, init="pissa")


@pytest.mark.parametrize(
    ("wanted", "carrying"),
    [
        ("all-linear", LINEAR),
        ("attention", ("q_proj", "k_proj", "v_proj", "o_proj")),
        (["q_proj", "mlp.up_proj"], ("q_proj", "up_proj")),
        (r".*\.(gate|down)_proj", ("gate_proj", "down_proj")),
    ],
)
def test_target_modules_say_which_layers_carry_adapters(
    wanted: Any, carrying: tuple[str, ...], tiny_model: Path
) -> None:
    paths = layers(policy_of(tiny_model, target_modules=wanted))
    assert len(paths) == 2 * len(carrying)
    assert {path.rpartition(".")[2] for path in paths} == set(carrying)


def test_a_regular_expression_can_choose_single_layers(tiny_model: Path) -> None:
    paths = layers(policy_of(tiny_model, target_modules=r"model\.layers\.1\.self_attn\.[qv]_proj"))
    assert set(paths) == {"model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"}


def test_attention_is_found_whatever_it_is_called() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, Phi3Config, Phi3ForCausalLM

    with torch.device("meta"):
        gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=2))
        neox = GPTNeoXForCausalLM(GPTNeoXConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1))
        phi3 = Phi3ForCausalLM(
            Phi3Config(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, pad_token_id=0)
        )
    assert target_modules(gpt2, "attention") == ["attn.c_proj", "c_attn"], "the MLP has a c_proj too"
    assert target_modules(neox, "attention") == ["dense", "query_key_value"]
    assert target_modules(phi3, "attention") == ["o_proj", "qkv_proj"]
    policy = new_adapter(gpt2, tiny_lora(target_modules="attention"), seed=0)
    assert {path.split(".", 3)[3] for path in layers(policy)} == {"attn.c_attn", "attn.c_proj"}


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"target_modules": r".*\.qq_proj"}, r"fits no layer.*for example model.layers.0.self_attn.q_proj"),
        ({"target_modules": ["q_proj", "qproj"]}, r"no module qproj. Did you mean"),
        ({"target_modules": ["self_attn"]}, r"names model.layers.0.self_attn, a LlamaAttention"),
        ({"target_modules": ["lm_head"]}, r"names the LM head"),
        ({"modules_to_save": ["nrm"]}, r"no module nrm. Did you mean norm\?"),
        ({"modules_to_save": ["act_fn"]}, r"has no weights"),
        ({"modules_to_save": ["q_proj"], "target_modules": ["q_proj", "v_proj"]}, r"q_proj is named twice"),
        ({"modules_to_save": ["mlp"], "target_modules": ["up_proj"]}, r"mlp.up_proj is named twice"),
        ({"target_modules": ["embed_tokens"]}, r"whose weight is the LM head's too"),
    ],
)
def test_names_that_fit_nothing_are_refused_with_examples(lora: dict[str, Any], said: str, tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        policy_of(tiny_model, **lora)


def test_an_embedding_carries_an_adapter_where_the_head_is_not_it(untied: Path) -> None:
    base = logps(load_tiny(untied))
    policy = policy_of(untied, target_modules=["embed_tokens"])
    assert set(layers(policy)) == {"model.embed_tokens"}
    assert difference(logps(policy), base) <= 1e-12
    again = policy_of(untied, target_modules=["embed_tokens"])
    assert all(torch.equal(p, trained(again)[n]) for n, p in trained(policy).items())
    shake(policy)
    assert difference(logps(policy), base) > 1e-2
    with adapter_off(policy)() as off:
        assert difference(logps(off), base) <= 1e-12
    with pytest.raises(ConfigError, match="works on linear layers, but model.embed_tokens"):
        policy_of(untied, init="pissa", target_modules=["embed_tokens"])


def test_all_linear_leaves_out_what_is_trained_as_a_whole(tiny_model: Path) -> None:
    policy = policy_of(tiny_model, modules_to_save=["mlp"])
    assert {path.rpartition(".")[2] for path in layers(policy)} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert sum("mlp.modules_to_save" in name for name in trained(policy)) == 6


# -- modules trained as a whole -----------------------------------------------------------------------------------


@pytest.mark.parametrize("saved", ["lm_head", "embed_tokens", "norm"])
def test_a_saved_module_is_trained_as_a_copy_beside_its_original(saved: str, untied: Path) -> None:
    base = load_tiny(untied)
    start = logps(base)
    policy = policy_of(untied, modules_to_save=[saved])
    (name,) = (n for n in trained(policy) if "lora" not in n)
    assert f"{saved}.modules_to_save.default" in name
    trained(policy)[name].data += 0.3 * torch.randn(trained(policy)[name].shape)
    with adapter_off(policy)() as off:
        assert difference(logps(off), start) <= 1e-12
    assert difference(logps(policy), start) > 1e-2, "the copy computes, the lab's own head included"
    before = trained(policy)[name].detach().clone()
    Forward().logps(policy, ALL).sum().backward()
    torch.optim.SGD(trained(policy).values(), lr=1e-3).step()
    assert not torch.equal(trained(policy)[name], before)


@pytest.mark.parametrize("saved", ["embed_tokens", "lm_head"])
def test_an_embedding_that_is_the_head_too_stays_one_with_it(saved: str, tiny_model: Path) -> None:
    policy = policy_of(tiny_model, modules_to_save=[saved])
    (name,) = (n for n in trained(policy) if "lora" not in n)
    base = policy.get_base_model()
    assert base.get_input_embeddings().weight is base.get_output_embeddings().weight is trained(policy)[name]


def test_norm_is_the_last_norm_and_not_every_module_that_ends_so(tiny_model: Path) -> None:
    whole = [n for n in trained(policy_of(tiny_model, modules_to_save=["norm"])) if "lora" not in n]
    assert whole == ["base_model.model.model.norm.modules_to_save.default.weight"]


@pytest.mark.parametrize("name", ["tied embedding saved", "norm saved", "pissa", "olora", "dora"])
def test_in_16_bits_what_is_trained_is_fp32_and_starts_as_the_reference(name: str, tiny_model: Path) -> None:
    bf16 = Precision("bf16", torch.bfloat16, torch.bfloat16)
    policy = policy_of(tiny_model, bf16, **VARIANTS[name])
    assert {p.dtype for p in trained(policy).values()} == {torch.float32}
    forward = Forward(torch.bfloat16)
    with torch.no_grad(), adapter_off(policy)() as off:
        reference = forward.logps(off, ALL)
    gap = forward.logps(policy, ALL) - reference
    assert gap.abs().mean().item() < bf16.tolerance
    gap.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for n, p in trained(policy).items() if "lora_A" not in n)


# -- going on from an adapter -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("saved", "asked", "words"),
    [
        ({}, {"r": 8}, "lora.r=4 lora.alpha=8"),
        ({"dora": True}, {}, "lora.dora=true"),
        ({}, {"dora": True}, "lora.dora=false"),
        ({"rslora": True}, {}, "lora.rslora=true"),
        ({"modules_to_save": ["lm_head"]}, {}, "lora.modules_to_save=[model.embed_tokens]"),
        ({}, {"modules_to_save": ["norm"]}, "lora.modules_to_save=[]"),
        ({"init": "pissa"}, {"init": "pissa"}, "lora.r=8 lora.alpha=16 lora.init=default"),
        ({"init": "olora", "rslora": True}, {}, f"lora.r=8 lora.alpha={8 * math.sqrt(2)} lora.rslora=true"),
    ],
)
def test_settings_other_than_the_adapters_are_refused_with_the_words_that_help(
    saved: dict[str, Any], asked: dict[str, Any], words: str, tiny_model: Path, tmp_path: Path
) -> None:
    save_final(policy_of(tiny_model, **saved), byte_tokenizer(), tmp_path / "final", base="x", card="")
    with pytest.raises(ConfigError) as refused:
        continued_adapter(load_tiny(tiny_model), tmp_path / "final", tiny_lora(**asked), copy=False)
    assert f"Add {words}." in str(refused.value)


def test_an_adapter_is_gone_on_from_with_another_dropout(tiny_model: Path, tmp_path: Path) -> None:
    save_final(policy_of(tiny_model), byte_tokenizer(), tmp_path / "final", base="x", card="")
    policy = continued_adapter(load_tiny(tiny_model), tmp_path / "final", tiny_lora(dropout=0.5), copy=True)
    assert {layer.lora_dropout["default"].p for layer in layers(policy).values()} == {0.5}


def test_an_adapter_of_another_kind_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from peft import IA3Config, get_peft_model

    config = IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM")  # type: ignore[arg-type]
    get_peft_model(load_tiny(tiny_model), config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="of the kind IA3"):
        continued_adapter(load_tiny(tiny_model), tmp_path, tiny_lora(), copy=False)


# -- saved adapters, several on one base --------------------------------------------------------------------------


def saved(folder: Path, base: Path, size: float, **lora: Any) -> Path:
    """A moved adapter on disk."""
    policy = policy_of(base, **lora)
    shake(policy, size)
    save_final(policy, byte_tokenizer(), folder, base=str(base), card="")
    return folder


def by_peft(folder: Path, base: Path, **settings: Any) -> Path:
    """The same from PEFT alone."""
    from peft import LoraConfig, get_peft_model

    given: dict[str, Any] = {"target_modules": ["q_proj"]} | settings
    config = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **given)
    policy: Any = get_peft_model(load_tiny(base), config)
    shake(policy)
    policy.save_pretrained(folder)
    return folder


def spoken(model: Any, name: str) -> Tensor:
    model.base_model.set_adapter(name, inference_mode=True)
    return logps(model)


@pytest.mark.parametrize("second", VARIANTS)
@pytest.mark.parametrize("first", ["default", "tied embedding saved"])
def test_adapters_on_one_base_compute_what_each_does_alone(
    first: str, second: str, tiny_model: Path, tmp_path: Path
) -> None:
    """PEFT ties embedding and head for the first adapter only: the others would speak with the base's head."""
    kinds = {"a": VARIANTS[first], "b": VARIANTS[second]}
    folders = {name: saved(tmp_path / name, tiny_model, size, **kinds[name]) for name, size in (("a", 0.1), ("b", 0.2))}
    alone = {name: logps(attached_adapter(load_tiny(tiny_model), folder)) for name, folder in folders.items()}
    base = logps(load_tiny(tiny_model))
    model: Any = load_tiny(tiny_model)
    for name, folder in folders.items():
        model = attach(model, folder, name)
    model.eval()
    assert not any(p.requires_grad for p in model.parameters())
    for name in ("a", "b", "a"):
        assert difference(spoken(model, name), alone[name]) < 1e-5, name
        assert difference(alone[name], base) > 1e-2
    with model.disable_adapter():
        assert difference(logps(model), base) <= 1e-12


def test_a_head_that_another_adapter_had_left_alone_is_tied_too(tiny_model: Path, tmp_path: Path) -> None:
    parted = by_peft(tmp_path / "parted", tiny_model, modules_to_save=["embed_tokens"])
    tied = saved(tmp_path / "tied", tiny_model, 0.2, modules_to_save=["embed_tokens"])
    alone = [logps(attached_adapter(load_tiny(tiny_model), folder)) for folder in (parted, tied)]
    for one, other in ((parted, tied), (tied, parted)):
        model = attach(attach(load_tiny(tiny_model), one, one.name), other, other.name).eval()
        assert difference(spoken(model, "parted"), alone[0]) < 1e-5
        assert difference(spoken(model, "tied"), alone[1]) < 1e-5
        with model.disable_adapter():
            assert difference(logps(model), logps(load_tiny(tiny_model))) <= 1e-12


def test_a_saved_adapter_on_the_head_is_refused_first_and_second(
    untied: Path, tiny_model: Path, tmp_path: Path
) -> None:
    head = by_peft(tmp_path / "head", untied, target_modules=["q_proj", "lm_head"])
    plain = saved(tmp_path / "plain", untied, 0.1)
    for model in (load_tiny(untied), attached_adapter(load_tiny(untied), plain)):
        with pytest.raises(ConfigError, match=r"head is on the LM head, which cannot carry an adapter here"):
            attach(model, head, "b")
    embedding = by_peft(tmp_path / "embedding", tiny_model, target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(ConfigError, match=r"embedding is on the input embedding, whose weight is the LM head's too"):
        attach(load_tiny(tiny_model), embedding, "a")


def test_a_part_of_an_adapter_is_refused_first_and_second(tiny_model: Path, tmp_path: Path) -> None:
    """An adapter of a deeper or a flatter model of the same width, or a file with a hole."""
    from safetensors.torch import load_file, save_file

    plain = saved(tmp_path / "plain", tiny_model, 0.1)
    named = saved(tmp_path / "named", tiny_model, 0.1, target_modules=["q_proj", "v_proj"])
    deep = write_tiny_model(tmp_path / "models" / "deep", num_hidden_layers=3)
    deeper = saved(tmp_path / "deeper", deep, 0.1)
    holed = saved(tmp_path / "holed", tiny_model, 0.1)
    weights = load_file(holed / "adapter_model.safetensors")
    del weights[next(name for name in sorted(weights) if "lora_B" in name)]
    save_file(weights, holed / "adapter_model.safetensors", metadata={"format": "pt"})
    cases = [(tiny_model, deeper, r"layers that are not there: .*layers\.2\..*and 13 more", deep)]
    cases += [(deep, named, r"has no weights for .*layers\.2\..*and 3 more", tiny_model)]
    cases += [(tiny_model, holed, r"has no weights for .*lora_B\.\w+\.weight\.", tiny_model)]
    for base, folder, said, made_for in cases:
        fine = plain if base == tiny_model else deeper
        for model in (load_tiny(base), attached_adapter(load_tiny(base), fine)):
            with pytest.raises(ModelError, match=said) as told:
                attach(model, folder, "b")
            assert f"was made for {made_for} and does not fit {base}" in str(told.value)


def test_kinds_that_the_lab_does_not_compute_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    from peft import IA3Config, get_peft_model

    config = IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM")  # type: ignore[arg-type]
    get_peft_model(load_tiny(tiny_model), config).save_pretrained(str(tmp_path))
    with pytest.raises(ModelError, match=r"of the kind IA3\. Supported are"):
        attached_adapter(load_tiny(tiny_model), tmp_path)
