"""The parts of a run: device, policy, reference."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Config, Model
from dpo_lab.models.load import load_model
from dpo_lab.models.locate import Located, locate
from dpo_lab.models.lora import continued_adapter, new_adapter
from dpo_lab.models.memory import activation_bytes, auto_microbatch
from dpo_lab.models.precision import Precision
from dpo_lab.preference.forward import Forward
from dpo_lab.preference.objective import Objective
from dpo_lab.preference.ref_cache import RefCache
from dpo_lab.preference.reference import (
    CachedReference,
    LiveReference,
    ModelContext,
    Reference,
    adapter_copy,
    adapter_off,
    frozen_model,
)
from dpo_lab.runtime.build import named
from dpo_lab.runtime.errors import ConfigError, ModelError
from dpo_lab.runtime.files import digest, fingerprint, read_json

CACHE_VERSION = "1"


@dataclass(frozen=True)
class Start:
    """What training starts from: base weights, and an adapter where one is continued."""

    located: Located
    adapter: Path | None
    identity: str  # hash of base weights and adapter
    what: str  # in words


def choose_device(accelerator: str) -> tuple[str, torch.device]:
    """The accelerator's name, cpu or gpu, and torch's device."""
    has_gpu = torch.cuda.is_available()
    if accelerator == "gpu" and not has_gpu:
        raise ConfigError("trainer=gpu, but torch sees no CUDA device. Use trainer=cpu, or check the driver.")
    gpu = has_gpu and accelerator != "cpu"
    return ("gpu", torch.device("cuda", 0)) if gpu else ("cpu", torch.device("cpu"))


def find_start(config: Config, cache_dir: Path, say: Callable[[str], None]) -> Start:
    """The model that the configuration names, and what `init_from` continues."""
    if config.init_from is None:
        located = locate(config.model, cache_dir, say)
        return Start(located, None, located.identity(cache_dir), "the base model")
    run = expand(config.init_from)
    final = run / "final"
    if not (final / "adapter_config.json").is_file():
        located = Located(final, f"{config.model.name or 'model'} of run {run.name}", "continued")
        return Start(located, None, located.identity(cache_dir), f"the weights of run {run.name}")
    if config.lora.r is None:
        raise ConfigError(f"init_from={run} is a LoRA adapter, but lora=none. Choose the lora option of that run.")
    located = locate(config.model, cache_dir, say)
    identity = located.identity(cache_dir)
    trained_on = ((read_json(run / "facts.json") or {}).get("model") or {}).get("identity")
    if trained_on is not None and trained_on != identity:
        raise ModelError(f"The adapter of {run} was trained on other weights than {located.name}. Choose its model.")
    return Start(located, final, digest(identity, fingerprint(final)), f"the adapter of run {run.name} on the base")


def load_policy(config: Config, start: Start, precision: Precision, device: torch.device) -> nn.Module:
    """The model to train, in the state that the reference has."""
    base = load_model(start.located, config.model, config.quant, precision, device)
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


def reference_mode(config: Config) -> str:
    """The mode that `auto` comes to: the pairs are finite, so their log-probs can be kept."""
    return "cached" if config.reference.mode == "auto" else config.reference.mode


def build_reference(
    config: Config, start: Start, policy: nn.Module, cache: RefCache, forward: Forward, precision: Precision
) -> tuple[Reference, ModelContext]:
    """The reference for training, and a model of it that is valid until the first update."""
    mode = reference_mode(config)
    if mode == "frozen":
        device = next(policy.parameters()).device
        own: Any = load_model(start.located, config.model, config.quant, precision, device)
        if start.adapter is not None:
            own = continued_adapter(own, start.adapter, config.lora, copy=False)
        context = frozen_model(own)
        return LiveReference(mode, context, forward), context
    if config.lora.r is None:
        return CachedReference(cache, None), lambda: nullcontext(policy.eval())
    context = adapter_off(policy) if start.adapter is None else adapter_copy(policy)
    if mode == "cached":
        return CachedReference(cache, context), context
    return LiveReference(mode, context, forward), context


def reference_identity(
    config: Config, start: Start, precision: Precision, device: torch.device
) -> tuple[str, dict[str, Any]]:
    """What changes the reference's log-probs, hashed and in words; loss, lr, rank and seed do not."""
    facts = {
        "version": CACHE_VERSION,
        "start": start.identity,
        "what": start.what,
        "model": start.located.name,
        "quant": config.quant.model_dump(exclude_defaults=True),
        "compute": precision.name,
        "weights_dtype": str(precision.weights),
        "quant_compute": str(precision.quant_compute) if config.quant.bits == 4 else None,
        "int8_on": device.type if config.quant.bits == 8 else None,  # bitsandbytes computes otherwise on a CPU
    }
    hashed = {k: v for k, v in facts.items() if k not in ("what", "model")}
    return digest(repr(sorted(hashed.items()))), facts


def build_objective(config: Config) -> Objective:
    """The loss with its hyper-parameters."""
    loss = config.loss
    return Objective(named(loss.target), average=loss.average, beta=loss.beta, **(loss.model_extra or {}))


def microbatch_tokens(config: Config, model_config: Any, precision: Precision, device: torch.device) -> int:
    """Padded tokens of a training micro-batch."""
    if config.trainer.microbatch_tokens != "auto":
        return config.trainer.microbatch_tokens
    per_token = bytes_per_token(config.model, model_config, precision, trained=config.lora.r is None)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    return auto_microbatch(per_token, free_gpu=free)


def bytes_per_token(model: Model, model_config: Any, precision: Precision, *, trained: bool) -> int:
    """Bytes that backward keeps for each token."""
    size = {"32": 4, "64": 8, "bf16": 2, "fp16": 2}[precision.name]
    return activation_bytes(model_config, itemsize=size, trained=trained, checkpointing=model.gradient_checkpointing)
