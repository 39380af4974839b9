"""A folder -> tokenizer and base model, with dtype, attention and quantisation as asked."""

import importlib.util
from typing import Any

import torch

from dpo_lab.config.schema import Model, Quant
from dpo_lab.models import rope
from dpo_lab.models.locate import Located
from dpo_lab.models.precision import Precision
from dpo_lab.models.quantize import quantization_config
from dpo_lab.models.quiet import quiet_loading
from dpo_lab.preference.forward import depends_on_length
from dpo_lab.preference.logps import head_of
from dpo_lab.runtime.errors import ModelError


def load_model(
    located: Located,
    model: Model,
    quant: Quant,
    precision: Precision,
    device: torch.device,
    *,
    max_length: int | None = None,
) -> Any:
    """The causal language model in eval mode on `device`, nothing of it trainable yet.

    `max_length` is that of the longest sequence in tokens: with `model.rope` the model is made to reach it.
    """
    from transformers import AutoModelForCausalLM

    try:
        config = model_config(located, model)
        scaling = rope.resolve(model.rope, config, max_length)
        with quiet_loading():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                located.path,
                config=rope.scaled_config(config, scaling) if scaling else config,
                dtype=precision.weights,
                attn_implementation=attention(model, precision, device, config),
                quantization_config=quantization_config(quant, precision),
                device_map={"": device} if quant.bits or device.type != "cpu" else None,
                trust_remote_code=model.trust_remote_code,
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as e:
        hint = " Use model.attn=auto." if model.attn != "auto" and "attention" in str(e).lower() else ""
        raise ModelError(f"The model in {located.path} could not be loaded: {_reason(e)}.{hint}") from e
    loaded.requires_grad_(False).eval()
    loaded.config.use_cache = False
    if model.gradient_checkpointing:
        loaded.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if quant.bits and device.type == "cpu":
        _one_path_on_cpu(loaded)
    _check_head(loaded, precision)
    if depends_on_length(loaded.config):
        rope.each_row_by_its_own_length(loaded)
    return loaded


def model_config(located: Located, model: Model) -> Any:
    """The transformers configuration of a model folder."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(located.path, trust_remote_code=model.trust_remote_code)


def rope_facts(located: Located, model: Model, max_length: int | None) -> dict[str, Any] | None:
    """Type, factor and native length of `model.rope` for a model folder; None where it is off.

    Raises:
        ConfigError, ModelError: as `load_model` would.
    """
    if model.rope.type == "none":
        return None
    scaling = rope.resolve(model.rope, model_config(located, model), max_length)
    return scaling.facts() if scaling else None


def attention(model: Model, precision: Precision, device: torch.device, config: Any) -> str | None:
    """The implementation to ask transformers for; None leaves the choice to it (SDPA where the model has it).

    Raises:
        ModelError: it would leave out what the model does to its attention scores.
    """
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    if capped and model.attn == "sdpa":  # some transformers releases take it and drop the cap
        raise ModelError("model.attn=sdpa leaves out the soft cap of this model's attention. Use model.attn=auto.")
    if model.attn != "auto":
        return model.attn
    half = precision.name in ("bf16", "fp16")
    has_flash = device.type == "cuda" and half and importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if has_flash else "eager" if capped else None


def _one_path_on_cpu(model: Any) -> None:
    """Make quantised layers on a CPU compute alike in training and in evaluation.

    bitsandbytes multiplies 8-bit weights in floating point in training mode and in int8 otherwise, a few tenths of a
    nat per token apart; and where the CPU has AVX512-BF16 it repacks 4-bit weights in place at the first evaluation and
    multiplies them in bf16 from then on. Either would be taken for a difference between policy and reference.
    """
    for module in model.modules():
        kind = type(module).__name__
        if kind == "Linear8bitLt":
            module.train()
            module.train = lambda mode=True, module=module: module
        elif kind == "Linear4bit":
            module.support_avx512bf16_for_cpu = False


@torch.no_grad()
def _check_head(model: Any, precision: Precision) -> None:
    """The lab applies the LM head itself, to completion tokens only: it must give the model's own logits."""
    if not hasattr(model, "get_decoder") or model.get_output_embeddings() is None:
        raise ModelError(f"{type(model).__name__} has no decoder and LM head that can be run apart.")
    ids = torch.arange(8, device=model.device)[None] % model.config.vocab_size
    with torch.autocast(model.device.type, dtype=precision.autocast, enabled=precision.autocast is not None):
        own = model(input_ids=ids, use_cache=False).logits[0].float()
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
    ours = head_of(model).logits(hidden).float()
    error = (own - ours).abs().max() / own.abs().max().clamp_min(1e-6)
    if not error < 5e-2:
        raise ModelError(
            f"{type(model).__name__} scales its logits in a way that is not known here (relative difference "
            f"{error:.1e}), so log-probs would be wrong. Please report the model."
        )


def _reason(e: BaseException) -> str:
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    return (lines[0] if lines else type(e).__name__)[:300].rstrip(".")
