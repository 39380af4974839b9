"""Rotary position embeddings beyond the length that a model was made for.

`linear` divides all positions by the factor (arXiv:2306.15595); `dynamic` raises the base for sequences beyond the
native length and leaves the others alone; `yarn` interpolates slow frequencies and sharpens attention
(arXiv:2309.00071); `llama3` interpolates slow frequencies (arXiv:2407.21783).
"""

import copy
import math
import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dpo_lab.config.schema import Rope
from dpo_lab.runtime.errors import ConfigError, ModelError

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}  # Llama 3.1's, on the scale of rotations per native length


@dataclass(frozen=True)
class Scaling:
    """What `model.rope` comes to for a model.

    Attributes:
        type: linear, dynamic, yarn or llama3.
        factor: of all that is applied, a scaling of the model's own included.
        native: tokens that the model reaches without it.
        original: tokens that it was first trained on, fewer where it came with a scaling of its own.
        reach: tokens that it reaches with it.
    """

    type: str
    factor: float
    native: int
    original: int
    reach: int

    def facts(self) -> dict[str, Any]:
        """For facts.json and for the reference's identity."""
        return {"type": self.type, "factor": self.factor, "native_length": self.native, "length": self.reach}


def resolve(rope: Rope, config: Any, max_length: int | None) -> Scaling | None:
    """The scaling for a model of this transformers configuration, or None where none is asked for.

    Args:
        rope: type and factor.
        config: as it lies in the model's folder.
        max_length: tokens of the longest sequence; a factor of null is worked out from it.

    Raises:
        ModelError: the model has no rotary embeddings, or ones that the type does not go with.
        ConfigError: the scaling would change nothing.
    """
    if rope.type == "none":
        return None
    asked, native = f"model.rope.type={rope.type}", reach(config)
    own = _own(config)
    if not own or not native:
        raise ModelError(
            f"{asked}: the model ({config.model_type}) has no rotary position embeddings, so there is nothing to scale. "
            "Use model.rope.type=none."
        )
    kind = own.get("rope_type", "default")
    if kind not in ("default", rope.type):
        raise ModelError(
            f"{asked}: the model was trained with a scaling of its own ({kind}), which another would replace at every "
            f"position. Use model.rope.type=none: it reaches {native} tokens."
        )
    fits = max_length is not None and max_length <= native
    if fits and (rope.factor is None or rope.type == "dynamic"):
        raise ConfigError(
            f"{asked} has no effect: the model reaches {native} tokens and data.max_length={max_length}. Drop it, or "
            f"raise data.max_length{'' if rope.type == 'dynamic' else ', or give model.rope.factor'}."
        )
    if rope.factor is None and max_length is None:
        raise ConfigError(f"{asked} needs model.rope.factor where there is no data.max_length.")
    factor = float(rope.factor or math.ceil((max_length or native) / native))
    before = float(own["factor"]) if kind == rope.type else 1.0
    original = own.get("original_max_position_embeddings") or native
    return Scaling(rope.type, before * factor, native, original, round(native * factor))


def reach(config: Any) -> int | None:
    """Tokens of a sequence that a model of this transformers configuration was made for; None where it does not say.

    Under dynamic scaling these are more than its `max_position_embeddings`, from which on the frequencies change.
    """
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    own = _own(config)
    return round(limit * float(own.get("factor") or 1.0)) if own.get("rope_type") == "dynamic" else limit


def scaled_config(config: Any, scaling: Scaling) -> Any:
    """A copy of a transformers configuration with the scaling in it, as it is saved with a fully trained model."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    new = _scaled(text.rope_parameters)
    new.pop("attention_factor", None)  # of the factor before
    new |= {"rope_type": scaling.type, "factor": scaling.factor}
    if scaling.type in ("yarn", "llama3"):
        new["original_max_position_embeddings"] = scaling.original
    if scaling.type == "llama3":
        new = LLAMA3 | new
    if "full_attention" in text.rope_parameters:
        text.rope_parameters = text.rope_parameters | {"full_attention": new}
    else:
        text.rope_parameters = new
    if scaling.type != "dynamic":  # there transformers takes it for the length from which frequencies change
        text.max_position_embeddings = scaling.reach
    return config


def each_row_by_its_own_length(model: nn.Module) -> None:
    """Make dynamic scaling a function of the sequence alone.

    transformers takes the longest sequence of a batch, and remembers the longest so far: log-probs would depend on
    batch mates and on what was computed before.
    """
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if "dynamic" in (kinds.values() if isinstance(kinds, dict) else [kinds]):
            module.forward = types.MethodType(_forward_by_row, module)


@torch.no_grad()
def _forward_by_row(module: Any, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Cosine and sine (B, T, D) for positions (B, T), each row with the frequencies of its largest position."""
    forward, native = type(module).forward, module.original_max_seq_len
    lengths = (position_ids.amax(-1) + 1).clamp_min(native)  # (B,)
    parts: dict[int, tuple[Tensor, Tensor]] = {}
    for length in lengths.unique().tolist():
        _forget(module)
        parts[length] = forward(module, x, position_ids[lengths == length], *args, **kwargs)
    _forget(module)
    if len(parts) == 1:
        return next(iter(parts.values()))
    cos, sin = (
        torch.empty(*position_ids.shape, part.shape[-1], dtype=x.dtype, device=x.device) for part in parts[length]
    )
    for length, (some_cos, some_sin) in parts.items():
        cos[lengths == length], sin[lengths == length] = some_cos, some_sin
    return cos, sin


def _forget(module: Any) -> None:
    """Back to the frequencies of the native length."""
    for name, buffer in [*module.named_buffers(recurse=False)]:
        if name.endswith("original_inv_freq"):
            module.register_buffer(name.replace("original_", ""), buffer, persistent=False)
    for name in [n for n in vars(module) if n.endswith("max_seq_len_cached")]:
        setattr(module, name, module.original_max_seq_len)


def _own(config: Any) -> dict[str, Any]:
    """What a configuration says of a scaling; {} where it knows of no rotary embeddings."""
    return _scaled(getattr(config.get_text_config(), "rope_parameters", None) or {})


def _scaled(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters that a scaling changes: those of full attention, where a model has others for its windows."""
    return dict(parameters.get("full_attention") or {} if "full_attention" in parameters else parameters)
