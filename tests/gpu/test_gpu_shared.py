"""The `shared` forward on a CUDA device, by the attention kernels that run there, against the padded one and the CPU."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FP32, difference, load_tiny, move, tiny_examples, tiny_lora, tiny_policy, trained, write_tiny_model
from torch import Tensor

from dpo_lab.data.collate import collate
from dpo_lab.data.types import Example, Pair
from dpo_lab.models.lean import make_lean
from dpo_lab.models.lora import new_adapter
from dpo_lab.models.precision import Precision
from dpo_lab.preference import attention
from dpo_lab.preference.attention import packed_attention, takes_varlen
from dpo_lab.preference.forward import Forward
from dpo_lab.preference.layout import Layout
from dpo_lab.preference.sharing import share

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = torch.device("cuda")
FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "smollm3")
BF16 = Precision("bf16", torch.bfloat16, torch.bfloat16)
FP16 = Precision("fp16", torch.float16, torch.float16)
MIXED = Precision("bf16", torch.float32, torch.bfloat16)


def ranked() -> list[Example]:
    """A long prompt with four answers, as six pairs, beside short pairs."""
    prompt = [3 + i % 250 for i in range(300)]
    answers = [[40 + i] * (1 + 5 * i) for i in range(4)]
    pair = Pair((), "a", "b", 1)
    return [Example(prompt, a, b, pair) for i, a in enumerate(answers) for b in answers[i + 1 :]] + tiny_examples()


LAYOUTS = {
    "ragged": collate(tiny_examples(), range(8)),
    "a ranked list of a long prompt": collate(ranked(), range(14)),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Heads of 32, which flash attention takes, and layers that quantise into whole blocks."""
    root = tmp_path_factory.mktemp("models")
    sizes: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "initializer_range": 0.1}
    made = {family: write_tiny_model(root / family, family, **sizes) for family in FAMILIES}
    return made | {"odd heads": write_tiny_model(root / "odd", head_dim=20, **sizes)}


@dataclass
class Calls:
    """How often each of the ways on a GPU was taken."""

    varlen: int = 0
    by_answer: int = 0


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    counted = Calls()
    varlen, by_answer = attention.varlen_attention, attention._by_answer

    def first(*args: Any, **kwargs: Any) -> Tensor:
        counted.varlen += 1
        return varlen(*args, **kwargs)

    def second(*args: Any, **kwargs: Any) -> Tensor:
        counted.by_answer += 1
        return by_answer(*args, **kwargs)

    monkeypatch.setattr(attention, "varlen_attention", first)
    monkeypatch.setattr(attention, "_by_answer", second)
    return counted


def evaluated(policy: Any, layout: Layout, forward: Forward) -> tuple[Tensor, Tensor]:
    """Log-probs, and all gradients of a weighted sum as one vector, on the CPU."""
    policy.zero_grad()
    logps = forward.logps(policy, layout)
    (logps * torch.linspace(-1, 2, len(logps), device=logps.device)).sum().backward()
    parts = [p.grad.double().flatten().cpu() for p in trained(policy).values() if p.grad is not None]
    assert len(parts) == len(trained(policy))
    return logps.detach().cpu(), torch.cat(parts)


def both_ways(policy: Any, layout: Layout, precision: Precision) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    ours, theirs = (
        evaluated(policy, layout.to(DEVICE), Forward(precision.autocast, shared=shared)) for shared in (True, False)
    )
    return ours, theirs


def shared_policy(folder: Path, precision: Precision, *, lean: bool = True, **kwargs: Any) -> Any:
    policy = tiny_policy(folder, precision, moved=0.2, device="cuda", **kwargs)
    if lean:
        make_lean(policy)
    assert share(policy, max_length=512, compute=precision.autocast) is None
    return policy


# -- whole models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lean", [True, False], ids=["lean", "not lean"])
@pytest.mark.parametrize("precision", [BF16, FP16, MIXED], ids=["bf16", "fp16", "fp32 under bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_in_16_bit_by_varlen_it_is_as_close_to_fp32_as_the_padded_way(
    family: str, precision: Precision, lean: bool, layout: str, folders: dict[str, Path], calls: Calls
) -> None:
    exact, gradient = evaluated(tiny_policy(folders[family], moved=0.2), LAYOUTS[layout], Forward())
    policy = shared_policy(folders[family], precision, lean=lean)
    calls.varlen = calls.by_answer = 0
    (ours, own), (theirs, other) = both_ways(policy, LAYOUTS[layout], precision)
    assert (ours - exact).abs().mean() < 1.5 * (theirs - exact).abs().mean() + 1e-3
    assert (ours - theirs).abs().mean() < 5e-2
    angle, expected = (1 - torch.cosine_similarity(g, gradient, dim=0).item() for g in (own, other))
    assert angle < 2 * expected + 1e-3
    if takes_varlen(DEVICE, torch.bfloat16):
        assert calls.varlen >= 2
        assert calls.by_answer == 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_in_fp32_it_goes_by_answers_and_gives_the_numbers_of_the_cpu(
    family: str, layout: str, folders: dict[str, Path], calls: Calls
) -> None:
    exact, gradient = evaluated(tiny_policy(folders[family], moved=0.2), LAYOUTS[layout], Forward())
    (ours, own), (theirs, other) = both_ways(shared_policy(folders[family], FP32), LAYOUTS[layout], FP32)
    assert calls.by_answer > 0 == calls.varlen
    assert difference(ours, theirs) < 1e-4
    assert difference(ours, exact) < 1e-3
    for vector in (other, gradient):
        assert torch.cosine_similarity(own, vector, dim=0) > 0.9999


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_the_two_ways_agree(bits: Any, folders: dict[str, Path]) -> None:
    policy = shared_policy(folders["llama"], BF16, bits=bits)
    (ours, own), (theirs, other) = both_ways(policy, LAYOUTS["ragged"], BF16)
    assert (ours - theirs).abs().mean() < 5e-2
    assert torch.cosine_similarity(own, other, dim=0) > (0.98 if bits == 4 else 0.9)


def test_with_gradient_checkpointing_the_numbers_are_the_same(folders: dict[str, Path], calls: Calls) -> None:
    base = load_tiny(folders["llama"], BF16, device="cuda")
    base.enable_input_require_grads()
    policy = new_adapter(base, tiny_lora(), seed=0)
    move(policy, 0.2)
    make_lean(policy.eval())
    assert share(policy, max_length=512, compute=BF16.autocast) is None
    layout, forward = LAYOUTS["a ranked list of a long prompt"].to(DEVICE), Forward(BF16.autocast)
    plain, gradient = evaluated(policy.train(), layout, forward)
    before = calls.varlen
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    again, own = evaluated(policy.train(), layout, forward)
    if takes_varlen(DEVICE, torch.bfloat16):
        assert calls.varlen - before == 4, "two layers, computed twice"
    assert (plain - again).abs().max() < 1e-2
    assert torch.cosine_similarity(own, gradient, dim=0) > 0.999


def test_heads_of_a_size_that_the_kernel_does_not_take_are_padded_or_right(folders: dict[str, Path]) -> None:
    policy = tiny_policy(folders["odd heads"], BF16, moved=0.2, device="cuda")
    reason = share(policy, max_length=512, compute=BF16.autocast)
    (ours, own), (theirs, other) = both_ways(policy, LAYOUTS["ragged"], BF16)
    assert Forward(BF16.autocast).shares(policy) == (reason is None)
    assert (ours - theirs).abs().mean() < 5e-2
    assert torch.cosine_similarity(own, other, dim=0) > 0.98


# -- attention alone ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [(4, 2), (14, 2), (3, 3)], ids=str)
@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_attention_gives_values_and_gradients_of_the_cpu_in_float64(
    dtype: torch.dtype, size: int, heads: tuple[int, int]
) -> None:
    layout = LAYOUTS["a ranked list of a long prompt"]
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, count, len(layout.ids), size) for count in (heads[0], heads[1], heads[1])]
    numbers = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    upstream = torch.randn(1, len(layout.ids), heads[0], size, generator=generator, dtype=torch.float64)

    def evaluate(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        q, k, v = leaves = [x.to(device, dtype).requires_grad_() for x in numbers]
        out = packed_attention(q, k, v, layout.to(device), scale=0.2)
        assert out.dtype == dtype
        return [out.detach(), *torch.autograd.grad((out * upstream.to(out)).sum(), leaves)]

    tolerance = {torch.bfloat16: 3e-2, torch.float16: 5e-3, torch.float32: 1e-3, torch.float64: 1e-9}[dtype]
    for ours, exact in zip(evaluate(DEVICE, dtype), evaluate(torch.device("cpu"), torch.float64), strict=True):
        assert ours.dtype == dtype
        assert difference(ours.cpu(), exact) < tolerance
