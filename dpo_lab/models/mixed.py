"""Linear layers as generation needs them: few rows at a time, each with an adapter of its own or with none."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpo_lab.models.lean import LORA_LAYERS, MLP_NAMES

FEW = 8  # rows up to which a product on a CPU is faster the other way round
Product = Callable[[Tensor], Tensor]


def mixes(model: nn.Module) -> bool:
    """Whether rows of one batch can have different adapters: plain LoRA on linear layers, and nothing else trained."""
    configs = getattr(model, "peft_config", {}).values()
    if any(c.use_dora or c.modules_to_save or getattr(c, "trainable_token_indices", None) for c in configs):
        return False
    layers: list[Any] = [m for m in model.modules() if hasattr(m, "lora_A")]
    return all(
        type(m).__name__ in LORA_LAYERS and not m.merged and not getattr(m, "fan_in_fan_out", False) for m in layers
    )


@contextmanager
def rows(model: nn.Module, names: Sequence[str | None]) -> Iterator[None]:
    """While the context is open, row i of every batch goes through the adapter names[i]; None is the bare base.

    The base sees the batch as a whole. The adapters' A and B lie side by side, and each row has a mask that leaves it
    its own with their scale: two thin products more, whatever the number of adapters. On a CPU a token's few rows are
    multiplied in the form in which that is fast. Nothing of it has a backward pass.

    Args:
        model: in eval mode; a PEFT model for which `mixes` is true, or one without adapters.
        names: one for each row.
    """
    changed: list[tuple[Any, Any]] = []
    modules: list[Any] = list(model.modules())
    inner = {id(m.base_layer) for m in modules if hasattr(m, "lora_A")}  # their outer layer calls them
    try:
        with torch.no_grad():
            for module in modules:
                forward: Product | None = None
                if hasattr(module, "lora_A"):
                    forward = _adapted(module, names)
                elif type(module) is nn.Linear and id(module) not in inner and "forward" not in vars(module):
                    forward = _product(module)
                elif not ("forward" in vars(module) and all(hasattr(module, name) for name in MLP_NAMES)):
                    continue  # of what has a lean form, MLPs alone would pass their layers over
                changed.append((module, vars(module).pop("forward", None)))
                if forward is not None:
                    setattr(module, "forward", forward)  # noqa: B010 - its parameter has another name than nn.Linear's
        yield
    finally:
        for module, before in changed:
            vars(module).pop("forward", None)
            if before is not None:
                module.forward = before


def _product(layer: nn.Linear) -> Product:
    """The layer's own product: (..., I) -> (..., O)."""
    weight, bias = layer.weight, layer.bias
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return layer.forward

    def forward(x: Tensor) -> Tensor:
        n = x.numel() // x.shape[-1]
        if n > FEW or n < 2 or x.dtype != weight.dtype or torch.is_autocast_enabled("cpu"):
            return F.linear(x, weight, bias)
        y = (weight @ x.reshape(n, -1).t()).t().contiguous()
        return (y if bias is None else y.add_(bias)).view(*x.shape[:-1], -1)

    return forward


def _adapted(layer: Any, names: Sequence[str | None]) -> Product:
    """The forward pass of a PEFT layer for a batch of these rows."""
    base: Product = _product(layer.base_layer) if type(layer.base_layer) is nn.Linear else layer.base_layer
    used = [name for name in dict.fromkeys(names) if name is not None and name in layer.lora_A]
    if not used:
        return base
    a = torch.cat([layer.lora_A[name].weight for name in used])  # (R, I)
    b = torch.cat([layer.lora_B[name].weight for name in used], dim=1)  # (O, R)
    scales = {name: float(layer.scaling[name]) for name in used}
    if set(names) == set(used) and len(used) == 1:
        b = b * scales[used[0]]
        return lambda x: base(x) + F.linear(F.linear(x.to(a.dtype), a), b).to(x.dtype)
    ranks = [layer.lora_A[name].weight.shape[0] for name in used]
    mask = torch.zeros(len(names), 1, sum(ranks), device=a.device, dtype=a.dtype)  # (B, 1, R)
    for row, name in enumerate(names):
        if name in scales:
            start = sum(ranks[: used.index(name)])
            mask[row, 0, start : start + ranks[used.index(name)]] = scales[name]

    def forward(x: Tensor) -> Tensor:
        xa = F.linear(x.to(a.dtype), a) * mask
        return base(x) + F.linear(xa, b).to(x.dtype)

    return forward
