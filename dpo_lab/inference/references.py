"""The reference of a run: which model it is, in which dtype and where, and how its log-probs are had."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dpo_lab.config.schema import Config, Quant
from dpo_lab.inference.passes import choose_passes
from dpo_lab.inference.setup import build_objective
from dpo_lab.inference.start import Start
from dpo_lab.models.load import load_model, rope_facts
from dpo_lab.models.lora import attached_adapter
from dpo_lab.models.precision import Precision
from dpo_lab.models.tokenizer import load_tokenizer
from dpo_lab.preference.forward import Forward
from dpo_lab.preference.ref_cache import RefCache
from dpo_lab.preference.reference import (
    CachedReference,
    LiveReference,
    ModelContext,
    NoReference,
    Reference,
    adapter_copy,
    adapter_off,
    frozen_model,
)
from dpo_lab.runtime.errors import ModelError
from dpo_lab.runtime.files import digest

CACHE_VERSION = "1"
NAMES = {"float32": "32", "float64": "64", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class Source:
    """The model whose log-probs are the reference's."""

    start: Start
    quant: Quant
    precision: Precision
    device: torch.device
    is_start: bool  # it is the policy before its first update
    apart: bool  # it cannot be had from the policy's own model

    @property
    def forward(self) -> Forward:
        """How its log-probs are computed."""
        return Forward(self.precision.autocast)

    @property
    def what(self) -> str:
        """In words."""
        bits = f", {self.quant.bits}-bit" if self.quant.bits and not self.is_start else ""
        return f"{self.start.what}{bits}"


def reference_mode(config: Config) -> str:
    """The mode that `auto` comes to: the pairs are finite, so their log-probs can be kept."""
    if config.reference.mode != "auto":
        return config.reference.mode
    r = config.reference
    asked = r.path is not None or (r.quant, r.dtype) != ("same", "same")
    return "cached" if asked or build_objective(config).needs_reference else "none"


def reference_source(config: Config, start: Start, named: Start, precision: Precision, device: torch.device) -> Source:
    """What `reference.path`, quant, dtype and device come to.

    Args:
        config: of the run.
        start: what the policy starts from.
        named: what `reference.path` names; `start` itself where it is null.
        precision: the policy's.
        device: the policy's.
    """
    r = config.reference
    quant = config.quant
    if r.quant != "same":
        bits = {"none": None, "4bit": 4, "8bit": 8}[r.quant]
        quant = quant.model_copy(update={"bits": bits})
    own = precision
    if r.dtype != "same":
        dtype = getattr(torch, r.dtype)
        own = Precision(NAMES[r.dtype], dtype, dtype)
    elif named is not start and config.lora.r is None and precision.autocast is not None:
        own = Precision(precision.name, precision.autocast, precision.autocast)  # fp32 weights are for training
    where = device if r.device == "same" else torch.device(r.device)
    is_start = named.identity == start.identity and quant == config.quant
    own_model = named is not start or quant != config.quant or own != precision or where != device
    return Source(named, quant, own, where, is_start, own_model)


def build_reference(
    config: Config, source: Source, policy: nn.Module, cache: RefCache
) -> tuple[Reference, ModelContext]:
    """The reference for training, and a model of it that is valid until the first update."""
    mode = reference_mode(config)
    if mode == "none":
        return NoReference(), lambda: nullcontext(policy.eval())
    if mode == "frozen":
        context = frozen_model(_load(config, source))
        return LiveReference(mode, context, source.forward, source.device), context
    if source.apart:
        return CachedReference(cache, None), _loaded_for_a_while(config, source)
    if config.lora.r is None:
        return CachedReference(cache, None), lambda: nullcontext(policy.eval())
    context = adapter_off(policy) if source.start.adapter is None else adapter_copy(policy)
    if mode == "cached":
        return CachedReference(cache, context), context
    return LiveReference(mode, context, source.forward, source.device), context


def reference_identity(config: Config, source: Source) -> tuple[str, dict[str, Any]]:
    """What changes the reference's log-probs, hashed and in words; loss, lr, rank and seed do not."""
    quant, precision = source.quant, source.precision
    facts = {
        "version": CACHE_VERSION,
        "start": source.start.identity,
        "what": source.what,
        "model": source.start.located.name,
        "quant": quant.model_dump(exclude_defaults=True),
        "compute": precision.name,
        "weights_dtype": str(precision.weights),
        "quant_compute": str(precision.quant_compute) if quant.bits == 4 else None,
        "rope": rope_facts(source.start.located, config.model, config.data.max_length),
        "int8_on": source.device.type if quant.bits == 8 else None,  # bitsandbytes computes otherwise on a CPU
    }
    hashed = {k: v for k, v in facts.items() if k not in ("what", "model") and (k, v) != ("rope", None)}
    return digest(repr(sorted(hashed.items()))), facts


def check_vocabulary(config: Config, source: Source, tokenizer: Any) -> None:
    """Log-probs of the same token ids are compared, so another model must have the policy's tokenizer."""
    if source.is_start:
        return
    theirs = load_tokenizer(source.start.located, config.model)
    if theirs.get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            f"reference.path={config.reference.path} has another tokenizer than the policy, so its log-probs cannot be "
            "compared token by token. Choose a reference of the same model family."
        )


def _load(config: Config, source: Source) -> Any:
    model = load_model(
        source.start.located,
        config.model,
        source.quant,
        source.precision,
        source.device,
        max_length=config.data.max_length,
    )
    model = model if source.start.adapter is None else attached_adapter(model, source.start.adapter)
    choose_passes(config, model, source.precision.autocast)
    return model


def _loaded_for_a_while(config: Config, source: Source) -> ModelContext:
    """A model that is in memory while the context is open."""

    @contextmanager
    def opened() -> Iterator[nn.Module]:
        model = _load(config, source)
        try:
            yield model.requires_grad_(False).eval()
        finally:
            del model
            gc.collect()

    return opened
