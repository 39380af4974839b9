"""Rules of reference, and of the adapter that a run goes on from."""

from collections.abc import Iterable

from dpo_lab.config import inputs
from dpo_lab.config.rules import machine
from dpo_lab.config.rules.loss import needs_reference
from dpo_lab.config.schema import Config


def reference(config: Config) -> Iterable[str]:
    """A way to have the reference that gives this reference."""
    mode, lora = config.reference.mode, config.lora
    if mode in ("adapter_off", "adapter_copy") and lora.r is None:
        yield (
            f"reference.mode={mode} needs a LoRA policy, but lora.r=null. "
            "Use reference.mode=frozen or cached, or add lora=r8."
        )
    elif mode == "adapter_off" and lora.adapter is not None:
        yield (
            "reference.mode=adapter_off cannot be used with lora.adapter: with the adapter off the reference would be "
            "the base model, not the adapter that is continued. Use reference.mode=adapter_copy or cached."
        )
    elif mode == "adapter_copy" and lora.adapter is None:
        yield (
            "reference.mode=adapter_copy needs lora.adapter: without it there is no adapter to copy. "
            "Use reference.mode=adapter_off, which is the same reference."
        )
    if mode == "none" and needs_reference(config.loss):
        name = config.loss.target.rpartition(".")[2]
        yield (
            f"reference.mode=none cannot be used with {name}, which compares the policy with a reference. "
            "Use reference=auto, or a loss without one: loss=simpo, orpo or sft."
        )


def source(config: Config) -> Iterable[str]:
    """A reference of its own is a model of its own."""
    r = config.reference
    own = [k for k, v in {"path": r.path, "quant": r.quant, "dtype": r.dtype}.items() if v not in (None, "same")]
    asked = [*own, *(["device"] if r.device != "same" else [])]
    for key in asked:
        named = f"reference.{key}={getattr(r, key)}"
        if r.mode == "none":
            yield f"{named} has no effect with reference.mode=none. Drop one of them."
        elif r.mode in ("adapter_off", "adapter_copy"):
            yield f"{named} needs a model of its own, but reference.mode={r.mode} takes the policy's. Use reference.mode=frozen or cached."
        elif key == "device" and r.mode != "frozen" and not own:
            yield f"{named} has no effect with reference.mode={r.mode}, which takes the policy's model. Add reference.mode=frozen."
    if r.path:
        yield from inputs.reference_model(r.path)
    bits = config.quant.bits if r.quant == "same" else {"4bit": 4, "8bit": 8}.get(r.quant)
    wide = r.dtype == "float64" or (r.dtype == "same" and config.trainer.precision == "64")
    if bits is not None and wide and r.mode != "none" and (own or config.quant.bits is None):
        yield f"a {bits}-bit reference cannot compute in float64. Use reference.dtype=float32, or reference.quant=none."
    if r.quant in ("4bit", "8bit") and not machine.installed("bitsandbytes"):
        yield f"reference.quant={r.quant} needs the package bitsandbytes: pip install bitsandbytes. Or use quant=none."
    if r.device.startswith("cuda") and not machine.may_have_gpu():
        yield f"reference.device={r.device}, but this machine has no GPU. Use reference.device=same or cpu."


def start(config: Config) -> Iterable[str]:
    """An adapter to go on from must be there, and be one."""
    lora = config.lora
    if not lora.adapter:
        return
    yield from inputs.adapter_folder("lora.adapter", lora.adapter)
    if lora.r is None:
        yield f"lora.adapter={lora.adapter} needs LoRA, but lora.r=null. Choose the lora option that it was trained with."
