"""The parts of a run: device, policy, objective, micro-batch."""

from typing import Any

import torch
from torch import nn

from dpo_lab.config.schema import Config
from dpo_lab.inference.start import Start
from dpo_lab.models.adapter_init import FROM_BASE
from dpo_lab.models.load import load_model
from dpo_lab.models.lora import continued_adapter, new_adapter
from dpo_lab.models.memory import activation_bytes, auto_microbatch, forward_microbatch
from dpo_lab.models.precision import Precision
from dpo_lab.preference.modifiers import Modifiers
from dpo_lab.preference.objective import Objective
from dpo_lab.runtime.build import named
from dpo_lab.runtime.errors import ConfigError


def choose_device(accelerator: str, rank: int = 0) -> tuple[str, torch.device]:
    """The accelerator's name, cpu, gpu or mps, and the torch device of a rank."""
    if accelerator == "mps":
        if not torch.backends.mps.is_available():
            raise ConfigError("trainer=mps, but torch sees no Apple GPU. Use trainer=cpu.")
        return "mps", torch.device("mps")
    has_gpu = torch.cuda.is_available()
    if accelerator == "gpu" and not has_gpu:
        raise ConfigError("trainer=gpu, but torch sees no CUDA device. Use trainer=cpu, or check the driver.")
    gpu = has_gpu and accelerator != "cpu"
    return ("gpu", torch.device("cuda", rank)) if gpu else ("cpu", torch.device("cpu"))


def count_devices(config: Config, accelerator: str) -> int:
    """Processes that train together."""
    asked, there = config.trainer.devices, torch.cuda.device_count()
    if accelerator != "gpu":
        return min(2, config.optim.batch_size) if asked == "auto" else asked
    if asked == "auto":
        return min(there, config.optim.batch_size)
    if asked > there:
        raise ConfigError(f"trainer.devices={asked}, but torch sees {there} GPUs. Use trainer.devices=auto.")
    return asked


def load_policy(config: Config, start: Start, precision: Precision, device: torch.device) -> nn.Module:
    """The model to train, in the state that the reference has."""
    base = load_model(start.located, config.model, config.quant, precision, device, max_length=config.data.max_length)
    if config.lora.r is None:
        base.requires_grad_(True)
        return base
    if config.model.gradient_checkpointing:
        base.enable_input_require_grads()
    if start.adapter is not None:
        policy = continued_adapter(base, start.adapter, config.lora, copy=True)
    else:
        policy = new_adapter(base, config.lora, seed=config.seed)
    return policy.eval()


def build_objective(config: Config) -> Objective:
    """The loss with its hyper-parameters and modifiers."""
    loss, hyper = config.loss, dict(config.loss.model_extra or {})
    modifiers = Modifiers(loss.sft_weight, loss.ld_alpha, loss.wpo, loss.f_divergence, loss.f_alpha)
    terms = loss.terms or {}
    if terms:
        hyper["weights"] = [term.weight for term in terms.values()]
    inner = [
        Objective(
            named(term.target),
            average=term.average or loss.average,
            beta=term.beta or loss.beta,
            modifiers=modifiers.inner,
            **(term.model_extra or {}),
        )
        for term in terms.values()
    ]
    return Objective(
        named(loss.target), average=loss.average, beta=loss.beta, modifiers=modifiers, terms=inner, **hyper
    )


def microbatch_tokens(config: Config, model_config: Any, precision: Precision, device: torch.device) -> int:
    """Tokens of a training micro-batch, estimated: of the pack in the shared forward, of padded rows in the other."""
    if config.trainer.microbatch_tokens != "auto":
        return config.trainer.microbatch_tokens
    per_token = bytes_per_token(config, model_config, precision)
    return auto_microbatch(per_token, free_gpu=_free(device))


def reference_tokens(tokens: int, model_config: Any, precision: Precision, device: torch.device) -> int:
    """Tokens of a micro-batch without gradients, beside one of `tokens` that is trained on."""
    return forward_microbatch(tokens, model_config, itemsize=_itemsize(precision), free_gpu=_free(device))


def bytes_per_token(config: Config, model_config: Any, precision: Precision) -> int:
    """Bytes that backward keeps for each token."""
    return activation_bytes(
        model_config,
        itemsize=_itemsize(precision),
        trained=config.lora.r is None,
        checkpointing=config.model.gradient_checkpointing,
        lean=_has_lean_mlps(config),
    )


def _has_lean_mlps(config: Config) -> bool:
    """Whether the MLPs, which hold most, are the lab's own: as far as the configuration tells."""
    lora = config.lora
    other = config.quant.bits or lora.dora or lora.dropout or lora.init in FROM_BASE
    return config.trainer.lean and not other


def _itemsize(precision: Precision) -> int:
    return {"32": 4, "64": 8, "bf16": 2, "fp16": 2}[precision.name]


def _free(device: torch.device) -> int | None:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
