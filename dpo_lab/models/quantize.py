"""conf/quant -> how transformers and bitsandbytes hold the base's weights."""

import importlib.util
from typing import Any

from dpo_lab.config.schema import Quant
from dpo_lab.models.precision import Precision
from dpo_lab.runtime.errors import ConfigError


def quantization_config(quant: Quant, precision: Precision) -> Any:
    """A BitsAndBytesConfig, or None for weights as they are."""
    if quant.bits is None:
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(f"quant={quant.bits}bit needs bitsandbytes: pip install bitsandbytes, or use quant=none.")
    from transformers import BitsAndBytesConfig

    if quant.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=quant.threshold)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant.type,
        bnb_4bit_use_double_quant=quant.double_quant,
        bnb_4bit_compute_dtype=precision.quant_compute,
    )
