"""Rows of one batch that go through different adapters of one base, or through none."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpo_lab.models.lean import LORA_LAYERS, MLP_NAMES


def mixes(model: nn.Module) -> bool:
    """Whether `rows` can be told of the model: plain LoRA on linear layers, and nothing else that is trained."""
    configs = getattr(model, "peft_config", {}).values()
    if any(c.use_dora or c.modules_to_save or getattr(c, "trainable_token_indices", None) for c in configs):
        return False
    layers = [m for m in model.modules() if hasattr(m, "lora_A")]
    return all(
        type(m).__name__ in LORA_LAYERS and not m.merged and not getattr(m, "fan_in_fan_out", False) for m in layers
    )  # type: ignore[union-attr]


@contextmanager
def rows(model: nn.Module, names: Sequence[str | None]) -> Iterator[None]:
    """While the context is open, row i of every batch goes through the adapter names[i]; None is the bare base.

    The base sees the batch as a whole. The adapters' A and B lie side by side, and each row has a mask that leaves it
    its own with their scale, so that there are two thin products more, whatever the number of adapters.

    Args:
        model: a PEFT model in eval mode for which `mixes` is true.
        names: one for each row.
    """
    changed: list[tuple[Any, Any]] = []
    try:
        with torch.no_grad():
            for module in list(model.modules()):
                is_mlp = all(hasattr(module, name) for name in MLP_NAMES)
                if not hasattr(module, "lora_A") and not (is_mlp and "forward" in vars(module)):
                    continue
                changed.append((module, vars(module).get("forward")))
                if is_mlp:  # the lean form would pass the layers over
                    del module.forward
                else:
                    module.forward = _forward(module, names)
        yield
    finally:
        for module, before in changed:
            if before is None:
                vars(module).pop("forward", None)
            else:
                module.forward = before


def _forward(layer: Any, names: Sequence[str | None]) -> Any:
    """The layer's forward pass for a batch of these rows."""
    base = layer.base_layer
    used = [name for name in dict.fromkeys(names) if name is not None and name in layer.lora_A]
    if not used:
        return base.forward
    a = torch.cat([layer.lora_A[name].weight for name in used])  # (R, I)
    b = torch.cat([layer.lora_B[name].weight for name in used], dim=1)  # (O, R)
    ranks = [layer.lora_A[name].weight.shape[0] for name in used]
    mask = torch.zeros(len(names), 1, sum(ranks), device=a.device, dtype=a.dtype)  # (B, 1, R)
    for row, name in enumerate(names):
        if name in used:
            place = used.index(name)
            start = sum(ranks[:place])
            mask[row, 0, start : start + ranks[place]] = layer.scaling[name]

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = base(x, *args, **kwargs)
        xa = F.linear(x.to(a.dtype), a) * mask
        return y + F.linear(xa, b).to(y.dtype)

    return forward
