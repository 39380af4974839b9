"""Puts the lean layers in the place of PEFT's and transformers' own, where they compute the same."""

import types
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dpo_lab.models.lean_math import Base, gated_mlp, linear, rms_norm
from dpo_lab.models.quiet import quiet_loading

MLP_NAMES = {"gate_proj", "up_proj", "down_proj", "act_fn"}
LORA_LAYERS = ("Linear", "Linear4bit", "Linear8bitLt")
TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 5e-2}


def make_lean(policy: nn.Module, compute: torch.dtype | None = None) -> Counter[str]:
    """Replace the forward passes of adapted linear layers, gated MLPs and RMS norms by lean ones.

    A module is left alone where it is of another kind, where something else hangs on it, or where a few random tokens
    come out otherwise. What the lean form has no answer to at a call (several adapters, a merged one, dropout in an MLP)
    goes to the module's own forward pass.

    Args:
        policy: a PEFT model in eval mode; its parameters, their names and the modules' types stay.
        compute: dtype of the matrix products under autocast; None computes in the weights' own.

    Returns:
        How many modules of each kind are lean.
    """
    done: Counter[str] = Counter()
    alike: dict[Hashable, bool] = {}  # layers that are built alike are tried once
    for module in policy.modules():
        kind, forward = _lean_form(module)
        if forward is None:
            continue
        built = _built(module)
        if built not in alike:
            with quiet_loading():
                alike[built] = _alike(module, forward, compute)
        if not alike[built]:
            continue
        module.forward = types.MethodType(forward, module)
        done[kind] += 1
    return done


def _built(module: nn.Module) -> Hashable:
    """What a module is but for the numbers in its tensors."""
    tensors = [(name, t.dtype, t.requires_grad, t.device) for name, t in module.named_parameters()]
    plain = [
        (name, key, repr({k: v for k, v in value.items() if k != "target_name"} if isinstance(value, dict) else value))
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if isinstance(value, bool | int | float | str | dict) and not key.startswith("_")
    ]
    return type(module), repr(module), tuple(tensors), tuple(plain)


def _lean_form(module: Any) -> tuple[str, Any]:
    if "forward" in vars(module):  # somebody else's
        return "", None
    if hasattr(module, "lora_A") and type(module).__name__ in LORA_LAYERS:
        return "linear", None if _adapter(module) is None else _linear_forward
    if all(hasattr(module, name) for name in MLP_NAMES):
        layers = (module.gate_proj, module.up_proj, module.down_proj)
        plain = _names_used(module) == MLP_NAMES and _is_silu(module.act_fn) and all(map(_plain, layers))
        return "mlp", _mlp_forward if plain else None
    weight = getattr(module, "weight", None)
    if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon") and weight is not None:
        return "norm", None if weight.requires_grad else _norm_forward
    return "", None


def _names_used(module: Any) -> set[str]:
    """What a module's forward pass looks up: a multiplier, a clamp or a dropout is a name more."""
    code = getattr(type(module).forward, "__code__", None)
    return set(code.co_names) if code else set()


def _is_silu(activation: Any) -> bool:
    return isinstance(activation, nn.SiLU) or type(activation).__name__ in ("SiLUActivation", "SiLU")


@torch.no_grad()
def _alike(module: Any, forward: Any, compute: torch.dtype | None) -> bool:
    """Whether the lean form gives what the module's own does for a few random tokens, with an adapter that has moved."""
    parameter = next((p for p in module.parameters() if p.is_floating_point()), None)
    size = _input_size(module)
    if parameter is None or size is None or parameter.is_meta:
        return False
    generator, kind = torch.Generator().manual_seed(0), parameter.device.type
    x = torch.randn(1, 3, size, generator=generator).to(parameter.device, parameter.dtype)
    with torch.autocast(kind, dtype=compute, enabled=compute is not None), _moved(module):
        try:
            own = type(module).forward(module, x)
        except (TypeError, RuntimeError, ValueError):  # it takes something else
            return False
        lean = forward(module, x)
    if own.shape != lean.shape or own.dtype != lean.dtype:
        return False
    gap = (own.double() - lean.double()).norm() / own.double().norm().clamp_min(1e-12)
    return bool(gap <= TOLERANCE.get(compute or own.dtype, 1e-5))


@contextmanager
def _moved(module: nn.Module) -> Iterator[None]:
    """The B of its adapters, which begin at zero, are random while the block runs."""
    begun = [(p, p.data) for name, p in module.named_parameters() if "lora_B." in name]
    generator = torch.Generator().manual_seed(1)
    try:
        for p, data in begun:
            p.data = torch.randn(data.shape, generator=generator).to(data)
        yield
    finally:
        for p, data in begun:
            p.data = data


def _input_size(module: Any) -> int | None:
    inner = module.gate_proj if hasattr(module, "gate_proj") else module
    size = getattr(inner, "in_features", None)
    return size if size is not None else len(inner.weight) if getattr(inner, "weight", None) is not None else None


def _linear_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Of a PEFT layer: base and adapter in one function, or a quantised base's own product plus the adapter's."""
    trained = any(p.requires_grad for p in self.base_layer.parameters())
    found = None if args or kwargs or trained else _adapter(self)
    if found is None:
        return type(self).forward(self, x, *args, **kwargs)
    a, b, scale, dropout = found
    if a is None or b is None:
        return self.base_layer(x)
    if dropout is None and type(self.base_layer) is nn.Linear:
        weight, bias = self.base_layer.weight, self.base_layer.bias
        if (dtype := _compute(x, weight, a)) is None:
            return type(self).forward(self, x)
        with torch.autocast(x.device.type, enabled=False):
            return linear(x.to(dtype), _base(weight, bias, scale, dtype), a.to(dtype), b.to(dtype))
    if (dtype := _compute(x, x, a)) is None:
        return type(self).forward(self, x)
    y = self.base_layer(x)
    with torch.autocast(x.device.type, enabled=False):
        seen = x if dropout is None else dropout(x)
        return y + linear(seen.to(dtype), Base(None, None, scale), a.to(dtype), b.to(dtype))


def _mlp_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Of a gated MLP whose three linear layers are plain or plainly adapted, and frozen."""
    layers = (self.gate_proj, self.up_proj, self.down_proj)
    found = [None if args or kwargs else _plain(layer) for layer in layers]
    first = found[0]
    dtype = _compute(x, first[0], first[2]) if first is not None else None
    if dtype is None or any(part is None or part[0].dtype != first[0].dtype for part in found):  # type: ignore[index]
        return type(self).forward(self, x, *args, **kwargs)
    bases = tuple(_base(weight, bias, scale, dtype) for weight, bias, _, _, scale in found)  # type: ignore[misc]
    adapters = tuple(t if t is None else t.to(dtype) for _, _, a, b, _ in found for t in (a, b))  # type: ignore[misc]
    with torch.autocast(x.device.type, enabled=False):
        return gated_mlp(x.to(dtype), bases, adapters)  # type: ignore[arg-type]


def _norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    return rms_norm(hidden_states, self.weight, self.variance_epsilon)


def _base(weight: Tensor, bias: Tensor | None, scale: float, dtype: torch.dtype) -> Base:
    return Base(weight.to(dtype), None if bias is None else bias.to(dtype), scale)


def _plain(layer: Any) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, float] | None:
    """(weight, bias, A, B, scale) of a frozen linear layer, with an adapter that needs nothing but these or without."""
    inner = getattr(layer, "base_layer", layer)
    if layer._forward_hooks or layer._forward_pre_hooks:  # a call would do more than its forward pass
        return None
    if type(inner) is not nn.Linear or any(p.requires_grad for p in inner.parameters()):
        return None
    if inner is layer:
        return inner.weight, inner.bias, None, None, 1.0
    found = _adapter(layer)
    if found is None or found[3] is not None:
        return None
    return inner.weight, inner.bias, *found[:3]


def _adapter(layer: Any) -> tuple[Tensor | None, Tensor | None, float, nn.Module | None] | None:
    """(A, B, scale, dropout) of the one active LoRA; A and B None where it is off; None where PEFT must see to it."""
    if not hasattr(layer, "lora_A") or getattr(layer, "fan_in_fan_out", False):
        return None
    if layer.disable_adapters:
        return None if layer.merged else (None, None, 1.0, None)
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if layer.merged or len(names) != 1 or names[0] in layer.lora_variant:
        return None
    name = names[0]
    a, b = layer.lora_A[name], layer.lora_B[name]
    if a.bias is not None or b.bias is not None:
        return None
    dropout = layer.lora_dropout[name]
    off = isinstance(dropout, nn.Identity) or not dropout.training or dropout.p == 0.0
    return a.weight, b.weight, layer.scaling[name], None if off else dropout


def _compute(x: Tensor, base: Tensor, a: Tensor | None) -> torch.dtype | None:
    """The dtype of the products: autocast's, or the one that input, base and adapter have; None where they differ."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return base.dtype if x.dtype == base.dtype and (a is None or a.dtype == base.dtype) else None
