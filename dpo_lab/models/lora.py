"""The trained part: a LoRA adapter on the base, or all of its weights."""

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpo_lab.config.schema import Lora
from dpo_lab.models import targets
from dpo_lab.models.adapter_init import initialise
from dpo_lab.models.quiet import quiet_loading
from dpo_lab.preference.reference import COPY
from dpo_lab.runtime.errors import ConfigError, ModelError
from dpo_lab.runtime.files import read_json


def new_adapter(model: Any, lora: Lora, *, seed: int) -> Any:
    """A PEFT model with a fresh adapter that computes what the base does; A is drawn per seed and module name.

    So an adapter's start does not depend on what else is initialised, nor in which order.

    Raises:
        ConfigError: `lora.target_modules` or `lora.modules_to_save` do not fit the model.
    """
    from peft import LoraConfig, get_peft_model

    assert lora.r is not None
    assert lora.alpha is not None
    saved = targets.modules_to_save(model, lora.modules_to_save)
    wanted = targets.target_modules(model, lora.target_modules, saved)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        use_dora=lora.dora,
        use_rslora=lora.rslora,
        target_modules=wanted,
        modules_to_save=saved or None,
        ensure_weight_tying=not set(saved).isdisjoint(targets.tied_embedding(model)),
        task_type="CAUSAL_LM",
    )
    try:
        with quiet_loading():
            peft: Any = get_peft_model(model, config)
    except (ValueError, TypeError) as e:
        asked = f"lora.target_modules={lora.target_modules!r} lora.modules_to_save={lora.modules_to_save}"
        raise ConfigError(f"{asked} do not fit this model: {str(e).splitlines()[0][:200]}") from e
    _check_head(peft)
    _full_precision(peft)
    initialise(peft, lora, seed=seed)
    return peft


def continued_adapter(model: Any, folder: Path, lora: Lora, *, copy: bool) -> Any:
    """A PEFT model that goes on from a saved adapter; with `copy`, a frozen copy of it lies beside, named COPY.

    Dropout is `lora`'s; whatever else changes the computation must agree with the adapter.

    Raises:
        ConfigError: `lora` says otherwise than the adapter.
        ModelError: the adapter is not of this model, or no LoRA adapter.
    """
    from peft import PeftConfig, PeftModel

    _check_settings(model, folder, lora)
    layers = targets.targeted(model, lora.target_modules)
    layers -= {layer for layer in layers for one in lora.modules_to_save if f".{layer}".endswith(f".{one}")}
    try:
        with quiet_loading():
            config: Any = PeftConfig.from_pretrained(str(folder))
            config.lora_dropout = lora.dropout
            peft: Any = PeftModel.from_pretrained(model, folder, config=config, is_trainable=True)
            if copy:
                _add_copy(peft, folder)
    except (OSError, ValueError, RuntimeError, KeyError) as e:
        raise ModelError(f"The adapter in {folder} does not fit this model: {str(e).splitlines()[0][:200]}") from e
    _check_head(peft)
    if {name for name, layer in peft.get_base_model().named_modules() if hasattr(layer, "lora_A")} != layers:
        there = config.target_modules
        words = there if isinstance(there, str) else f"[{','.join(sorted(there))}]"
        raise ConfigError(
            f"The adapter in {folder} is on other layers than lora.target_modules={lora.target_modules} means. Add "
            f"lora.target_modules={words}."
        )
    _full_precision(peft)
    return peft


def _add_copy(peft: Any, folder: Path) -> None:
    with warnings.catch_warnings():
        # PEFT ties embedding and head for the first adapter only, and says so for the second.
        warnings.filterwarnings("ignore", message=".*no tied modules were found.*")
        peft.load_adapter(folder, adapter_name=COPY, is_trainable=False)
    base = peft.get_base_model()
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    if peft.peft_config["default"].ensure_weight_tying and COPY not in head.modules_to_save:
        head.update(COPY, tied_module=embedding.modules_to_save[COPY])
    peft.set_adapter("default")


def _check_settings(model: Any, folder: Path, lora: Lora) -> None:
    """What `lora` says must be what the saved adapter is; the error has the words to add."""
    saved = read_json(folder / "adapter_config.json") or {}
    if saved.get("peft_type") != "LORA":
        raise ModelError(
            f"The adapter in {folder} is of the kind {saved.get('peft_type')}; only LORA can be continued."
        )
    there = {
        "r": saved.get("r"),
        "alpha": saved.get("lora_alpha"),
        "dora": bool(saved.get("use_dora")),
        "rslora": bool(saved.get("use_rslora")),
        "init": "default",
        "modules_to_save": saved.get("modules_to_save") or [],
    }
    asked = {key: getattr(lora, key) for key in there}
    if asked["modules_to_save"]:
        asked["modules_to_save"] = targets.modules_to_save(model, lora.modules_to_save)
    wrong = [key for key in there if key == "modules_to_save" and set(asked[key]) != set(there[key])]
    wrong += [key for key in there if key != "modules_to_save" and asked[key] != there[key]]
    if wrong:
        says = ", ".join(f"{key}={_word(asked[key])}" for key in wrong)
        words = " ".join(f"lora.{key}={_word(there[key])}" for key in wrong)
        raise ConfigError(f"The adapter in {folder} was made otherwise than lora says ({says}). Add {words}.")


def _word(value: Any) -> str:
    """A value as the command line takes it, with all its digits."""
    if isinstance(value, list):
        return f"[{','.join(value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _check_head(peft: Any) -> None:
    """The lab applies the LM head itself and by its weight alone: an adapter on it would be passed over."""
    base = peft.get_base_model()
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    if hasattr(head, "lora_A"):
        raise ConfigError("lora.target_modules names the LM head, which cannot carry an adapter here. Leave it out.")
    if hasattr(embedding, "lora_A") and embedding.weight is head.weight:
        raise ConfigError(
            "lora.target_modules names the input embedding, whose weight is the LM head's too: with an adapter on one of "
            "them the two would part. Leave it out, or train both as one with lora.modules_to_save=[embed_tokens]."
        )


def _full_precision(peft: Any) -> None:
    """What is trained is kept in fp32 at least: small updates are lost in 16 bits. PEFT sees to A and B."""
    for name, parameter in peft.named_parameters():
        if "modules_to_save." in name and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Trainable parameters and all of the policy's; a 4-bit weight counts as the values it stands for."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = 0
    for name, parameter in model.named_parameters():
        if COPY in name.split("."):  # the reference's
            continue
        state = getattr(parameter, "quant_state", None)
        total += math.prod(state.shape) if state is not None else parameter.numel()
    return trainable, total


def attached_adapter(model: Any, folder: Path) -> Any:
    """A model with a saved adapter, frozen, whatever its rank and kind."""
    from peft import PeftModel

    try:
        with quiet_loading():
            peft: Any = PeftModel.from_pretrained(model, folder, is_trainable=False)
    except (OSError, ValueError, RuntimeError, KeyError) as e:
        raise ModelError(f"The adapter in {folder} does not fit this model: {str(e).splitlines()[0][:200]}") from e
    _check_head(peft)
    return peft.eval()
