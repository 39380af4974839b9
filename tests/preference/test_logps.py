"""Log-probs without all logits, against autograd through all logits."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import Largest, difference
from torch import Tensor
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig, LlamaConfig, PhiConfig

from dpo_lab.models.load import _check_head
from dpo_lab.models.precision import Precision
from dpo_lab.preference import logps
from dpo_lab.preference.logps import Head, head_of, token_kl, token_logps, token_statistics
from dpo_lab.runtime.errors import ModelError

HIDDEN, VOCABULARY = 24, 90
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.25},
    "softcap": {"softcap": 5.0},
    "all": {"bias": True, "scale": 1.5, "softcap": 4.0},
}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 tokens a chunk, the least there is."""
    monkeypatch.setattr(logps, "CHUNK_BYTES", 1)


def make(n: int, dtype: torch.dtype, *, trainable: bool, kind: str = "plain") -> tuple[Tensor, Tensor, Head]:
    generator = torch.Generator().manual_seed(n)
    hidden = torch.randn(n, HIDDEN, dtype=dtype, generator=generator).requires_grad_()
    targets = torch.randint(VOCABULARY, (n,), generator=generator)
    weight = torch.randn(VOCABULARY, HIDDEN, dtype=dtype, generator=generator).requires_grad_(trainable)
    changes = dict(KINDS[kind])
    if changes.pop("bias", False):
        changes["bias"] = torch.randn(VOCABULARY, dtype=dtype, generator=generator).requires_grad_(trainable)
    return hidden, targets, Head(weight, **changes)


def full_logps(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    """The same, the plain way."""
    logits = hidden @ head.weight.T + (0 if head.bias is None else head.bias)
    logits = logits * head.scale
    if head.softcap is not None:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    return torch.log_softmax(logits, dim=-1)[torch.arange(len(targets)), targets]


def with_gradients(
    function: Callable[..., Tensor], hidden: Tensor, targets: Tensor, head: Head, weights: Tensor
) -> dict[str, Tensor]:
    """Values and gradients of sum(weights * logps)."""
    values = function(hidden, targets, head)
    leaves = {"hidden": hidden, "weight": head.weight, "bias": head.bias}
    asked = {name: leaf for name, leaf in leaves.items() if leaf is not None and leaf.requires_grad}
    return {"logps": values.detach()} | dict(
        zip(asked, torch.autograd.grad((weights * values).sum(), list(asked.values())), strict=True)
    )


@pytest.mark.parametrize("n", [1, 15, 16, 17, 50])
@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trainable"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_values_and_gradients_are_those_of_all_logits(n: int, trainable: bool, dtype: torch.dtype) -> None:
    for kind in KINDS:
        hidden, targets, head = make(n, dtype, trainable=trainable, kind=kind)
        weights = torch.linspace(-2, 3, n, dtype=dtype)  # as a loss weighs the tokens, some down and some up
        ours = with_gradients(token_logps, hidden, targets, head, weights)
        theirs = with_gradients(full_logps, hidden, targets, head, weights)
        assert ours.keys() == theirs.keys()
        assert {"hidden", "weight"} <= ours.keys() if trainable else ours.keys() == {"logps", "hidden"}
        for name in theirs:
            assert ours[name].dtype == dtype
            assert difference(ours[name], theirs[name]) < TOLERANCE[dtype], (kind, name)


@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trainable"])
def test_chunking_does_not_change_the_result(trainable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, targets, head = make(50, torch.float64, trainable=trainable)
    weights = torch.linspace(-2, 3, 50, dtype=torch.float64)
    assert [c.stop - c.start for c in head.chunks(50)] == [16, 16, 16, 2]
    small = with_gradients(token_logps, hidden, targets, head, weights)
    monkeypatch.setattr(logps, "CHUNK_BYTES", 2**30)
    assert len(head.chunks(50)) == 1
    large = with_gradients(token_logps, hidden, targets, head, weights)
    assert all(difference(small[name], large[name]) < 1e-12 for name in large)


@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trainable"])
def test_a_trained_head_over_frozen_hidden_states_and_no_gradients_at_all(trainable: bool) -> None:
    hidden, targets, head = make(20, torch.float64, trainable=trainable)
    expected = full_logps(hidden, targets, head).detach()
    with torch.no_grad():
        values = token_logps(hidden, targets, head)
    assert not values.requires_grad
    assert difference(values, expected) < 1e-12
    values = token_logps(hidden.detach(), targets, head)
    assert values.requires_grad == trainable
    assert difference(values.detach(), expected) < 1e-12


def test_in_16_bit_values_are_fp32_and_gradients_keep_the_dtype_of_the_hidden_states() -> None:
    hidden, targets, head = make(40, torch.float32, trainable=False)
    weights = torch.linspace(-2, 3, 40)
    theirs = with_gradients(full_logps, hidden, targets, head, weights)
    half = hidden.detach().bfloat16().requires_grad_()
    ours = with_gradients(token_logps, half, targets, replace(head, weight=head.weight.bfloat16()), weights)
    assert ours["logps"].dtype == torch.float32
    assert ours["hidden"].dtype == torch.bfloat16
    for name in theirs:
        assert difference(ours[name], theirs[name]) < 3e-2


@pytest.mark.parametrize("rows", [1, 16, 17, 40, 100, 10**6])
@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trainable"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp64", "fp32"])
def test_a_chunk_of_any_size_gives_the_gradients_of_all_logits(
    rows: int, trainable: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weights of both signs and none, as where a loss is flat or a token does not count."""
    monkeypatch.setattr(logps, "CHUNK_BYTES", 4 * VOCABULARY * rows)
    hidden, targets, head = make(100, dtype, trainable=trainable)
    weights = torch.linspace(-2, 3, 100, dtype=dtype)
    weights[::7] = 0.0
    ours = with_gradients(token_logps, hidden, targets, head, weights)
    statistics = with_gradients(lambda *args: token_statistics(*args)[0], hidden, targets, head, weights)
    theirs = with_gradients(full_logps, hidden, targets, head, weights)
    for name, expected in theirs.items():
        assert difference(ours[name], expected) < TOLERANCE[dtype], name
        assert difference(statistics[name], expected) < TOLERANCE[dtype], name
    assert (ours["hidden"][::7] == 0).all()


@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trainable"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)], ids=["bf16", "fp16"])
def test_a_head_in_16_bit_is_close_over_several_chunks(dtype: torch.dtype, tolerance: float, trainable: bool) -> None:
    hidden, targets, head = make(100, torch.float64, trainable=trainable)
    weights = torch.linspace(-2, 3, 100, dtype=torch.float64)
    theirs = with_gradients(full_logps, hidden, targets, head, weights)
    half = hidden.detach().to(dtype).requires_grad_()
    weight = head.weight.detach().to(dtype).requires_grad_(trainable)
    ours = with_gradients(token_logps, half, targets, Head(weight), weights.float())
    assert ours["logps"].dtype == torch.float32
    for name, expected in theirs.items():
        assert name == "logps" or ours[name].dtype == dtype
        assert difference(ours[name], expected) < tolerance, name


# -- statistics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trainable"])
def test_statistics_come_with_the_log_probs_and_leave_their_gradient_alone(trainable: bool) -> None:
    for kind in KINDS:
        hidden, targets, head = make(50, torch.float64, trainable=trainable, kind=kind)
        logps = torch.stack([full_logps(hidden, torch.full((50,), v), head) for v in range(VOCABULARY)], dim=1)
        expected = logps.detach().exp().square().sum(-1).log()
        with torch.no_grad():
            assert difference(token_statistics(hidden, targets, head)[1], expected) < 1e-9, kind
        values, log_sum_sq = token_statistics(hidden, targets, head)
        assert difference(log_sum_sq, expected) < 1e-9, kind
        assert not log_sum_sq.requires_grad
        assert torch.equal(values, token_logps(hidden, targets, head))
        asked = [t for t in (hidden, head.weight, head.bias) if t is not None and t.requires_grad]
        ours, theirs = (torch.autograd.grad(t.sin().sum(), asked) for t in (values, full_logps(hidden, targets, head)))
        assert all(difference(a, b) < 1e-9 for a, b in zip(ours, theirs, strict=True)), kind


# -- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trainable"])
def test_all_logits_never_exist_in_forward_or_backward(trainable: bool) -> None:
    n, vocabulary = 160, 5000
    hidden, targets, _ = make(n, torch.float32, trainable=trainable)
    head = Head(torch.randn(vocabulary, HIDDEN).requires_grad_(trainable))
    with Largest() as chunked:
        token_logps(hidden, targets, head).sum().backward()
    with Largest() as with_statistics:
        token_statistics(hidden, targets, head)[0].sum().backward()
    with Largest() as plain:
        full_logps(hidden, targets, head).sum().backward()
    assert plain.numel >= n * vocabulary  # the check sees what it looks for
    assert 16 * vocabulary <= chunked.numel <= max(16, HIDDEN) * vocabulary
    assert with_statistics.numel == chunked.numel


@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trainable"])
def test_no_logits_are_kept_for_backward(trainable: bool) -> None:
    n, vocabulary = 160, 5000
    hidden, targets, _ = make(n, torch.float32, trainable=trainable)
    head = Head(torch.randn(vocabulary, HIDDEN).requires_grad_(trainable))

    def kept(function: Callable[..., Tensor]) -> int:
        storages: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            values = function(hidden, targets, head)
        storages.pop(head.weight.untyped_storage().data_ptr(), None)
        assert values.requires_grad
        return sum(storages.values())

    assert kept(full_logps) >= n * vocabulary  # the check sees what it looks for
    assert kept(token_logps) < 3 * n * HIDDEN


# -- exact KL -------------------------------------------------------------------------------------------------------


def test_exact_kl_is_0_for_the_same_model_and_that_of_the_full_distributions_otherwise() -> None:
    hidden, _, head = make(50, torch.float64, trainable=False, kind="all")
    ref_hidden, _, ref_head = make(51, torch.float64, trainable=False, kind="bias")
    ref_hidden = ref_hidden[:50]
    assert token_kl(hidden, head, hidden, head).abs().max() < 1e-12
    kl = token_kl(hidden, head, ref_hidden, ref_head)
    policy, ref = (
        torch.stack([full_logps(h, torch.full((50,), v), which) for v in range(VOCABULARY)], dim=1)
        for h, which in ((hidden, head), (ref_hidden, ref_head))
    )
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=policy), torch.distributions.Categorical(logits=ref)
    )
    assert (kl > 0).all()
    assert difference(kl, expected) < 1e-9


# -- heads of model families ----------------------------------------------------------------------------------------

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.2,
}  # fmt: skip
FAMILIES = {
    "llama": LlamaConfig(**SMALL),
    "phi, with a bias": PhiConfig(**SMALL),
    "cohere, scaled up": CohereConfig(**SMALL, logit_scale=0.3),
    "granite, scaled down": GraniteConfig(**SMALL, logits_scaling=8.0),
    "gemma 2, soft-capped": Gemma2Config(**SMALL, head_dim=16, final_logit_softcapping=2.0),
}
FP32 = Precision("32", torch.float32, torch.float32)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_gives_the_logits_of_the_model_itself(family: str) -> None:
    model = AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
    head = head_of(model)
    if head.bias is not None:
        head.bias.uniform_(-1, 1)
    ids = torch.arange(12)[None]
    hidden = model.get_decoder()(input_ids=ids).last_hidden_state[0]
    assert difference(head.logits(hidden), model(input_ids=ids).logits[0]) < 1e-6
    assert head.plain == (family == "llama")
    _check_head(model, FP32)


def test_a_model_that_scales_its_logits_in_an_unknown_way_is_refused() -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL)).eval()
    forward = model.lm_head.forward
    model.lm_head.forward = lambda hidden: 0.5 * forward(hidden)
    with pytest.raises(ModelError, match="scales its logits"):
        _check_head(model, FP32)
