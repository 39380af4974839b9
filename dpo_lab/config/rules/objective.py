"""Rules of optim, and what any target takes."""

from collections.abc import Collection, Iterable, Mapping

from dpo_lab.config.names import did_you_mean
from dpo_lab.config.rules import machine
from dpo_lab.config.schema import Config
from dpo_lab.config.target import Signature, TargetError, signature


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
    yield from keywords("optim", o.target, hyper, takes.names[1:], required, takes)


def optimizer_fits(config: Config) -> Iterable[str]:
    """What the lab's optimizers need of the rest."""
    target, t = config.optim.target, config.trainer
    name = target.rpartition(".")[2]
    if name.startswith("GaLore"):
        if not machine.installed("galore_torch"):
            yield f'optim._target_={target} needs a package that is not installed: pip install "dpo_lab[galore]".'
        if config.lora.r is not None:
            yield (
                f"optim._target_={target} is for full fine-tuning, but lora.r={config.lora.r}: an adapter's gradients are of "
                "low rank already. Use lora=none, or optim=adamw."
            )
    if name.startswith("Paged") and (t.accelerator == "cpu" or not machine.may_have_gpu()):
        yield f"optim._target_={target} needs a GPU: on a CPU nothing is paged. Use optim=adamw8bit."
    if target.startswith("bitsandbytes.") and t.precision == "64":
        yield f"optim._target_={target} keeps its state in 32 bits or less, but trainer.precision=64. Use optim=adamw."


def keywords(
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
