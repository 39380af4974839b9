"""The trained part: a LoRA adapter on the base, or all of its weights."""

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpo_lab.config.rules.after import unsupported
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
    _check_settings(model, folder, lora)
    layers = targets.targeted(model, lora.target_modules)
    layers -= {layer for layer in layers for one in lora.modules_to_save if f".{layer}".endswith(f".{one}")}
    peft = attach(model, folder, "default", trainable=True, dropout=lora.dropout)
    if copy:
        attach(peft, folder, COPY)
        peft.set_adapter("default")
    if {name for name, layer in peft.get_base_model().named_modules() if hasattr(layer, "lora_A")} != layers:
        there = peft.peft_config["default"].target_modules
        words = there if isinstance(there, str) else f"[{','.join(sorted(there))}]"
        raise ConfigError(
            f"The adapter in {folder} is on other layers than lora.target_modules={lora.target_modules} means. Add "
            f"lora.target_modules={words}."
        )
    _full_precision(peft)
    return peft


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


def _check_head(peft: Any, folder: Path | None = None) -> None:
    """The lab applies the LM head itself and by its weight alone: an adapter on it would be passed over.

    Args:
        peft: with its adapter.
        folder: where the adapter was saved; None for a fresh one.
    """
    base = peft.get_base_model()
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    names = f"The adapter in {folder} is on" if folder else "lora.target_modules names"
    advice = "Merge it into its model with PEFT, and give that as model.path." if folder else "Leave it out."
    if hasattr(head, "lora_A"):
        raise ConfigError(f"{names} the LM head, which cannot carry an adapter here. {advice}")
    if hasattr(embedding, "lora_A") and embedding.weight is head.weight:
        if not folder:
            advice = "Leave it out, or train both as one with lora.modules_to_save=[embed_tokens]."
        raise ConfigError(
            f"{names} the input embedding, whose weight is the LM head's too: with an adapter on one of them the two "
            f"would part. {advice}"
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
    """A model with a saved adapter, frozen, whatever its rank and kind.

    Raises:
        ModelError, ConfigError: see `attach`.
    """
    return attach(model, folder, "default").eval()


def attach(model: Any, folder: Path, name: str, *, trainable: bool = False, dropout: float | None = None) -> Any:
    """A PEFT model with one more saved adapter, all of whose weights are used.

    Args:
        model: the base, or a PEFT model, which is changed.
        folder: of the adapter.
        name: what PEFT calls it.
        trainable: otherwise it is frozen.
        dropout: None leaves the adapter's own.

    Raises:
        ModelError: the adapter is not of this model, or of a kind that the lab does not compute.
        ConfigError: it is on the LM head.
    """
    from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftConfig, PeftModel
    from safetensors import SafetensorError

    if why := unsupported(folder):
        raise ModelError(f"The adapter in {folder} {why}")
    first = not hasattr(model, "peft_config")
    base = model if first else model.get_base_model()
    try:
        with quiet_loading(), warnings.catch_warnings():
            # PEFT ties embedding and head for the first adapter only, and says so for the others.
            warnings.filterwarnings("ignore", message=".*no tied modules were found.*")
            config: Any = PeftConfig.from_pretrained(str(folder))
            config.inference_mode = not trainable
            config.lora_dropout = config.lora_dropout if dropout is None else dropout
            if first:
                kind: Any = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
                model = kind(model, config, name)
            else:
                model.add_adapter(name, config)
            _tie(base, name, wanted=config.ensure_weight_tying)  # before the weights: the file has both modules
            names = getattr(base, "_checkpoint_conversion_mapping", {})
            loaded = model.load_adapter(folder, name, is_trainable=trainable, key_mapping=names)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
        raise ModelError(
            f"The adapter in {folder} was made for {_made_for(folder)} and does not fit {base.config.name_or_path}: {reason}"
        ) from e
    _check_whole(loaded, base, folder, name)
    _check_head(model, folder)
    return model


def _tie(base: Any, name: str, *, wanted: bool) -> None:
    """Where an adapter trains embedding and LM head as one, its head is its embedding."""
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    trained = getattr(embedding, "modules_to_save", {})
    original = [getattr(module, "original_module", module) for module in (embedding, head)]
    if not wanted or name not in trained or original[0].weight is not original[1].weight:
        return
    if not hasattr(head, "modules_to_save"):  # of the adapters before, one had parted the two
        from peft.utils import ModulesToSaveWrapper

        head = ModulesToSaveWrapper(head, name, tied_module=trained[name])
        head.set_adapter([])
        base.set_output_embeddings(head)
    elif name not in head.modules_to_save:
        head.update(name, tied_module=trained[name])


def _check_whole(loaded: Any, base: Any, folder: Path, name: str) -> None:
    """Weights that the file lacks, or that found no place, are of another model: half an adapter is none."""
    lacking = [key for key in loaded.missing_keys if name in key.split(".")]
    left = [key for key in loaded.unexpected_keys if "lora_" in key or "trainable_tokens" in key]
    for keys, what in ((lacking, "has no weights for"), (left, "has weights for layers that are not there:")):
        if keys:
            raise ModelError(
                f"The adapter in {folder} was made for {_made_for(folder)} and does not fit {base.config.name_or_path}: it "
                f"{what} {keys[0]}{f' and {len(keys) - 1} more' if keys[1:] else ''}. Give the model that it was made for."
            )


def _made_for(folder: Path) -> str:
    saved = read_json(folder / "adapter_config.json")
    return (saved.get("base_model_name_or_path") if isinstance(saved, dict) else None) or "another model"
