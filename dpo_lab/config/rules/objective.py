"""Rules of loss and optim: what their targets take."""

from collections.abc import Collection, Iterable, Mapping

from dpo_lab.config.names import did_you_mean
from dpo_lab.config.schema import Config
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
