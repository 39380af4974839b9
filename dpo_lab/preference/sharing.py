"""Which models can compute a pack as it lies, and making them do so."""

import math
from typing import Any

import torch
from torch import nn

from dpo_lab.preference.attention import NAME, register
from dpo_lab.preference.forward import causal_lm, padded_hidden, rope_type, shared_hidden
from dpo_lab.preference.layout import Layout

KINDS = {"full_attention", "sliding_attention"}


def share(model: nn.Module, *, max_length: int, compute: torch.dtype | None = None) -> str | None:
    """Make a transformers model take layouts as they are; None, or why it can't and is left as it was.

    What its configuration does not tell is found out by a small pack that is computed both ways.

    Args:
        model: in eval mode.
        max_length: tokens of the longest sequence, prompt and answer: a sliding window beyond it changes nothing.
        compute: dtype of the matrix products under autocast; None computes in the weights' own.
    """
    lm = causal_lm(model)
    reason = obstacle(lm, max_length)
    if reason is not None:
        return reason
    before = lm.config._attn_implementation
    register()
    _set(lm, NAME)
    if (reason := _differs(model, compute)) is not None:
        _set(lm, before)
    return reason


def obstacle(lm: Any, max_length: int) -> str | None:
    """What a model's configuration says against it."""
    config = lm.config.get_text_config()
    if lm.config._attn_implementation not in (None, "sdpa", "flash_attention_2", NAME):
        return f"model.attn={lm.config._attn_implementation} computes attention by itself"
    if (kind := rope_type(lm.config)) in ("dynamic", "longrope"):
        return f"{kind} rotary scaling depends on the length of each sequence"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "its attention scores are capped"
    if any(name.endswith("sinks") for name, _ in lm.named_parameters()):
        return "its attention has sinks"
    if any(getattr(config, name, 0.0) for name in ("attention_dropout", "attn_pdrop")):
        return "its attention has dropout"
    kinds = set(getattr(config, "layer_types", None) or ()) - KINDS
    if kinds:
        return f"it has layers of another kind ({', '.join(sorted(kinds))})"
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    if window is not None and slides and getattr(config, "use_sliding_window", True) and window < max_length:
        return f"its attention slides over {window} tokens, and data.max_length={max_length}"
    return None


@torch.no_grad()
def _differs(model: nn.Module, compute: torch.dtype | None) -> str | None:
    """Why the two ways don't give the same hidden states, if they don't."""
    lm = causal_lm(model)
    device = lm.get_input_embeddings().weight.device
    layout = Layout(torch.arange(1, 25, device=device), ((6, 5, 3), (3, 1, 6)))
    with torch.autocast(device.type, dtype=compute, enabled=compute is not None):
        try:
            shared = shared_hidden(model, layout).float()
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as e:
            return f"its layers do not take a layout ({type(e).__name__})"
        padded = padded_hidden(model, layout).float()
    gap = ((shared - padded).norm() / padded.norm()).item()
    dtype = compute or lm.dtype
    coarse = dtype in (torch.float16, torch.bfloat16) or hasattr(lm, "is_loaded_in_8bit")
    limit = 5e-2 if coarse else 1e-4
    if not math.isfinite(gap):
        return "its layers ignore the layout"
    return None if gap <= limit else f"its hidden states differ by {gap:.0e} when computed that way"


def _set(lm: Any, name: str | None) -> None:
    """The attention implementation that the model's layers look up."""
    for config in {id(m.config): m.config for m in lm.modules() if hasattr(m, "config")}.values():
        config._attn_implementation_internal = name
