"""How an adapter starts: drawn per seed and module, or taken out of the base's weights.

Per layer: W (out, in) the base's weight, A (r, in), B (out, r), s the scale; the layer computes W x + s B A x.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from dpo_lab.config.schema import Lora
from dpo_lab.runtime.errors import ConfigError
from dpo_lab.runtime.files import digest

FROM_BASE = ("pissa", "olora")


def initialise(peft: Any, lora: Lora, *, seed: int) -> None:
    """Give a new adapter its first weights, whatever PEFT has put there."""
    from peft.tuners.lora import LoraLayer

    for name, parameter in peft.named_parameters():
        if "lora_A" in name or "lora_embedding_B" in name:
            assert lora.r is not None
            generator = torch.Generator().manual_seed(int(digest(f"lora {seed} {name}"), 16) % 2**63)
            drawn = torch.empty(parameter.shape, dtype=torch.float32)
            if "lora_embedding_B" in name:
                drawn.normal_(generator=generator)
            elif lora.init == "gaussian":
                drawn.normal_(std=1 / lora.r, generator=generator)
            else:
                nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
            parameter.data.copy_(drawn)
    if lora.init in FROM_BASE:
        for name, layer in peft.named_modules():
            if isinstance(layer, LoraLayer):
                _from_base(name.removeprefix("base_model.model."), layer, lora.init)


def _from_base(name: str, layer: Any, init: str) -> None:
    """Start A and B in the base's weight, W' x + s B A x with W' = W - s B0 A0, without changing W.

    The frozen difference -s B0 A0 x is computed beside the layer instead of being written into W. It is the same
    function with the same gradients, but W is not rounded, the model with its adapter off is still the base (the
    reference), and a restart finds W as it was.
    """
    if "default" not in layer.lora_A or layer.get_base_layer().weight.dim() != 2:
        raise ConfigError(
            f"lora.init={init} works on linear layers, but {name} is none. Leave it out of lora.target_modules."
        )
    weight = layer.get_base_layer().weight.detach()
    weight = weight.T if getattr(layer, "fan_in_fan_out", False) else weight
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    if a.shape[0] > min(weight.shape):
        raise ConfigError(
            f"lora.init={init} needs lora.r at most {min(weight.shape)}, the rank of {name}. Lower lora.r."
        )
    if weight.is_meta:
        return
    first_a, first_b = decompose(weight, a.shape[0], layer.scaling["default"], init)
    a.data.copy_(first_a)
    b.data.copy_(first_b)
    layer.register_buffer("initial_A", a.detach().clone(), persistent=False)
    layer.register_buffer("initial_B", b.detach().clone(), persistent=False)
    layer.register_forward_hook(_without_initial)


def decompose(weight: Tensor, r: int, scale: float, init: str) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r) of W (out, in), in fp32 or fp64.

    `pissa`: s B A is the best approximation of W of rank r, from its largest singular values (arXiv:2404.02948 eq. 2
    and 3). `olora`: B and A are the first r columns of Q and rows of R in W = Q R (arXiv:2406.01775, algorithm 1).
    """
    weight = weight if weight.dtype == torch.float64 else weight.float()
    if init == "pissa":
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        root = (s[:r] / scale).sqrt()
        return root[:, None] * vh[:r], u[:, :r] * root
    q, upper = torch.linalg.qr(weight)
    return upper[:r], q[:, :r]


def _without_initial(layer: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """The layer's output less s B0 A0 x, while its adapter is on."""
    if layer.disable_adapters or "default" not in layer.active_adapters:
        return output
    linear = nn.functional.linear
    first = linear(linear(args[0].to(layer.initial_A.dtype), layer.initial_A), layer.initial_B)
    return output - (layer.scaling["default"] * first).to(output.dtype)


def plain_adapter(peft: Any) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The state and settings of the same policy as a plain adapter on the untouched base; None where it is one.

    s (B A - B0 A0) = s [B, -B0] [A; A0]: twice the rank at the same scale.
    """
    state = peft.state_dict()
    initial = {name: layer for name, layer in peft.named_modules() if hasattr(layer, "initial_A")}
    if not initial:
        return None
    for name, layer in initial.items():
        a, b = f"{name}.lora_A.default.weight", f"{name}.lora_B.default.weight"
        state[a] = torch.cat([state[a], layer.initial_A])
        state[b] = torch.cat([state[b], -layer.initial_B], dim=1)
    config = peft.peft_config["default"]
    alpha = config.lora_alpha * (math.sqrt(2) if config.use_rslora else 2)
    return state, {"r": 2 * config.r, "lora_alpha": alpha, "init_lora_weights": True}
