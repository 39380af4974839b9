"""The trained part: a LoRA adapter on the base, or all of its weights."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpo_lab.config.schema import Lora
from dpo_lab.models.quiet import quiet_loading
from dpo_lab.preference.reference import COPY
from dpo_lab.runtime.errors import ConfigError, ModelError
from dpo_lab.runtime.files import digest, read_json


def new_adapter(model: Any, lora: Lora, *, seed: int) -> Any:
    """A PEFT model with a fresh adapter: B is zero, A is drawn per seed and module name.

    So an adapter's start does not depend on what else is initialised, nor in which order.
    """
    from peft import LoraConfig, get_peft_model

    assert lora.r is not None
    assert lora.alpha is not None
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        with quiet_loading():
            peft: Any = get_peft_model(model, config)
    except ValueError as e:
        raise ConfigError(f"lora.target_modules={lora.target_modules!r} fits no layer of this model: {e}") from e
    _refuse_head(peft)
    for name, parameter in peft.named_parameters():
        if "lora_A" in name:
            generator = torch.Generator().manual_seed(int(digest(f"lora {seed} {name}"), 16) % 2**63)
            drawn = torch.empty(parameter.shape, dtype=torch.float32)
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
            parameter.data.copy_(drawn)
    return peft


def continued_adapter(model: Any, folder: Path, lora: Lora, *, copy: bool) -> Any:
    """A PEFT model that goes on from a saved adapter; with `copy`, a frozen copy of it lies beside, named COPY."""
    from peft import PeftModel

    saved = read_json(folder / "adapter_config.json") or {}
    asked, there = (lora.r, lora.alpha), (saved.get("r"), saved.get("lora_alpha"))
    if asked != there:
        raise ConfigError(
            f"The adapter in {folder} has rank {there[0]} and alpha {there[1]}, but lora says rank {asked[0]} and alpha "
            f"{asked[1]}. Add lora.r={there[0]} lora.alpha={there[1]}."
        )
    try:
        with quiet_loading():
            peft: Any = PeftModel.from_pretrained(model, folder, is_trainable=True)
            if copy:
                peft.load_adapter(folder, adapter_name=COPY, is_trainable=False)
                peft.set_adapter("default")
    except (OSError, ValueError, RuntimeError, KeyError) as e:
        raise ModelError(f"The adapter in {folder} does not fit this model: {str(e).splitlines()[0][:200]}") from e
    _refuse_head(peft)
    return peft


def _refuse_head(peft: Any) -> None:
    """The lab applies the LM head itself and by its weight alone: an adapter on it would be passed over."""
    if hasattr(peft.get_base_model().get_output_embeddings(), "lora_A"):
        raise ConfigError("lora.target_modules names the LM head, which cannot carry an adapter here. Leave it out.")


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Trainable parameters and all parameters; a 4-bit weight counts as the values it stands for."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        total += math.prod(state.shape) if state is not None else parameter.numel()
    return trainable, total
