"""Linear layers as generation needs them: few rows at a time, each with an adapter of its own or with none."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpo_lab.models.lean import LORA_LAYERS, MLP_NAMES
from dpo_lab.preference.forward import causal_lm

FEW = 8  # rows up to which a product on a CPU is faster the other way round
Product = Callable[[Tensor], Tensor]
_tried: WeakKeyDictionary[nn.Module, tuple[tuple[str, ...], bool]] = WeakKeyDictionary()  # adapters, what came of it


def mixes(model: nn.Module) -> bool:
    """Whether rows of one batch can have different adapters.

    That takes plain LoRA on linear layers and nothing else that was trained; and layers that see which token is of which
    row. A mixture of experts may hand all tokens of a batch to a layer as one list.
    """
    configs: dict[str, Any] = getattr(model, "peft_config", {})
    if not all(map(_only_lora, configs.values())) or not all(_plain(m) for m in model.modules() if _adapts(m)):
        return False
    if not configs:
        return True
    names = tuple(configs)
    if _tried.get(model, ((), False))[0] != names:
        _tried[model] = names, _sees_rows(model)
    return _tried[model][1]


def _only_lora(config: Any) -> bool:
    """Whether an adapter of this configuration consists of A and B alone."""
    return config.peft_type == "LORA" and not (config.modules_to_save or config.trainable_token_indices)


def _adapts(module: nn.Module) -> bool:
    return hasattr(module, "lora_A")


def _plain(layer: Any) -> bool:
    """Whether a LoRA layer adds B A x, scaled, and nothing else: no variant such as DoRA or aLoRA, and no biases."""
    if type(layer).__name__ not in LORA_LAYERS or layer.merged or getattr(layer, "fan_in_fan_out", False):
        return False
    factors = [*layer.lora_A.values(), *layer.lora_B.values()]
    return not layer.lora_variant and all(type(f) is nn.Linear and f.bias is None for f in factors)


@torch.no_grad()
def _sees_rows(model: nn.Module) -> bool:
    """Whether every adapted layer is given (B, T, I) where the model is given (B, T): found out with six tokens."""
    shape, lm = (2, 3), causal_lm(model)
    layers = [m for m in model.modules() if _adapts(m)]
    whole: dict[nn.Module, bool] = {}  # of layers that were called: whether always so

    def look(layer: nn.Module, args: tuple[Any, ...]) -> None:
        whole[layer] = whole.get(layer, True) and args[0].shape[:-1] == shape

    with ExitStack() as opened:
        for layer in layers:
            opened.callback(layer.register_forward_pre_hook(look).remove)
        opened.enter_context(rows(model, [None] * shape[0]))
        lm(input_ids=torch.zeros(shape, dtype=torch.long, device=lm.device), use_cache=False)
    return all(whole.get(layer, False) for layer in layers)


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
    inner = layer.base_layer  # a module as `forward` would be a child, and never called
    base: Product = _product(inner) if type(inner) is nn.Linear else inner.__call__
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
        assert x.shape[:-2] == (len(names),), "a layer whose tokens are not (B, T): see `mixes`"
        xa = F.linear(x.to(a.dtype), a) * mask
        return base(x) + F.linear(xa, b).to(x.dtype)

    return forward
