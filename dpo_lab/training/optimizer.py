"""The optimizer of a run: which parameters learn at which rate, and how it is built."""

import inspect
from typing import Any

from torch import nn
from torch.optim import Optimizer

from dpo_lab.config.schema import Optim
from dpo_lab.preference.forward import causal_lm
from dpo_lab.runtime.build import named
from dpo_lab.runtime.errors import ConfigError


def build_optimizer(policy: nn.Module, optim: Optim, *, scaled: bool) -> Optimizer:
    """`optim` over what is trainable, fused where that is possible.

    Args:
        policy: on the device where it is trained.
        optim: conf/optim; keys beyond the lab's own are arguments of the optimizer.
        scaled: whether gradients are scaled (fp16), which fused optimizers undo too late for the lab's clipping.

    Raises:
        ConfigError: the optimizer refuses its arguments, or does not work on this device.
    """
    target: Any = named(optim.target)
    extra: dict[str, Any] = dict(optim.model_extra or {})
    device = next(policy.parameters()).device.type
    if target.__name__.startswith("Paged") and device != "cuda":
        raise ConfigError(f"optim._target_={optim.target} needs a GPU: on a CPU nothing is paged. Use optim=adamw8bit.")
    if "fused" in inspect.signature(target).parameters:
        if scaled and extra.get("fused"):
            raise ConfigError("optim.fused=true cannot be used with fp16, whose gradients are scaled. Drop it.")
        extra.setdefault("fused", True if device == "cuda" and not scaled else None)
    groups = parameter_groups(policy, optim, split_matrices=getattr(target, "splits_matrices", False))
    try:
        return target(groups, lr=optim.lr, weight_decay=optim.weight_decay, **extra)
    except (TypeError, ValueError, RuntimeError) as e:
        raise ConfigError(f"optim._target_={optim.target}: {str(e).splitlines()[0]}") from e


def parameter_groups(policy: nn.Module, optim: Optim, *, split_matrices: bool) -> list[dict[str, Any]]:
    """The trainable parameters by what they have in common, those at the rate `optim.lr` first.

    LoRA+ (arXiv:2402.12354, section 4): B, the side of an adapter that writes, learns at `loraplus_ratio` times the rate.
    Weight decay is for matrices. A norm's weight and a magnitude of DoRA are near the size they should have, not near
    zero: decay would shrink what the model computes.

    Args:
        policy: its parameters that require a gradient are trained.
        optim: lr, weight_decay and loraplus_ratio.
        split_matrices: whether the weights of linear layers are a group of their own, marked `matrix`.
    """
    ratio = optim.loraplus_ratio or 1.0
    others = _embeddings_and_head(policy)
    found: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            lr = optim.lr * (ratio if "lora_B." in name or "lora_embedding_B." in name else 1.0)
            decay = optim.weight_decay if parameter.dim() > 1 else 0.0
            matrix = parameter.dim() == 2 and parameter not in others and "lora_embedding_" not in name
            found.setdefault((lr, decay, split_matrices and matrix), []).append(parameter)
    in_order = sorted(found, key=lambda key: key[0] != optim.lr)
    return [
        {"params": found[key], "lr": key[0], "weight_decay": key[1]} | ({"matrix": key[2]} if split_matrices else {})
        for key in in_order
    ]


def _embeddings_and_head(policy: nn.Module) -> set[nn.Parameter]:
    """Weights (V, H) with a row a token: their rows do not act together as those of a linear layer do."""
    modules = [module for module in policy.modules() if isinstance(module, nn.Embedding)]
    head = causal_lm(policy).get_output_embeddings()
    return {parameter for module in [*modules, head] if module is not None for parameter in module.parameters()}
